"""The small policy net in NumPy, for processes that must not import TensorFlow.

Dimension letters: B rows, O observation, A action.
"""

from itertools import pairwise

import numpy as np

from ..running.child import Context
from ..storage import checkpoint
from ..storage.checkpoint import Checkpoint, CheckpointError
from ..util import RunError, file_stamp


class Policy:
    """tanh pi(s) from the weights that the value learner published.

    Attributes:
        epoch: the value learner's epoch in which it was published.
        frames: that it has learned from; unpaced, all that were there.
        hours: hours of learning at that time.
        updates: of the value learner at that time.
    """

    def __init__(self, checkpoint: Checkpoint, obs_dim: int, action_dim: int) -> None:
        """Takes up the tensors "policy/w0" [O, .], "policy/b0" [.], ...

        Raises:
            CheckpointError: the net is not one from observations to actions.
        """
        tensors, metadata = checkpoint.tensors, checkpoint.metadata
        layers = sum(name.startswith("policy/w") for name in tensors)
        try:
            self._layers = [
                (tensors[f"policy/w{i}"], tensors[f"policy/b{i}"])
                for i in range(layers)
            ]
            self.epoch = int(metadata["epoch"])
            self.frames = int(metadata["frames"])
            self.hours = float(metadata["hours"])
            self.updates = int(metadata.get("updates", 0))
        except KeyError as error:
            raise CheckpointError(f"the policy has no {error}") from None
        except (ValueError, TypeError):
            raise CheckpointError("the policy's metadata are damaged") from None
        widths = [obs_dim, *(b.size for _, b in self._layers)]
        fit = (
            w.shape == ends and b.shape == ends[1:]
            for (w, b), ends in zip(self._layers, pairwise(widths), strict=True)
        )
        if not layers or widths[-1] != action_dim or not all(fit):
            shapes = ", ".join(str(list(w.shape)) for w, _ in self._layers) or "none"
            raise CheckpointError(
                f"the policy's layers ({shapes}) do not lead from the environment's "
                f"{obs_dim} observations to its {action_dim} actions"
            )

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


class PolicyReader:
    """Published policies: that of a number of updates, or the newest.

    A file is read only when it is another one than that read last.
    """

    def __init__(self, context: Context) -> None:
        self._path = context.run.folders.policy
        self._published = context.run.folders.policies
        self._sizes = context.run.obs_dim, context.run.action_dim
        self._stamp: object = None  # of the newest policy, where it was asked for
        self._updates = -1  # of `policy`, where it was asked for by number
        self.policy: Policy | None = None

    def load(self, updates: int) -> Policy | None:
        """The policy of so many updates; None where it has not been published yet.

        Raises:
            CheckpointError: its file is damaged.
        """
        if updates != self._updates:
            path = self._published.path(updates)
            if not path.exists():
                return None  # asked first: it may be published at any moment
            try:
                state = checkpoint.load(path)
            except CheckpointError:
                if path.exists():
                    raise
                return None
            self.policy = Policy(state, *self._sizes)
            self._updates, self._stamp = updates, None
        return self.policy

    def refresh(self) -> Policy | None:
        """Takes up a newly published policy; returns the newest, None before any.

        A damaged file is named in the process's output and passed over: the value
        learner publishes the policy again when the run is resumed.

        Raises:
            RunError: the file was there and is gone.
        """
        stamp = file_stamp(self._path)
        if stamp is None and self._stamp is not None:
            raise RunError(f"{self._path} is gone: somebody removed or renamed it")
        if stamp is not None and stamp != self._stamp:
            self._stamp, self._updates = stamp, -1
            try:
                self.policy = Policy(checkpoint.load(self._path), *self._sizes)
            except CheckpointError as error:
                print(error, flush=True)
        return self.policy
