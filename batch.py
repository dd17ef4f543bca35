"""The transitions of a batch."""

if not __package__:
    raise ModuleNotFoundError("batch is steve.batch", name="batch")

from typing import Generic, NamedTuple, TypeVar

Array = TypeVar("Array")


class Batch(NamedTuple, Generic[Array]):
    """B transitions (s, a, r, s', d), float32: NumPy arrays, or tensors of an update.

    Attributes:
        obs: s, [B, O].
        action: a in [-1, 1], [B, A].
        reward: r, [B].
        next_obs: s', the true next observation, also at the end of an episode, [B, O].
        terminated: d, 1 where the environment ended the episode, else 0, [B].
    """

    obs: Array
    action: Array
    reward: Array
    next_obs: Array
    terminated: Array
