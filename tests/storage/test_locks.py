"""The locks of an experiment's folder: claims of launches, presence of processes."""

import errno
import multiprocessing
import os
import signal
import threading
import time

import portalocker
import pytest
from support import PATIENCE, make_config
from support_storage import one_line

from steve.storage import locks
from steve.storage.folders import Folders
from steve.storage.locks import claimed, in_use, present
from steve.storage.rewind import put_aside
from steve.util import UserError

SPAWN = multiprocessing.get_context("spawn")


def hold(folders, how, held):
    """Another process: claims the folder, or is present, until it is killed."""
    with {"claimed": claimed, "present": present}[how](folders):
        held.set()
        time.sleep(PATIENCE)


class Holder:
    """A process that holds a folder."""

    def __init__(self, folders, how):
        held = SPAWN.Event()
        self.process = SPAWN.Process(
            target=hold, args=(folders, how, held), daemon=True
        )
        self.process.start()
        assert held.wait(PATIENCE)

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(PATIENCE)
        assert self.process.exitcode == -signal.SIGKILL


def claim_error(folders):
    with pytest.raises(UserError) as caught, claimed(folders):
        pass
    return one_line(caught)


def test_a_second_claim_is_refused_until_the_first_has_ended(folders):
    with claimed(folders):
        message = claim_error(folders)
        assert str(folders.root) in message
        assert "--name" in message
    with claimed(folders):
        pass


def test_a_folder_is_in_use_as_long_as_a_launch_has_it(folders):
    assert not in_use(folders)
    with claimed(folders):
        assert in_use(folders)
    assert not in_use(folders)


def test_a_claim_outwaits_one_who_only_asks(folders, monkeypatch):
    folders.lock("run").parent.mkdir(parents=True, exist_ok=True)
    folders.lock("run").touch()
    shared = portalocker.LOCK_SH | portalocker.LOCK_NB
    asker = portalocker.Lock(folders.lock("run"), "r", timeout=0, flags=shared)
    asker.acquire()
    monkeypatch.setattr(time, "sleep", lambda seconds: asker.release())
    with claimed(folders):
        assert in_use(folders)


def test_another_experiment_may_be_claimed_meanwhile(config, folders):
    with claimed(folders), claimed(Folders.of(config, "second")):
        pass


def test_a_failure_gives_the_claim_back(folders):
    with pytest.raises(RuntimeError), claimed(folders):
        raise RuntimeError
    with claimed(folders):
        pass


def test_a_claim_holds_between_processes_and_is_free_once_its_holder_is_killed(folders):
    holder = Holder(folders, "claimed")
    assert "in use" in claim_error(folders)
    holder.kill()
    begun = time.monotonic()
    with claimed(folders):
        assert time.monotonic() - begun < 1


def test_a_claim_outlasts_the_renaming_of_its_folder(folders):
    with claimed(folders):
        folders.root.mkdir()
        put_aside(folders)
        assert "in use" in claim_error(folders)


def test_children_of_a_killed_launch_hold_the_next_one_back_until_they_are_gone(
    folders, monkeypatch
):
    folders.root.parent.mkdir(parents=True)
    children = [Holder(folders, "present") for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(locks, "CHILDREN_PATIENCE", 0.1)
        message = claim_error(folders)
        assert claim_error(folders) == message  # the first left nothing claimed
    assert "earlier launch" in message
    assert str(folders.root) in message
    children[0].kill()
    killed = []

    def kill_the_last():
        killed.append(time.monotonic())
        children[1].kill()

    timer = threading.Timer(0.4, kill_the_last)
    timer.start()
    with claimed(folders):
        claimed_at = time.monotonic()
    timer.join()
    assert claimed_at > killed[0]


def test_the_children_of_a_launch_are_present_together_while_it_holds_the_claim(
    folders,
):
    with claimed(folders), present(folders), present(folders):
        pass
    with claimed(folders):
        pass


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    message = claim_error(Folders.of(make_config(tmp_path / "file"), "first"))
    assert str(tmp_path / "file") in message


# A filesystem without locks


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_filesystem_without_locks_is_said_and_is_no_other_launch(
    folders, monkeypatch, code
):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("portalocker.portalocker.LOCKER", refuse)
    monkeypatch.setattr(locks, "ASKING_PATIENCE", 0)
    match = "filesystem without file locks"
    with pytest.raises(UserError, match=match) as caught, claimed(folders):
        pass
    assert "choose another output_root" in one_line(caught)
    assert not locks.in_use(folders)  # the lock's file is there by now


# The folder itself


@pytest.fixture
def other(config, folders):
    """The folders of another name; the first one's is there."""
    folders.root.mkdir(parents=True)
    return Folders.of(config, "other")


def refused(folders):
    with (
        pytest.raises(UserError, match="in use by another launch") as caught,
        claimed(folders),
    ):
        pass
    one_line(caught)


def test_a_folder_is_held_under_every_name(folders, other):
    with claimed(folders):
        other.root.symlink_to(folders.root)
        refused(other)
        other.root.unlink()
        folders.root.rename(other.root)
        refused(other)
        other.root.rename(folders.root)
        folders.lock("run").unlink()
        refused(folders)
    with claimed(folders):
        pass


def test_a_folder_that_takes_the_place_of_another_is_held_and_that_is_free(
    config, folders, other
):
    link = Folders.of(config, "link")
    with claimed(folders) as hold:
        folders.root.rename(other.root)
        hold()
        with claimed(other):
            pass
        link.root.symlink_to(folders.root)
        refused(link)
        hold()  # is held already
        refused(link)
