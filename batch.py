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


def columns(obs_dim: int, action_dim: int) -> dict[str, slice]:
    """Where each field lies in a row of the replay buffer, in numbers of float32.

    Args:
        obs_dim: O.
        action_dim: A.
    """
    found, start = {}, 0
    for name, width in (
        ("obs", obs_dim),
        ("next_obs", obs_dim),
        ("action", action_dim),
        ("reward", 1),
        ("terminated", 1),
    ):
        found[name] = slice(start, start + width)
        start += width
    return found


def row_width(obs_dim: int, action_dim: int) -> int:
    """Numbers of a transition: O + O + A + 2."""
    return columns(obs_dim, action_dim)["terminated"].stop


def fields(rows: Any, obs_dim: int, action_dim: int) -> Batch[Any]:
    """Takes the fields out of rows, an array or a tensor; of an array, views.

    Args:
        rows: [..., O + O + A + 2], as `columns` says. What follows is left out.
        obs_dim: O.
        action_dim: A.
    """
    where = columns(obs_dim, action_dim)
    return Batch(
        obs=rows[..., where["obs"]],
        action=rows[..., where["action"]],
        reward=rows[..., where["reward"].start],
        next_obs=rows[..., where["next_obs"]],
        terminated=rows[..., where["terminated"].start],
    )
