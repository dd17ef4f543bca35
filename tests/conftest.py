"""Settings that all tests share."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from steve.running import devices

# Set before any test module imports TensorFlow: its start-up notes hide the results.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Programs leave a SIGHUP alone that nohup has ignored: the tests must not be under it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Puts a stand-in for a program first on the PATH.

    It is given a name and what bash is to do; the returned file has a line with the
    arguments of each call.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(program: str, body: str = "") -> Path:
        calls = tmp_path / f"{program}.calls"
        script = folder / program
        script.write_text(f'#!/bin/bash\necho "$@" >> {calls}\n{body}\n')
        script.chmod(0o755)
        return calls

    return write


@pytest.fixture
def own_process_state(monkeypatch, tmp_path) -> Iterator[None]:
    """What a call changes for its process is as before afterwards."""
    monkeypatch.setenv(devices.VARIABLE, "-1")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.chdir(tmp_path)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def nobody_sleeps(monkeypatch) -> None:
    """A learner that waits asks again at once."""

    def ask_on(condition):
        while not condition():
            pass

    monkeypatch.setattr("steve.learner.wait_until", ask_on)


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The learners' monotonic clock: stands still until a test moves `now`."""
    clock = SimpleNamespace(now=1000.0)
    time = SimpleNamespace(monotonic=lambda: clock.now)
    monkeypatch.setattr("steve.learner.time", time)
    return clock
