"""Output that is put aside, and going back to a numbered checkpoint."""

import json
import os
import shutil
from pathlib import Path

import pytest
from support import make_config
from support_storage import (
    MERGED,
    SIZES,
    former_run,
    one_line,
    open_now,
    rewards_in,
    rows_of,
    save_state,
    transitions,
)

from steve.replay import ReplayBuffer
from steve.replay_file import FRAMES
from steve.storage import checkpoint
from steve.storage import rewind as rewinding
from steve.storage.digests import Digest, append_digest, read_digests
from steve.storage.folders import Folders
from steve.storage.locks import claimed
from steve.storage.record import read_run, record_nondeterminism
from steve.storage.rewind import finish_rewind, numbered_checkpoints, put_aside, rewind
from steve.util import UserError

# Putting aside


def test_earlier_output_is_renamed_and_nothing_is_overwritten(folders):
    asides = []
    for number in range(4):
        folders.log.mkdir(parents=True)
        (folders.log / "content").write_text(str(number))
        asides.append(put_aside(folders))
        assert not folders.root.exists()
    assert len(set(asides)) == 4
    for number, aside in enumerate(asides):
        assert aside.parent == folders.root.parent
        assert (aside / "log" / "content").read_text() == str(number)


def test_event_files_behind_a_link_are_not_renamed(folders, tmp_path):
    others = tmp_path / "others"
    others.mkdir()
    (others / "events.tfevents.1").touch()
    (folders.root / "deep").mkdir(parents=True)
    (folders.root / "deep" / "events.tfevents.2").touch()
    (folders.root / "link").symlink_to(others)
    aside = put_aside(folders)
    assert (others / "events.tfevents.1").exists()
    assert [path.name for path in (aside / "deep").iterdir()] == ["events.aside.2"]


@pytest.mark.parametrize("kind", ["file", "folder", "empty folder"])
def test_a_name_that_is_taken_is_passed_over(folders, kind):
    folders.root.mkdir(parents=True)
    expected = put_aside(folders)
    expected.rmdir()
    if kind == "file":
        expected.write_text("mine")
    else:
        expected.mkdir()
        if kind == "folder":
            (expected / "mine").touch()
    folders.root.mkdir()
    assert put_aside(folders) != expected
    assert expected.exists()
    assert expected.is_file() == (kind == "file")


# Going back to a numbered checkpoint


def tree(root):
    """All files below a folder, with their content; locks left out."""
    return {
        path.relative_to(root): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def test_the_numbers_are_those_of_which_all_learners_have_a_state(config, folders):
    assert numbered_checkpoints(folders, config) == []
    former_run(folders)
    save_state(folders, "valuerl", 1000, 40, 90)
    save_state(folders, "worldmodel", 50, 2, 15)
    assert numbered_checkpoints(folders, config) == [100, 200]
    without_model = make_config(Path(config.output_root))
    assert numbered_checkpoints(folders, without_model) == [100, 200, 1000]


def test_going_back_restores_states_replay_and_rows(config, folders):
    former_run(folders)
    rewind(folders, config, 100)
    for learner in ("valuerl", "worldmodel"):
        state = checkpoint.load(folders.state(learner))
        assert state.metadata["updates"] == 100
        assert state.metadata["epoch"] == 5
        assert (state.tensors[f"{learner}/w"] == 100).all()
        updates = [row[2] for row in rows_of(folders.learner_log(learner))]
        assert updates == ["updates", "50", "100"]
    # 30 frames for the value learner, 32 for the world model.
    assert rewards_in(folders.replay) == list(range(40))
    epochs = [row[1] for row in rows_of(folders.scores)]
    # The policy of epoch 5 is published, and evaluated, again.
    assert epochs == ["epochs", "1", "1", "4"]
    assert rows_of(folders.scores)[-1] == ["0.4", "4", "40", "-4"]
    assert json.loads(folders.hyperparameters.read_text()) == MERGED
    assert read_run(folders)["starts"] == [{}]
    assert read_run(folders)["finished"] is None
    assert numbered_checkpoints(folders, config) == [100]
    assert not folders.policy.exists()  # that of a later epoch


def test_no_reason_against_repeating_is_lost(config, folders):
    """That at frame 33 is of rows that stay; that at 80 may be of a processor."""
    former_run(folders)
    for frame in (10, 33, 80):
        record_nondeterminism(folders, frame, f"at {frame}")
    rewind(folders, config, 100)  # to 32 frames and, of the replay, 40 rows
    reasons = read_run(folders)["not_reproducible"]
    assert [each["from_frame"] for each in reasons] == [10, 33, 80]


def test_the_later_state_is_kept_as_it_was(config, folders):
    former_run(folders)
    before = tree(folders.root)
    aside = rewind(folders, config, 100)
    assert tree(aside) == before
    assert aside != folders.root
    assert rewards_in(aside / "checkpoints" / "replay") == list(range(90))


def test_one_can_go_back_twice(config, folders):
    former_run(folders)
    first = rewind(folders, config, 200)
    second = rewind(folders, config, 200)
    assert first != second
    assert rewards_in(folders.replay) == list(range(70))
    with pytest.raises(UserError, match="there are: 200"):
        rewind(folders, config, 100)


def test_without_a_model_there_is_one_learner_to_go_back(tmp_path):
    config = make_config(tmp_path)
    folders = Folders.of(config, "first")
    former_run(folders, learners=("valuerl",))
    rewind(folders, config, 200)
    assert rewards_in(folders.replay) == list(range(70))
    assert not folders.state("worldmodel").exists()


def test_a_run_without_scores_or_logs_yet_can_go_back(config, folders):
    former_run(folders)
    for path in (folders.scores, folders.learner_log("valuerl")):
        path.unlink()
    rewind(folders, config, 100)
    assert not folders.scores.exists()
    assert rewards_in(folders.replay) == list(range(40))


def test_a_run_that_went_back_opens_and_goes_on_appending(config, folders):
    former_run(folders)
    rewind(folders, config, 100)
    assert open_now(folders, config) == []
    with ReplayBuffer.open(folders.replay, writable=True) as replay:
        assert replay.append(transitions(8, 500))
        assert replay.frames == 48


def rewind_error(folders, config, updates):
    """The error of an attempt, which must have changed nothing."""
    before = tree(folders.root)
    siblings = sorted(path.name for path in folders.root.parent.iterdir())
    with pytest.raises(UserError) as caught:
        rewind(folders, config, updates)
    assert tree(folders.root) == before
    assert sorted(path.name for path in folders.root.parent.iterdir()) == siblings
    return one_line(caught)


@pytest.mark.parametrize("updates", [0, 150, 300])
def test_a_checkpoint_that_is_not_there_is_an_error_that_lists_those_that_are(
    config, folders, updates
):
    former_run(folders)
    message = rewind_error(folders, config, updates)
    assert f" {updates} updates" in message
    assert "100, 200" in message


def test_where_there_is_no_numbered_checkpoint_the_error_says_none(config, folders):
    former_run(folders)
    for path in folders.checkpoints.glob("*-*.safetensors"):
        path.unlink()
    assert "none" in rewind_error(folders, config, 100)


def test_a_damaged_checkpoint_changes_nothing(config, folders):
    former_run(folders)
    path = folders.numbered_state("worldmodel", 100)
    path.write_bytes(path.read_bytes()[:-4])
    assert str(path) in rewind_error(folders, config, 100)
    rewind(folders, config, 200)  # and does not stand in the way of another


def test_a_replay_that_was_overwritten_since_is_an_error(config, folders):
    former_run(folders, capacity=40)  # frames 50 to 89 are left; 32 are wanted
    message = rewind_error(folders, config, 100)
    assert "overwritten" in message
    assert "keep_all_replay_buffers" in message


def test_a_replay_that_lost_transitions_since_is_an_error(config, folders):
    former_run(folders)
    with ReplayBuffer.open(folders.replay, writable=True) as replay:
        replay._counters.store({FRAMES: 30})
    message = rewind_error(folders, config, 100)
    assert "2 of the transitions of 100 updates are lost" in message


def test_the_copy_of_the_replay_is_used_where_there_is_one(config, folders):
    former_run(folders, capacity=40)
    with ReplayBuffer.create(folders.numbered_replay(100), *SIZES, 40) as copy:
        copy.append(transitions(32, first=1000))
    rewind(folders, config, 100)
    assert rewards_in(folders.replay) == list(range(1000, 1032))


def test_what_an_interrupted_attempt_left_is_no_obstacle(config, folders, monkeypatch):
    former_run(folders)
    go_back_but_die_first(config, folders, monkeypatch)
    rewind(folders, config, 100)
    assert rewards_in(folders.replay) == list(range(40))
    assert numbered_checkpoints(folders, config) == [100]


def go_back_but_die_first(config, folders, monkeypatch, updates=200):
    """What is killed just before it puts the present state aside."""
    with monkeypatch.context() as patch:
        patch.setattr(rewinding, "put_aside", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rewind(folders, config, updates)


def hidden_folders(folders):
    return [p.name for p in folders.root.parent.glob(".*") if p.is_dir()]


@pytest.mark.parametrize("then", ["nothing", "deleted", "moved", "deleted with aside"])
def test_a_copy_whose_run_went_on_or_is_gone_never_takes_its_place(
    config, folders, monkeypatch, then
):
    former_run(folders)
    if then == "deleted with aside":
        rewind(folders, config, 200)
    go_back_but_die_first(config, folders, monkeypatch)
    assert len(hidden_folders(folders)) == 1
    if then == "nothing":
        finish_rewind(folders)
        assert rewards_in(folders.replay) == list(range(90))
    elif then == "moved":
        folders.root.rename(folders.root.with_name("mine"))
    else:
        shutil.rmtree(folders.root)
    finish_rewind(folders)
    assert folders.root.exists() == (then == "nothing")
    assert hidden_folders(folders) == []
    if then == "moved":
        assert rewards_in(folders.root.with_name("mine") / "checkpoints/replay")


def test_the_copy_of_another_experiment_is_left_alone(config, folders, monkeypatch):
    another = Folders.of(config, f"{folders.experiment}.old1")
    former_run(another)
    go_back_but_die_first(config, another, monkeypatch)
    finish_rewind(folders)
    assert len(hidden_folders(another)) == 1


@pytest.mark.parametrize("torn", ["0.1", "0.6,6,60,-6.2"])
def test_torn_lines_and_rows_of_later_times_are_left_behind(config, folders, torn):
    former_run(folders)
    with open(folders.scores, "a") as file:
        file.write(torn)
    rewind(folders, config, 200)
    assert rows_of(folders.scores)[-1] == ["0.6", "6", "60", "-6"]


@pytest.mark.parametrize("killed_at", [1, 2])
def test_going_back_that_was_killed_between_its_renamings_is_finished(
    config, folders, monkeypatch, killed_at
):
    former_run(folders)
    renamings = []
    rename = Path.rename

    def rename_or_die(path, target):
        renamings.append(path)
        if len(renamings) == killed_at:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename_or_die)
        with pytest.raises(KeyboardInterrupt):
            rewind(folders, config, 100)
    finish_rewind(folders)
    # Before the first renaming nothing has happened, after it all has.
    frames = 90 if killed_at == 1 else 40
    assert rewards_in(folders.replay) == list(range(frames))
    finish_rewind(folders)
    assert rewards_in(folders.replay) == list(range(frames))


@pytest.mark.parametrize("killed", [False, True])
def test_the_renamings_are_on_the_disk_when_going_back_ends(
    config, folders, monkeypatch, killed
):
    former_run(folders)
    done = []
    rename, fsync = Path.rename, os.fsync

    def note_rename(path, target):
        if killed and target == folders.root and done.count("rename") == 1:
            done.append("killed")
            raise KeyboardInterrupt
        done.append("rename")
        return rename(path, target)

    def note_fsync(descriptor):
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(Path, "rename", note_rename)
    monkeypatch.setattr(os, "fsync", note_fsync)
    if killed:
        with pytest.raises(KeyboardInterrupt):
            rewind(folders, config, 100)
        done[:] = []
        finish_rewind(folders)
    else:
        rewind(folders, config, 100)
    assert done[-2:] == ["rename", str(folders.root.parent)]


def test_all_of_the_rewound_folder_is_on_the_disk_before_it_takes_its_place(
    config, folders, monkeypatch
):
    former_run(folders)
    synced, missing = set(), []
    rename, fsync = Path.rename, os.fsync

    def note_rename(path, target):
        if path == folders.root:
            (copy,) = folders.root.parent.glob(".*.rewound")
            everything = [copy, *copy.rglob("*")]
            missing.extend(p for p in everything if p.stat().st_ino not in synced)
            assert len(everything) > 8
        return rename(path, target)

    def note_fsync(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(Path, "rename", note_rename)
    monkeypatch.setattr(os, "fsync", note_fsync)
    rewind(folders, config, 100)
    assert missing == []


def test_who_is_just_going_back_is_not_interfered_with(config, folders, monkeypatch):
    """Between its renamings there is no folder, but one that is complete."""
    former_run(folders)

    def put_aside_and_look(folders):
        aside = put_aside(folders)
        with pytest.raises(UserError, match="in use by another launch"):
            finish_rewind(folders)
        return aside

    monkeypatch.setattr(rewinding, "put_aside", put_aside_and_look)
    with claimed(folders):
        rewind(folders, config, 200)
    assert rewards_in(folders.replay) == list(range(70))


def test_where_nothing_was_interrupted_there_is_nothing_to_finish(config, folders):
    finish_rewind(folders)
    assert not folders.root.exists()
    former_run(folders)
    before = tree(folders.root)
    finish_rewind(folders)
    assert tree(folders.root) == before


def test_a_replay_of_which_a_part_was_overwritten_since_is_an_error_too(
    config, folders
):
    former_run(folders, capacity=70)  # frames 20 to 89 are left; 32 are wanted
    assert "overwritten" in rewind_error(folders, config, 100)


def test_going_back_keeps_what_the_learner_that_was_further_has_used(config, folders):
    former_run(folders)
    save_state(folders, "valuerl", 100, 5, 50)  # the world model: 32
    rewind(folders, config, 100)
    assert rewards_in(folders.replay)[:50] == list(range(50))


def test_an_unpaced_run_goes_back_to_its_frames_alone(config, folders):
    former_run(folders)
    unpaced = {"frames_per_update": False}
    config = make_config(
        Path(config.output_root), policy_config=unpaced, model_config=unpaced
    )
    rewind(folders, config, 100)
    assert rewards_in(folders.replay) == list(range(30))  # of 32 the whole steps


def test_going_back_takes_the_digests_up_to_then(config, folders):
    former_run(folders)
    lines = [Digest(n, 50 * n, 10 * n, "a", "b", "c", "d") for n in (1, 2, 3)]
    for each in lines:
        append_digest(folders.digests, each)
    rewind(folders, config, 100)
    assert read_digests(folders.digests) == lines[:2]
