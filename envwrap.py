"""Environments as the agents see them: flat observations, actions in [-1, 1]^A.

`make_env` accepts the paper's names, whose physics is in `environments/`, any id
registered with gymnasium, and the old `-v2` / `-v3` MuJoCo ids where gym and
mujoco-py are installed. Whatever the user can get wrong is a one-line `UserError`.

Rewards come as the environment gives them: `reward_scale` is the learners' business,
and a score is the plain sum of rewards (SPEC section 9).
"""

if not __package__:  # tqdm asks for a package of that name
    raise ModuleNotFoundError("envwrap is steve.envwrap", name="envwrap")

import difflib
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, TimeLimit

from .environments import MAKERS, dm_control, mujoco
from .environments import make as make_papers
from .environments.contract import Contract, try_out
from .environments.old_gym import MUJOCO_PY_ID, make_with_gym
from .environments.rendering import check_rendering_only
from .settings.extensions import import_module
from .settings.interface import EnvSizes, Interface, Leaf, to_box
from .util import UserError, error_text, time_limit

if TYPE_CHECKING:
    from .settings.schema import Environment

# From this many dimensions on a box of floats is an image, and no net here sees images.
IMAGE_DIMENSIONS = 3

CLOSE_PATIENCE = 5.0  # seconds; less than a run gives its processes to end
NO_DISPLAY = r".*\bDISPLAY environment variable is missing"  # GLFW's words


def make_env(env_config: "Environment") -> gymnasium.Env:
    """Makes the environment that the section `env` of a configuration describes.

    Observations are flat float arrays in the simulator's precision. An action is an
    array in [-1, 1]^A. An episode is `truncated` at `max_frames`, or earlier where the
    environment says so; `terminated` is the environment's own.

    Raises:
        UserError: the environment cannot be had or cannot be used; one line.
    """
    return adapt(_with_wrappers(_raw_env(env_config), env_config), env_config)


def measure(env_config: "Environment", explore_chance: float = 0.0) -> EnvSizes:
    """The sizes of an environment, read from the environment itself and tried out.

    Args:
        env_config: the configuration's `env`.
        explore_chance: as of `Interface`.

    Raises:
        UserError: as `make_env`; the configuration's `obs_dims` and `action_dim` are
            compared with the sizes where they are given. Warnings are then not
            shown: the error says what is wrong.
    """
    with warnings.catch_warnings(record=True) as held_back:
        env = make_env(env_config)
    for each in held_back:
        warnings.warn_explicit(
            each.message, each.category, each.filename, each.lineno, source=each.source
        )
    try:
        try_out(env, env_config.name)
        return replace(sizes_of(env), interface=interface_of(env, explore_chance))
    finally:
        close_env(env)


def registered() -> str:
    """All that gymnasium has registered by now, in full."""
    return repr(gymnasium.registry)


def close_env(env: gymnasium.Env, patience: float = CLOSE_PATIENCE) -> None:
    """Closes an environment; what goes wrong then is one line on stderr.

    Args:
        env: from `make_env`, or one that it would wrap.
        patience: seconds that it may take.
    """
    try:
        with time_limit(patience):
            env.close()
    except (Exception, SystemExit) as error:
        line = f"note: closing an environment failed ({error_text(error)})"
        print(line, file=sys.stderr, flush=True)


def adapt(env: gymnasium.Env, env_config: "Environment") -> gymnasium.Env:
    """Puts an environment behind the interface of `make_env`.

    Raises:
        UserError: its spaces are not ours, or not those of the configuration; the
            environment is closed then.
    """
    try:
        _check_spaces(env, env_config)
        env = Contract(env, env_config.name)
        env = FlattenObservation(env)
        if mujoco.counts_warnings(env):
            env = mujoco.DivergenceGuard(env)
        elif (error := dm_control.physics_error()) is not None:
            env = dm_control.DivergenceAsNan(env, error)
        env = AgentActions(env, rescale=env_config.rescale_actions)
        env = TimeLimit(env, env_config.max_frames)  # truncates
        _check_sizes(sizes_of(env), env_config)
    except UserError:
        close_env(env)
        raise
    except Exception as error:  # a property of the environment's raises
        close_env(env)
        raise UserError(
            f"env.name {env_config.name}: cannot be used ({error_text(error)}); "
            "correct the environment"
        ) from error
    return env


class AgentActions(gymnasium.ActionWrapper):
    """Turns the agent's [-1, 1]^A into the environment's box.

    Args:
        rescale: True maps -1 to the box's lower bound and 1 to its upper one; False
            passes the action as it is. Both clip the result to the box.

    Attributes:
        box: the environment's own box of actions.
        rescale: as above.
    """

    def __init__(self, env: gymnasium.Env, rescale: bool) -> None:
        super().__init__(env)
        assert isinstance(env.action_space, spaces.Box)  # `adapt` has checked it
        self.box = env.action_space
        self.rescale = rescale
        size = spaces.flatdim(self.box)
        self.action_space = spaces.Box(-1.0, 1.0, (size,), np.float32)

    def action(self, action: np.ndarray) -> np.ndarray:
        action = np.reshape(action, self.box.shape)  # [A] -> the box's own shape
        return to_box(action, self.box.low, self.box.high, self.rescale)


def _raw_env(env_config: "Environment") -> gymnasium.Env:
    """The environment with its own spaces, wherever it comes from."""
    name = env_config.name
    if env_config.module is not None:
        with warnings.catch_warnings():
            # dm_control looks for a display when it is imported; nothing is drawn here.
            warnings.filterwarnings("ignore", NO_DISPLAY)
            import_module(env_config.module, "env.module")
    if (entry_point := env_config.entry_point) is not None:
        return _made(
            env_config,
            lambda: _from_entry_point(
                entry_point, env_config.make_kwargs, key="env.entry_point"
            ),
        )
    if env_config.inertia == "2.1" and name not in mujoco.MUJOCO:
        raise UserError(
            f"env.inertia 2.1: known for {', '.join(mujoco.MUJOCO)} only, not "
            f"for {name}; remove the key"
        )
    if name in MAKERS:
        check_rendering_only(name, env_config.make_kwargs, "env.make_kwargs")
    if name in mujoco.MUJOCO:
        return _made(
            env_config,
            lambda: mujoco.make_mujoco(
                name, env_config.inertia or "2.1", env_config.make_kwargs
            ),
        )
    if name in MAKERS:
        return _made(env_config, lambda: make_papers(name, **env_config.make_kwargs))
    if MUJOCO_PY_ID.fullmatch(name):
        return _made(env_config, lambda: make_with_gym(name, env_config.make_kwargs))
    # The passive checker repeats on every step what is checked once here.
    keys: dict[str, Any] = {"disable_env_checker": True, **env_config.make_kwargs}
    return _made(env_config, lambda: gymnasium.make(name, **keys))


def _from_entry_point(
    entry_point: str, make_kwargs: dict[str, Any], *inner: gymnasium.Env, key: str
) -> gymnasium.Env:
    """Calls the class or function that a key names, with the environment to wrap.

    Raises:
        UserError: it cannot be had, or gives something that is no environment.
    """
    module, _, name = entry_point.partition(":")
    import_module(module, key)
    make = getattr(sys.modules[module], name, None)
    if not callable(make):
        advice = ""
        if module == "__main__":
            advice = (
                "; a run's processes do not see what a script or a notebook defines: "
                f'save it in a file, such as my_env.py, and name it "my_env:{name}"'
            )
        raise UserError(f"{key} {entry_point}: {module} has no {name}{advice}")
    env = make(*inner, **make_kwargs)
    if not isinstance(env, gymnasium.Env):
        raise UserError(
            f"{key} {entry_point}: gives {type(env).__name__}, which is no "
            "gymnasium.Env"
        )
    return env


def _with_wrappers(env: gymnasium.Env, env_config: "Environment") -> gymnasium.Env:
    """Puts the wrappers of `env.wrappers` around it, the first one innermost.

    Raises:
        UserError: one cannot be had; the environment is closed then.
    """
    for wrapper in env_config.wrappers:
        where = f"env.wrappers {wrapper.entry_point}"
        try:
            env = _from_entry_point(
                wrapper.entry_point, wrapper.kwargs, env, key="env.wrappers"
            )
        except (Exception, SystemExit) as error:
            close_env(env)
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{where} with kwargs {wrapper.kwargs}: cannot be made "
                f"({error_text(error)})"
            ) from error
    return env


def _made(
    env_config: "Environment", make: Callable[[], gymnasium.Env]
) -> gymnasium.Env:
    """Calls `make`; what goes wrong there becomes one line that says what to do."""
    name = env_config.name
    try:
        return make()
    except UserError:
        raise
    except SystemExit as error:
        raise UserError(
            f"env.name {name}: the environment called sys.exit when it was made (exit "
            f"code {error.code}); correct the environment"
        ) from error
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise UserError(f"env.name {name}: {_import_fault(error)}") from error
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv) as error:
        if name.startswith("dm_control/") and env_config.module != "shimmy":
            raise UserError(
                f'env.name {name}: set env.module to "shimmy", which registers '
                "dm_control's tasks (pip install 'steve-rl[dm_control]')"
            ) from error
        raise UserError(
            f"env.name {name}: no such environment; {_nearest(name)}a package that "
            "registers it on import is named in env.module"
        ) from error
    except Exception as error:
        kwargs = env_config.make_kwargs
        raise UserError(
            f"env.name {name}{f' with env.make_kwargs {kwargs}' if kwargs else ''}: "
            f"cannot be made ({error_text(error)})"
            + ("; correct env.make_kwargs" if kwargs else "")
        ) from error


def _import_fault(error: Exception) -> str:
    """What to do about a package that an environment could not import."""
    cause = error if isinstance(error, ImportError) else error.__cause__
    if cause is None or isinstance(cause, ModuleNotFoundError):
        # gymnasium's own words name the extra to install.
        hint = "; install it" if error is cause else ""
        return f"a package is missing ({error_text(error)}){hint}"
    return f"a package that it needs cannot be imported ({error_text(cause)})"


def _nearest(name: str) -> str:
    known = [*MAKERS, *gymnasium.registry]
    lower = {identifier.lower(): identifier for identifier in known}
    # Upper and lower case are often all that is wrong.
    close = difflib.get_close_matches(name.lower(), lower, n=1)
    return f"nearest known: {lower[close[0]]}; " if close else ""


def _check_spaces(env: gymnasium.Env, env_config: "Environment") -> None:
    name = env_config.name
    for key in ("observation_space", "action_space"):
        if not isinstance(getattr(env, key, None), spaces.Space):
            raise UserError(
                f"env.name {name}: the environment has no {key}; set it in __init__"
            )
    _check_observation_space(env.observation_space, name)
    _check_action_space(env.action_space, env_config)
    for space, what in (
        (env.observation_space, "observes nothing"),
        (env.action_space, "takes no action"),
    ):
        if spaces.flatdim(space) == 0:
            raise UserError(
                f"env.name {name}: {what} ({space} has no number in it); choose "
                "another environment"
            )


def _check_observation_space(space: spaces.Space, name: str) -> None:
    """Raises unless all leaves of the space are boxes of floats, and no images."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        leaves = space.values() if isinstance(space, spaces.Dict) else space
        for leaf in leaves:
            _check_observation_space(leaf, name)
        return
    if not isinstance(space, spaces.Box):
        raise UserError(
            f"env.name {name}: observation {space}; only boxes of floats can be learnt "
            "from, choose another environment"
        )
    if len(space.shape) >= IMAGE_DIMENSIONS or space.dtype == np.uint8:
        raise UserError(
            f"env.name {name}: observes images {space.shape} {space.dtype}; choose an "
            "environment that observes a vector of floats"
        )
    if not np.issubdtype(space.dtype, np.floating):
        raise UserError(
            f"env.name {name}: observes {space.dtype} numbers; only floats can be "
            "learnt from, choose another environment"
        )


def _check_action_space(space: spaces.Space, env_config: "Environment") -> None:
    name = env_config.name
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise UserError(
            f"env.name {name}: actions {space}; only continuous actions (one box of "
            "floats) can be learnt, choose another environment"
        )
    if env_config.rescale_actions:
        with np.errstate(over="ignore"):  # of bounds that are finite
            width = space.high.astype(np.float64) - space.low.astype(np.float64)
        if not np.isfinite(width).all():
            raise UserError(
                f"env.rescale_actions: the actions of {name} have an infinite bound, "
                "or bounds too far apart; set it to false"
            )


def sizes_of(env: gymnasium.Env) -> EnvSizes:
    """The sizes of an environment that `make_env` made."""
    return EnvSizes(
        spaces.flatdim(env.observation_space), spaces.flatdim(env.action_space)
    )


def interface_of(env: gymnasium.Env, explore_chance: float) -> Interface:
    """What lies between an environment that `make_env` made and the nets."""
    box = env.get_wrapper_attr("box")
    inner: Any = env
    while not isinstance(inner, FlattenObservation):
        inner = inner.env
    return Interface(
        leaves=tuple(_leaves(inner.env.observation_space)),
        low=tuple(box.low.reshape(-1).tolist()),
        high=tuple(box.high.reshape(-1).tolist()),
        shape=box.shape,
        dtype=box.dtype.name,
        rescale=env.get_wrapper_attr("rescale"),
        explore_chance=explore_chance,
    )


def _leaves(space: spaces.Space, path: tuple[str | int, ...] = ()) -> Iterator[Leaf]:
    """The boxes of an observation space, in the order of gymnasium's `flatten`."""
    if isinstance(space, spaces.Dict):
        for key, inner in space.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for position, inner in enumerate(space):
            yield from _leaves(inner, (*path, position))
    else:
        yield Leaf(path, spaces.flatdim(space), space.shape)


def _check_sizes(sizes: EnvSizes, env_config: "Environment") -> None:
    stated = env_config.obs_dims
    if stated is not None and list(stated) != [sizes.obs_dim]:
        raise UserError(
            f"env.obs_dims is {list(stated)} but {env_config.name} observes "
            f"[{sizes.obs_dim}]; correct the key or remove it"
        )
    taken = env_config.action_dim
    if taken is not None and taken != sizes.action_dim:
        raise UserError(
            f"env.action_dim is {taken} but {env_config.name} takes "
            f"{sizes.action_dim}; correct the key or remove it"
        )
