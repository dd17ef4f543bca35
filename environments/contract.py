"""What an environment has to give: checked at each reset and step, one line if broken.

An observation of another size would be broadcast into the rows without a word, and
None would become NaN or False.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from ..util import UserError, error_text

NUMBERS = "biuf"  # kinds of NumPy types: bool, int, unsigned, float
TRIAL_STEPS = 3
TRIAL_SEED = 2**31 - 1  # the largest that a run gives
# What Python says where a wrapper unpacks what an older interface gave.
UNPACKED = re.compile(r"values to unpack \(expected (2|5)\b")
INTERFACE = {
    "reset()": "gymnasium's reset(seed=None, options=None) returns (observation, info)",
    "step()": "gymnasium's step(action) returns (observation, reward, terminated, "
    "truncated, info)",
}


class Contract(gymnasium.Wrapper):
    """Refuses what is not gymnasium's interface, or does not fit the spaces.

    Sizes are compared, not shapes: three numbers may come as [3] or as [1, 3]. A
    reward may be an array of one number. What is not finite passes: that can happen
    to a correct simulator.

    Args:
        name: of the environment, for messages.

    Raises (reset, step):
        UserError: a fault of the environment's code; one line.
    """

    def __init__(self, env: gymnasium.Env, name: str) -> None:
        super().__init__(env)
        self._name = name
        # The nets have the sizes of the start, whatever an environment sets later.
        self.observation_space = env.observation_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        try:
            given: Any = self.env.reset(seed=seed, options=options)
        except SystemExit as error:
            raise self._fault("reset() called sys.exit") from error
        if not (isinstance(given, tuple | list) and len(given) == 2) or not isinstance(
            given[1], Mapping | None
        ):
            raise self._fault(f"reset() gives {_what(given)}; {INTERFACE['reset()']}")
        obs, info = given
        self._check_observation("reset()", obs)
        return obs, dict(info or {})

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        try:
            given: Any = self.env.step(action)
        except SystemExit as error:
            raise self._fault("step() called sys.exit") from error
        if not (isinstance(given, tuple | list) and len(given) == 5):
            raise self._fault(f"step() gives {_what(given)}; {INTERFACE['step()']}")
        obs, reward, terminated, truncated, info = given
        self._check_observation("step()", obs)
        return (
            obs,
            self._number("reward", reward),
            self._flag("terminated", terminated),
            self._flag("truncated", truncated),
            info,
        )

    def _check_observation(self, method: str, obs: Any) -> None:
        fault = observation_fault(self.observation_space, obs)
        if fault:
            raise self._fault(f"{method} gives an observation that {fault}")

    def _number(self, what: str, value: Any) -> float:
        if isinstance(value, float):  # np.float64 too
            return float(value)
        array = _array(value)
        if array is None or array.size != 1:
            raise self._fault(
                f"step() gives as {what} {_what(value)}; it must be one number"
            )
        return float(array.item())

    def _flag(self, what: str, value: Any) -> bool:
        if isinstance(value, bool | np.bool_):
            return bool(value)
        array = _array(value)
        if array is None or array.size != 1 or array.item() not in (0, 1):
            raise self._fault(
                f"step() gives as {what} {_what(value)}; it must be True or False"
            )
        return bool(array.item())

    def _fault(self, text: str) -> UserError:
        return UserError(f"env.name {self._name}: {text}; correct the environment")


def observation_fault(space: spaces.Space, obs: Any, where: str = "") -> str | None:
    """How an observation contradicts its space, to follow "an observation that".

    Args:
        space: boxes of floats, or dicts and tuples of them.
        obs: as the environment gives it.
        where: the keys and positions that lead to it.

    Returns:
        None where it fits.
    """
    shape = space.shape
    if type(obs) is np.ndarray and obs.shape == shape and obs.dtype.kind == "f":
        return None  # nearly always
    at = f" at {where}" if where else ""
    if isinstance(space, spaces.Dict):
        if not isinstance(obs, Mapping):
            return f"is {_what(obs)}{at}, not a dict"
        return _fault_inside(space.spaces, obs, list(obs), where)
    if isinstance(space, spaces.Tuple):
        if not isinstance(obs, tuple | list):
            return f"is {_what(obs)}{at}, not a tuple"
        if len(obs) != len(space):
            return f"has {len(obs)} parts{at} instead of {len(space)}"
        return _fault_inside(dict(enumerate(space)), obs, range(len(obs)), where)
    array = _array(obs)
    if array is None:
        return f"is {_what(obs)}{at}, not an array of numbers"
    wanted = spaces.flatdim(space)
    if array.size != wanted:
        plural = "" if array.size == 1 else "s"
        return (
            f"has {array.size} number{plural}{at} (shape {array.shape}) instead of "
            f"{wanted} (shape {shape}), as its observation_space says"
        )
    return None


def _fault_inside(
    parts: Mapping[Any, spaces.Space], obs: Any, there: Collection[Any], where: str
) -> str | None:
    for key, inner in parts.items():
        if key not in there:
            at = f" at {where}" if where else ""
            return f"lacks {key!r}{at}, which its observation_space has"
        fault = observation_fault(inner, obs[key], f"{where}[{key!r}]")
        if fault:
            return fault
    return None


def check_action(space: spaces.Space, action: Any) -> None:
    """Refuses an action of another shape, which a simulator would broadcast or cut.

    Raises:
        ValueError: in the words of gymnasium's MuJoCo environments.
    """
    if np.shape(action) != space.shape:
        raise ValueError(
            f"Action dimension mismatch. Expected {space.shape}, "
            f"found {np.shape(action)}"
        )


def try_out(env: gymnasium.Env, name: str) -> None:
    """A reset and a few steps, so that a wrong environment shows before a run starts.

    Raises:
        UserError: it breaks the contract, or raises.
    """
    assert env.action_space.shape is not None
    action = np.zeros(env.action_space.shape, np.float32)
    method = "reset()"
    try:
        env.reset(seed=TRIAL_SEED)
        for _ in range(TRIAL_STEPS):
            method = "step()"
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                method = "reset()"
                env.reset(seed=TRIAL_SEED)
    except UserError:
        raise
    except Exception as error:
        text = str(error)
        is_old = UNPACKED.search(text) or "unexpected keyword argument" in text
        advice = INTERFACE[method] if is_old else "correct the environment"
        raise UserError(
            f"env.name {name}: {method} failed when it was tried "
            f"({error_text(error)}); {advice}"
        ) from error


def _array(value: Any) -> np.ndarray | None:
    """As an array of numbers; None where it is none."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):  # lists of different lengths
        return None
    return array if array.dtype.kind in NUMBERS else None


def _what(value: Any) -> str:
    """A value in an error message: what it is, and its size where it has one."""
    if value is None:
        return "None"
    if isinstance(value, tuple | list):
        return f"{len(value)} values"
    if isinstance(value, np.ndarray):
        kind = "" if value.dtype.kind in NUMBERS else f" of {value.dtype}"
        return f"an array{kind} of shape {value.shape}"
    return f"a value of type {type(value).__name__}"
