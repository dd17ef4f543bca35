"""The scores of the runs in results/, as one table that is part of the package."""

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from ..settings.schema import Config
from .curve_figures import NAMED, RESULTS
from .records import SCORE, SUFFIX, Record, grouped

TABLE = Path(__file__).with_name("results.csv.gz")
COLUMNS = [
    "environment",
    "algorithm",
    "experiment",
    "seed",
    "frames",
    "score",
    "hours",
]


def load_results() -> pd.DataFrame:
    """All curves of results/: a row for each policy that was scored.

    Returns:
        environment; algorithm, with the experiment in brackets where it is not the
        algorithm's usual one; experiment, the name of the run's folder; seed; frames
        and hours (of learning) when the policy was published; score, the mean of its
        episodes.
    """
    return pd.read_csv(TABLE)


def tidy(runs: Collection[Record]) -> pd.DataFrame:
    """The table of `load_results` of some runs."""
    parts = []
    groups = grouped(list(runs), "experiment")
    usual: dict[tuple[str, str], str] = {}  # the shortest name of an experiment
    for (environment, experiment), group in groups.items():
        key = environment, group[0].config.algorithm
        usual[key] = min(usual.get(key, experiment), experiment, key=len)
    for (environment, experiment), group in groups.items():
        name = group[0].config.algorithm
        if usual[environment, name] != experiment:
            name += f" ({experiment})"
        for run in sorted(group, key=lambda run: run.config.seed):
            (scores,) = (table for table in run.tables if SCORE in table)
            part = {
                "environment": environment,
                "algorithm": name,
                "experiment": run.experiment,
                "seed": run.config.seed,
            }
            parts.append(scores.assign(**part)[COLUMNS].astype({"frames": int}))
    return pd.concat(parts, ignore_index=True)


def reference_runs(runs: Collection[Record]) -> list[Record]:
    """The runs of results/ to draw next to others.

    Those on the same environments, of the paper's three algorithms and of those that
    the others have.
    """
    environments = {run.environment for run in runs}
    algorithms = {*NAMED, *(run.config.algorithm for run in runs)}
    table = load_results()
    wanted = table["environment"].isin(environments)
    wanted &= table["algorithm"].isin(algorithms)
    return [
        Record(
            Path("results", str(environment), str(experiment), f"{experiment}{SUFFIX}"),
            Config.model_validate({"env": {"name": environment}, "seed": seed}),
            [rows[["frames", "hours", "score"]].reset_index(drop=True)],
            str(algorithm) + RESULTS,
        )
        for (environment, algorithm, experiment, seed), rows in table[wanted].groupby(
            ["environment", "algorithm", "experiment", "seed"], sort=False
        )
    ]
