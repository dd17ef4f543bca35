"""The transitions of a batch."""

if not __package__:
    raise ModuleNotFoundError("batch is steve.batch", name="batch")

from typing import Any, Generic, NamedTuple, TypeVar

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


def row_width(obs_dim: int, action_dim: int) -> int:
    """Numbers of a transition, as `fields` takes them apart."""
    return 2 * obs_dim + action_dim + 2


def fields(rows: Any, obs_dim: int, action_dim: int) -> Batch[Any]:
    """Takes the fields out of rows, an array or a tensor; of an array, views.

    Args:
        rows: [..., O + O + A + 2], in the order of the replay buffer's file: s, s', a,
            r, d. What follows in a row is left out.
        obs_dim: O.
        action_dim: A.
    """
    action = 2 * obs_dim
    reward = action + action_dim
    return Batch(
        obs=rows[..., :obs_dim],
        action=rows[..., action:reward],
        reward=rows[..., reward],
        next_obs=rows[..., obs_dim:action],
        terminated=rows[..., reward + 1],
    )
