"""Compares runs of config/fullsize with a third party's runs of the 2018 release.

    python results/fullsize.py [FOLDER ...] [--out FIGURE.png]

Takes finished and running experiments from the folders (by default results/). A value
at F frames is the mean of what a run measured in the last 5,000 of them: `acting`,
returns of the episodes that its interactor played, as theirs are; `greedy`, scores of
its policies. Prints, in Markdown, for each of their values ours and, of acting returns,
the test of one hypothesis: a seed of ours comes from the normal distribution of theirs.

- expected: where the mean of as many seeds as we have then lies in 95% of repeats;
- p: how often it then lies as far from theirs as ours does, or farther;
- shows: the difference of the means that has p < 0.05 in 80% of repeats. With few
  seeds it is large, and a p above 0.05 then says little.

Below stand, as tables.py has them of small runs, what Q says of the policies next to
what they earn, and STEVE's model usage; means over the seeds.

`--out` draws the curves and their bands and writes the table next to it as a csv.
"""

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import scipy.optimize
import scipy.stats
from tables import RESULTS, markdown, usage, value_estimates

from steve.analysis.acting_returns import read_acting_returns
from steve.analysis.curves import SMOOTH, curve
from steve.analysis.drawing import (
    BLACK,
    BLUE,
    DASHED,
    VERMILION,
    finish_axes,
    rendered,
)
from steve.analysis.records import SCORE, Record, find_runs
from steve.command_line import OneLineParser, exit_code
from steve.util import UserError, atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THIRD_PARTY = RESULTS / "third_party.csv"
LENGTH = 100_000  # frames of theirs
WINDOW = SMOOTH * LENGTH
# A run that is scored every 250 frames has come to F when its last score is so near.
NEAR = 500
# Of the tables of value estimates and model usage.
INNER = (12_500, 15_000, 17_500, 20_000, 22_500, 25_000, 50_000, 100_000)
STEP = 500  # frames between the points of a line
FULLSIZE = re.compile(r"full_(ddpg|mve_tdk|steve)(_noexplore)?\d+")
LEVEL, POWER = 0.05, 0.8
ACTING, GREEDY = "acting", "greedy"
COLORS = {ACTING: VERMILION, GREEDY: BLUE}
SHIFT = {ACTING: 1_800, GREEDY: 3_300}  # frames by which our means are to the right


class Run(NamedTuple):
    """A run of ours.

    Attributes:
        record: what it left.
        series: by kind, [2, ...], frames and return.
    """

    record: Record
    series: dict[str, np.ndarray]

    @property
    def explores(self) -> bool:
        return self.record.config.policy_config.explore_chance > 0

    def at(self, kind: str, frames: float) -> float:
        """Its value there; NaN where it has not come so far, or has none."""
        series = self.series.get(kind)
        if series is None or self.record.end("frames") < frames - NEAR:
            return math.nan
        return float(curve(series, np.array([frames]), WINDOW)[0])


# ---- Reading ------------------------------------------------------------------------


def third_party(path: Path = THIRD_PARTY) -> pd.DataFrame:
    """Their table: environment, algorithm, frames, mean, std, seeds."""
    return pd.read_csv(path, comment="#")


def fullsize_runs(folders: Sequence[Path]) -> list[Run]:
    """Those of config/fullsize that are in the folders, by seed.

    Raises:
        UserError: as `find_runs`; or a run is in two of the folders.
    """
    runs = []
    folders_of: dict[tuple[str, str], Path] = {}
    for record in find_runs(folders, lambda line: print(f"note: {line}")):
        if not FULLSIZE.fullmatch(record.experiment) or not record.end("frames"):
            continue
        key = record.environment, record.experiment
        if (other := folders_of.setdefault(key, record.path)) != record.path:
            raise UserError(
                f"{record.path} and {other} are of one run; name one of their folders"
            )
        series = {GREEDY: record.known(SCORE, "frames")}
        try:
            acting = read_acting_returns(record)
        except UserError as error:
            print(f"note: {error}")
            acting = None
        if acting is not None and len(acting):
            series[ACTING] = acting.to_numpy().T
        runs.append(Run(record, series))
    return sorted(runs, key=lambda run: run.record.config.seed)


def group(
    runs: Sequence[Run], environment: str, algorithm: str, explores: bool
) -> list[Run]:
    """Those of an environment, of whatever version of it, and an algorithm."""
    family = environment.partition("-")[0]
    return [
        run
        for run in runs
        if run.record.environment.partition("-")[0] == family
        and run.record.config.algorithm == algorithm
        and run.explores == explores
    ]


# ---- Statistics ---------------------------------------------------------------------


def interval(mean: float, std: float, count: int, more: int = 0) -> tuple:
    """95% interval of a mean; with `more`, of the mean of so many new values.

    NaN where there are fewer than two values.
    """
    if count < 2:
        return math.nan, math.nan
    share = 1 / count + (1 / more if more else 0)
    half = scipy.stats.t.ppf(1 - LEVEL / 2, count - 1) * std * math.sqrt(share)
    return mean - half, mean + half


def chance(difference: float, std: float, count: int, more: int) -> float:
    """How often the mean of `more` new values is so far from that of `count`, or more.

    All are of one normal distribution; `std` is that of the `count` values.
    """
    shift = abs(difference) / (std * math.sqrt(1 / count + 1 / more))
    return float(2 * scipy.stats.t.sf(shift, count - 1))


def detectable(std: float, count: int, more: int) -> float:
    """The difference of two means of which `chance` is below LEVEL in a share POWER."""
    limit = scipy.stats.t.ppf(1 - LEVEL / 2, count - 1)

    def missing(shift: float) -> float:
        return POWER - scipy.stats.nct.sf(limit, count - 1, shift)

    shift = scipy.optimize.brentq(missing, 0.0, 3.0 * limit)
    return float(shift * std * math.sqrt(1 / count + 1 / more))


def compared(theirs: pd.DataFrame, runs: Sequence[Run]) -> pd.DataFrame:
    """A row for each of their values, kind and exploration that we have runs of.

    Returns:
        environment, algorithm, frames, their_mean, their_low, their_high (95%), kind,
        explores, seeds, each (our values), mean, low, high; of acting returns without
        exploration also expected_low, expected_high, p, shows. Where we have nothing,
        seeds is 0.
    """
    rows = []
    for their in theirs.itertuples():
        low, high = interval(their.mean, their.std, their.seeds)
        base = {
            "environment": their.environment,
            "algorithm": their.algorithm,
            "frames": their.frames,
            "their_mean": their.mean,
            "their_low": low,
            "their_high": high,
        }
        found = []
        for explores in (False, True):
            ours = group(runs, their.environment, their.algorithm, explores)
            for kind in (ACTING, GREEDY):
                values = np.array([run.at(kind, their.frames) for run in ours])
                values = values[~np.isnan(values)]
                if values.size:
                    row = base | {"kind": kind, "explores": explores}
                    row |= _summary(values)
                    if kind == ACTING and not explores:
                        row |= _difference(their, values)
                    found.append(row)
        rows += found or [base | {"seeds": 0}]
    return pd.DataFrame(rows)


def _summary(values: np.ndarray) -> dict:
    """Our values at one point."""
    count, mean = len(values), float(values.mean())
    spread = float(values.std(ddof=1)) if count > 1 else math.nan
    low, high = interval(mean, spread, count)
    each = " ".join(f"{value:.1f}" for value in values)
    known = {"seeds": count, "each": each, "mean": mean, "low": low, "high": high}
    return known | dict.fromkeys(
        ("expected_low", "expected_high", "p", "shows"), math.nan
    )


def _difference(their: NamedTuple, values: np.ndarray) -> dict:
    """What they say next to theirs."""
    low, high = interval(their.mean, their.std, their.seeds, len(values))
    difference = float(values.mean()) - their.mean
    return {
        "expected_low": low,
        "expected_high": high,
        "p": chance(difference, their.std, their.seeds, len(values)),
        "shows": detectable(their.std, their.seeds, len(values)),
    }


# ---- Table and figure ---------------------------------------------------------------


def table(rows: pd.DataFrame) -> str:
    """The comparison in Markdown."""
    header = "environment,algorithm,frames,theirs (95% interval),returns,seeds"
    header += ",ours: mean (each),95% interval,expected,p,shows"
    cells = [tuple(header.split(","))]
    for row in rows.to_dict("records"):
        start = (
            row["environment"].partition("-")[0],
            row["algorithm"],
            f"{row['frames']:,}",
            f"{row['their_mean']:,.0f} {_range(row['their_low'], row['their_high'])}",
        )
        if not row["seeds"]:
            cells.append((*start, "-", "0", *"-----"))
            continue
        each = ", ".join(f"{float(value):,.0f}" for value in row["each"].split())
        cells.append(
            (
                *start,
                row["kind"] + (", exploring" if row["explores"] else ""),
                f"{row['seeds']:.0f}",
                f"{row['mean']:,.0f} ({each})",
                _range(row["low"], row["high"]),
                _range(row["expected_low"], row["expected_high"]),
                "-" if math.isnan(row["p"]) else f"{row['p']:.2g}",
                "-" if math.isnan(row["shows"]) else f"{row['shows']:,.0f}",
            )
        )
    return markdown(cells)


def _range(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"[{low:,.0f}, {high:,.0f}]"


def figure(theirs: pd.DataFrame, runs: Sequence[Run]) -> "Figure":
    """A panel for each environment and algorithm: their points, our seeds' lines."""
    from matplotlib.figure import Figure

    environments = list(dict.fromkeys(theirs["environment"]))
    algorithms = list(dict.fromkeys(theirs["algorithm"]))
    size = (3.4 * len(algorithms), 2.8 * len(environments))
    plotted = Figure(figsize=size, layout="constrained")
    panels = plotted.subplots(
        len(environments), len(algorithms), sharey="row", squeeze=False
    )
    for environment, line_of_panels in zip(environments, panels, strict=True):
        for algorithm, axes in zip(algorithms, line_of_panels, strict=True):
            of_panel = theirs["environment"].eq(environment)
            of_panel &= theirs["algorithm"].eq(algorithm)
            plot_theirs(axes, theirs[of_panel])
            ours = group(runs, environment, algorithm, explores=False)
            plot_ours(axes, ours, theirs.loc[of_panel, "frames"].to_numpy())
            axes.set_title(f"{environment.partition('-')[0]}, {algorithm}", fontsize=10)
            axes.set_xlim(0, LENGTH + 2 * max(SHIFT.values()))
            axes.set_xticks(range(0, LENGTH + 1, LENGTH // 4))
            axes.xaxis.set_major_formatter(lambda frames, _: f"{frames:,.0f}")
            axes.tick_params(axis="x", labelsize=8)
            axes.set_xlabel("environment frames")
            finish_axes(axes)
        line_of_panels[0].set_ylabel("return of an episode")
    legend: dict = {}  # from all panels: some have no runs of ours
    for axes in panels.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            legend.setdefault(label, handle)
    plotted.legend(
        legend.values(),
        legend.keys(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )
    return plotted


def plot_theirs(axes: "Axes", theirs: pd.DataFrame) -> None:
    frames, mean, std = (theirs[key].to_numpy() for key in ("frames", "mean", "std"))
    ends = np.array(
        [interval(row.mean, row.std, row.seeds) for row in theirs.itertuples()]
    ).T
    whose = "2018's code, third party"
    style = {"color": BLACK, "zorder": 3}
    axes.plot(frames, mean, "o", markersize=4, label=f"{whose}: mean", **style)
    label = f"{whose}: 95% of mean"
    axes.vlines(frames, *ends, linewidth=3, alpha=0.5, label=label, **style)
    label = f"{whose}: 1 std"
    axes.vlines(frames, mean - std, mean + std, linewidth=0.8, label=label, **style)


def plot_ours(axes: "Axes", runs: Sequence[Run], frames: np.ndarray) -> None:
    """A line for each seed, and the means at these frames."""
    for kind, dashes in ((GREEDY, DASHED), (ACTING, "solid")):
        for run in runs:
            series = run.series.get(kind)
            if series is None:
                continue
            first, last = np.ceil(series[0, [0, -1]] / STEP) * STEP
            at = np.arange(first, last + 1, STEP)
            axes.plot(
                at,
                curve(series, at, WINDOW),
                color=COLORS[kind],
                linestyle=dashes,
                linewidth=0.8,
                alpha=0.6,
                label=f"ours, each seed: {kind}",
            )
        values = pd.DataFrame([[run.at(kind, x) for x in frames] for run in runs])
        if not values.empty:
            axes.plot(
                frames + SHIFT[kind],
                values.mean(),
                "D",
                color=COLORS[kind],
                markersize=4,
                zorder=4,
                label=f"ours, mean: {kind}",
            )


def run(folders: Sequence[Path], out: Path | None) -> None:
    theirs, runs = third_party(), fullsize_runs(folders)
    rows = compared(theirs, runs)
    print(table(rows))
    records = [run.record for run in runs]
    for inner in (value_estimates, usage):
        print(f"\n{inner(records, INNER, WINDOW)}")
    hours = sum(run.record.end("hours") for run in runs)
    print(f"\n{len(runs)} runs of ours, {hours:.1f} hours of learning")
    if out is not None:
        kind = out.suffix.removeprefix(".")
        atomic_write(out, rendered(figure(theirs, runs), kind))
        content = rows.to_csv(index=False, float_format="%.6g").encode()
        atomic_write(out.with_name(f"{out.stem}_table.csv"), content)


def main() -> int:
    parser = OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", metavar="FOLDER", nargs="*", type=Path)
    parser.add_argument(
        "--out",
        metavar="FIGURE",
        type=figure_path,
        help="a .png, .pdf or .svg to write; FIGURE_table.csv goes next to it",
    )
    given = parser.parse_args()
    folders = given.folders or [RESULTS]
    return exit_code("fullsize.py", lambda: run(folders, given.out))


def figure_path(text: str) -> Path:
    """An argparse type: a file that matplotlib can write."""
    path = Path(text)
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise argparse.ArgumentTypeError(f"{text!r} is no .png, .pdf or .svg")
    return path


if __name__ == "__main__":
    sys.exit(main())
