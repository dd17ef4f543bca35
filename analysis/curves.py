"""Learning curves from the files of experiments: read, grouped, aggregated.

    table = steve.load_curves("results", x="hours")  # a pandas.DataFrame
    steve = table[table["algorithm"] == "STEVE"]

A run's curve at g is the mean of what it measured in [t - window, t], t being its last
measurement at or before g: it never contains a later one. It is not known (NaN) before
the first measurement, nor further behind the last one than the run's own longest gap
between two, at most a window. Measurements are policies, each the mean of its
evaluation episodes and placed where it was published, or lines of a learner's log. The
window is `smooth` times the largest x of the environment. Tables hold these values; a
line is straight from one measurement's value to the next.

The runs of a group (its seeds) are aggregated at common points: their mean, its 95%
percentile-bootstrap interval over runs and, from 4 runs on, their interquartile mean.
Of two or three runs the interval is their range: one resample in four or 27 repeats the
lowest alone, which is more than 2.5%.
Where a run has no value, the mean is that of the others and the rest is NaN.

Dimension letters: S runs of a group, G points on the x axis.
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import scipy.stats

from ..util import UserError
from .records import GROUPINGS, SCORE, X_AXES, Record, find_runs, grouped, remarks

SMOOTH = 0.05  # the window's share of the x axis
POINTS = 201  # of a curve
RESAMPLES = 2000  # of the bootstrap
RANGE_RUNS = 3  # of so many runs or fewer the interval is the range
IQM_SEEDS = 4  # with fewer, a quarter is less than one run


# ---- Aggregating --------------------------------------------------------------------


def curve(series: np.ndarray, at: np.ndarray, window: float) -> np.ndarray:
    """One run's curve at the points `at`, as said at the top.

    Args:
        series: [2, ...], x and y, sorted by x, not empty.
        at: [G].
        window: in units of x.

    Returns:
        [G].
    """
    x, y = series
    end = np.searchsorted(x, at, "right")  # behind the last measurement
    begin = np.searchsorted(x, x[end - 1] - window, "left")
    gap = np.diff(x).max(initial=0)
    known = (end > 0) & (at <= x[-1] + min(gap, window))
    return np.array(
        [
            y[b:e].mean() if there else np.nan
            for b, e, there in zip(begin, end, known, strict=True)
        ]
    )


def line(series: np.ndarray, at: np.ndarray, window: float) -> np.ndarray:
    """As `curve`, but straight between the measurements, so without stairs."""
    places = np.unique(series[0])
    straight = np.interp(at, places, curve(series, places, window))
    return np.where(np.isnan(curve(series, at, window)), np.nan, straight)


def aggregate(values: np.ndarray) -> pd.DataFrame:
    """Mean, its bootstrap interval and interquartile mean over runs.

    Args:
        values: [S, G], NaN where a run has none.

    Returns:
        G rows of seeds (how many have a value), mean, low, high and iqm; NaN as said
        at the top, and no interval of a single run.
    """
    table = pd.DataFrame({"seeds": np.isfinite(values).sum(0)})
    table["mean"] = pd.DataFrame(values).mean()  # of those there are
    table[["low", "high", "iqm"]] = np.nan
    complete = table["seeds"] == len(values)
    everywhere = values[:, complete]
    if len(values) > 1 and complete.any():
        # The same resamples at all points: a smooth band.
        interval = scipy.stats.bootstrap(
            [everywhere],
            np.mean,
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        table.loc[complete, ["low", "high"]] = np.transpose(interval)
    if len(values) >= IQM_SEEDS:
        table.loc[complete, "iqm"] = scipy.stats.trim_mean(everywhere, 0.25)
    return table


def _sampled(
    runs: Sequence[Record], quantity: str, x: str, group_by: str, points: int
) -> Iterator[tuple[str, str, list[Record], np.ndarray, float]]:
    """Environment, name and runs of each group, its curve's places and the longest x.

    The places are `points` from 0 to the environment's longest x; of a group that ends
    early, to a half, a quarter ... of it, so that half of them are not behind its end.
    """
    known = [run for run in runs if run.series(quantity, x) is not None]
    for (environment, name), group in grouped(known, group_by).items():
        longest = _longest(known, environment, x, quantity)
        own = _longest(group, environment, x, quantity)
        part = 1
        while 0 < 2 * own * part <= longest:
            part *= 2
        yield environment, name, group, np.linspace(0, longest / part, points), longest


def aggregated_curves(
    runs: Sequence[Record],
    quantity: str = SCORE,
    x: str = "frames",
    group_by: str = "algorithm",
    smooth: float = SMOOTH,
    points: int = POINTS,
) -> pd.DataFrame:
    """The curves of all groups of runs; as `load_curves`."""
    parts = []
    columns = ["environment", "algorithm", x, "seeds", "mean", "low", "high", "iqm"]
    sampled = _sampled(runs, quantity, x, group_by, points)
    for environment, name, group, at, longest in sampled:
        values = [line(run.known(quantity, x), at, smooth * longest) for run in group]
        part = aggregate(np.stack(values)).assign(
            environment=environment, algorithm=name, **{x: at}
        )
        parts.append(part.loc[part["seeds"] > 0, columns])
    if not parts:
        return pd.DataFrame(columns=columns)
    return pd.concat(parts, ignore_index=True)


def single_curves(
    runs: Sequence[Record],
    quantity: str = SCORE,
    x: str = "frames",
    group_by: str = "algorithm",
    smooth: float = SMOOTH,
    points: int = POINTS,
) -> pd.DataFrame:
    """The curves of the single runs: environment, algorithm, run, x and value."""
    parts = [pd.DataFrame(columns=["environment", "algorithm", "run", x, "value"])]
    sampled = _sampled(runs, quantity, x, group_by, points)
    for environment, name, group, at, longest in sampled:
        for number, run in enumerate(group):
            values = line(run.known(quantity, x), at, smooth * longest)
            part = {"environment": environment, "algorithm": name, "run": number}
            table = pd.DataFrame({x: at, "value": values}).assign(**part)
            parts.append(table.dropna())
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def _longest(
    runs: Sequence[Record], environment: str, x: str, quantity: str = SCORE
) -> float:
    """The largest x of an environment's runs."""
    return max(run.end(x, quantity) for run in runs if run.environment == environment)


def load_curves(
    *folders: str | Path,
    quantity: str = SCORE,
    x: Literal["frames", "hours", "updates"] = "frames",
    group_by: Literal["algorithm", "experiment"] = "algorithm",
    smooth: float = SMOOTH,
    points: int = POINTS,
) -> pd.DataFrame:
    """The learning curves of all experiments in or below the folders.

    Args:
        folders: of experiments or of environments, or output roots.
        quantity: "score", or a column of the learners' logs such as "q_loss".
        x: "frames", "hours" or "updates".
        group_by: "algorithm" (and the settings in which its runs differ) or
            "experiment" (the name without the digits at its end).
        smooth: the window's share of the x axis, 0 to 1.
        points: G, of each curve; at least 2.

    Returns:
        A row for each environment, group and point that has a value, with environment,
        algorithm (the group), the x axis under its own name, seeds (runs with a value
        there), mean, low, high (the 95% interval; of up to `RANGE_RUNS` runs their
        range), iqm.

    Raises:
        UserError: as `find_runs`; an argument of another value; no run has measured
            the quantity.
    """
    for name, value, known in (("x", x, X_AXES), ("group_by", group_by, GROUPINGS)):
        if value not in known:
            raise UserError(f"{name} must be {' or '.join(known)}, not {value!r}")
    if quantity == x:
        raise UserError(f"quantity and x are both {x!r}: give two different columns")
    if not 0 <= smooth <= 1:
        raise UserError(f"smooth must be between 0 and 1, not {smooth!r}")
    if points < 2:
        raise UserError(f"points must be at least 2, not {points!r}")
    notes: list[str] = []
    runs = find_runs(folders, notes.append)
    if all(run.series(quantity, x) is None for run in runs):
        tables = [table for run in runs for table in run.tables if len(table)]
        measured = {name for table in tables for name in table}
        names = ", ".join(sorted(measured - {*X_AXES, "epoch", "epochs"}))
        there = f"there are {names}" if names else "there is nothing yet"
        raise UserError(f"no run has measured {quantity!r}; {there}")
    for note in [*notes, *remarks(runs, group_by)]:
        warnings.warn(note, stacklevel=2)
    return aggregated_curves(runs, quantity, x, group_by, smooth, points)


# ---- Tables -------------------------------------------------------------------------


def default_frames(runs: Sequence[Record], environment: str) -> list[int]:
    """A quarter, a half and all of what its shortest run has, to two digits."""
    ends = [run.end("frames") for run in runs if run.environment == environment]
    shares = [int(share * min(ends)) for share in (0.25, 0.5, 1.0)]
    units = [10 ** max(0, len(str(share)) - 2) for share in shares]
    return [share // unit * unit for share, unit in zip(shares, units, strict=True)]


def score_table(
    runs: Sequence[Record],
    at: Sequence[int] | None = None,
    group_by: str = "algorithm",
    smooth: float = SMOOTH,
) -> pd.DataFrame:
    """The scores at some frame counts; by default at each environment's
    `default_frames`.

    Returns:
        A row for each environment, group and frame count: environment, algorithm,
        frames, runs (of the group), seeds (those with a value), mean, low, high, iqm
        and hours (of learning until then, mean over the seeds).
    """
    parts = []
    columns = ["environment", "algorithm", "frames", "runs", "seeds", "mean"]
    columns += ["low", "high", "iqm", "hours"]
    known = [run for run in runs if run.end("frames")]
    for (environment, name), group in grouped(known, group_by).items():
        frames = np.array(at or default_frames(known, environment), float)
        window = smooth * _longest(known, environment, "frames")
        values = [curve(run.known(SCORE, "frames"), frames, window) for run in group]
        clocks = [_hours_at(run, frames) for run in group]
        known_clocks = np.where(np.isnan(values), np.nan, clocks)
        part = aggregate(np.stack(values)).assign(
            environment=environment,
            algorithm=name,
            frames=frames.astype(int),
            runs=len(group),
            hours=pd.DataFrame(known_clocks).mean(),
        )
        parts.append(part[columns])
    return pd.concat(parts, ignore_index=True)


def frames_to_reach(run: Record, score: float, window: float) -> float:
    """The frames of the first evaluation at which a run's curve is not below a score.

    Only whole windows count: the first evaluations alone are too few for a mean.

    Args:
        run: with at least one evaluation.
        score: a sum of rewards.
        window: of the curve, in frames.

    Returns:
        inf where it never came to it.
    """
    series = run.known(SCORE, "frames")
    places = np.unique(series[0])
    places = places[places >= places[0] + window]
    return float(min(places[curve(series, places, window) >= score], default=np.inf))


def reach_table(
    runs: Sequence[Record],
    score: float,
    group_by: str = "algorithm",
    smooth: float = SMOOTH,
) -> pd.DataFrame:
    """The frames and hours it took to reach a score.

    Frames and hours are medians over runs; a run that never came to it counts as
    infinitely many.

    Returns:
        A row for each environment and group: environment, algorithm, runs, reached
        (how many did), frames, hours.
    """
    rows = []
    known = [run for run in runs if run.end("frames")]
    for (environment, name), group in grouped(known, group_by).items():
        window = smooth * _longest(known, environment, "frames")
        firsts = []  # (frames, hours) of each run
        for run in group:
            first = frames_to_reach(run, score, window)
            hours = first if np.isinf(first) else _hours_at(run, first)
            firsts.append([first, float(hours)])
        reached = int(np.isfinite(firsts).all(axis=1).sum())
        rows.append(
            (environment, name, len(group), reached, *np.median(firsts, axis=0))
        )
    columns = ["environment", "algorithm", "runs", "reached", "frames", "hours"]
    return pd.DataFrame(rows, columns=columns)


def _hours_at(run: Record, frames: np.ndarray | float) -> np.ndarray:
    """Hours of learning at frame counts."""
    known, hours = run.known("hours", "frames")
    return np.interp(frames, known, hours)
