"""The small policy net in NumPy, for processes that must not import TensorFlow.

Dimension letters: B rows, O observation, A action.
"""

import numpy as np

from checkpoint import Checkpoint, CheckpointError


class Policy:
    """tanh pi(s) from the weights that the value learner published.

    Attributes:
        epoch: the value learner's epoch in which it was published.
        frames: frames in the replay buffer at that time.
        hours: hours of learning at that time.
    """

    def __init__(self, checkpoint: Checkpoint, obs_dim: int, action_dim: int) -> None:
        """Takes up the tensors "policy/w0" [O, .], "policy/b0" [.], ...

        Raises:
            CheckpointError: the net is not one from observations to actions.
        """
        tensors = checkpoint.tensors
        layers = sum(name.startswith("policy/w") for name in tensors)
        self._layers = [
            (tensors[f"policy/w{i}"], tensors[f"policy/b{i}"]) for i in range(layers)
        ]
        widths = [w.shape for w, _ in self._layers]
        if not widths or (widths[0][0], widths[-1][1]) != (obs_dim, action_dim):
            raise CheckpointError(
                f"the policy maps {widths[0][0] if widths else 'nothing'} observations "
                f"to {widths[-1][1] if widths else 'no'} actions; the environment has "
                f"{obs_dim} and {action_dim}"
            )
        self.epoch = int(checkpoint.metadata["epoch"])
        self.frames = int(checkpoint.metadata["frames"])
        self.hours = float(checkpoint.metadata["hours"])

    def _pre_tanh(self, obs: np.ndarray) -> np.ndarray:
        x = np.asarray(obs, np.float32)
        for w, b in self._layers[:-1]:
            x = np.maximum(x @ w + b, 0)
        w, b = self._layers[-1]
        return x @ w + b

    def greedy(self, obs: np.ndarray) -> np.ndarray:
        """tanh pi(s): [B, O] -> [B, A] in [-1, 1]."""
        return np.tanh(self._pre_tanh(obs))

    def explore(
        self, obs: np.ndarray, chance: float, rng: np.random.Generator
    ) -> np.ndarray:
        """The exploring action (SPEC section 6): [B, O] -> [B, A] in [-1, 1].

        Each action dimension, with probability `chance`, becomes
        tanh(pi(s) + N(0, 1)); 0 gives the greedy action.
        """
        pre_tanh = self._pre_tanh(obs)
        disturbed = rng.random(pre_tanh.shape) < chance
        noise = rng.standard_normal(pre_tanh.shape, np.float32)
        return np.tanh(np.where(disturbed, pre_tanh + noise, pre_tanh))


def random_actions(rows: int, action_dim: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform in [-1, 1], [rows, A] float32 (SPEC section 6: the first frames)."""
    return rng.uniform(-1, 1, (rows, action_dim)).astype(np.float32)
