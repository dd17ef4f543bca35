"""The paper's toy experiment: value estimation on a chain, with and without a model.

    python toy_demo.py [--trials 10] [--steps 10000] [--seed 0] [--out DIR]

Trains the six learners of `toy_chain` and draws two figures. Figure 1 (`value_error`):
the error of the mean table against updates; u means "after u updates". Figure 2
(`target_error`): how good were the targets that the two STEVE learners could have used?
At every update, for each member's start state s and before the member is set, the
squared error (target - s)^2 of four targets made from the same tables and rollouts: TD
(mu_0), MVE (mu_H), STEVE (sum_h w_h mu_h) and, in hindsight, the best of mu_0 .. mu_H.
It is averaged over the members and drawn against updates as the mean of a window of
updates. Lines and bands of both figures are the mean and one standard deviation over
trials.

Dimension letters as in `toy_chain`.
"""

import argparse
import errno
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # Ctrl-C ends the imports without a stack trace
    signal.signal(signal.SIGINT, signal.SIG_DFL)

try:
    import steve  # noqa: F401
except ModuleNotFoundError:
    sys.exit("toy_demo.py: the package steve is not installed; run: pip install -e .")

import numpy as np

from steve.analysis.drawing import (
    BLACK,
    BLUE,
    DASH_DOT,
    DASHED,
    DOTTED,
    GREEN,
    KINDS,
    ORANGE,
    SKY,
    SOLID,
    VERMILION,
    csv_bytes,
    finish_axes,
    rendered,
    text_table,
)
from steve.command_line import (
    OneLineParser,
    example,
    exit_code,
    number,
    prepare_command,
    whole_number,
)
from steve.toy_chain import (
    History,
    ToyLearner,
    first_below,
    learn,
    learners,
    steve_target,
)
from steve.util import UserError, atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The targets of figure 2: name in the csv file, name in the figure.
TARGETS = {"td": "TD", "mve": "MVE", "steve": "STEVE", "best": "best candidate"}

# ---- Figures: the only part that needs matplotlib ----

MAX_POINTS = 1000  # of a drawn line: more cannot be seen and make a PDF heavy
WINDOWS = 100  # of figure 2

LEARNER_STYLES = {
    "basic Q": (BLACK, DOTTED),
    "ensemble Q": (GREEN, DASH_DOT),
    "MVE-oracle": (SKY, SOLID),
    "MVE-noisy": (BLUE, DASHED),
    "STEVE-oracle": (ORANGE, SOLID),
    "STEVE-noisy": (VERMILION, DASHED),
}
TARGET_STYLES = {
    "TD": (BLACK, DOTTED),
    "MVE": (BLUE, DASHED),
    "STEVE": (VERMILION, SOLID),
    "best candidate": (GREEN, DASH_DOT),
}


def plot_band(
    axes: "Axes",
    updates: np.ndarray,
    error: np.ndarray,
    label: str,
    style: tuple,
    zorder: float = 2,
) -> None:
    """One line with its band: mean and standard deviation over trials of [.., T]."""
    color, dashes = style
    mean, std = error.mean(-1), error.std(-1)
    axes.plot(updates, mean, color=color, linestyle=dashes, label=label, zorder=zorder)
    low = np.maximum(mean - std, 0.0)  # a squared error is never negative
    axes.fill_between(updates, low, mean + std, color=color, alpha=0.15, linewidth=0)


def from_zero(axes: "Axes", steps: int) -> None:
    """All axes begin at 0; the updates end at the last one."""
    axes.set_xlim(0, steps)
    axes.set_ylim(bottom=0)
    finish_axes(axes)


def over_trials(error: np.ndarray) -> str:
    """What lines and bands are, for a title."""
    return (
        f"mean \N{PLUS-MINUS SIGN} 1 standard deviation over {error.shape[-1]} trials"
    )


def value_error_figure(histories: dict[str, History]) -> "Figure":
    """Figure 1: the error of each learner's mean table against updates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for title, history in histories.items():
        steps = len(history.value_error)
        drawn = np.unique(np.linspace(0, steps - 1, MAX_POINTS).astype(int))
        error = history.value_error[drawn]
        plot_band(axes, drawn + 1, error, title, LEARNER_STYLES[title])
    from_zero(axes, steps)
    axes.set_ylabel("mean squared value error (reward\N{SUPERSCRIPT TWO})")
    axes.set_xlabel("updates")
    axes.set_title(f"Error of the learnt values\n{over_trials(error)}", fontsize=11)
    axes.legend(frameon=False, handlelength=3)
    return figure


def target_error_figure(histories: dict[str, History]) -> "Figure":
    """Figure 2: the error of the targets that the STEVE learners met, by window."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(9.0, 4.0))
    layout = ConstrainedLayoutEngine(w_pad=0.12)  # inches: keeps tick labels apart
    figure.set_layout_engine(layout)
    panels = figure.subplots(1, len(histories), sharey=True)
    for axes, (title, history) in zip(panels, histories.items(), strict=True):
        steps = len(history.target_error)
        edges = np.unique(np.linspace(0, steps, WINDOWS + 1).astype(int))
        sums = np.add.reduceat(history.target_error, edges[:-1])
        error = sums / np.diff(edges)[:, None, None]  # [windows, 4, T]
        middle = (edges[:-1] + 1 + edges[1:]) / 2
        for i, name in enumerate(TARGETS.values()):
            style = TARGET_STYLES[name]
            plot_band(axes, middle, error[:, i], name, style, zorder=9 - i)
        from_zero(axes, steps)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(f"updates (windows of {math.ceil(steps / WINDOWS)})")
    panels[0].set_ylabel("squared error of the target (reward\N{SUPERSCRIPT TWO})")
    panels[0].legend(frameon=False, handlelength=3)
    figure.suptitle(
        f"Error of the targets that were at hand, {over_trials(error)}", fontsize=11
    )
    return figure


# ---- Files and the table ----

TABLE_UPDATES = (1, 500, 1000, 2000, 3000, 5000, 7500, 10000)
FIGURES = ("value_error", "target_error")


def steve_learners(compared: Sequence[ToyLearner]) -> list[ToyLearner]:
    """Those whose targets figure 2 shows."""
    return [learner for learner in compared if learner.target is steve_target]


def file_names(compared: Sequence[ToyLearner]) -> list[str]:
    """Every file that `write_results` writes."""
    values = [f"{learner.slug}.csv" for learner in compared]
    targets = [f"{learner.slug}_targets.csv" for learner in steve_learners(compared)]
    return values + targets + [f"{f}.{kind}" for f in FIGURES for kind in KINDS]


def value_error_csv(history: History) -> bytes:
    """`update,mean,std,trial_0,..`: the value error after each update."""
    error = history.value_error
    trials = [f"trial_{i}" for i in range(error.shape[1])]
    values = np.column_stack([error.mean(1), error.std(1), error])
    return _by_update(["mean", "std", *trials], values)


def target_error_csv(history: History) -> bytes:
    """`update,td_mean,td_std,mve_mean,..`: the error of the four targets."""
    error = history.target_error
    names = [f"{t}_{part}" for t in TARGETS for part in ("mean", "std")]
    values = np.stack([error.mean(-1), error.std(-1)], -1)  # [U, 4, 2]
    return _by_update(names, values.reshape(len(values), -1))


def _by_update(names: Sequence[str], values: np.ndarray) -> bytes:
    """A csv of [U, names], whose first column is the update, 1 .. U."""
    rows = [(u, *row) for u, row in enumerate(values, start=1)]
    return csv_bytes(["update", *names], rows)


def write_results(
    folder: Path, compared: Sequence[ToyLearner], histories: dict[str, History]
) -> None:
    """Writes the csv files and both figures, each one whole or not at all."""
    content = {}
    for learner in compared:
        content[f"{learner.slug}.csv"] = value_error_csv(histories[learner.title])
    targets = {x.title: histories[x.title] for x in steve_learners(compared)}
    for learner in steve_learners(compared):
        content[f"{learner.slug}_targets.csv"] = target_error_csv(
            targets[learner.title]
        )
    figures = (value_error_figure(histories), target_error_figure(targets))
    for name, figure in zip(FIGURES, figures, strict=True):
        for kind in KINDS:
            content[f"{name}.{kind}"] = rendered(figure, kind)
    for name, data in content.items():
        atomic_write(folder / name, data)


def error_table(histories: dict[str, History]) -> str:
    """The value error of each learner at some updates: mean +- standard deviation."""
    titles = list(histories)
    errors = [history.value_error for history in histories.values()]
    steps = len(errors[0])
    updates = sorted({u for u in TABLE_UPDATES if u <= steps} | {steps})
    rows = [["update", *titles]]
    for u in updates:
        cells = [f"{e[u - 1].mean():.2f} +- {e[u - 1].std():.2f}" for e in errors]
        rows.append([str(u), *cells])
    reached = [first_below(e.mean(1)) for e in errors]
    rows.append(["first < 1", *("never" if u is None else str(u) for u in reached)])
    return text_table(rows)


def prepare_folder(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """Finds out before the work whether the results can be written.

    Raises:
        UserError: files of an earlier call are there and may not be replaced.
        OSError: the folder cannot be made or written.
    """
    there = [name for name in names if os.path.lexists(folder / name)]
    if there and not overwrite:
        raise UserError(
            f"{folder / there[0]} is there already, from an earlier call: pass another "
            "--out, or --overwrite to replace such files"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


# ---- The command line ----


def parse_arguments(
    argv: Sequence[str] | None, program: str = "toy_demo.py"
) -> argparse.Namespace:
    parser = OneLineParser(
        prog=program,
        description="Value estimation on a chain: Q, MVE and STEVE, the toy experiment "
        "of the paper. Writes csv files and two figures.",
        epilog=f"example: {example(program, 'toy_demo.py')} "
        "--trials 2 --out output/two_trials",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    option = parser.add_argument
    option(
        "--trials", type=whole_number(1, 10**4), default=10, help="repeats per learner"
    )
    option(
        "--steps", type=whole_number(1, 10**7), default=10000, help="updates per trial"
    )
    option(
        "--seed", type=whole_number(0, 2**63), default=0, help="of every random draw"
    )
    option("--horizon", type=whole_number(0, 1000), default=5, help="imagined steps H")
    option(
        "--ensemble", type=whole_number(1, 100), default=8, help="Q-members and models"
    )
    option(
        "--noise",
        type=number(0, 1),
        default=0.1,
        help="jump probability of noisy models",
    )
    option("--out", type=Path, default=Path("output/toy_demo"), help="output folder")
    option("--overwrite", action="store_true", help="replace an earlier call's files")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    """Checks the folder, trains the learners, writes the files, prints the table."""
    compared = learners(arguments.horizon, arguments.ensemble, arguments.noise)
    prepare_folder(arguments.out, file_names(compared), arguments.overwrite)
    seeds = np.random.SeedSequence(arguments.seed).spawn(len(compared))
    histories = {}
    for learner, seed in zip(compared, seeds, strict=True):
        begin = time.perf_counter()
        rng = np.random.default_rng(seed)
        histories[learner.title] = learn(
            learner, arguments.trials, arguments.steps, rng
        )
        print(f"{learner.title}: {time.perf_counter() - begin:.1f} s", flush=True)
    write_results(arguments.out, compared, histories)
    print(f"\nMean squared value error over {arguments.trials} trials:")
    print(error_table(histories))
    print(f"\n{len(file_names(compared))} files are in {arguments.out}:")
    print(*file_names(compared), sep="  ")


def main(argv: Sequence[str] | None = None, program: str = "toy_demo.py") -> int:
    """Returns the exit code: 0, 1 for a failure, 2 for a user's mistake."""
    arguments = parse_arguments(argv, program)
    try:
        return exit_code(program, lambda: run(arguments))
    except MemoryError:
        print(
            f"{program}: not enough memory: pass fewer --trials or --steps",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    prepare_command()
    sys.exit(main())
