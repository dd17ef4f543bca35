"""What a launch learns of the environment, and what run.json says of its end."""

from contextlib import ExitStack

import pytest
from support import make_config, open_run
from support_supervisor import FakeDisplay

from steve.running.launch import measure_environment, run_processes
from steve.running.supervisor import Outcome, Supervisor
from steve.storage.record import read_run, record_start

# A module of a user's that registers an environment, with a weighting or without.
THEIRS = """
import gymnasium
from gymnasium.envs.classic_control import PendulumEnv

gymnasium.register("Theirs-v0", PendulumEnv)
"""


@pytest.mark.parametrize(
    ("code", "name", "needed"),
    [
        (THEIRS, "Theirs-v0", ("theirs",)),
        (THEIRS, "Theirs", ("theirs",)),  # gymnasium finds the version
        (THEIRS.replace("Theirs", "Pendulum"), "Pendulum-v0", ("theirs",)),
        (THEIRS.replace("Theirs-v0", "Pendulum-v1"), "Pendulum-v1", ("theirs",)),
        ("import gymnasium", "Pendulum-v1", ()),
    ],
)
def test_who_makes_the_environment_imports_the_modules_that_register_some(
    tmp_path, monkeypatch, code, name, needed
):
    (tmp_path / "theirs.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    env = {"name": name, "module": None}
    config = make_config(tmp_path / "output", env=env, module=["theirs"])
    assert measure_environment(config).env_modules == needed


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
