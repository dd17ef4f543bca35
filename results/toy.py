"""The toy chain next to the numbers of the 2018 release's script: a table, a figure.

    python toy_demo.py --trials 40 --out output/toy_40
    python results/toy.py output/toy_40    # keeps its curves as results/toy.csv
    python results/toy.py                  # the table and figure of what is kept

Prints, in Markdown, mean and standard deviation over trials of the squared value error,
ours / 2018's, and the update from which on the mean is below 1; and draws both on the
same axes (results/figures/toy.png).
"""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tables import RESULTS, markdown

from steve.analysis.drawing import (
    BLACK,
    BLUE,
    ORANGE,
    SKY,
    VERMILION,
    finish_axes,
    rendered,
)
from steve.analysis.records import read_table
from steve.command_line import OneLineParser, exit_code
from steve.util import UserError, atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THEIRS = RESULTS / "toy_2018.csv"
TRIALS_2018 = 10
# The first update after which the mean error is below 1, there; None: never.
FIRST_2018 = {
    "basic Q": None,
    "MVE-oracle": 2367,
    "STEVE-oracle": 2706,
    "MVE-noisy": None,
    "STEVE-noisy": 7502,
}
COLORS = dict(zip(FIRST_2018, (BLACK, SKY, ORANGE, BLUE, VERMILION), strict=True))
EVERY = 50  # updates between the kept points of our curves
COLUMNS = ["learner", "update", "mean", "std", "trials"]


def kept_curves(folder: Path, theirs: pd.DataFrame) -> pd.DataFrame:
    """Our curves from toy_demo's output, at 1, every 50th and all of their updates.

    The first update below 1 is kept, too.

    Raises:
        UserError: a file is missing, or is not one of toy_demo's.
    """
    parts = []
    for learner in FIRST_2018:
        path = folder / f"{re.sub('[- ]', '_', learner).lower()}.csv"
        table = read_table(path, ("update", "mean", "std"))
        updates = table["update"].astype(int)
        if updates.tolist() != list(range(1, len(updates) + 1)):
            raise UserError(f"{path}: does not hold the updates 1, 2, ..")
        below = updates[table["mean"] < 1].iloc[:1]
        keep = updates.isin([1, *theirs["update"], *below]) | (updates % EVERY == 0)
        trials = sum(name.startswith("trial_") for name in table)
        part = table.loc[keep, ["mean", "std"]].assign(
            learner=learner, update=updates[keep], trials=trials
        )
        parts.append(part[COLUMNS])
    return pd.concat(parts, ignore_index=True)


def table(ours: pd.DataFrame, theirs: pd.DataFrame) -> str:
    """Both in Markdown: a row for each of their updates, ours / theirs."""
    rows = [("update", *FIRST_2018)]
    by_ours, by_theirs = (
        each.set_index(["learner", "update"]) for each in (ours, theirs)
    )
    for update in sorted(set(theirs["update"]) & set(ours["update"])):
        cells = [
            " / ".join(
                _cell(each.loc[learner, update]) for each in (by_ours, by_theirs)
            )
            for learner in FIRST_2018
        ]
        rows.append((f"{update:,}", *cells))
    firsts = [
        f"{_update(first_below(ours, learner))} / {_update(there)}"
        for learner, there in FIRST_2018.items()
    ]
    rows.append(("first below 1", *firsts))
    return markdown(rows)


def _cell(row: pd.Series) -> str:
    digits = 0 if row["mean"] >= 100 else 1 if row["mean"] >= 1 else 2
    spread = "" if np.isnan(row["std"]) else f" +- {row['std']:,.{digits}f}"
    return f"{row['mean']:,.{digits}f}{spread}"


def _update(update: int | None) -> str:
    return "never" if update is None else f"{update:,}"


def first_below(ours: pd.DataFrame, learner: str) -> int | None:
    """The first update after which a learner's mean error is below 1; None: never."""
    below = ours[(ours["learner"] == learner) & (ours["mean"] < 1)]
    return int(below["update"].iloc[0]) if len(below) else None


def largest_difference(ours: pd.DataFrame, theirs: pd.DataFrame) -> str:
    """The largest difference of two means, in standard errors of it, and where."""
    both = theirs.merge(ours, on=["learner", "update"], suffixes=("", "_ours"))
    both = both[(both["std"] > 0) & (both["std_ours"] > 0)]
    error = np.sqrt(
        both["std"] ** 2 / (TRIALS_2018 - 1)
        + both["std_ours"] ** 2 / (both["trials"] - 1).clip(lower=1)
    )
    size = ((both["mean"] - both["mean_ours"]) / error).abs()
    where = both.loc[size.idxmax()]
    return (
        f"Of {len(both)} pairs the largest difference is {size.max():.1f} standard "
        f"errors ({where['learner']} at {where['update']:,} updates)."
    )


def figure(ours: pd.DataFrame, theirs: pd.DataFrame) -> "Figure":
    """Lines and bands are ours, mean and standard deviation; points and bars 2018's."""
    from matplotlib.figure import Figure

    plotted = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = plotted.add_subplot()
    for learner, color in COLORS.items():
        one = ours[ours["learner"] == learner]
        update, mean, std = (one[key].to_numpy() for key in ("update", "mean", "std"))
        low = np.maximum(mean - std, 0.0)  # a squared error is never negative
        axes.fill_between(update, low, mean + std, color=color, alpha=0.15, linewidth=0)
        axes.plot(update, mean, color=color, label=learner)
        other = theirs[theirs["learner"] == learner]
        axes.errorbar(
            other["update"],
            other["mean"],
            other["std"].fillna(0.0),
            color=color,
            fmt="o",
            markersize=4,
            capsize=3,
        )
    finish_axes(axes)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("updates")
    axes.set_ylabel("mean squared value error")
    trials = int(ours["trials"].max())
    axes.set_title(
        f"Lines: ours, {trials} trials; points: 2018, {TRIALS_2018}; 1 std",
        fontsize=11,
    )
    axes.legend(frameon=False)
    return plotted


def _check_is_no_less(content: pd.DataFrame, kept: Path) -> None:
    """Refuses to replace curves by those of fewer trials or updates."""
    if not kept.exists():
        return
    there = pd.read_csv(kept)
    for what in ("trials", "update"):
        few, many = int(content[what].max()), int(there[what].max())
        if few < many:
            raise UserError(
                f"{kept} has {many:,} {what.removesuffix('s')}s and these are of "
                f"{few:,}; --to FOLDER writes them to another folder"
            )


def run(folder: Path | None, results: Path) -> None:
    theirs = pd.read_csv(THEIRS, comment="#")
    kept = results / "toy.csv"
    picture = results / "figures" / "toy.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    if folder is not None:
        content = kept_curves(folder, theirs)
        _check_is_no_less(content, kept)
        text = content.to_csv(index=False, float_format="%.5g")
        atomic_write(kept, text.encode())
    ours = pd.read_csv(kept)
    print(table(ours, theirs))
    print(f"\n{largest_difference(ours, theirs)}")
    atomic_write(picture, rendered(figure(ours, theirs), "png"))


def main() -> int:
    parser = OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        type=Path,
        help="toy_demo.py's output, which replaces the curves kept in results/toy.csv; "
        "without it these are shown",
    )
    parser.add_argument(
        "--to",
        type=Path,
        default=RESULTS,
        metavar="FOLDER",
        help="for toy.csv and figures/toy.png (results)",
    )
    given = parser.parse_args()
    return exit_code("toy.py", lambda: run(given.folder, given.to))


if __name__ == "__main__":
    sys.exit(main())
