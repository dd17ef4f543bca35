"""What a launch is asked for, by the command line or from Python."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from . import loading
from .loading import LoadedConfig


class Start(StrEnum):
    """What is to become of output that is already there (SPEC section 9)."""

    FRESH = "fresh"  # there may be none
    RESUME = "resume"  # there must be some
    RESUME_OR_START = "resume_or_start"
    OVERWRITE = "overwrite"  # it is renamed


@dataclass(frozen=True)
class Request:
    """One call of `main.py`, `steve train` or `steve.train`.

    Attributes:
        config: a configuration file, or a file's content: an object with `inherits`
            and `updates`.
        device: "cpu", or the number of a GPU.
        start: what is to become of earlier output.
        rewind_to: the updates of the numbered checkpoint to resume from, or None.
        overrides: "KEY=VALUE", as of `--set`.
        name: the experiment's name; None: that of the file.
        frames: limit of the run in place of the configuration's, or None.
        hours: likewise.
    """

    config: str | Mapping[str, Any]
    device: str
    start: Start = Start.FRESH
    rewind_to: int | None = None
    overrides: tuple[str, ...] = ()
    name: str | None = None
    frames: int | None = None
    hours: float | None = None

    @cached_property
    def loaded(self) -> LoadedConfig:
        """The configuration, read and checked.

        Raises:
            UserError: a mistake in it.
        """
        return loading.load(
            self.config,
            overrides=self.overrides,
            frames=self.frames,
            hours=self.hours,
        )

    @property
    def experiment(self) -> str:
        """The experiment's name.

        Raises:
            UserError: it would not do as the name of a folder.
        """
        return loading.experiment_name(self.config, self.name)
