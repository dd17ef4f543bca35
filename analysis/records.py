"""What experiments left: their scores, logs and configurations, read and grouped."""

import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from ..settings.loading import changed_keys
from ..settings.roles import VALUERL, WORLDMODEL
from ..settings.schema import PAPER_HORIZON, Config
from ..storage.folders import ASIDE, HYPERPARAMETERS
from ..storage.record import read_json
from ..storage.tables import parsed_table
from ..util import UserError, counted, files_below

SUFFIX = ".greedy.csv"
RECORDS = ("run.json", "compute.json")  # the latter of collected results
X_AXES = ("frames", "hours", "updates")
GROUPINGS = ("algorithm", "experiment")
SCORE, USAGE = "score", "model_usage"
# Keys that make no difference to what is learned, besides those that `changed_keys`
# leaves out.
NOT_A_SETTING = {
    *("seed", "log_path", "save_model_path"),
    *("module", "env.module", "env.obs_dims", "env.action_dim"),
}
# Of `value_expansion`: other ways to choose one of the built-in weightings.
SWITCHES = (
    *("mean_k_return", "lambda_return", "steve_reweight", "covariances"),
    *("variance_epsilon", "covariance_ridge"),
)
SHORT = 0.95  # of the longest run of its group: a shorter one is worth a remark
LONGEST_NAME = 48  # letters of a group; what does not fit is told by the experiment
HORIZON = re.compile(r" H=\d+")


# ---- Reading ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Record:
    """What one experiment left.

    Attributes:
        path: of its scores.
        config: as in hps.json.
        tables: of its scores and of each learner's log, each with the columns of
            X_AXES; model usage for weightings that adapt, such as STEVE's (the
            others' is 0 by definition). Scores have a row for each policy, the mean of
            its episodes.
        title: the name of its group where the configuration does not tell it.
        damaged: lines of these files that are left out.
    """

    path: Path
    config: Config
    tables: list[pd.DataFrame]
    title: str | None = None
    damaged: int = 0

    @property
    def environment(self) -> str:
        return self.config.env.name

    @property
    def experiment(self) -> str:
        """The name of the experiment."""
        return self.path.name.split(SUFFIX)[0]

    @property
    def set_aside(self) -> str:
        """The folder that `--overwrite` put the run into; empty for all others."""
        # The experiment's folder, or its log folder inside.
        parts = self.path.absolute().parts[-3:-1]
        return next((part for part in parts if ASIDE.fullmatch(part)), "")

    def group(self, group_by: str) -> str:
        """The algorithm, or the experiment's name without the seed's digits."""
        if self.title:
            return self.title
        if group_by == "algorithm":
            return self.config.algorithm
        return self.experiment.rstrip("0123456789").rstrip("_-") or self.experiment

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


def find_runs(
    folders: Sequence[str | Path], passed_over: Callable[[str], None] | None = None
) -> list[Record]:
    """Reads every experiment in or below the folders, each once.

    hps.json and the logs lie next to the csv; it and they may be gzipped. What
    `--overwrite` put aside is passed over, unless its own folder is named.

    Args:
        folders: of experiments or of environments, or output roots.
        passed_over: takes a line for each run that cannot be read, if another one can.

    Raises:
        UserError: no folder or no such one, a list in place of one, no scores in one,
            or a file that cannot be used: any without `passed_over`, else all.
    """
    if not folders:
        raise UserError("name a folder of experiments")
    for given in folders:
        if not isinstance(given, str | os.PathLike):
            kind = type(given).__name__
            raise UserError(f"give folders one by one, not as a {kind}")
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
    runs, faults = [], []
    for path in found.values():
        try:
            runs.append(read_experiment(path))
        except UserError as error:
            faults.append(error)
    if faults and (passed_over is None or not runs):
        raise faults[0]
    if passed_over:
        for fault in faults:
            passed_over(f"a run is left out: {fault}")
    return runs


def read_experiment(path: Path) -> Record:
    """The run whose scores are in `path`.

    The csv has no updates. They are (epoch - 1) * epoch_every_n: too large by less
    than an epoch after each time that the run came to its limit. Its rows are episodes.
    A policy has one weight however many it has: version 1.0 wrote the last policy's
    final episodes there too.

    Raises:
        UserError: a file is missing or cannot be used.
    """
    config = read_config(path.with_name(HYPERPARAMETERS))
    scores, damaged = _read_table(path, ("hours", "epochs", "frames", SCORE))
    scores = scores.groupby(["epochs", "frames", "hours"], as_index=False)[SCORE].mean()
    every = config.policy_config.epoch_every_n
    tables = [scores.assign(updates=(scores["epochs"] - 1) * every)]
    for learner in (VALUERL, WORLDMODEL):
        for name in (f"{learner}.log", f"{learner}.log.gz"):
            if (log := path.with_name(name)).is_file():
                table, broken = _read_table(log, X_AXES)
                damaged += broken
                tables.append(table[table["updates"] > 0])  # not the pretraining
                break
    if not config.logs_usage:
        tables = [table.drop(columns=USAGE, errors="ignore") for table in tables]
    return Record(path, config, tables, damaged=damaged)


def read_config(path: Path) -> Config:
    """The configuration in an hps.json.

    What the record next to it says of a weighting from a user's module is part of it:
    that module need not be there any more.

    Raises:
        UserError: there is none, or it is not one.
    """
    try:
        config = Config.model_validate(read_json(path))
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        raise UserError(f"{path} is no configuration: {key}: {fault['msg']}") from None
    for name in RECORDS:
        with suppress(UserError):  # none, or damaged: the weighting's name will do
            weighting = read_json(path.with_name(name)).get("weighting")
            return config.with_weighting(
                weighting if isinstance(weighting, dict) else None
            )
    return config


def read_table(path: Path, required: Sequence[str]) -> pd.DataFrame:
    """A csv of finite numbers with a header; an empty file gives no rows.

    Damaged lines are left out, and so is a last line without its end: it is still being
    written, or was torn by a kill, and a part of a number is a number too.

    Raises:
        UserError: the file cannot be read, lacks a column, or has no whole line.
    """
    return _read_table(path, required)[0]


def _read_table(path: Path, required: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """Also says how many lines are damaged."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            table = parsed_table(file.read())
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if table is None:
        return pd.DataFrame(columns=list(required), dtype=float), 0
    if len(set(table.columns)) < len(table.columns):
        raise UserError(f"{path} has a column twice in its first line")
    if missing := [name for name in required if name not in table.columns]:
        raise UserError(f"{path} has no column {missing[0]!r} in its first line")
    rows = [row for row in table.rows if row]
    if table.damaged and not rows:
        raise UserError(f"{path}: no line is whole")
    return pd.DataFrame(rows, columns=table.columns, dtype=float), table.damaged


# ---- Grouping -----------------------------------------------------------------------


def grouped(
    runs: Sequence[Record], group_by: str
) -> dict[tuple[str, str], list[Record]]:
    """The runs by (environment, group), in alphabetical and numerical order.

    Runs of one algorithm whose settings differ are groups of their own, named by those
    settings; so is output that was set aside.
    """
    found: dict[tuple[str, str], list[Record]] = {}
    for run in runs:
        found.setdefault((run.environment, run.group(group_by)), []).append(run)
    horizons = {HORIZON.sub("", name) for _, name in found if HORIZON.search(name)}
    groups: dict[tuple[str, str], list[Record]] = {}
    for (environment, name), together in found.items():
        if together[0].title is None and group_by == "algorithm":
            first, *rest = name.split(" unpaced")
            if name in horizons:  # among others it says its own
                name = f"{first} H={PAPER_HORIZON}" + " unpaced" * len(rest)
            endings = _settings_that_differ(together)
        else:
            endings = [""] * len(together)
        for run, ending in zip(together, endings, strict=True):
            aside = f" ({run.set_aside})" if run.set_aside else ""
            groups.setdefault((environment, name + ending + aside), []).append(run)
    return {key: groups[key] for key in sorted(groups, key=_in_order)}


def _in_order(key: Sequence[str]) -> list[Any]:
    """Sorts numbers in names as numbers: H=2 comes before H=10."""
    return [
        [(float(part), "") if i % 2 else (0.0, part) for i, part in enumerate(parts)]
        for parts in (re.split(r"(\d+(?:\.\d+)?)", name) for name in key)
    ]


def _settings_that_differ(runs: Sequence[Record]) -> list[str]:
    """What tells the runs of an algorithm apart: ", learning_rate 0.001" of each."""
    contents = [_content(run.config) for run in runs]
    differing = _differing(contents)
    endings = [
        "".join(
            f", {key.rpartition('.')[2]} {_value(content, key)}" for key in differing
        )
        for content in contents
    ]
    short = {key.rpartition(".")[2] for key in differing}
    if len(short) < len(differing) or max(map(len, endings)) > LONGEST_NAME:
        # As many groups as there are settings, each named after its experiments.
        names: dict[str, list[str]] = {}
        keys = [
            str([_value(content, key) for key in differing]) for content in contents
        ]
        for run, key in zip(runs, keys, strict=True):
            names.setdefault(key, []).append(run.group("experiment"))
        return [f" ({'/'.join(dict.fromkeys(names[key]))})" for key in keys]
    return endings


def _content(config: Config) -> dict[str, Any]:
    """A merged configuration; what can be said in two ways is said in one."""
    content = config.model_dump(mode="json", by_alias=True)
    if content["env"]["inertia"] == "2.1":  # which is what null means
        content["env"]["inertia"] = None
    expansion = config.policy_config.value_expansion
    if expansion is not None and isinstance(expansion.entry.target, str):
        name, settings = expansion.choice
        section = content["policy_config"]["value_expansion"]
        for switch in SWITCHES:
            del section[switch]
        known = {**expansion.entry.defaults, **settings}
        section |= {"weighting": name, "weighting_settings": known}
    return content


def _differing(contents: Sequence[dict[str, Any]]) -> list[str]:
    """The keys in which merged configurations differ and that make a difference."""
    keys = {key for each in contents for key in changed_keys(contents[0], each)}
    return sorted(keys - NOT_A_SETTING)


def _value(content: dict[str, Any], key: str) -> str:
    """A value of a merged configuration, as JSON."""
    value: Any = content
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value if isinstance(value, str) else json.dumps(value)


def remarks(runs: Sequence[Record], group_by: str = "algorithm") -> list[str]:
    """What a reader of the curves should know, one line each: damaged lines, runs
    without scores or much shorter than others of their group, settings that differ
    within a group, and seeds that occur twice in it."""
    return [
        line
        for key, group in grouped(runs, group_by).items()
        for line in _remarks(*key, group)
    ]


def _remarks(environment: str, name: str, group: Sequence[Record]) -> Iterator[str]:
    ends = {run.path: run.end("frames") for run in group}
    longest = max(ends.values())
    for run in group:
        if run.damaged:
            yield f"{run.path.parent}: {counted(run.damaged, 'damaged line')} left out"
    for path, end in ends.items():
        if not end:
            yield f"{path} has no evaluation yet"
        elif end < SHORT * longest:
            yield (
                f"{path} ends at {end:,.0f} frames, the longest run of {name} on "
                f"{environment} at {longest:,.0f}"
            )
    contents = [_content(run.config) for run in group]
    if changed := _differing(contents):
        yield f"{environment}, {name}: runs differ in {', '.join(changed)}"
    seeds = sorted(run.config.seed for run in group)
    if len(set(seeds)) < len(seeds):
        yield (
            f"{environment}, {name}: a seed occurs twice: {seeds}; its runs are no "
            "replicates: name the folders that belong together"
        )
