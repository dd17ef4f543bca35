"""A trained policy in the environment's own terms, without TensorFlow."""

from pathlib import Path
from typing import Any

import numpy as np

from ..settings.interface import Interface
from ..storage.checkpoint import Checkpoint
from .policy import Policy


class DeployedPolicy:
    """What `steve.load_policy` gives.

    Args:
        path: of its file.
        state: its tensors and counters, as published.
        interface: of the environment that it was trained on.

    Attributes:
        path: as above.
        interface: as above.
        updates: of the value learner when it was published.
        frames: that it has learned from; unpaced, all that were there.
    """

    def __init__(self, path: Path, state: Checkpoint, interface: Interface) -> None:
        self.path = path
        self.interface = interface
        self.updates = int(state.metadata.get("updates", 0))
        self.frames = int(state.metadata.get("frames", 0))
        self._policy = Policy(state, interface.obs_dim, len(interface.low))
        self._rng = np.random.default_rng()

    def act(
        self,
        obs: Any,
        *,
        deterministic: bool = True,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """The action for one observation, or one action for each of a batch.

        Args:
            obs: as the environment gives it: an array, or dicts and tuples of arrays,
                flattened as in training; of a batch, each array has B in front.
            deterministic: False explores as an interactor does (SPEC section 6).
            rng: draws the exploration; one of the policy's own by default.

        Returns:
            in the environment's own units, shape and type; of a batch with B in front.

        Raises:
            ValueError: the observation has other sizes than in training, or numbers
                that are not finite.
        """
        flat = self.interface.flatten(obs)
        if not np.isfinite(flat).all():
            raise ValueError("obs has numbers that are not finite")
        rows = flat.reshape(-1, self.interface.obs_dim)
        if deterministic:
            action = self._policy.greedy(rows)
        else:
            chance = self.interface.explore_chance
            action = self._policy.explore(rows, chance, rng or self._rng)
        action = self.interface.to_env(action)
        return action if flat.ndim > 1 else action[0]

    def predict(
        self,
        observation: Any,
        state: None = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, None]:
        """(action, None), as stable-baselines3's `evaluate_policy` calls it."""
        return self.act(observation, deterministic=deterministic), None
