"""What lies between an environment and the nets: flat observations, actions in a box.

The launcher reads it from the environment, the value learner publishes it with the
policy; so a policy can act in the environment's own terms where the environment is not
to be had.
"""

import contextlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np


def to_box(
    action: np.ndarray, low: np.ndarray, high: np.ndarray, rescale: bool
) -> np.ndarray:
    """The environment's action from the agent's (SPEC section 6).

    Args:
        action: in [-1, 1], [..., *shape].
        low, high: the box's bounds, [*shape], in its own type.
        rescale: True maps -1 to `low` and 1 to `high`; False passes the action as it
            is. Both clip the result to the box.

    Returns:
        [..., *shape] in the box's type.
    """
    action = np.asarray(action, np.float64)
    if rescale:
        # In float64: the bounds are often float32, whose difference rounds.
        wide = high.astype(np.float64) - low.astype(np.float64)
        action = low.astype(np.float64) + (action + 1.0) * 0.5 * wide
    # An array too where the box has the shape (): NumPy makes a scalar of it.
    return np.asarray(np.clip(action, low, high), low.dtype)


class Leaf(NamedTuple):
    """One box of an observation.

    Attributes:
        path: the keys and positions that lead to it; () where it is the whole.
        size: how many numbers it holds.
        shape: of its arrays; None where a policy was published without it.
    """

    path: tuple[str | int, ...]
    size: int
    shape: tuple[int, ...] | None = None

    def flatten(self, obs: Any) -> np.ndarray:
        """This box of an observation, [size], or of a batch of them, [B, size].

        Raises:
            ValueError: it is not there, or has other sizes.
        """
        where = "obs" + "".join(f"[{step!r}]" for step in self.path)
        try:
            for step in self.path:
                obs = obs[step]
            part = np.asarray(obs)
            if part.dtype == object and None in part.ravel().tolist():
                raise TypeError  # of None NumPy would make NaN
            part = part.astype(np.float32)
        except (KeyError, IndexError, TypeError, ValueError):
            raise ValueError(
                f"{where} is missing, or holds no numbers; the policy was trained on "
                f"{self.size} numbers there"
            ) from None
        given = part.shape
        for shape in (self.shape, (self.size,)):
            if given == shape:
                return part.reshape(self.size)
            if given and given[1:] == shape:
                return part.reshape(len(part), self.size)
        # An environment may give its numbers in another shape; see `Contract`.
        if part.size == self.size:
            return part.reshape(self.size)
        if given and part.size == len(part) * self.size:
            return part.reshape(len(part), self.size)
        raise ValueError(
            f"{where} has shape {given}; the policy was trained on {self.size} numbers "
            f"there{'' if self.shape is None else f', of shape {self.shape}'}"
        )


@dataclass(frozen=True)
class Interface:
    """How observations are flattened and actions are scaled.

    Attributes:
        leaves: the boxes of an observation, in the order in which they are flattened.
        low, high: bounds of the environment's action, flat.
        shape: of its action.
        dtype: of its action.
        rescale: as of `to_box`.
        explore_chance: with which an exploring action departs from the greedy one.
    """

    leaves: tuple[Leaf, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    shape: tuple[int, ...]
    dtype: str
    rescale: bool
    explore_chance: float

    def reach_note(self) -> str | None:
        """What to tell the user where actions and box do not fit; None where they do.

        Told where unscaled actions span half of a bounded box or less, or where a
        tenth of their own span or less lies within it.
        """
        if self.rescale:
            return None
        for low, high in zip(self.low, self.high, strict=True):
            span = min(high, 1.0) - max(low, -1.0)
            if not math.isfinite(high - low):
                continue
            if span <= 0.5 * (high - low) or span <= 0.1 * 2.0:
                return (
                    f"actions are in [-1, 1], but the environment's box is [{low:g}, "
                    f"{high:g}]: set env.rescale_actions to true to use the whole box"
                )
        return None

    def to_json(self) -> str:
        """As a string for a policy's metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The opposite of `to_json`.

        Raises:
            ValueError, TypeError, KeyError: it is not what that wrote.
        """
        content: dict[str, Any] = json.loads(text)
        leaves = (
            Leaf(
                tuple(path),
                int(size),
                *(tuple(each) for each in shape if each is not None),
            )
            for path, size, *shape in content["leaves"]
        )
        tuples = {key: tuple(content[key]) for key in ("low", "high", "shape")}
        return cls(**{**content, **tuples, "leaves": tuple(leaves)})

    @property
    def obs_dim(self) -> int:
        return sum(leaf.size for leaf in self.leaves)

    def flatten(self, obs: Any) -> np.ndarray:
        """One observation, or a batch of them, as a flat one: [O] or [B, O].

        Args:
            obs: as the environment gives it: an array, or dicts and tuples of arrays;
                of a batch, each array has B in front. A flat [O] or [B, O] will also
                do, unless its shape is that of the environment's own.

        Raises:
            ValueError: it does not have this environment's parts and shapes.
        """
        if self.leaves[0].path and isinstance(obs, np.ndarray | list):
            with contextlib.suppress(ValueError):
                flat = Leaf((), self.obs_dim, (self.obs_dim,)).flatten(obs)
                # A list of another shape may be one of the parts.
                if isinstance(obs, np.ndarray) or flat.shape == np.shape(obs):
                    return flat
            is_dict = isinstance(self.leaves[0].path[0], str)
            if is_dict and isinstance(obs, np.ndarray) and obs.dtype != object:
                raise ValueError(
                    f"obs has shape {obs.shape}; a flat observation has {self.obs_dim} "
                    "numbers here, and one of the environment its parts"
                )
        parts = [leaf.flatten(obs) for leaf in self.leaves]
        counts = {part.shape[:-1] for part in parts}
        if counts == {(), (1,)}:
            # An observation's part of shape [1, n] looks like a batch of one.
            parts = [part.reshape(-1) for part in parts]
        elif len(counts) > 1:
            raise ValueError(
                "the parts of obs are batches of different lengths: "
                + ", ".join(str(part.shape[:-1]) for part in parts)
            )
        return np.concatenate(parts, axis=-1)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        """[..., A] in [-1, 1] -> [..., *shape] in the environment's own units."""
        low, high = (
            np.array(bound, self.dtype).reshape(self.shape)
            for bound in (self.low, self.high)
        )
        return to_box(
            action.reshape(*action.shape[:-1], *self.shape), low, high, self.rescale
        )

    def from_env(self, action: np.ndarray) -> np.ndarray:
        """[B, *shape] in the environment's own units -> [B, A], the agent's.

        The opposite of `to_env` within the box; -1 where its bounds are equal.

        Raises:
            ValueError: it does not have this environment's sizes.
        """
        action = np.asarray(action, np.float64)
        if action.shape[1:] != self.shape:
            raise ValueError(f"actions of shape {action.shape[1:]}, not {self.shape}")
        flat = action.reshape(len(action), -1)
        if not self.rescale:
            return flat
        low, high = np.array(self.low), np.array(self.high)
        width = np.where(high > low, high - low, 1.0)
        return 2.0 * (flat - low) / width - 1.0


@dataclass(frozen=True)
class EnvSizes:
    """Sizes of an environment: lengths of its observation and of its action.

    Attributes:
        interface: None where the environment itself was not asked.
    """

    obs_dim: int
    action_dim: int
    interface: Interface | None = field(default=None, compare=False)
