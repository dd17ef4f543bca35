"""The process of the loggers that a configuration names: hands them what is logged."""

import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..running.child import Context
from ..settings.roles import LAUNCHER, learners
from ..storage.board import FINAL_EPISODES
from ..storage.folders import Run
from ..storage.record import read_json, write_json
from ..util import RunError, UserError, error_text, put_damaged_aside, wait_until
from . import KEY, Experiment, Logger, experiment_of, factory_of
from .feed import Feed

LOOK_EVERY = 0.5  # seconds


def main(context: Context) -> None:
    """The process's main function: until asked to stop, at the end of the run."""
    row = context.board[context.name]
    handed = Handed(context.run, lambda line: print(line, file=sys.stderr))
    row["ready"] = 1
    rows = [context.board[name] for name in learners(context.run.config)]
    while True:
        stops = context.stop()
        is_final = context.board[LAUNCHER]["phase"] == FINAL_EPISODES
        if all(each["ready"] for each in rows):  # their logs end where they continue
            handed.refresh(last=stops and bool(is_final))
        if stops:
            break
        _pause(context)
    handed.close()
    if handed.given_up:  # the launcher says it, when the run ends
        raise RunError(handed.given_up[-1])


def _pause(context: Context) -> None:
    """Waits, no longer than until asked to stop; shows life."""
    until = time.monotonic() + LOOK_EVERY
    context.board[context.name]["heartbeat"] = time.monotonic()
    wait_until(lambda: time.monotonic() > until or context.stop())


class Handed:
    """The loggers of a run, and how far each one is.

    Args:
        run: whose configuration names them.
        report: takes a line for a logger that fails; it gets nothing more.

    Raises:
        UserError: one cannot be made.
    """

    def __init__(self, run: Run, report: Callable[[str], None]) -> None:
        self._path = run.folders.loggers
        self._report = report
        self.given_up: list[str] = []  # a line for each logger that has failed
        self._record = _read(self._path, report)
        write_json(self._path, self._record)  # the id, before somebody else knows it
        self._loggers: dict[str, tuple[Logger, Feed]] = {}
        counts: Counter[str] = Counter()
        for settings in run.config.loggers:
            counts[settings.entry_point] += 1
            number = counts[settings.entry_point]
            suffix = "" if number == 1 else f"-{number}"  # in no entry point
            name = settings.entry_point + suffix
            experiment = experiment_of(run, self._record["id"] + suffix)
            logger = _made(factory_of(settings), name, experiment, settings.kwargs)
            delivered = self._record["delivered"].get(name, {})
            self._loggers[name] = logger, Feed(run, delivered)

    def refresh(self, last: bool = False) -> None:
        """Hands each logger what is new."""
        for name, (logger, feed) in list(self._loggers.items()):
            points = feed(last)
            # Its own: `feed.delivered` is ahead of what the logger has taken.
            taken = self._record["delivered"].setdefault(name, {})
            try:
                for point in points:
                    logger.log(*point)
                    taken[point.group] = point.step
            except Exception as error:
                self._give_up(name, error)
            if points:
                with suppress(OSError):  # a full disk: points may come twice
                    write_json(self._path, self._record)

    def close(self) -> None:
        """Closes all loggers."""
        for name, (logger, _) in list(self._loggers.items()):
            try:
                logger.close()
            except Exception as error:
                self._give_up(name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        line = f"{KEY}: {name}: {error_text(error)}; it gets nothing more"
        self._report(line)
        self.given_up.append(line)
        del self._loggers[name]


def _made(
    factory: Any, name: str, experiment: Experiment, kwargs: dict[str, Any]
) -> Logger:
    try:
        return factory(experiment, **kwargs)
    except Exception as error:
        raise UserError(f"{KEY}: {name}: {error_text(error)}") from None


def _read(path: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """The id of a run and how far each logger is; a new one where there is none.

    A damaged file is put aside, which is reported.
    """
    if path.exists():
        with suppress(UserError):
            content = read_json(path)
            delivered = content.get("delivered")
            if isinstance(content.get("id"), str) and isinstance(delivered, dict):
                steps = {
                    name: {g: s for g, s in groups.items() if isinstance(s, int)}
                    for name, groups in delivered.items()
                    if isinstance(groups, dict)
                }
                return {"id": content["id"], "delivered": steps}
        aside = put_damaged_aside(path)
        report(
            f"{path}: is damaged and is now {aside.name}; loggers begin a new record "
            "of this run"
        )
    return {"id": secrets.token_hex(6), "delivered": {}}
