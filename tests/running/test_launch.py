"""What a launch learns of the environment, and what run.json says of its end."""

from contextlib import ExitStack

import pytest
from support import make_config, open_run
from support_supervisor import FakeDisplay

from steve.running import launch
from steve.running.launch import measure_environment, run_processes
from steve.running.supervisor import Outcome, Supervisor
from steve.settings.extensions import (
    WEIGHTINGS,
    WORLD_MODELS,
    Weighting,
    WorldModelKind,
)
from steve.storage.record import read_run, record_start
from steve.util import UserError

# What modules of a user's do. In place of TensorFlow, whose import takes seconds:
NETS = "import sys; sys.modules['tensorflow'] = sys"
REGISTERS = """
import gymnasium
from gymnasium.envs.classic_control import PendulumEnv

gymnasium.register("Theirs-v0", PendulumEnv)
"""
CHANGES = """
import gymnasium

gymnasium.spec("Pendulum-v1").kwargs["g"] = 5.0
"""


@pytest.mark.parametrize(
    ("code", "name", "needed"),
    [
        (NETS, "Pendulum-v1", False),
        ("import json", "Pendulum-v1", True),
        (NETS + REGISTERS, "Theirs-v0", True),
        (NETS + REGISTERS, "Theirs", True),  # gymnasium finds the version
        (NETS + REGISTERS.replace("Theirs-v0", "Pendulum-v1"), "Pendulum-v1", True),
        (NETS + CHANGES, "Pendulum-v1", True),
    ],
)
def test_actors_need_no_modules_that_would_only_load_tensorflow(
    tmp_path, monkeypatch, code, name, needed
):
    (tmp_path / "theirs.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    env = {"name": name, "module": None}
    config = make_config(tmp_path / "output", env=env, module=["theirs"])
    expected = ("theirs",) if needed else ()
    assert measure_environment(config).env_modules == expected


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


@pytest.mark.parametrize(("tdk_trick", "counts"), [(False, [3]), (True, [1, 2, 3])])
def test_a_users_weighting_is_tried_before_the_start(
    tmp_path, monkeypatch, tdk_trick, counts
):
    seen = []

    class Mine(Weighting):
        def trial_fault(self, settings, counts):
            seen.append((settings, list(counts)))
            return "gives nothing"

    mine = Mine("mine", lambda candidates, power: candidates, {"power": 2.0})
    monkeypatch.setitem(WEIGHTINGS, "mine", mine)
    expansion = {
        "rollout_len": 2,
        "tdk_trick": tdk_trick,
        "weighting": "mine",
        "weighting_settings": {"power": 3.0},
    }
    config = make_config(
        tmp_path, model=True, policy_config={"value_expansion": expansion}
    )
    with pytest.raises(UserError, match="weighting: mine gives nothing"):
        launch._check_extensions(config)
    assert seen == [({"power": 3.0}, counts)]


def test_a_users_world_model_is_tried_with_the_environments_sizes(
    tmp_path, monkeypatch
):
    mine = WorldModelKind("mine", lambda *sizes: None, {})
    monkeypatch.setitem(WORLD_MODELS, "mine", mine)
    monkeypatch.setattr(
        "steve.worldmodel_learner.trial_fault",
        lambda model, *sizes: f"is tried with {sizes}",
    )
    config = make_config(tmp_path, model=True, model_config={"kind": "mine"})
    with pytest.raises(UserError, match=r"kind: mine is tried with \(3, 1"):
        launch._measure(config)
