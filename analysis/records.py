"""What experiments left: their scores, logs and configurations, read and grouped."""

import gzip
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import ValidationError

from ..settings.loading import changed_keys
from ..settings.roles import VALUERL, WORLDMODEL
from ..settings.schema import Config
from ..storage.record import read_json
from ..util import UserError, files_below

SUFFIX = ".greedy.csv"
X_AXES = ("frames", "hours", "updates")
GROUPINGS = ("algorithm", "experiment")
SCORE, USAGE = "score", "model_usage"
# Keys that make no difference to what is learned, besides those that `changed_keys`
# leaves out.
NOT_A_SETTING = {"seed", "log_path", "save_model_path"}
# Folders that main.py put aside or has not finished.
ASIDE = re.compile(r"\..*|.*\.old\d+")
SHORT = 0.95  # of the longest run of its group: a shorter one is worth a remark


# ---- Reading ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Record:
    """What one experiment left.

    Attributes:
        path: of its scores.
        config: as in hps.json.
        tables: of its scores and of each learner's log, each with the columns of
            X_AXES; model usage for weightings that adapt, such as STEVE's (the
            others' is 0 by definition).
    """

    path: Path
    config: Config
    tables: list[pd.DataFrame]

    @property
    def environment(self) -> str:
        return self.config.env.name

    def group(self, group_by: str) -> str:
        """The algorithm, or the experiment's name without the seed's digits."""
        if group_by == "algorithm":
            return self.config.algorithm
        experiment = self.path.name.split(SUFFIX)[0]
        return experiment.rstrip("0123456789").rstrip("_-") or experiment

    def series(self, quantity: str, x: str) -> np.ndarray | None:
        """Two rows, x and the quantity, sorted by x; None where there is nothing."""
        for table in self.tables:
            if quantity in table and len(table):
                return table[[x, quantity]].sort_values(x, kind="stable").to_numpy().T
        return None

    def known(self, quantity: str, x: str) -> np.ndarray:
        """`series` of what is there.

        Raises:
            UserError: there is nothing.
        """
        series = self.series(quantity, x)
        if series is None:
            raise UserError(f"{self.path} has no {quantity}")
        return series

    def end(self, x: str, quantity: str = SCORE) -> float:
        """The last x of a quantity; 0 where there is nothing."""
        series = self.series(quantity, x)
        return 0.0 if series is None else series[0, -1]


def find_runs(folders: Sequence[str | Path]) -> list[Record]:
    """Reads every experiment in or below the folders, each once.

    hps.json and the logs lie next to the csv; it and they may be gzipped. What
    `--overwrite` put aside is passed over, unless its own folder is named.

    Raises:
        UserError: no such folder, no scores in one, or a file that cannot be used.
    """
    found: dict[Path, Path] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; name one of main.py's output")
        paths = [
            path
            for path in files_below(folder, f"*{SUFFIX}*")
            if path.name.removesuffix(".gz").endswith(SUFFIX)
            and not any(map(ASIDE.fullmatch, path.relative_to(folder).parts))
        ]
        if not paths:
            raise UserError(f"{folder} holds no EXPERIMENT{SUFFIX}, nor one with .gz")
        for path in paths:  # X.csv before X.csv.gz
            found.setdefault(
                path.resolve().with_name(path.name.removesuffix(".gz")), path
            )
    return [read_experiment(path) for path in found.values()]


def read_experiment(path: Path) -> Record:
    """The run whose scores are in `path`.

    The csv has no updates. They are (epoch - 1) * epoch_every_n: too large by less
    than an epoch after each time that the run came to its limit.

    Raises:
        UserError: a file is missing or cannot be used.
    """
    config = read_config(path.with_name("hps.json"))
    scores = read_table(path, ("hours", "epochs", "frames", SCORE))
    every = config.policy_config.epoch_every_n
    tables = [scores.assign(updates=(scores["epochs"] - 1) * every)]
    for learner in (VALUERL, WORLDMODEL):
        for name in (f"{learner}.log", f"{learner}.log.gz"):
            if (log := path.with_name(name)).is_file():
                table = read_table(log, X_AXES)
                tables.append(table[table["updates"] > 0])  # not the pretraining
                break
    if not config.logs_usage:
        tables = [table.drop(columns=USAGE, errors="ignore") for table in tables]
    return Record(path, config, tables)


def read_config(path: Path) -> Config:
    """The configuration in an hps.json.

    Raises:
        UserError: there is none, or it is not one.
    """
    try:
        return Config.model_validate(read_json(path))
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        raise UserError(f"{path} is no configuration: {key}: {fault['msg']}") from None


def read_table(path: Path, required: Sequence[str]) -> pd.DataFrame:
    """A csv of finite numbers with a header; an empty file gives no rows.

    A last line without its end is still being written, or was torn by a kill: it is
    left out, since a part of a number is a number too.

    Raises:
        UserError: the file cannot be read, lacks a column, or has a broken line.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as file:
            header, *lines = file.read().split("\n")[:-1] or [",".join(required)]
        # Of no lines loadtxt would warn.
        values = (
            np.loadtxt(lines, delimiter=",", comments=None, ndmin=2) if lines else ()
        )
        table = pd.DataFrame(values, columns=header.split(","), dtype=float)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if missing := [name for name in required if name not in table]:
        raise UserError(f"{path} has no column {missing[0]!r} in its first line")
    if len(broken := np.flatnonzero(~np.isfinite(table).all(axis=1))):
        raise UserError(f"{path}, line {broken[0] + 2}: not a finite number")
    return table


# ---- Grouping -----------------------------------------------------------------------


def grouped(
    runs: Sequence[Record], group_by: str
) -> dict[tuple[str, str], list[Record]]:
    """The runs by (environment, group), in alphabetical order."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for run in runs:
        groups.setdefault((run.environment, run.group(group_by)), []).append(run)
    return dict(sorted(groups.items()))


def remarks(runs: Sequence[Record], group_by: str = "algorithm") -> list[str]:
    """What a reader of the curves should know, one line each: runs without scores or
    much shorter than others of their group, settings that differ within a group, and
    seeds that occur twice in it."""
    lines = []
    for (environment, name), group in grouped(runs, group_by).items():
        ends = {run.path: run.end("frames") for run in group}
        longest = max(ends.values())
        for path, end in ends.items():
            if not end:
                lines.append(f"{path} has no evaluation yet")
            elif end < SHORT * longest:
                lines.append(
                    f"{path} ends at {end:,.0f} frames, the longest run of {name} on "
                    f"{environment} at {longest:,.0f}"
                )
        configs = [run.config.model_dump(mode="json", by_alias=True) for run in group]
        keys = {key for each in configs for key in changed_keys(configs[0], each)}
        if changed := sorted(keys - NOT_A_SETTING):
            lines.append(f"{environment}, {name}: runs differ in {', '.join(changed)}")
        seeds = sorted(run.config.seed for run in group)
        if len(set(seeds)) < len(seeds):
            lines.append(f"{environment}, {name}: a seed occurs twice: {seeds}")
    return lines
