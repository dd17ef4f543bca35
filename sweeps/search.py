"""A search for good values of keys by Optuna; its study is a journal on the disk.

A trial is one run. What a call that was ended has begun, the next one continues.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..storage.scores import LAST_SCORES
from ..storage.tables import read_table
from ..util import UserError

EXTRA = "optuna is not installed; run: pip install 'steve-rl[optuna]'"
ASKED = "asked"  # what a study is of, among its attributes


@dataclass(frozen=True)
class Space:
    """The values of a key that a search may try.

    Attributes:
        key: dotted, as of `--set`.
        low, high: the ends of a range; both whole numbers: only such are tried.
        log: whether factors count, not differences.
        choices: the values as text, where there is no range.
    """

    key: str
    low: float = 0
    high: float = 0
    log: bool = False
    choices: tuple[str, ...] = ()

    @property
    def ends(self) -> tuple[str, ...]:
        """What `--set` gets for values between which all others are."""
        if self.choices:
            return tuple(self.setting(choice) for choice in self.choices)
        return self.setting(self.low), self.setting(self.high)

    def setting(self, value: Any) -> str:
        """What `--set` gets for one of the values."""
        return f"{self.key}={value}"

    def distribution(self, optuna: Any) -> Any:
        """As Optuna calls it."""
        kinds = optuna.distributions
        if self.choices:
            return kinds.CategoricalDistribution(self.choices)
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        kind = kinds.IntDistribution if whole else kinds.FloatDistribution
        return kind(self.low, self.high, log=self.log)


def space(text: str) -> Space:
    """Reads "KEY=LOW:HIGH", "KEY=LOW:HIGH:log" or "KEY=A,B,C".

    Raises:
        UserError: it is none of them.
    """
    key, _, values = text.partition("=")
    if not key or not values:
        raise _mistake(text)
    if ":" not in values:
        return Space(key, choices=tuple(values.split(",")))
    parts = values.split(":")
    is_log = parts[2:] == ["log"]
    try:
        low, high = map(_number, parts[: 2 if is_log else None])
    except ValueError:
        raise _mistake(text) from None
    is_range = -math.inf < low < high < math.inf
    if not is_range or (is_log and low <= 0):
        raise _mistake(text)
    return Space(key, low, high, is_log)


def _number(text: str) -> float:
    return int(text) if text.lstrip("-").isdecimal() else float(text)


def _mistake(text: str) -> UserError:
    return UserError(
        f"--search {text}: give KEY=LOW:HIGH with LOW below HIGH, KEY=LOW:HIGH:log "
        "with LOW above 0, or KEY=A,B,C"
    )


# ---- what a run is worth ------------------------------------------------------------


def area(scores: Path) -> float | None:
    """Mean score over the frames of a run: the area under its curve, by its width."""
    frames, values = _curve(scores)
    if not len(values):
        return None
    if frames[0] == frames[-1]:
        return float(np.mean(values))
    return float(np.trapezoid(values, frames) / (frames[-1] - frames[0]))


def final(scores: Path) -> float | None:
    """Mean of the last scores."""
    _, values = _curve(scores)
    return float(np.mean(values[-LAST_SCORES:])) if len(values) else None


def _curve(scores: Path) -> tuple[np.ndarray, np.ndarray]:
    table = read_table(scores)
    rows = [row for row in table.rows if row] if table else []
    by_frames = sorted((row["frames"], row["score"]) for row in rows)
    return np.array([f for f, _ in by_frames]), np.array([s for _, s in by_frames])


METRICS: dict[str, Callable[[Path], float | None]] = {"auc": area, "final": final}


# ---- the study ----------------------------------------------------------------------


class Trial(NamedTuple):
    """A run of a search."""

    number: int
    settings: list[str]


class Study:
    """The trials of a search, on the disk.

    Args:
        path: of its journal; it is made where there is none.
        spaces: what is searched.
        asked: what else makes it this search and no other.

    Raises:
        UserError: Optuna is missing, or another search is there.
    """

    def __init__(self, path: Path, spaces: Sequence[Space], asked: str) -> None:
        try:
            import optuna
        except ImportError:
            raise UserError(EXTRA) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._spaces = optuna, spaces
        backend = optuna.storages.journal.JournalFileBackend(str(path))
        self._study = optuna.create_study(
            study_name=path.stem,
            storage=optuna.storages.JournalStorage(backend),
            direction="maximize",
            load_if_exists=True,
        )
        asked = json.dumps([asked, [repr(space) for space in spaces]])
        if self._study.user_attrs.setdefault(ASKED, asked) != asked:
            raise UserError(
                f"{path} is of another search; ask for the same, or give another "
                "folder by --set output_root=FOLDER"
            )
        self._study.set_user_attr(ASKED, asked)

    def next(self, total: int, most: int) -> list[Trial]:
        """The next trials: first those that were begun and have not ended.

        Args:
            total: of the search, ended ones included.
            most: at a time.
        """
        running = (self._optuna.trial.TrialState.RUNNING,)
        found = [
            Trial(trial.number, self._settings(trial.params))
            for trial in self._study.get_trials(states=running)[:most]
        ]
        begun = len(self._study.get_trials(deepcopy=False))
        for count in range(begun, min(total, begun + most - len(found))):
            # What is tried depends on the trials before, not on calls of the command.
            self._study.sampler = self._optuna.samplers.TPESampler(seed=count)
            trial = self._study.ask(
                {s.key: s.distribution(self._optuna) for s in self._spaces}
            )
            found.append(Trial(trial.number, self._settings(trial.params)))
        return found

    def _settings(self, values: dict[str, Any]) -> list[str]:
        return [each.setting(values[each.key]) for each in self._spaces]

    def tell(self, trial: Trial, value: float | None) -> None:
        """Says what a trial is worth; None: it failed."""
        if value is None:
            failed = self._optuna.trial.TrialState.FAIL
            self._study.tell(trial.number, state=failed)
        else:
            self._study.tell(trial.number, value)

    def best(self) -> tuple[Trial, float] | None:
        """The best trial and its value; None before the first that did not fail."""
        complete = (self._optuna.trial.TrialState.COMPLETE,)
        if not self._study.get_trials(states=complete):
            return None
        best = self._study.best_trial
        return Trial(best.number, self._settings(best.params)), best.value
