"""A search for good values of keys by Optuna; its study is a journal on the disk.

A trial is one run and has a number. A trial that was begun keeps its number and its
values, so a call or a job that was killed loses none.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import portalocker
from scipy.integrate import trapezoid

from ..storage.scores import LAST_SCORES
from ..storage.tables import read_table
from ..util import UserError, named

EXTRA = "optuna is not installed; run: pip install 'steve-rl[optuna]'"
ASKED = "asked"  # what a study is of, among its attributes
# What reading a journal raises in which bytes have changed.
DAMAGES = (ValueError, LookupError, TypeError, AssertionError, RecursionError)
NUMBER = "number"  # of a trial that has all its values, among its attributes


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
    """Mean score over the frames of a run: the area under its curve, by its width.

    The curve goes through the mean of each policy's episodes (SPEC section 9).
    """
    policies: dict[tuple[float, float], list[float]] = {}
    for row in _rows(scores):
        policies.setdefault((row["frames"], row["epochs"]), []).append(row["score"])
    if not policies:
        return None
    frames = np.array([frames for frames, _ in sorted(policies)])
    values = np.array([np.mean(policies[policy]) for policy in sorted(policies)])
    if frames[0] == frames[-1]:
        return float(np.mean(values))
    return float(trapezoid(values, frames) / (frames[-1] - frames[0]))


def final(scores: Path) -> float | None:
    """Mean of the last scores."""
    values = [row["score"] for row in _rows(scores)[-LAST_SCORES:]]
    return float(np.mean(values)) if values else None


def _rows(scores: Path) -> list[dict[str, float]]:
    table = read_table(scores)
    return [row for row in table.rows if row] if table else []


METRICS: dict[str, Callable[[Path], float | None]] = {"auc": area, "final": final}


# ---- the study ----------------------------------------------------------------------


class Trial(NamedTuple):
    """A run of a search."""

    number: int
    settings: list[str]


class Study:
    """The trials of a search, on the disk; several processes may use it.

    Args:
        path: of its journal; it is made where there is none.
        spaces: what is searched.
        asked: what else makes it this search and no other.

    Raises:
        UserError: Optuna is missing, the journal is damaged, or is of another search.
    """

    def __init__(self, path: Path, spaces: Sequence[Space], asked: str) -> None:
        try:
            import optuna
            import optuna.logging  # a mere folder of that name has none
        except ImportError:
            raise UserError(EXTRA) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna: Any = optuna  # its types name other modules in each version
        self._spaces, self._path = spaces, path
        asked = json.dumps([asked, [repr(space) for space in spaces]])
        with self._alone():
            try:
                self._study = self._opened()
                earlier = self._study.user_attrs.get(ASKED, asked)
                if earlier == asked:
                    self.begun()  # reads all trials
                    self.best()
            except DAMAGES:
                raise UserError(
                    f"{path} is damaged, and the search cannot continue; begin one in "
                    "another folder by --set output_root=FOLDER"
                ) from None
            if earlier != asked:
                raise UserError(
                    f"{path} is of another search; ask for the same, or give another "
                    "folder by --set output_root=FOLDER"
                )
            self._study.set_user_attr(ASKED, asked)

    def _opened(self) -> Any:
        journal = self._optuna.storages.journal
        storage = journal.JournalFileBackend(str(self._path))
        return self._optuna.create_study(
            study_name=self._path.stem,
            storage=self._optuna.storages.JournalStorage(storage),
            direction="maximize",
            load_if_exists=True,
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process begins or ends a trial meanwhile."""
        with named(self._path), open(self._path, "ab") as file:
            portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE)
            _cut_torn_line(self._path)
            yield

    def _trials(self) -> dict[int, Any]:
        """Optuna's trials by their numbers."""
        found = self._study.get_trials(deepcopy=False)
        return {t.user_attrs[NUMBER]: t for t in found if NUMBER in t.user_attrs}

    def open_numbers(self, total: int) -> list[int]:
        """The numbers below `total` whose trials have not ended."""
        trials = self._trials()
        return [
            number
            for number in range(total)
            if number not in trials or not trials[number].state.is_finished()
        ]

    def begun(self) -> list[Trial]:
        """The trials that have been begun and have not ended."""
        trials = self._trials().items()
        return [self._trial(n, t) for n, t in trials if not t.state.is_finished()]

    def begin(self, number: int) -> Trial | None:
        """The trial of a number, with new values where there is none; None: it ended.

        Args:
            number: of the trial, at least 0.
        """
        with self._alone():
            self._drop_halves()
            if number not in self._trials():
                # What is tried depends on the trials before, not on who asks.
                self._study.sampler = self._optuna.samplers.TPESampler(seed=number)
                asked = self._study.ask(
                    {s.key: s.distribution(self._optuna) for s in self._spaces}
                )
                asked.set_user_attr(NUMBER, number)
            trial = self._trials()[number]
        return None if trial.state.is_finished() else self._trial(number, trial)

    def _drop_halves(self) -> None:
        """Ends what a process began that was killed before the trial had a number."""
        states = self._optuna.trial.TrialState
        for trial in self._study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            if NUMBER not in trial.user_attrs:
                self._study.tell(trial.number, state=states.FAIL)

    def _trial(self, number: int, trial: Any) -> Trial:
        return Trial(number, [s.setting(trial.params[s.key]) for s in self._spaces])

    def tell(self, trial: Trial, value: float | None) -> None:
        """Says what a trial is worth, the first time; None: it failed."""
        with self._alone():
            begun = self._trials()[trial.number]
            if begun.state.is_finished():
                return
            if value is None:
                failed = self._optuna.trial.TrialState.FAIL
                self._study.tell(begun.number, state=failed)
            else:
                self._study.tell(begun.number, value)

    def best(self) -> tuple[Trial, float] | None:
        """The best trial and its value; None before the first that did not fail."""
        complete = self._optuna.trial.TrialState.COMPLETE
        found = [(n, t) for n, t in self._trials().items() if t.state == complete]
        if not found:
            return None
        number, best = max(found, key=lambda each: each[1].value)
        return self._trial(number, best), best.value


def _cut_torn_line(path: Path) -> None:
    """Cuts what a process that was killed had not wholly appended."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
