"""The child's side of a process: output, exit codes, and its end with the launcher."""

import errno
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import portalocker
import pytest
from support import PATIENCE, PROJECT, open_run, poll

from steve.running import child as child_module
from steve.running.child import (
    FAILED,
    FULL_DISK,
    HOPELESS,
    MISTAKE,
    STOPPED,
    Context,
    child_main,
)
from steve.storage.board import Board, Wait

SPAWN = multiprocessing.get_context("spawn")
NAME = "interactor0"


# Registers nothing, and tells which process imports it.
WITNESS = """
import multiprocessing
from pathlib import Path

(Path(__file__).parent / multiprocessing.current_process().name).touch()
"""


@pytest.fixture
def run(tmp_path):
    run, board, _ = open_run(tmp_path)
    yield run
    del board  # children open it


def start(run, function, nice=0, name=NAME):
    """Starts a function of support_children, or "module:function", as a child."""
    main = function if ":" in function else f"support_children:{function}"
    arguments = (main, run, name, nice)
    child = SPAWN.Process(target=child_main, name=name, args=arguments, daemon=True)
    child.start()
    return child


def outcome(run, function):
    """Exit code and output of a child that ends by itself."""
    child = start(run, function)
    child.join(PATIENCE)
    assert child.exitcode is not None, "it does not end"
    return child.exitcode, output_of(run)


def output_of(run):
    return run.folders.process_output(NAME).read_text()


@pytest.mark.parametrize("env_modules", [(), ("witness",)])
def test_actors_import_the_modules_that_they_need_and_all_others_each(
    tmp_path, monkeypatch, env_modules
):
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "witness.py").write_text(WITNESS)
    monkeypatch.syspath_prepend(folder)
    keys = {"module": ["witness"], "loggers": [{"entry_point": "a:B"}]}
    run, board, _ = open_run(tmp_path, **keys)
    run = replace(run, env_modules=env_modules)
    actors = {"interactor0", "evaluator0"}
    others = {"valuerl", "logger"}
    for child in [start(run, "end", name=name) for name in actors | others]:
        child.join(PATIENCE)
        assert child.exitcode == STOPPED
    del board  # children open it
    told = {path.name for path in folder.iterdir() if path.is_file()}
    assert told - {"witness.py"} == (others | actors if env_modules else others)


def test_all_output_goes_to_the_processs_file_behind_that_of_earlier_starts(
    run, capfd, monkeypatch
):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    run.folders.process_output(NAME).write_text("of an earlier start\n")
    code, output = outcome(run, "speak")
    assert code == STOPPED
    first, *lines = output.splitlines()
    assert first == "of an earlier start"
    assert sorted(lines) == ["by a library", "by print", "by stderr"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("function", "code", "line"),
    [
        ("mistake", MISTAKE, "the key is wrong"),
        ("hopeless", HOPELESS, "learning has diverged"),
        ("damaged", HOPELESS, "state: is damaged"),
    ],
)
def test_what_is_no_bug_is_one_line(run, function, code, line):
    found, output = outcome(run, function)
    assert found == code
    assert output.removeprefix("before the mistake\n") == f"{line}\n"


@pytest.mark.parametrize(
    ("function", "path", "cause"),
    [
        ("full_disk", "/folder/file", "No space left on device"),
        ("full_quota", None, "Disk quota exceeded"),
    ],
)
def test_a_full_disk_is_one_line_with_path_and_free_bytes(run, function, path, cause):
    code, output = outcome(run, function)
    assert code == FULL_DISK
    assert output.count("\n") == 1
    assert output.startswith(f"{path or run.folders.root}: {cause} (")
    free = int(re.search(r"\(([\d,]+) bytes are free\)", output)[1].replace(",", ""))
    assert free == pytest.approx(shutil.disk_usage(run.folders.root).free, rel=0.5)


def test_a_limit_on_the_size_of_files_is_one_line_and_no_full_disk(run):
    code, output = outcome(run, "too_large")
    assert code == HOPELESS
    assert output == (
        f"{run.folders.log}/file: File too large; `ulimit -f`, or the filesystem, "
        "limits the size of a file\n"
    )


@pytest.mark.parametrize(
    ("function", "last_line"),
    [
        ("fail", "ValueError: failure 1"),
        ("forbidden", "PermissionError: [Errno 13] Permission denied: '/folder/file'"),
        ("leave", "SystemExit: 0"),
        ("nowhere:main", "ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_a_bug_is_a_traceback(run, function, last_line):
    code, output = outcome(run, function)
    assert code == FAILED
    assert "Traceback (most recent call last)" in output
    assert output.splitlines()[-1] == last_line


@pytest.mark.parametrize(
    ("function", "code", "last_line"),
    [
        ("end", STOPPED, "note: closed"),
        ("mistake", MISTAKE, "the key is wrong"),
        ("fail", FAILED, "ValueError: failure 1"),
        ("leave", FAILED, "SystemExit: 0"),
    ],
)
def test_what_it_holds_is_closed_before_the_line_of_its_end(
    run, function, code, last_line
):
    (run.folders.log / "end").write_text(function)
    found, output = outcome(run, "close_after")
    assert found == code
    assert output.count("note: closed") == 1
    assert output.splitlines()[-1] == last_line


def test_an_environment_that_takes_the_streams_changes_nothing_at_the_end(run):
    assert outcome(run, "end_without_streams") == (STOPPED, "")
    found = outcome(run, "mistake_without_streams")
    assert found == (MISTAKE, "the key is wrong\n")


def test_a_crash_in_a_library_leaves_where_it_was(run):
    code, output = outcome(run, "abort")
    assert code == -signal.SIGABRT
    assert "in abort" in output


def test_a_child_without_its_launchers_board_ends_with_one_line(run):
    Board.create(run.folders.board, run.config)  # and is gone
    code, output = outcome(run, "end")
    assert code == HOPELESS
    assert output.startswith(f"{run.folders.board}: leads to no live counters")
    assert output.count("\n") == 1


def context_of(run, stop=lambda: False):
    board = Board.open(run.folders.board)
    return Context(run, NAME, 0, board, stop), board[NAME]


# Waiting


def test_the_seconds_of_each_wait_are_summed_up_on_the_board(run, monkeypatch):
    context, row = context_of(run)
    now = [100.0]
    monkeypatch.setattr(child_module.time, "monotonic", lambda: now[0])
    causes = iter([Wait.TURN, Wait.PACE, Wait.PACE, None])

    def ask():
        now[0] += 1.0  # the question itself is part of the wait
        return next(causes)

    over = context.while_there_is(ask)
    for seconds in (2.0, 4.0, 8.0):
        assert not over()
        now[0] += seconds
    assert over()
    assert {wait: row[wait] for wait in Wait if row[wait]} == {
        Wait.TURN: 2 + 1,
        Wait.PACE: 4 + 1 + 8 + 1,
    }


def test_what_needs_no_wait_sums_up_nothing(run):
    context, row = context_of(run)
    for _ in range(3):
        assert context.while_there_is(lambda: None)()
    assert not any(row[wait] for wait in Wait)


# A full disk


@pytest.fixture
def full_disk(monkeypatch):
    """A write that finds no space so many times."""
    monkeypatch.setattr(child_module, "FULL_DISK_RETRY", 0.0)

    def make(times, code=errno.ENOSPC):
        left = [times]

        def write():
            if left[0]:
                left[0] -= 1
                raise OSError(code, os.strerror(code), "/folder/file")
            return "written"

        return write

    return make


def test_a_write_waits_for_space_and_says_so_once(run, full_disk, capfd):
    context, row = context_of(run)
    assert context.store(full_disk(3)) == "written"
    assert not row["disk_full"]
    said = capfd.readouterr().err
    assert said.count("/folder/file: No space left on device (") == 1
    assert said.endswith(" bytes are free); interactor0 waits for space\n")


def test_while_it_waits_the_launcher_sees_why_and_that_it_lives(
    run, full_disk, monkeypatch
):
    monkeypatch.setattr(child_module, "FULL_DISK_RETRY", 0.01)
    context, row = context_of(run)
    seen = []

    def stop():
        seen.append((bool(row["disk_full"]), float(row["heartbeat"])))
        return False

    context = Context(run, NAME, 0, context.board, stop)
    context.store(full_disk(2))
    assert any(full and beat <= time.monotonic() for full, beat in seen)


def test_a_write_that_lasts_is_no_sign_of_death(run):
    context, row = context_of(run)
    during = context.store(lambda: float(row["heartbeat"]))
    assert during > time.monotonic() + 100
    assert row["heartbeat"] <= time.monotonic()


@pytest.mark.parametrize("why", ["asked to end", "patience", "another error"])
def test_a_write_does_not_wait_for_ever(run, full_disk, monkeypatch, why):
    context, _ = context_of(run, lambda: why == "asked to end")
    if why == "patience":
        monkeypatch.setattr(child_module, "FULL_DISK_PATIENCE", -1.0)
    code = errno.EIO if why == "another error" else errno.ENOSPC
    with pytest.raises(OSError, match=os.strerror(code)):
        context.store(full_disk(1000, code))


def test_a_child_whose_own_output_finds_no_space_still_ends_as_it_should(
    run, monkeypatch
):
    path = run.folders.process_output(NAME)
    path.symlink_to("/dev/full")
    child = start(run, "full_disk")
    child.join(PATIENCE)
    assert child.exitcode == FULL_DISK


def test_lines_that_find_no_space_end_no_process(run):
    run.folders.process_output(NAME).symlink_to("/dev/full")
    child = start(run, "speak_of_paths")
    child.join(PATIENCE)
    assert child.exitcode == STOPPED


def test_paths_are_written_as_they_are_whatever_the_terminals_encoding(
    run, monkeypatch
):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    code, output = outcome(run, "speak_of_paths")
    assert code == STOPPED
    assert output == f"f\u00fcr/\\udcff\n{'y' * 100_000}\n"


def test_sigterm_becomes_a_flag_and_the_folder_is_held_meanwhile(run):
    child = start(run, "obey", nice=3)
    poll(lambda: (run.folders.log / f"{NAME}.ready").exists(), "its start")
    assert Board.open(run.folders.board)[NAME]["pid"] == child.pid
    assert os.getpriority(os.PRIO_PROCESS, child.pid) == os.nice(0) + 3
    exclusive = portalocker.LOCK_EX | portalocker.LOCK_NB
    lock = portalocker.Lock(
        run.folders.lock("processes"), "a", timeout=0, flags=exclusive
    )
    with pytest.raises(portalocker.LockException):
        lock.acquire()
    child.terminate()
    child.join(PATIENCE)
    assert child.exitcode == STOPPED
    assert (run.folders.log / f"{NAME}.saved").exists()
    lock.acquire()
    lock.release()


def state_of(pid):
    """The kernel's letter for the state of a process; Z where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


@pytest.mark.parametrize(
    ("target", "stopped"),
    [
        ("child_main", False),
        ("child_main", True),
        ("child_main_without_the_kernel", False),
    ],
)
def test_a_child_ends_with_its_killed_launcher(run, tmp_path, target, stopped):
    script = (
        "import sys, support_children as children, support\n"
        "from pathlib import Path\n"
        "run = support.make_run(support.make_config(Path(sys.argv[1])))\n"
        "children.launch(run, sys.argv[2])\n"
    )
    paths = str(PROJECT / "tests")
    launcher = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), target],
        env={**os.environ, "PYTHONPATH": paths},
    )
    child = None
    try:
        poll(lambda: (run.folders.log / f"{NAME}.ready").exists(), "the child's start")
        child = int(Board.open(run.folders.board)[NAME]["pid"])
        if stopped:
            os.kill(child, signal.SIGSTOP)
            poll(lambda: state_of(child) == "T", "that the child stands still")
        assert state_of(child) != "Z"
        launcher.kill()
        launcher.wait(PATIENCE)
        poll(lambda: state_of(child) == "Z", "the child's end")
    finally:
        launcher.kill()
        launcher.wait(PATIENCE)
        if child is not None and state_of(child) != "Z":
            os.kill(child, signal.SIGKILL)
