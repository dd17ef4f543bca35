"""What the values of a configuration may be: types, each with its range.

Every type is strict: 1.0 is no whole number, 0 is not false and false is not 0.
"""

import keyword
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    JsonValue,
)
from pydantic_core import CoreSchema

from .extensions import NAME, POSITIVE

SAFE_NAME = r"^[A-Za-z0-9_+=,-][A-Za-z0-9._+=,-]{0,199}$"
# What gymnasium accepts as an id, but for "module:" in front: only env.module is ever
# imported. "+" does not occur in it, so environment_folder maps no two ids to one.
ENVIRONMENT_ID = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?$"
BUILT_IN_LOGGERS = ("wandb", "mlflow")


def _refuse_true(value: Any) -> Any:
    if value is True:
        raise ValueError("only false has a meaning here")
    return value


def null_if_false(value: Any) -> Any:
    # 2018 release: false switches a whole section off; here null does, and false
    # still reads as null so that those files load.
    return None if value is False else value


def _dotted_identifier(value: str) -> str:
    if not all(p.isidentifier() and not keyword.iskeyword(p) for p in value.split(".")):
        raise ValueError("not the name of a module")
    return value


def _entry_point(value: str) -> str:
    module, colon, name = value.partition(":")
    if not colon or not name.isidentifier():
        raise ValueError("not of the form module:name")
    _dotted_identifier(module)
    return value


def logger_name(value: str) -> str:
    return value if value in BUILT_IN_LOGGERS else _entry_point(value)


ID_TEXT = (
    "an environment id such as Hopper-v1 (a module that is to be imported first goes "
    "into env.module)"
)


@dataclass(frozen=True)
class Range:
    """The range of a number, both ends included."""

    lowest: float
    highest: float

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return {**handler(source), "ge": self.lowest, "le": self.highest}

    def __str__(self) -> str:
        return f"from {_shown(self.lowest)} to {_shown(self.highest)}"


@dataclass(frozen=True)
class Allowed:
    """Says what a type takes, where `allowed` cannot tell it from the type."""

    text: str


def _shown(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


# Upper ends are far above what anybody runs; beyond them numbers would overflow, or
# nothing would fit. Whether a run fits into this machine is asked before it starts.
Count = Annotated[int, Range(1, 10**12)]
CountOrZero = Annotated[int, Range(0, 10**12)]
Few = Annotated[int, Range(1, 1000)]  # members, layers, steps of a rollout, processes
Many = Annotated[int, Range(1, 10**6)]
Width = Annotated[int, Range(1, 1 << 16)]  # of a layer
Dimension = Annotated[int, Range(1, 1 << 20)]  # of observations and actions
Frames = Annotated[int, Range(1, 10**15)]
Rows = Annotated[int, Range(1, 10**9)]
RowsOrZero = Annotated[int, Range(0, 10**9)]
Positive = Annotated[float, Range(*POSITIVE)]
NonNegative = Annotated[float, Range(0, POSITIVE[1])]
Fraction = Annotated[float, Range(0, 1)]
Hours = Annotated[float, Range(1e-9, 1e6)]
Seconds = Annotated[float, Range(1e-3, 1e8)]
Pace = Annotated[float, Range(1e-6, 1e6)]
# false is its own value, apart from 0: bool is strict and true is refused.
CountOrFalse = Annotated[Count | bool, BeforeValidator(_refuse_true)]
PaceOrFalse = Annotated[Pace | bool, BeforeValidator(_refuse_true)]
FractionOrFalse = Annotated[Fraction | bool, BeforeValidator(_refuse_true)]
FolderName = Annotated[
    str,
    Field(pattern=SAFE_NAME),
    Allowed(
        "one plain folder name (letters, digits and . _ - + = , only; no dot in front)"
    ),
]
Module = Annotated[
    str, AfterValidator(_dotted_identifier), Allowed("the dotted name of a module")
]
EntryPoint = Annotated[
    str, AfterValidator(_entry_point), Allowed('"package.module:Class"')
]
Settings = Annotated[dict[str, JsonValue], Allowed("an object of keyword arguments")]
DatasetName = Annotated[
    str,
    Field(pattern=r"^([A-Za-z0-9_-]+/)*[A-Za-z0-9_-]+-v[0-9]+$"),
    Allowed('the name of a Minari dataset such as "hopper/steve-v0"'),
]
Name = Annotated[str, Field(pattern=NAME), Allowed("a name")]


class _Changeable:
    """Marks a key, and all below it, that a resumed run may change (SPEC section 9)."""


ON_RESUME = _Changeable()
