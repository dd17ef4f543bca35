"""Episodes: what the environment did, and nothing else."""

import numpy as np
import pytest
from support_closing import closing_env, times_closed

from steve.acting.policy import Policy
from steve.analysis.episodes import Episode, EpisodeRunner, run_episode
from steve.analysis.policy_figures import ending
from steve.analysis.video import EpisodeError
from steve.settings.schema import Config
from steve.storage.checkpoint import Checkpoint


class Scripted:
    """Ends after three steps by what it is told; rewards 1, 2, 4."""

    def __init__(self, terminated=True, reward=4.0):
        self._last = terminated, reward

    def reset(self, *, seed):
        self.seed, self._step = seed, 0
        return np.zeros(2), {}

    def step(self, action):
        self._step += 1
        obs = np.full(2, float(self._step))
        if self._step < 3:
            return obs, float(self._step), False, False, {}
        terminated, reward = self._last
        return obs, reward, terminated, not terminated, {}


CONSTANT = Checkpoint(
    {
        "policy/w0": np.zeros((2, 1), np.float32),
        "policy/b0": np.array([0.5], np.float32),
    },
    {"epoch": 1, "frames": 0, "hours": 0.0},
)


def constant_policy() -> Policy:
    return Policy(CONSTANT, 2, 1)


@pytest.mark.parametrize("terminated", [True, False])
def test_an_episode_is_what_the_environment_did(terminated):
    env, seen = Scripted(terminated), []
    episode = run_episode(
        env, constant_policy(), 11, lambda env, *rest: seen.append(rest)
    )
    assert env.seed == episode.seed == 11
    assert (episode.length, episode.score) == (3, 7.0)
    assert episode.terminated is terminated
    assert episode.obs[:, 0].tolist() == [0, 1, 2]
    assert episode.next_obs[:, 0].tolist() == [1, 2, 3]
    np.testing.assert_allclose(episode.action, np.tanh(0.5), rtol=1e-6)
    assert seen == [(0, 0.0, False), (1, 1.0, False), (2, 3.0, False), (3, 7.0, True)]


def test_a_score_is_added_up_in_the_order_of_the_rewards():
    none = np.empty((10, 0))
    episode = Episode(0, none, none, np.full(10, 0.1), none, terminated=True)
    assert episode.score == 0.9999999999999999  # rounded once it would be 1.0


# The largest is finite in float64, but not in float32, in which rows are kept.
@pytest.mark.parametrize("reward", [np.nan, 1e39])
def test_a_step_that_is_not_finite_ends_the_episode_and_is_left_out(reward):
    episode = run_episode(Scripted(reward=reward), constant_policy(), 0)
    assert (episode.length, episode.score) == (2, 3.0)
    assert episode.broken
    assert not episode.terminated
    assert ending(episode) == "not finite"


def test_an_episode_that_cannot_begin_is_an_error(monkeypatch):
    for name, result in (
        ("reset", (np.full(2, np.nan), {})),
        ("step", (np.zeros(2), np.inf, False, False, {})),
    ):
        env = Scripted()
        monkeypatch.setattr(env, name, lambda *_, result=result, **__: result)
        with pytest.raises(EpisodeError, match="not finite"):
            run_episode(env, constant_policy(), 0)


# The process of the environment


def closing_config(folder, **keys):
    env = closing_env(folder, **keys)
    return Config.model_validate({"env": {**env, "max_frames": 20}})


def test_the_environment_is_closed_when_its_episodes_are_done(tmp_path):
    with EpisodeRunner(closing_config(tmp_path)) as runner:
        episodes = list(runner.run(CONSTANT, [1, 2]))
    assert [episode.score for episode in episodes] == [20.0, 20.0]
    assert times_closed(tmp_path) == 1


def test_an_environment_may_have_processes_of_its_own_as_in_training(tmp_path):
    with EpisodeRunner(closing_config(tmp_path, stepping="with a process")) as runner:
        assert len(list(runner.run(CONSTANT, [1]))) == 1


def test_the_environment_is_closed_where_its_episodes_are_given_up(tmp_path):
    """Before the first one, by an error here; or in the middle, as by Ctrl-C."""
    with EpisodeRunner(closing_config(tmp_path)):
        pass
    assert times_closed(tmp_path) == 1
    config = closing_config(tmp_path)
    endless = config.env.model_copy(update={"max_frames": 10**9})
    with EpisodeRunner(config.model_copy(update={"env": endless})) as runner:
        runner._send((CONSTANT, [1]))
    assert times_closed(tmp_path) == 2


@pytest.mark.parametrize("closing", ["well", "raises"])
def test_a_failing_environment_is_closed_and_its_line_stays(tmp_path, closing):
    config = closing_config(tmp_path, stepping="raises", closing=closing)
    with (
        pytest.raises(EpisodeError, match="ValueError: no step can be done"),
        EpisodeRunner(config) as runner,
    ):
        list(runner.run(CONSTANT, [1]))
    assert times_closed(tmp_path) == 1
