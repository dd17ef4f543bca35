"""Prints the tables of results/README.md, in Markdown, from the runs in this folder.

    python results/tables.py

A value at F frames is the mean of what a run measured in the last 2,500 of them (the
curves of `plot.py`, of which a window is a twentieth of a run). Runs at full size are
left out: `fullsize.py` has their table.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from steve.analysis.curves import SMOOTH, curve, frames_to_reach
from steve.analysis.records import SCORE, USAGE, Record, find_runs, grouped
from steve.command_line import OneLineParser, exit_code

RESULTS = Path(__file__).resolve().parent


AT = (10_000, 20_000, 30_000, 40_000, 50_000)
# A score for each environment that some runs come to early and some late or never.
REACHED = {
    "HalfCheetah-v1": 1000,
    "Hopper-v1": 250,
    "Swimmer-v1": 30,
    "Walker2d-v1": 250,
}
ENDLESS = ("HalfCheetah-v1", "Swimmer-v1")  # no episode of theirs terminates
FULLSIZE = "full_"  # the beginning of names that fullsize.py is for
ORDER = ("ddpg", "mve_tdk", "steve", "ensemble_mve_tdk")  # the others behind them


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the header."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def groups(runs: Sequence[Record]) -> Iterator[tuple[str, str, list[Record]]]:
    """Environment, experiment and its runs by seed, in the order of the tables."""

    def place(key: tuple[str, str]) -> tuple:
        environment, name = key
        return environment, ORDER.index(name) if name in ORDER else len(ORDER), name

    found = grouped(runs, "experiment")
    for key in sorted(found, key=place):
        yield *key, sorted(found[key], key=lambda run: run.config.seed)


def window(run: Record) -> float:
    """Frames that a curve's value is the mean of."""
    return SMOOTH * (run.config.total_frames or run.end("frames"))


def at(
    run: Record, quantity: str, frames: Sequence[float], width: float | None = None
) -> np.ndarray:
    """A run's curve at some frame counts; NaN where it has none.

    Args:
        run: that one.
        quantity: a column of its tables.
        frames: where.
        width: of the window, in frames; None: the run's own.
    """
    series = run.series(quantity, "frames")
    if series is None:
        return np.full(len(frames), np.nan)
    return curve(series, np.asarray(frames), width or window(run))


def first_reached(run: Record, score: float) -> str:
    """The frames until the run's curve is at the score."""
    frames = frames_to_reach(run, score, window(run))
    return "never" if np.isinf(frames) else f"{frames:,.0f}"


def scores(runs: Sequence[Record]) -> str:
    """Of each run, in the order of the seeds: frames to a score, and scores."""
    rows = [("environment", "experiment", "seeds", "frames to a score of")]
    rows[0] += tuple(f"score at {frames:,}" for frames in (25_000, 50_000))
    for environment, name, group in groups(runs):
        goal = REACHED.get(environment)
        late = np.array([at(run, SCORE, (25_000, 50_000)) for run in group]).T
        cells = [
            f"{values.mean():,.0f} ({', '.join(f'{value:,.0f}' for value in values)})"
            for values in late
        ]
        seeds = ", ".join(str(run.config.seed) for run in group)
        firsts = ", ".join(first_reached(run, goal) for run in group) if goal else ""
        first = f"{goal:,}: {firsts}" if goal else "-"
        rows.append((environment, name, seeds, first, *cells))
    return markdown(rows)


def value_estimates(
    runs: Sequence[Record], frames: Sequence[int] = AT, width: float | None = None
) -> str:
    """Mean Q of the policy's actions / the discounted return that its scores mean.

    Where no episode terminates, a score of S over T steps is a return of about
    reward_scale S / T / (1 - discount). Where episodes do, and rewards are positive, it
    is less than reward_scale S. Means over runs.
    """
    rows = [("environment", "experiment", *(f"{count:,}" for count in frames))]
    for environment, name, group in groups(runs):
        env = group[0].config.env
        terminates = environment not in ENDLESS
        q = np.mean([-at(run, "policy_loss", frames, width) for run in group], axis=0)
        score = np.mean([at(run, SCORE, frames, width) for run in group], axis=0)
        earned = env.reward_scale * score
        if not terminates:
            earned = earned / env.max_frames / (1 - env.discount)
        less = "< " if terminates else ""
        cells = [
            f"{a:,.0f} / {less}{b:,.0f}" if np.isfinite(a + b) else "-"
            for a, b in zip(q, earned, strict=True)
        ]
        rows.append((environment, name, *cells))
    return markdown(rows)


def usage(
    runs: Sequence[Record], frames: Sequence[int] = AT, width: float | None = None
) -> str:
    """Model usage of the STEVE runs, means over runs."""
    rows = [("environment", "experiment", *(f"{count:,}" for count in frames))]
    for environment, name, group in groups(runs):
        if group[0].series(USAGE, "frames") is None:
            continue
        means = np.mean([at(run, USAGE, frames, width) for run in group], axis=0)
        cells = [f"{mean:.2f}" if np.isfinite(mean) else "-" for mean in means]
        rows.append((environment, name, *cells))
    return markdown(rows)


def compute(runs: Sequence[Record]) -> str:
    """Minutes of learning."""
    rows = [
        ("environment", "experiment", "runs", "minutes of learning, each", "in all")
    ]
    total = 0.0
    for environment, name, group in groups(runs):
        ends = [
            json.loads(run.path.with_name("compute.json").read_text()) for run in group
        ]
        minutes = [60 * end["finished"]["hours"] for end in ends]
        total += sum(minutes)
        each = ", ".join(f"{value:.1f}" for value in minutes)
        rows.append((environment, name, str(len(group)), each, f"{sum(minutes):.0f}"))
    rows.append(("all", "", str(len(runs)), "", f"{total:.0f}"))
    return markdown(rows)


def run(folder: Path) -> None:
    runs = [
        run for run in find_runs([folder]) if not run.experiment.startswith(FULLSIZE)
    ]
    tables = (scores, value_estimates, usage, compute)
    print("\n\n".join(table(runs) for table in tables))


def main() -> int:
    parser = OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS)
    given = parser.parse_args()
    return exit_code("tables.py", lambda: run(given.folder))


if __name__ == "__main__":
    sys.exit(main())
