"""The old MuJoCo ids, through gym >= 0.26 and mujoco-py."""

import importlib
import re
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from ..util import UserError, error_text
from . import mujoco

# The MuJoCo ids that gym 0.26 makes with mujoco-py and gymnasium no longer makes.
MUJOCO_PY_ID = re.compile(
    r"(Ant|HalfCheetah|Hopper|Humanoid|Swimmer|Walker2d)-v[23]"
    r"|(HumanoidStandup|InvertedDoublePendulum|InvertedPendulum|Pusher|Reacher)-v2"
)


def make_with_gym(name: str, make_kwargs: dict[str, Any]) -> gymnasium.Env:
    """An old MuJoCo id, through gym >= 0.26 and mujoco-py."""
    try:
        gym = importlib.import_module("gym")
        importlib.import_module("mujoco_py")
    except Exception as error:  # mujoco-py raises bare Exceptions without its engine
        new_name = f"{name.rsplit('-', 1)[0]}-v5"
        nearest = f"{name.rsplit('-', 1)[0]}-v1"
        if nearest not in mujoco.MUJOCO:
            nearest = new_name
        raise UserError(
            f"env.name {name}: needs gym 0.26.2 and mujoco-py with MuJoCo 2.1 "
            f"(docs/old_engine.md; {error_text(error)}); install them or name {nearest}"
        ) from error
    return GymAdapter(gym.make(name, disable_env_checker=True, **make_kwargs))


class GymAdapter(gymnasium.Env):
    """An environment of gym >= 0.26 as one of gymnasium: the spaces are translated."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self.observation_space = _translated_box(env.observation_space)
        self.action_space = _translated_box(env.action_space)
        self.metadata = dict(env.metadata)
        self.render_mode = getattr(env, "render_mode", None)

    @property
    def unwrapped(self) -> Any:
        """The simulation inside gym's wrappers, with `sim`, `set_state` and `dt`."""
        return self._env.unwrapped

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._env.reset(seed=seed, options=options)

    def step(
        self, action: np.ndarray
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self._env.step(action)

    def render(self) -> Any:
        return self._env.render()

    def close(self) -> None:
        self._env.close()


def _translated_box(space: Any) -> spaces.Box:
    # In float64, as mujoco-py computes: gym's float32 boxes would round the actions.
    low, high = np.asarray([space.low, space.high], np.float64)
    return spaces.Box(low, high, dtype=np.float64)
