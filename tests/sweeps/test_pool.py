"""The local pool: runs side by side, with a stand-in for main.py."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from support import PROJECT, poll
from support_pool import make, work

from steve.running.devices import VARIABLE, Gpu
from steve.storage import locks
from steve.sweeps import pool as pool_module
from steve.sweeps import status
from steve.sweeps.pool import slots
from steve.sweeps.record import Sweep
from steve.util import UserError


@pytest.fixture(autouse=True)
def _brisk(monkeypatch):
    monkeypatch.setattr(pool_module, "TICK", 0.02)


def codes(sweep: Sweep) -> list[int | None]:
    """What the logs say of the last attempts."""
    attempts = [status.last_attempt(sweep.log(i)) for i in range(len(sweep.runs))]
    return [attempt and attempt.code for attempt in attempts]


# GPUs


def test_a_slot_is_a_group_of_gpus_or_a_place_on_the_cpu():
    found = [Gpu(f"GPU-{number}", "model") for number in range(5)]
    tokens = [gpu.token for gpu in found]
    pairs = [{VARIABLE: ",".join(tokens[i : i + 2])} for i in (0, 2)]
    assert slots(2, None, found) == pairs
    assert slots(2, 1, found) == pairs[:1]
    assert slots(1, None, found) == [{VARIABLE: token} for token in tokens]
    assert slots(0, None, found) == [{}]
    assert slots(0, 3, []) == [{}, {}, {}]
    with pytest.raises(UserError, match="1 GPUs were found, and a run gets 2"):
        slots(2, None, found[:1])


def test_all_runs_are_done_and_no_two_share_a_slot(tmp_path):
    sweep = make(tmp_path, **{f"r{n}": "0" for n in range(7)})
    ended = work(sweep, [{VARIABLE: "a"}, {VARIABLE: "b"}])
    assert ended == [0] * 7
    assert codes(sweep) == [0] * 7
    assert "this is r6" in sweep.log(6).read_text()


# Failures


def test_a_run_that_fails_does_not_stop_the_others(tmp_path):
    sweep = make(tmp_path, bad="1", killed="die", good="0")
    lines = []
    work(sweep, [{}, {VARIABLE: "a"}, {VARIABLE: "b"}], lines.append)
    assert codes(sweep) == [1, 128 + signal.SIGKILL, 0]
    said = "\n".join(lines)
    assert f"bad failed with exit code 1: {sweep.log(0)}" in said
    assert "good stopped" in said  # it wrote no record of an end at a limit
    attempt = status.last_attempt(sweep.log(1))
    assert attempt.why == "killed by SIGKILL"


def test_a_run_that_is_going_on_is_left_alone(tmp_path):
    sweep = make(tmp_path, busy="0", free="0")
    lines = []
    with locks.claimed(sweep.folders(0)):
        work(sweep, [{}], lines.append)
    assert codes(sweep) == [None, 0]
    assert "busy is running already" in lines[0]


def test_a_full_disk_under_its_lines_ends_no_run(tmp_path, monkeypatch):
    """The line of an end is written once there is space, that of a start before it."""
    sweep = make(tmp_path, first="0", second="0")
    real, refused = pool_module._append, []

    def append(path, line):
        if len(refused) < 7:
            refused.append(line)
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, line)

    def tell(line):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(pool_module, "_append", append)
    assert work(sweep, [{}], tell) == [0, 0]
    assert len(refused) == 7
    assert codes(sweep) == [0, 0]


def test_a_run_waits_for_space_for_its_log(tmp_path, monkeypatch):
    sweep = make(tmp_path, first="0", second="0")
    lines, tries = [], []

    def open_or_fail(path, *arguments, **keys):
        if path == sweep.log(1) and "ab" in arguments and len(tries) < 3:
            tries.append(path)
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return open(path, *arguments, **keys)

    monkeypatch.setattr(pool_module, "open", open_or_fail, raising=False)
    assert work(sweep, [{}, {VARIABLE: "a"}], lines.append) == [0, 0]
    assert codes(sweep) == [0, 0]
    assert sum(line.endswith("second waits") for line in lines) == 1
    assert "second started on GPU a, 2 of 2" in "".join(lines)


def test_where_no_space_comes_the_pool_ends_and_says_which_lines_are_missing(tmp_path):
    sweep = make(tmp_path, bad="0", good="0")
    sweep.log(0).symlink_to("/dev/full")
    lines = []
    ended = work(sweep, [{}, {VARIABLE: "a"}], lines.append)
    assert len(ended) == 2
    assert status.last_attempt(sweep.log(1)).code == 0
    said = [line for line in lines if line.startswith("there was no space in ")]
    assert ["== started" in said[0], "== ended" in said[1]] == [True, True]


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_runs_save_and_starts_no_more(tmp_path, number):
    sweep = make(tmp_path, first="wait", second="0")
    lines = []

    def tell(line: str) -> None:
        lines.append(line)
        if "started" in line:
            poll((tmp_path / "first.started").exists, "the run's start")
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    assert work(sweep, [{}, {VARIABLE: "a"}], tell) == [0]
    assert (tmp_path / "first.saved").exists()
    assert codes(sweep) == [0, None]
    assert lines[1].endswith(
        "stopping: 1 run to save and end, 1 not started; the same call continues them"
    )
    assert signal.getsignal(number) is before

    (tmp_path / "first").write_text("0")
    assert work(sweep, [{}]) == [0, 0]
    assert sweep.log(0).read_text().count("this is first") == 2


@pytest.mark.parametrize("again", [False, True])
def test_signals_that_come_together_are_one_and_a_later_one_is_a_second(
    tmp_path, monkeypatch, again
):
    """As for a run by itself: some tools send two."""
    monkeypatch.setattr(pool_module, "ONE_REQUEST", 0.2)
    sweep = make(tmp_path, first="stubborn 20" if again else "stubborn 1")

    def send_a_second():
        poll((tmp_path / "first.heard").exists, "the first signal")
        later = time.monotonic() + 0.4
        poll(lambda: time.monotonic() > later, "a while")
        os.kill(os.getpid(), signal.SIGTERM)

    def tell(line: str) -> None:
        if "started" in line:
            poll((tmp_path / "first.deaf").exists, "the run's start")
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            if again:
                threading.Thread(target=send_a_second).start()

    assert work(sweep, [{}], tell) == [int(again)]


def test_a_damaged_record_does_not_end_the_pool(tmp_path):
    sweep = make(tmp_path, damaged="0", good="0")
    folders = sweep.folders(0)
    folders.log.mkdir(parents=True)
    folders.run.write_text("{")
    lines = []
    assert work(sweep, [{}], lines.append) == [0, 0]
    assert "damaged stopped" in "\n".join(lines)


def test_when_the_pool_is_killed_its_runs_save(tmp_path):
    code = (
        "import sys, pathlib, support_pool as t\n"
        "t.work(t.make(pathlib.Path(sys.argv[1]), first='wait'), [{}])"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    environ = {**os.environ, "PYTHONPATH": str(PROJECT / "tests")}
    with subprocess.Popen(words, env=environ) as pool:
        poll((tmp_path / "first.started").exists, "the run's start")
        pool.kill()
    poll((tmp_path / "first.saved").exists, "its saving")
