"""Environments that fail: nothing wrong is stored, and the process continues."""

import os
import random
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from support_actors import context_of, new_run
from support_closing import closing_env, times_closed

from steve.acting import interactor, safe_env
from steve.acting.evaluator import evaluate
from steve.acting.interactor import interact
from steve.acting.safe_env import REBUILDS, WINDOW, SafeEnv
from steve.replay import ReplayBuffer
from steve.settings.schema import Environment
from steve.settings.seeds import seed_globals
from steve.util import RunError, UserError


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


def build(lost=None, failed=None):
    lost = [] if lost is None else lost
    failed = [] if failed is None else failed
    return SafeEnv(None, "me", lambda: lost.append(1), lambda: failed.append(1))


# Seeds


def test_each_episode_is_seeded_and_its_seed_alone_decides(made):
    envs, script = made
    script += [1.0]
    env = build()
    for seed in (7, 8, 7, 2**32 - 1):
        env.reset(seed)
    first, second, again, largest = envs[0].seeds
    assert None not in envs[0].seeds
    assert first == again
    assert len({first, second, largest}) == 3
    assert all(0 <= seed < 2**31 for seed in envs[0].seeds)


class Drawing(Scripted):
    """Rewards are drawn from the generators that everybody shares."""

    def __init__(self):
        super().__init__(iter(()))

    def step(self, action):
        reward = random.random() + np.random.random()
        return self.shared, reward, False, False, {}


def test_an_environment_that_draws_from_the_shared_generators_repeats(monkeypatch):
    monkeypatch.setattr(safe_env, "make_env", lambda config: Drawing())
    env = build()

    def rewards(seed):
        env.reset(seed)
        return [env.step(np.zeros(1)).reward for _ in range(5)]

    first = rewards(3)
    assert len(set(first)) == 5
    random.random()
    np.random.random(100)
    assert rewards(4) != first
    env = build()
    assert rewards(3) == first


@pytest.mark.parametrize("draw", [random.random, np.random.random])
def test_each_of_the_shared_generators_is_seeded_at_a_reset(made, draw):
    env = build()
    env.reset(5)
    first = draw()
    draw()
    env.reset(6)
    assert draw() != first
    env.reset(5)
    assert draw() == first


def test_seed_globals_repeats_for_a_seed_and_attempt_only():
    def drawn(*arguments):
        seed = seed_globals(*arguments)
        return seed, random.random(), np.random.random()

    assert drawn(5) == drawn(5, 0)
    for i, value in enumerate(drawn(5)):
        assert len({value, drawn(5, 1)[i], drawn(6)[i], drawn(0, 5)[i]}) == 4


class Reluctant(Scripted):
    """Its resets do what `starts` says: "raise", a first observation with NaN, "go"."""

    def __init__(self, starts):
        super().__init__(iter(()))
        self.starts = starts

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        what = self.starts.pop(0)
        if what == "raise":
            raise ValueError("no start")
        if what == "nan":
            obs[0] = np.nan
        return obs, info


@pytest.mark.parametrize("what", ["raise", "nan"])
def test_an_environment_that_fails_at_a_reset_is_made_again_with_another_seed(
    monkeypatch, what
):
    envs, lost, failed = [], [], []
    starts = [what, "go"] * 2

    def make_env(config):
        envs.append(Reluctant(starts))
        return envs[-1]

    monkeypatch.setattr(safe_env, "make_env", make_env)
    np.testing.assert_array_equal(build(lost, failed).reset(7), [0, 0])
    assert len(envs) == 2
    assert envs[0].closed
    (first,), (second,) = envs[0].seeds, envs[1].seeds
    assert first != second
    assert (lost, failed) == ([], [1])
    # The same failure gives the same seeds: a run that meets it again continues alike.
    build().reset(7)
    assert [each.seeds for each in envs[2:]] == [[first], [second]]


def test_failures_are_reported_apart_from_losses(made):
    _, script = made
    script += [ValueError("broken"), np.nan]
    lost, failed = [], []
    env = build(lost, failed)
    env.reset(0)
    assert env.step(np.zeros(1)) is None
    assert (len(lost), len(failed)) == (1, 1)
    env.reset(1)
    assert env.step(np.zeros(1)) is None
    assert (len(lost), len(failed)) == (2, 1), "a transition was lost, nothing raised"


# What fails


def test_an_observation_stays_when_the_environment_writes_over_it(made):
    _, script = made
    script += [1.0, 1.0]
    env = build()
    first = env.reset(0)
    second = env.step(np.zeros(1)).obs
    env.step(np.zeros(1))
    env.reset(1)
    np.testing.assert_array_equal(first, [0, 0])
    np.testing.assert_array_equal(second, [1, 1])


@pytest.mark.parametrize("bad", ["nan", np.nan, np.inf, -np.inf, 1e39])
def test_what_is_not_finite_is_lost_and_said(made, bad, capsys):
    envs, script = made
    script += [1.0, bad, 2.0]
    lost = []
    env = build(lost)
    env.reset(0)
    assert env.step(np.zeros(1)).reward == 1.0
    assert env.step(np.zeros(1)) is None
    assert len(lost) == 1
    what = "observation" if bad == "nan" else "reward"
    assert f"me: a transition is dropped: {what} not finite" in capsys.readouterr().out
    env.reset(1)
    assert env.step(np.zeros(1)).reward == 2.0
    assert len(envs) == 1, "it need not be built again"


def test_of_many_losses_the_first_are_said_then_a_count(made, capsys):
    _, script = made
    script += [np.nan] * 1500
    env = build(lost := [])
    env.reset(0)
    for _ in range(1500):
        assert env.step(np.zeros(1)) is None
    assert len(lost) == 1500
    lines = capsys.readouterr().out.splitlines()
    said = "me: a transition is dropped: reward not finite"
    counts = [f"{said} (number {count})" for count in ("10", "100", "1,000")]
    assert lines == [said] * 5 + counts


def test_an_environment_that_raises_is_built_again(made, capfd):
    envs, script = made
    script += [ValueError("broken"), 1.0]
    lost = []
    env = build(lost)
    env.reset(0)
    assert env.step(np.zeros(1)) is None
    assert len(lost) == 1
    assert len(envs) == 2
    assert envs[0].closed
    env.reset(1)
    assert len(envs[1].seeds) == 1
    assert env.step(np.zeros(1)).reward == 1.0
    assert "ValueError: broken" in capfd.readouterr().err


@pytest.mark.parametrize("failures", [1, 4, 5])
def test_an_environment_that_cannot_be_made_at_once_is_tried_again(
    made, monkeypatch, failures
):
    envs, script = made
    script += [ValueError("the server is gone"), 1.0]
    env = build([])
    env.reset(0)
    make, left = safe_env.make_env, ["its port is busy"] * failures

    def make_later(config):
        if left:
            raise UserError(left.pop())
        return make(config)

    monkeypatch.setattr(safe_env, "make_env", make_later)
    if failures == 5:
        with pytest.raises(RunError, match=r"failed 6 times .* its port is busy"):
            env.step(np.zeros(1))
        return
    assert env.step(np.zeros(1)) is None
    env.reset(1)
    assert env.step(np.zeros(1)).reward == 1.0
    assert len(envs) == 2


def test_a_fork_that_comes_back_from_a_step_ends(made):
    """Else two processes would do the same work, and the second outlive the run."""
    env = build()
    env.reset(0)
    here, forked = os.getpid(), []
    step = made[0][0].step

    def fork_and_step(action):
        forked.append(os.fork())
        return step(action)

    made[0][0].step = fork_and_step
    made[1].append(1.0)
    env.step(np.zeros(1))
    if os.getpid() != here:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(forked[0], 0)[1]) == 1


def test_too_many_failures_in_a_while_end_the_run(made, monkeypatch):
    _, script = made
    script += [ValueError(f"broken\n{i}") for i in range(REBUILDS + 1)]
    env = build()
    env.reset(0)
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
    env.reset(0)
    for _ in range(50):
        now[0] += WINDOW / REBUILDS + 1
        assert env.step(np.zeros(1)) is None


def test_a_lost_transition_is_left_out_of_the_vector_step(made):
    _, script = made
    # Two environments share the script: one step each in turn.
    script += [1.0, 2.0, "nan", 3.0, 4.0, 9.0]
    envs = [build(), build()]
    obs = np.stack([env.reset(0) for env in envs])
    action = np.zeros((2, 1), np.float32)

    first = interactor.step_all(envs, obs, action, lambda: None)
    np.testing.assert_array_equal(first.batch.reward, [1, 2])
    np.testing.assert_array_equal(first.kept, [0, 1])
    np.testing.assert_array_equal(first.over, [False, False])
    second = interactor.step_all(envs, first.next_obs, action, lambda: None)
    np.testing.assert_array_equal(second.batch.reward, [3])
    np.testing.assert_array_equal(second.batch.obs, [[1, 1]])
    np.testing.assert_array_equal(second.batch.next_obs, [[2, 2]])
    np.testing.assert_array_equal(second.kept, [1])
    np.testing.assert_array_equal(second.over, [True, False])  # the first begins again
    obs = np.stack([envs[0].reset(1), second.next_obs[1]])
    third = interactor.step_all(envs, obs, action, lambda: None)
    np.testing.assert_array_equal(third.batch.reward, [4, 9])
    np.testing.assert_array_equal(third.batch.terminated, [0, 1])
    np.testing.assert_array_equal(third.batch.next_obs, [[1, 1], [3, 3]])
    np.testing.assert_array_equal(third.over, [False, True])


# The end


def test_all_are_closed_within_the_time_for_one(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(safe_env, "CLOSE_PATIENCE", 0.2)
    keys = closing_env(tmp_path, closing="hangs")
    envs = [SafeEnv(Environment(**keys), "me", lambda: None) for _ in range(4)]
    patience = []
    close = SafeEnv.close

    def close_and_note(env, seconds):
        patience.append(seconds)
        close(env, seconds)

    monkeypatch.setattr(SafeEnv, "close", close_and_note)
    safe_env.close_all(envs)
    assert times_closed(tmp_path) == 4
    assert capsys.readouterr().err.count("closing an environment failed") == 4
    assert max(patience) < 0.2


ACTORS = {"interactor0": interact, "evaluator0": evaluate}


def acting(tmp_path, name, stop, **keys):
    """An actor with three environments; the context holds what it closes."""
    env = closing_env(tmp_path, **keys)
    sections = {
        "agent_config": {"batch_size": 3},
        "evaluator_config": {"batch_size": 3},
    }
    run, board = new_run(tmp_path, env=env, **sections)
    run = replace(run, obs_dim=2)
    ReplayBuffer.create(run.folders.replay, 2, 1, 100).close()
    context = context_of(run, board, name, stop)
    with context.ends:
        ACTORS[name](context)


@pytest.mark.parametrize("name", ACTORS)
def test_an_actor_that_is_stopped_closes_its_environments(tmp_path, name):
    acting(tmp_path, name, lambda: True)
    assert times_closed(tmp_path) == 3


@pytest.mark.parametrize("name", ACTORS)
def test_where_one_cannot_be_made_the_others_are_closed(tmp_path, name):
    with pytest.raises(UserError, match="no more can be made"):
        acting(tmp_path, name, lambda: True, made=2, closing="raises")
    assert times_closed(tmp_path) == 2
