"""docs/environments.md: its configurations, each stepped as a run steps it."""

import importlib.util
import json
import re
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from support import PROJECT, make_run
from support_actors import Script, context_of
from support_environments import leave_no_id, needs_dm_control, needs_pybullet

from steve import envwrap
from steve.acting.interactor import interact
from steve.replay import ReplayBuffer
from steve.settings import loading
from steve.storage.board import Board
from steve.storage.record import read_run

TEXT = (PROJECT / "docs" / "environments.md").read_text()
(WRAPPERS,) = re.findall(r"```python\n# my_wrappers\.py\n(.*?)```", TEXT, re.DOTALL)
DM_CONTROL, ROBOTICS, PYBULLET, WRAPPED = (
    json.loads(text) for text in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
)


class Goal(gymnasium.Env):
    """A goal environment with the interface of Gymnasium-Robotics.

    A point moves to a goal; all observations are of float64.
    """

    def __init__(self, reward_type="sparse"):
        self._is_dense = reward_type == "dense"
        vector = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.observation_space = spaces.Dict(
            {
                "observation": spaces.Box(-np.inf, np.inf, (10,), np.float64),
                "achieved_goal": vector,
                "desired_goal": vector,
            }
        )
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def _observed(self):
        return {
            "observation": np.concatenate([self._at, np.zeros(7)]),
            "achieved_goal": self._at.copy(),
            "desired_goal": self._goal.copy(),
        }

    def compute_reward(self, achieved_goal, desired_goal, info):
        distance = np.linalg.norm(achieved_goal - desired_goal, axis=-1)
        return -distance if self._is_dense else -(distance > 0.05).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._at, self._goal = np.zeros(3), self.np_random.uniform(-1, 1, 3)
        return self._observed(), {}

    def step(self, action):
        self._at += 0.05 * action[:3]
        reward = self.compute_reward(self._at, self._goal, {})
        return self._observed(), reward, False, False, {}


def stepped(tmp_path, content, frames=200):
    """The rows of so many frames, of an interactor that is replaced in the middle."""
    loaded = loading.load(content, overrides=[f"output_root={tmp_path}"])
    config = loaded.config
    sizes = envwrap.measure(config.env)
    run = replace(make_run(config), obs_dim=sizes.obs_dim, action_dim=sizes.action_dim)
    board = Board.create(run.folders.board, config)
    board["valuerl"]["ready"] = board["worldmodel"]["ready"] = 1
    replay = ReplayBuffer.create(
        run.folders.replay, sizes.obs_dim, sizes.action_dim, 10_000
    )
    for until in (frames // 2, frames):
        stop = Script(lambda until=until: replay.frames >= until)
        interact(context_of(run, board, "interactor0", stop))
    assert "not_reproducible" not in read_run(run.folders)
    batch = replay.read(0, replay.frames)
    assert len(batch.obs) == frames
    for values in batch:
        assert np.isfinite(values).all()
    assert np.ptp(batch.reward) > 0
    return batch


@needs_dm_control
def test_a_task_of_dm_control(tmp_path):
    batch = stepped(tmp_path, DM_CONTROL)
    assert batch.obs.shape == (200, 5)
    assert (batch.obs.std(axis=0) > 0).all()


@needs_pybullet
def test_an_id_of_pybullet(tmp_path):
    assert stepped(tmp_path, PYBULLET).obs.shape == (200, 5)


def test_a_goal_environment_shows_all_its_parts(tmp_path, monkeypatch):
    content = json.loads(json.dumps(ROBOTICS))
    if importlib.util.find_spec("gymnasium_robotics") is None:
        content["updates"]["env"] |= {"name": "Goal-v0", "module": None}
        gymnasium.register("Goal-v0", Goal)
    batch = stepped(tmp_path, content)
    leave_no_id("Goal-v0")
    assert batch.obs.shape == (200, 16)
    # In alphabetical order: achieved_goal, desired_goal, observation.
    achieved, desired, observed = np.split(batch.next_obs, [3, 6], axis=1)
    np.testing.assert_array_equal(achieved, observed[:, :3])
    distance = np.linalg.norm(achieved - desired, axis=1)
    np.testing.assert_allclose(batch.reward, -distance, rtol=1e-4)


def test_wrappers_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "my_wrappers.py").write_text(WRAPPERS)
    monkeypatch.syspath_prepend(tmp_path)
    bare = json.loads(json.dumps(WRAPPED))
    bare["updates"]["env"]["wrappers"] = []
    batch, unwrapped = (
        stepped(tmp_path / name, content)
        for name, content in (("wrapped", WRAPPED), ("bare", bare))
    )
    # The same first states; the speed is divided by 8.
    np.testing.assert_allclose(batch.obs[:4] * [1, 1, 8], unwrapped.obs[:4], rtol=1e-6)
    # Two rewards in each step, but for what the speed has changed meanwhile.
    assert (batch.reward < unwrapped.reward.max()).all()
    assert batch.reward.mean() == pytest.approx(2 * unwrapped.reward.mean(), rel=0.5)
