"""Environments that fail: nothing wrong is stored, and the process goes on."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from steve.acting import interactor, safe_env
from steve.acting.safe_env import REBUILDS, WINDOW, SafeEnv
from steve.util import RunError


class Scripted(gymnasium.Env):
    """Does at each step what `script` says: a reward, an observation, or an error."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, script):
        self.script = script
        self.steps = 0
        self.seeds = []
        self.shared = np.zeros(2)
        self.closed = False

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        self.steps = 0
        self.shared[:] = 0
        return self.shared, {}

    def step(self, action):
        self.steps += 1
        self.shared[:] = self.steps
        what = next(self.script)
        if isinstance(what, Exception):
            raise what
        if what == "nan":
            self.shared[0] = np.nan
            what = 1.0
        return self.shared, what, what == 9.0, False, {}

    def close(self):
        self.closed = True


@pytest.fixture
def made(monkeypatch):
    """All environments made, and the script that they follow."""
    envs = []
    script = []

    def make_env(config):
        envs.append(Scripted(iter(script)) if not envs else Scripted(envs[0].script))
        return envs[-1]

    monkeypatch.setattr(safe_env, "make_env", make_env)
    return envs, script


def build(lost=None, seed=0):
    lost = [] if lost is None else lost
    return SafeEnv(None, np.random.default_rng(seed), "me", lambda: lost.append(1))


def test_the_first_episode_is_seeded_and_the_next_ones_go_on(made):
    envs, script = made
    script += [1.0]
    env = build()
    env.reset()
    env.reset()
    assert envs[0].seeds[0] is not None
    assert envs[0].seeds[1] is None


def test_an_observation_stays_when_the_environment_writes_over_it(made):
    _, script = made
    script += [1.0, 1.0]
    env = build()
    first = env.reset()
    second = env.step(np.zeros(1)).obs
    env.step(np.zeros(1))
    env.reset()
    np.testing.assert_array_equal(first, [0, 0])
    np.testing.assert_array_equal(second, [1, 1])


@pytest.mark.parametrize("bad", ["nan", np.nan, np.inf, -np.inf, 1e39])
def test_what_is_not_finite_is_lost_and_said(made, bad, capsys):
    envs, script = made
    script += [1.0, bad, 2.0]
    lost = []
    env = build(lost)
    env.reset()
    assert env.step(np.zeros(1)).reward == 1.0
    assert env.step(np.zeros(1)) is None
    assert len(lost) == 1
    what = "observation" if bad == "nan" else "reward"
    assert f"me: a transition is dropped: {what} not finite" in capsys.readouterr().out
    env.reset()
    assert env.step(np.zeros(1)).reward == 2.0
    assert len(envs) == 1, "it need not be built anew"


def test_an_environment_that_raises_is_built_anew_with_another_seed(made, capfd):
    envs, script = made
    script += [ValueError("broken"), 1.0]
    lost = []
    env = build(lost)
    env.reset()
    assert env.step(np.zeros(1)) is None
    assert len(lost) == 1
    assert len(envs) == 2
    assert envs[0].closed
    env.reset()
    assert envs[1].seeds[0] not in (None, envs[0].seeds[0])
    assert env.step(np.zeros(1)).reward == 1.0
    assert "ValueError: broken" in capfd.readouterr().err


def test_too_many_failures_in_a_while_end_the_run(made, monkeypatch):
    _, script = made
    script += [ValueError(f"broken\n{i}") for i in range(REBUILDS + 1)]
    env = build()
    env.reset()
    for _ in range(REBUILDS):
        assert env.step(np.zeros(1)) is None
    with pytest.raises(RunError) as caught:
        env.step(np.zeros(1))
    assert str(caught.value) == (
        f"me: the environment failed {REBUILDS + 1} times in {WINDOW / 60:g} minutes, "
        f"last with ValueError: broken {REBUILDS}; the run stops"
    )


def test_failures_far_apart_are_forgotten(made, monkeypatch):
    _, script = made
    script += [ValueError()] * 50
    now = [0.0]
    monkeypatch.setattr(safe_env.time, "monotonic", lambda: now[0])
    env = build()
    env.reset()
    for _ in range(50):
        now[0] += WINDOW / REBUILDS + 1
        assert env.step(np.zeros(1)) is None


def test_a_lost_transition_is_left_out_of_the_vector_step(made):
    _, script = made
    # Two environments share the script: one step each in turn.
    script += [1.0, 2.0, "nan", 3.0, 4.0, 9.0]
    envs = [build(), build()]
    obs = np.stack([env.reset() for env in envs])
    action = np.zeros((2, 1), np.float32)

    first, obs = interactor.step_all(envs, obs, action, lambda: None)
    np.testing.assert_array_equal(first.reward, [1, 2])
    second, obs = interactor.step_all(envs, obs, action, lambda: None)
    np.testing.assert_array_equal(second.reward, [3])
    np.testing.assert_array_equal(second.obs, [[1, 1]])
    np.testing.assert_array_equal(second.next_obs, [[2, 2]])
    np.testing.assert_array_equal(obs, [[0, 0], [2, 2]])  # the first began again
    third, obs = interactor.step_all(envs, obs, action, lambda: None)
    np.testing.assert_array_equal(third.reward, [4, 9])
    np.testing.assert_array_equal(third.terminated, [0, 1])
    np.testing.assert_array_equal(third.next_obs, [[1, 1], [3, 3]])
    np.testing.assert_array_equal(obs, [[1, 1], [0, 0]])
