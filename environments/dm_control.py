"""dm_control's tasks: a simulation that diverges is no broken environment."""

import sys
from typing import Any

import gymnasium
import numpy as np


class DivergenceAsNan(gymnasium.Wrapper):
    """Gives an observation of NaN where dm_control raises that its physics diverged.

    The next reset begins as any other.

    Args:
        env: one with an array as observation.
        error: what dm_control raises, `physics_error()`.
    """

    def __init__(self, env: gymnasium.Env, error: type[Exception]) -> None:
        super().__init__(env)
        self._error = error

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict]:
        try:
            return self.env.step(action)
        except self._error as error:
            print(f"dm_control: {error}", flush=True)
        space = self.observation_space
        return np.full(space.shape or (), np.nan, space.dtype), 0.0, False, False, {}


def physics_error() -> type[Exception] | None:
    """What dm_control raises for physics that diverged; None: it is not in use."""
    module = sys.modules.get("dm_control.rl.control")
    return getattr(module, "PhysicsError", None)
