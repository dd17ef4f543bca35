"""What run.json says of a launch that has ended."""

from contextlib import ExitStack

import pytest
from support import open_run
from support_supervisor import FakeDisplay

from steve.running.launch import run_processes
from steve.running.supervisor import Outcome, Supervisor
from steve.storage.record import read_run, record_start


@pytest.fixture
def run(tmp_path):
    run, _, _ = open_run(tmp_path)
    record_start(run, resumed=False)
    return run


def run_to(monkeypatch, run, end):
    """Runs it with a supervisor whose `run` is `end`."""
    monkeypatch.setattr(Supervisor, "run", lambda _: end())
    with ExitStack() as ends:
        return run_processes(run, FakeDisplay(), ends)


@pytest.mark.parametrize(
    ("outcome", "why"),
    [
        (Outcome(0, finished=True), None),
        (Outcome(0), None),
        (Outcome(1, error="Traceback:\nValueError: no"), "ValueError: no"),
    ],
)
def test_the_outcome_is_recorded(monkeypatch, run, outcome, why):
    assert run_to(monkeypatch, run, lambda: outcome) is outcome
    content = read_run(run.folders)
    ended = content["starts"][-1]["ended"]
    assert (ended["code"], ended["why"]) == (outcome.code, why)
    assert bool(content["finished"]) == outcome.finished


@pytest.mark.parametrize("error", [KeyError("a fault"), OSError(28, "no space left")])
def test_an_exception_is_recorded_and_raised(monkeypatch, run, error):
    def end():
        raise error

    with pytest.raises(type(error)):
        run_to(monkeypatch, run, end)
    content = read_run(run.folders)
    ended = content["starts"][-1]["ended"]
    assert (ended["code"], ended["why"]) == (1, str(error))
    assert content["finished"] is None
