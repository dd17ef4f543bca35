"""Where a run's numbers go in addition to its csv files.

A logger is a class of this form; a configuration names it and gives its keyword
arguments, {"loggers": [{"entry_point": "package.module:Class", "kwargs": {...}}]}:

    class Printer:
        def __init__(self, experiment, **kwargs): ...

        def log(self, group, step, values):
            print(group, step, values)

        def close(self): ...

The csv files are written always. What other loggers get is read from them, so each one
gets the same. TensorBoard is written by the launcher. All others run in a process of
their own. Once they are made, nothing that they do there can harm the run.
"""

import importlib
import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..settings import extensions
from ..settings.loading import leaves
from ..settings.schema import Config, LoggerConfig
from ..storage.folders import Run
from ..util import UserError, error_text, is_installed

EVALUATION = "evaluation"
KEY = "loggers"
# Those that come along, by the package that each one needs.
BUILT_IN = {
    "wandb": "steve.loggers.wandb:WandbLogger",
    "mlflow": "steve.loggers.mlflow:MlflowLogger",
}

Hyperparameter = bool | int | float | str


@dataclass(frozen=True)
class Experiment:
    """What a logger is told of the run.

    Attributes:
        name: "ENVIRONMENT/EXPERIMENT".
        id: of this run alone, the same at each resume; another one after a rewind. The
            second logger with the same entry point has "-2" at its end, and so on.
        folder: the experiment's.
        hyperparameters: the configuration's numbers, words and switches by dotted key,
            and its "algorithm".
    """

    name: str
    id: str
    folder: Path
    hyperparameters: Mapping[str, Hyperparameter]


class Logger(Protocol):
    """Takes what a run logs; made with an `Experiment` and keyword arguments.

    An exception in `__init__` ends the run with a line; in the other two it ends this
    logger with one.
    """

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Takes one point.

        Args:
            group: "valuerl" or "worldmodel" for a line of that learner's log, or
                "evaluation" for a policy's score.
            step: the learner's updates with pretraining, or for a score environment
                frames. In each group every step is greater than the one before.
            values: finite numbers by column of the log; or "score", a mean of sums
                of rewards.
        """

    def close(self) -> None:
        """The launch ends; a resume makes the logger again."""


def experiment_of(run: Run, identity: str) -> Experiment:
    """What loggers are told of a run."""
    config = run.config
    return Experiment(
        name=f"{config.environment_folder}/{run.folders.experiment}",
        id=identity,
        folder=run.folders.root,
        hyperparameters={
            "algorithm": config.algorithm,
            **{
                ".".join(path): value
                for path, value in leaves(config.model_dump(mode="json", by_alias=True))
                if isinstance(value, Hyperparameter)
            },
        },
    )


def check(config: Config) -> None:
    """Checks that each logger of a configuration can be had, and has the right form.

    Raises:
        UserError: a package is not installed, an entry point not to be imported, or
            the logger does not take what it will get.
    """
    for settings in config.loggers:
        name, factory = settings.entry_point, factory_of(settings)
        _check_call(name, factory, None, **settings.kwargs)
        if inspect.isclass(factory):
            log, close = (getattr(factory, each, None) for each in ("log", "close"))
            _check_call(f"{name}.log", log, None, EVALUATION, 1, {})
            _check_call(f"{name}.close", close, None)


def _check_call(what: str, function: Any, /, *arguments: Any, **keywords: Any) -> None:
    """Raises a UserError where something cannot be called so."""
    if not callable(function):
        raise UserError(f"{KEY}: there is no {what}()")
    try:
        with suppress(ValueError):  # it has no signature
            inspect.signature(function).bind(*arguments, **keywords)
    except TypeError as error:
        raise UserError(f"{KEY}: {what}: {error_text(error)}") from None


def factory_of(settings: LoggerConfig) -> Any:
    """The class that a configuration names.

    Raises:
        UserError: as above.
    """
    name = settings.entry_point
    if name in BUILT_IN and not is_installed(name):
        raise UserError(
            f"{KEY}: {name} is not installed; run: pip install 'steve-rl[{name}]'"
        )
    module, _, attribute = BUILT_IN.get(name, name).partition(":")
    extensions.import_module(module, KEY)
    found = getattr(importlib.import_module(module), attribute, None)
    if not callable(found):
        raise UserError(f"{KEY}: {module} has no class {attribute}")
    return found
