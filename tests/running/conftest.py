"""Fixtures of the tests of running/."""

import signal

import pytest
from support_shown import Clock


@pytest.fixture
def seconds(monkeypatch):
    """The clock of the display and of the progress, which a test sets."""
    return Clock(monkeypatch)


@pytest.fixture
def no_stray_signal():
    """A signal that the supervisor does not take fails the test and nothing else."""

    def unexpected(number, frame):
        raise AssertionError(f"{signal.Signals(number).name} met no supervisor")

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.signal(number, unexpected) for number in numbers}
    yield
    after = {number: signal.signal(number, before[number]) for number in numbers}
    assert set(after.values()) == {unexpected}, "handlers are not as before"
