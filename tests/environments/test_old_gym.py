"""The old MuJoCo ids, through gym and mujoco-py."""

import sys
import types

import check_environments
import numpy as np
import pytest
from support_environments import PAPER_SIZES, RECORDINGS, error_of, made

from steve.environments import mujoco


class FakeGymSpace:
    """What gym's Box offers; no class of gymnasium."""

    def __init__(self, bound: float, size: int, dtype: type) -> None:
        self.shape, self.dtype = (size,), np.dtype(dtype)
        self.low, self.high = np.full((2, size), [[-bound], [bound]], dtype)


class FakeGymEnv:
    """What gym's wrappers around a simulation offer.

    As gym 0.26.2 does, it observes float64 and has actions of float32.
    """

    metadata: dict = {"render_modes": []}  # noqa: RUF012

    def __init__(self, identifier, **kwargs):
        self.identifier, self.kwargs = identifier, kwargs
        self.observation_space = FakeGymSpace(np.inf, 4, np.float64)
        self.action_space = FakeGymSpace(0.4, 2, np.float32)
        self.unwrapped = object()
        self.calls = []

    def reset(self, *, seed=None, options=None):
        self.calls.append(("reset", seed))
        return np.arange(4.0), {}

    def step(self, action):
        self.calls.append(("step", action.tolist()))
        return np.ones(4), np.float64(2.5), np.bool_(True), False, {}

    def close(self):
        self.calls.append("close")


@pytest.mark.parametrize("name", ["Hopper-v2", "Humanoid-v3", "Pusher-v2"])
def test_mujoco_py_ids_without_gym_say_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "gym", None)
    said = error_of(name)
    assert "gym 0.26.2 and mujoco-py" in said
    assert ("Pusher-v5" if name == "Pusher-v2" else name[:-1] + "1") in said


def test_mujoco_py_ids_go_to_gym_where_it_is_installed(monkeypatch):
    envs = []

    def make(identifier, **kwargs):
        envs.append(FakeGymEnv(identifier, **kwargs))
        return envs[-1]

    monkeypatch.setitem(sys.modules, "gym", types.SimpleNamespace(make=make))
    monkeypatch.setitem(sys.modules, "mujoco_py", types.SimpleNamespace())
    env = made("Hopper-v2", max_frames=2, make_kwargs={"extra": 1})
    assert envs[0].identifier == "Hopper-v2"
    assert envs[0].kwargs["extra"] == 1
    assert env.unwrapped is envs[0].unwrapped
    np.testing.assert_array_equal(env.reset(seed=3)[0], np.arange(4.0))
    obs, reward, terminated, truncated, _ = env.step(np.array([1.0, -0.1]))
    assert (obs.tolist(), reward, terminated, truncated) == ([1] * 4, 2.5, True, False)
    assert (type(reward), type(terminated)) == (float, bool)
    env.close()
    # 0.4 is the bound of a float32 box; -0.1 is within and must arrive unrounded.
    bound = float(np.float32(0.4))
    assert envs[0].calls == [("reset", 3), ("step", [bound, -0.1]), "close"]


@pytest.mark.mujoco_py
@pytest.mark.parametrize("version", ["v2", "v3"])
@pytest.mark.parametrize("name", mujoco.MUJOCO)
def test_real_mujoco_py_repeats_its_recorded_episodes(name, version):
    stem = name.removesuffix("-v1")
    recording = check_environments.load(RECORDINGS / f"{stem.lower()}.npz")
    env = made(f"{stem}-{version}", obs_dims=[PAPER_SIZES[name][0]])
    for first, row in check_environments.episode_rows(recording["episode"]):
        if first:
            env.reset()  # the engine's warm start too begins again
            env.unwrapped.set_state(recording["qpos"][row], recording["qvel"][row])
        obs, reward, *ends, _ = env.step(recording["action"][row])
        np.testing.assert_allclose(obs, recording["next_obs"][row], rtol=0, atol=1e-10)
        assert reward == pytest.approx(recording["reward"][row], abs=1e-12)
        assert ends == [recording["terminated"][row], False]
    env.close()


@pytest.mark.mujoco_py
def test_real_mujoco_pys_episodes_are_cut_and_a_cut_is_no_termination():
    for max_frames, frame in ((7, 7), (1100, 1000)):  # 1000: gym's own clock
        env = made("Swimmer-v2", max_frames=max_frames)
        env.reset(seed=0)
        for step in range(1, frame + 1):
            _, _, terminated, truncated, _ = env.step(np.zeros(2))
            assert (terminated, truncated) == (False, step == frame)
        env.close()
