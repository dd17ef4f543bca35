"""A vector step: several environments, their episodes, and the batch they give."""

import numpy as np
import pytest
import support_env
from support import make_config
from support_actors import Script, context_of, new_run

from steve.acting import safe_env
from steve.acting.interactor import Interactor, step_all
from steve.acting.safe_env import SafeEnv
from steve.replay import ReplayBuffer
from steve.util import RunError


def counting_envs(tmp_path, endings, length=3, max_frames=100):
    envs, obs = [], []
    for seed, ending in enumerate(endings):
        settings = {"length": length, "ending": ending, "max_frames": max_frames}
        config = make_config(tmp_path, env=settings).env
        envs.append(SafeEnv(config, "test", lambda: None))
        obs.append(envs[-1].reset(seed))
    return envs, np.stack(obs)


def step_and_reset(envs, obs, action, beat):
    """One vector step; an environment begins each episode with the same seed."""
    taken = step_all(envs, obs, action, beat)
    obs = np.array(taken.next_obs)
    for i in np.flatnonzero(taken.over):
        obs[i] = envs[i].reset(int(i))
    return taken.batch, obs


def steps_of(envs, obs, count):
    """`count` vector steps with actions that each occur once."""
    batches, beats = [], []
    for step in range(count):
        action = np.linspace(-1, 1, len(envs) * count, dtype=np.float32)
        action = action[step * len(envs) :][: len(envs), None]
        batch, obs = step_and_reset(envs, obs, action, lambda: beats.append(None))
        np.testing.assert_array_equal(batch.action, action)
        np.testing.assert_array_equal(batch.reward, action[:, 0])
        batches.append(batch)
    assert len(beats) >= count * len(envs)
    return batches, obs


def test_only_a_termination_is_stored_as_one(tmp_path):
    envs, obs = counting_envs(tmp_path, ["termination", "truncation", "both"])
    batches, _ = steps_of(envs, obs, 6)
    stored = np.stack([batch.terminated for batch in batches])
    assert stored.dtype == np.float32
    ends = [0, 0, 1, 0, 0, 1]
    np.testing.assert_array_equal(stored.T, [ends, [0] * 6, ends])


def test_an_episode_cut_at_max_frames_is_no_termination(tmp_path):
    envs, obs = counting_envs(tmp_path, ["termination"], length=5, max_frames=2)
    batches, _ = steps_of(envs, obs, 4)
    assert [batch.terminated[0] for batch in batches] == [0, 0, 0, 0]
    assert [batch.next_obs[0, 1:].tolist() for batch in batches] == [
        [0, 1],
        [0, 2],
        [1, 1],
        [1, 2],
    ]


@pytest.mark.parametrize("ending", ["termination", "truncation", "both"])
def test_next_obs_is_the_last_observation_of_an_episode_not_the_first_of_the_next(
    tmp_path, ending
):
    envs, obs = counting_envs(tmp_path, [ending])
    batches, obs = steps_of(envs, obs, 7)
    # (episode, step) before and after; an episode has 3 steps.
    pairs = [
        (*batch.obs[0, 1:].tolist(), *batch.next_obs[0, 1:].tolist())
        for batch in batches
    ]
    assert pairs == [
        (0, 0, 0, 1),
        (0, 1, 0, 2),
        (0, 2, 0, 3),
        (1, 0, 1, 1),
        (1, 1, 1, 2),
        (1, 2, 1, 3),
        (2, 0, 2, 1),
    ]
    assert obs[0, 1:].tolist() == [2, 1]


def test_each_environment_goes_its_own_way(tmp_path):
    envs, obs = counting_envs(tmp_path, ["termination", "truncation"], length=3)
    envs[1]._env.unwrapped.length = 2
    numbers = obs[:, 0].tolist()
    assert numbers[0] != numbers[1]
    batches, obs = steps_of(envs, obs, 5)
    for batch in batches:
        assert batch.obs[:, 0].tolist() == batch.next_obs[:, 0].tolist() == numbers
    assert obs[:, 1:].tolist() == [[1, 2], [2, 1]]


def test_a_batch_is_float32_in_the_shapes_of_the_replay(tmp_path):
    envs, obs = counting_envs(tmp_path, ["termination", "both"])
    (batch,), _ = steps_of(envs, obs.astype(np.float64), 1)
    assert [field.dtype for field in batch] == [np.float32] * 5
    shapes = [field.shape for field in batch]
    assert shapes == [(2, 3), (2, 1), (2,), (2, 3), (2,)]


@pytest.mark.parametrize(
    ("is_lost", "said"),
    [
        (lambda step: True, "100 of the last 100 steps"),
        (lambda step: step % 2, "100 of the last 199 steps"),
        (lambda step: step % 3 == 0, None),
    ],
)
def test_too_many_lost_transitions_end_the_run_in_one_line(
    tmp_path, monkeypatch, is_lost, said
):
    run, board = new_run(
        tmp_path,
        agent_config={"batch_size": 1, "full_random_n": 10**6},
        policy_config={"frames_before_learning": 10**6},
    )
    ReplayBuffer.create(run.folders.replay, 3, 1, 1000).close()
    steps, step = [], SafeEnv.step

    def step_or_lose(env, action):
        steps.append(env)
        return None if is_lost(len(steps)) else step(env, action)

    monkeypatch.setattr(SafeEnv, "step", step_or_lose)
    stop = Script(lambda: len(steps) >= 1000)
    context = context_of(run, board, "interactor0", stop)
    if said is None:
        Interactor(context).run()
        assert len(steps) == 1000
        return
    with pytest.raises(RunError) as caught:
        Interactor(context).run()
    assert str(caught.value) == (
        f"interactor0: {said} of Counting-v0 gave no transition that is finite; the "
        "run stops. Correct the environment"
    )


def test_too_many_lost_transitions_of_many_environments_end_the_run(
    tmp_path, monkeypatch
):
    """One vector step is more than what is looked back at otherwise."""
    many = {"batch_size": 300, "full_random_n": 10**6}
    run, board = new_run(tmp_path, agent_config=many)
    ReplayBuffer.create(run.folders.replay, 3, 1, 1000).close()
    step, lost = SafeEnv.step, []

    def step_or_lose(env, action):
        lost.append(len(lost) % 3 > 0)
        return None if lost[-1] else step(env, action)

    monkeypatch.setattr(SafeEnv, "step", step_or_lose)
    stop = Script(lambda: len(lost) > 300)
    with pytest.raises(RunError, match=r"200 of the last 300 steps"):
        Interactor(context_of(run, board, "interactor0", stop)).run()


def failing_once(monkeypatch, row):
    """Lets the first step fail; the heartbeat when the environment is made again.

    Args:
        row: the process's on the board.
    """
    step, beats = support_env.CountingEnv.step, []
    making = safe_env.make_env

    def fails_once(self, action):
        if not beats:
            row["heartbeat"] = 0
            raise OSError("lost the simulator")
        return step(self, action)

    def make_again(config):
        beats.append(float(row["heartbeat"]))
        return making(config)

    def close(env, patience):
        env.close()
        monkeypatch.setattr(safe_env, "make_env", make_again)

    monkeypatch.setattr(support_env.CountingEnv, "step", fails_once)
    monkeypatch.setattr(safe_env, "close_env", close)
    return beats


def test_a_failure_of_the_environment_is_a_sign_of_life(tmp_path, monkeypatch):
    run, board = new_run(tmp_path)
    replay = ReplayBuffer.create(run.folders.replay, 3, 1, 1000)
    beats = failing_once(monkeypatch, board["interactor0"])
    stop = Script(lambda: replay.frames >= 3)
    context = context_of(run, board, "interactor0", stop)
    with context.ends:
        Interactor(context).run()
    assert beats[0] > 0
