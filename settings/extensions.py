"""What users add from their own modules: weightings, and kinds of world model.

Both are tables of entries by name. The built-in ones stand in the same tables, and
whatever the program does with one (computing, naming, logging, plotting) it takes from
the entry. No entry needs TensorFlow before its function is called for.

A module that registers something is named in the configuration's `module`, and the
processes of a run import it first; interactors and evaluators do not where it would
only load TensorFlow. The launcher does not either: it asks a child process.
"""

import importlib
import inspect
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ..util import UserError, error_text, without_startup_notes

NAME = r"^[A-Za-z_][A-Za-z0-9_-]{0,99}$"  # of an entry
REQUIRED = inspect.Parameter.empty  # in place of a default: it must be given
# What is passed before the settings.
WEIGHTING_ARGUMENTS = ("candidates",)
WORLD_MODEL_ARGUMENTS = ("config", "obs_dim", "action_dim", "generator")

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """Something that a configuration chooses by its name.

    Attributes:
        name: of the entry.
        target: the function or class, or where it is: "module:name".
        defaults: its settings and their defaults; REQUIRED for one without.
    """

    name: str
    target: Callable[..., Any] | str
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def function(self) -> Callable[..., Any]:
        """The target, imported where that has not been done yet."""
        if not isinstance(self.target, str):
            return self.target
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)

    def settings_fault(self, settings: Mapping[str, Any]) -> str | None:
        """What is wrong with settings of these names; None where nothing is."""
        unknown = [name for name in settings if name not in self.defaults]
        if unknown:
            known = ", ".join(self.defaults) or "none"
            return f"has no {unknown[0]} (settings of {self.name}: {known})"
        needed = [n for n, value in self.defaults.items() if value is REQUIRED]
        missing = [name for name in needed if settings.get(name) is None]
        return f"must set {missing[0]} of {self.name}" if missing else None


# As float32, in which the nets compute, they neither vanish nor overflow.
POSITIVE = (1e-30, 1e30)
SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Weighting(Entry):
    """A way of making one target of the candidates T_0 .. T_H (SPEC section 5).

    `function(candidates, **settings)`: [B, H+1, S] -> weights [B, H+1], rows with
    sum 1. H is that of the candidates: with the TDk trick later starts have fewer.

    Attributes:
        title: what tables and figures call the algorithm; fields such as `{decay:g}`
            are its settings.
        adaptive: whether the weights depend on the candidates. Then 1 - mean w_0 is
            logged as model usage, and the visualizer shows these weights.
        ensembles: whether its usual form has ensembles; a run that departs from
            that is called "ensemble ..." or "single-net ...".
        ranges: of settings that are numbers, the least and the greatest.
    """

    title: str = ""
    adaptive: bool = True
    ensembles: bool = True
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def settings_fault(self, settings: Mapping[str, Any]) -> str | None:
        """As of any entry; also a setting that is out of its range."""
        if fault := super().settings_fault(settings):
            return fault
        for name in settings.keys() & self.ranges:
            value, (low, high) = settings[name], self.ranges[name]
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and low <= value <= high):
                return (
                    f"must set {name} of {self.name} to a number from {low:g} to "
                    f"{high:g}"
                )
        return None

    def trial_fault(
        self, settings: Mapping[str, Any], counts: Iterable[int]
    ) -> str | None:
        """What is wrong with its weights of random candidates; None: nothing is.

        The function is traced, as in an update.

        Args:
            settings: that it is called with.
            counts: how many candidates there are, H + 1, one trial for each.
        """
        import tensorflow as tf  # here: nothing else in this module needs it

        # Those of a start behind a termination are equal.
        tries = [
            (kind, candidates)
            for count in counts
            for kind, candidates in (
                ("random", tf.random.stateless_normal([2, count, 3], seed=[0, 0])),
                ("equal", tf.zeros([2, count, 3])),
            )
        ]
        for kind, candidates in tries:
            try:
                traced = tf.function(self.function, autograph=False)
                weights = tf.convert_to_tensor(traced(candidates, **settings))
            except Exception as error:
                return f"failed when it was tried ({error_text(error)})"
            if weights.dtype != tf.float32 or weights.shape != candidates.shape[:2]:
                return (
                    f"gives {weights.dtype.name} of shape {weights.shape}, not float32 "
                    f"of shape {candidates.shape[:2]}, for candidates of shape "
                    f"{candidates.shape}"
                )
            sums = tf.reduce_sum(weights, axis=1).numpy()
            if not (abs(sums - 1) < SUM_TOLERANCE).all():  # nor where one is NaN
                return (
                    f"gives {kind} candidates rows of weights with the sums "
                    f"{sums.tolist()}, not 1"
                )
        return None


@dataclass(frozen=True)
class WorldModelKind(Entry):
    """A kind of world model.

    `function(config, obs_dim, action_dim, generator, **settings)` gives what
    `steve.worldmodel.WorldModelProtocol` describes.
    """


Kind = TypeVar("Kind", bound=Entry)


class Table(dict[str, Kind], Generic[Kind]):
    """Entries by name; `what` is what messages call one."""

    def __init__(self, what: str, *entries: Kind) -> None:
        super().__init__({entry.name: entry for entry in entries})
        self.what = what

    def add(self, entry: Kind) -> None:
        """Adds an entry; the same one again, as in a notebook, replaces itself.

        Raises:
            UserError: another one has that name.
        """
        there = self.get(entry.name)
        if there is not None and _origin(there) != _origin(entry):
            raise UserError(
                f"there already is a {self.what} called {entry.name}: "
                f"{_origin(there)}; choose another name"
            )
        self[entry.name] = entry

    def find(self, name: str) -> Kind:
        """The entry of that name.

        Raises:
            UserError: there is none.
        """
        if name not in self:
            raise UserError(
                f"no {self.what} is called {name}; there are {', '.join(self)}; a "
                "module that registers another is named in `module`"
            )
        return self[name]


def _origin(entry: Entry) -> str:
    if isinstance(entry.target, str):
        return entry.target
    name = getattr(entry.target, "__qualname__", repr(entry.target))
    return f"{entry.target.__module__}:{name}"


WEIGHTINGS = Table(
    "weighting",
    Weighting(
        "last", "steve.valuerl:last_weights", {}, "MVE", adaptive=False, ensembles=False
    ),
    Weighting(
        "mean",
        "steve.valuerl:mean_weights",
        {},
        "mean-MVE",
        adaptive=False,
        ensembles=False,
    ),
    Weighting(
        "lambda_return",
        "steve.valuerl:lambda_weights",
        {"decay": REQUIRED},
        "TD-lambda {decay:g} MVE",
        adaptive=False,
        ensembles=False,
        ranges={"decay": (0.0, 1.0)},
    ),
    Weighting(
        "steve",
        "steve.valuerl:steve_weights",
        {"epsilon": 1e-8},
        "STEVE",
        ranges={"epsilon": POSITIVE},
    ),
    Weighting(
        "covariances",
        "steve.valuerl:covariance_weights",
        {"ridge": 0.001},
        "COV-STEVE",
        ranges={"ridge": POSITIVE},
    ),
)
WORLD_MODELS = Table(
    "world model", WorldModelKind("ensemble", "steve.worldmodel:WorldModel")
)


def weighting(
    name: str,
    *,
    title: str | None = None,
    adaptive: bool = True,
    ensembles: bool = True,
) -> Callable[[Function], Function]:
    """Registers a function as a weighting of candidate targets.

    In a module of your own::

        @steve.weighting("inverse_std", title="inverse-std")
        def inverse_std(candidates, epsilon=1e-8):
            inverse = 1.0 / (tf.math.reduce_std(candidates, axis=-1) + epsilon)
            return inverse / tf.reduce_sum(inverse, axis=-1, keepdims=True)

    A configuration chooses it by `value_expansion.weighting`. The function's other
    arguments are `value_expansion.weighting_settings`; one without a default must be
    given there.

    Args:
        name: for the configuration: letters, digits, `_` and `-`.
        title, adaptive, ensembles: as of `Weighting`; the title is the name with
            spaces by default.

    Raises:
        UserError: a configuration cannot have that name, another weighting has it,
            the function takes no candidates, or the title has a field that is no
            setting.
    """
    _check_name(name, "weighting")

    def register(function: Function) -> Function:
        shown = name.replace("_", " ") if title is None else title
        defaults = _settings(function, WEIGHTING_ARGUMENTS, f"the weighting {name}")
        _check_title(shown, defaults, name)
        WEIGHTINGS.add(Weighting(name, function, defaults, shown, adaptive, ensembles))
        return function

    return register


def world_model(name: str) -> Callable[[Function], Function]:
    """Registers a class (or a function that makes one) as a kind of world model.

    A configuration chooses it by `model_config.kind`. Its arguments after (config,
    obs_dim, action_dim, generator) are `model_config.kind_settings`; one without a
    default must be given there.

    Args:
        name: for the configuration: letters, digits, `_` and `-`.

    Raises:
        UserError: a configuration cannot have that name, another kind has it, or the
            class does not take these four arguments.
    """
    _check_name(name, "world_model")

    def register(factory: Function) -> Function:
        defaults = _settings(factory, WORLD_MODEL_ARGUMENTS, f"the world model {name}")
        WORLD_MODELS.add(WorldModelKind(name, factory, defaults))
        return factory

    return register


def _check_name(name: object, decorator: str) -> None:
    """Refuses what no configuration could choose; also a decorator without ()."""
    if not (isinstance(name, str) and re.fullmatch(NAME, name)):
        raise UserError(
            f"@steve.{decorator}(NAME) needs a name of letters, digits, _ and - "
            f"(at most 100, the first no digit and no -), not {name!r}"
        )


def _settings(
    function: Callable[..., Any], first: tuple[str, ...], what: str
) -> dict[str, Any]:
    """The parameters after the first ones, with their defaults.

    What `*` and `**` take is none of them: it has no names.

    Raises:
        UserError: it does not take the first ones by position and the others by name.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} cannot be called ({error_text(error)})") from None
    kinds = inspect.Parameter
    both = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    by_position = [each for each in parameters if each.kind in both]
    takes_more = any(each.kind is kinds.VAR_POSITIONAL for each in parameters)
    settings = by_position[len(first) :]
    if (len(by_position) < len(first) and not takes_more) or any(
        each.kind is kinds.POSITIONAL_ONLY for each in settings
    ):
        raise UserError(
            f"{what} must take ({', '.join(first)}) and then settings by their names; "
            "correct its arguments"
        )
    settings += [each for each in parameters if each.kind is kinds.KEYWORD_ONLY]
    return {each.name: each.default for each in settings}


def _check_title(title: str, settings: Mapping[str, Any], name: str) -> None:
    """Refuses a title that cannot be filled in with settings."""
    if not isinstance(title, str):
        raise UserError(f"the title of the weighting {name} is no text: {title!r}")
    try:
        unknown = [each for each in _fields(title) if each not in settings]
        if not unknown and REQUIRED not in settings.values():
            with suppress(TypeError):  # a default of None may have no format
                title.format(**settings)
    except ValueError as error:
        raise UserError(f"the title of the weighting {name}: {error}") from None
    if unknown:
        known = ", ".join(settings) or "none"
        raise UserError(
            f"the title of the weighting {name} has the field {{{unknown[0]}}}, which "
            f"is no setting (settings: {known})"
        )


def _fields(title: str) -> Iterator[str]:
    """The names of a title's fields, also of those within a field's format."""
    for _, name, form, _ in string.Formatter().parse(title):
        if name is not None:
            yield name
            yield from _fields(form or "")


def import_modules(names: Sequence[str]) -> None:
    """Imports what a configuration's `module` names, without TensorFlow's notes.

    Raises:
        UserError: one cannot be imported.
    """
    if not names:
        return
    with without_startup_notes():
        for name in names:
            import_module(name, "module")


def import_module(name: str, key: str) -> None:
    """Imports a module that a configuration names under a key.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        importlib.import_module(name)
    except SystemExit as error:
        raise UserError(
            f"{key} {name}: ends the program when it is imported (exit code "
            f"{error.code}); keep what it does behind if __name__ == '__main__'"
        ) from error
    except Exception as error:
        advice = "correct it"
        if isinstance(error, ModuleNotFoundError):
            advice = "install it or put its folder on PYTHONPATH"
        raise UserError(
            f"{key} {name}: cannot be imported ({error_text(error)}); {advice}"
        ) from error


def check(table: Table[Any], name: str, settings: Mapping[str, Any], key: str) -> None:
    """Checks that an entry is there and has these settings.

    Raises:
        UserError: an unknown name or setting, of what the configuration has at `key`.
    """
    try:
        fault = table.find(name).settings_fault(settings)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    if fault:
        raise UserError(f"{key}_settings {fault}")
