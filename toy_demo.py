"""The paper's toy experiment: value estimation on a chain, with and without a model.

    python toy_demo.py [--trials 10] [--steps 10000] [--seed 0] [--out DIR]

States 0..100 are followed by a terminal one, 101. Each step goes one state on, with
reward -1, and 100 on the step into the terminal state. Nothing is discounted, so the
true value of state s is s. Six learners estimate it in tables (SPEC section 11):

    basic Q         one table, TD targets
    ensemble Q      8 tables (Q-members), TD targets from their mean
    MVE-oracle      8 tables, the full-horizon target of a perfect model
    MVE-noisy       the same with an ensemble of 8 models, each of which jumps to a
                    uniformly drawn state with probability 0.1
    STEVE-oracle    8 tables, every horizon's target weighted by inverse variance
    STEVE-noisy     the same with the noisy models

At each update every member in turn draws a start state and is set to its target there;
later members see the new values of earlier ones.

Figure 1 (`value_error`): the error of the mean table against updates; u means "after u
updates". Figure 2 (`target_error`): how good were the targets that the two STEVE
learners could have used? At every update, for each member's start state s and before
the member is set, the squared error (target - s)^2 of four targets made from the same
tables and rollouts: TD (mu_0), MVE (mu_H), STEVE (sum_h w_h mu_h) and, in hindsight,
the best of mu_0 .. mu_H. It is averaged over the members and drawn against updates as
the mean of a window of updates. Lines and bands of both figures are the mean and one
standard deviation over trials.

Dimension letters: T trials, U updates, L Q-members, M models, H horizon (H+1 candidate
targets), S states with the terminal one.
"""

import argparse
import errno
import importlib.util
import io
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from util import OneLineParser, UserError, atomic_write, whole_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LAST_STATE = 100
TERMINAL = LAST_STATE + 1
TRUE_VALUES = np.arange(LAST_STATE + 1, dtype=float)  # of the states 0..100
REWARDS = np.full(TERMINAL + 1, -1.0)  # on leaving a state
REWARDS[LAST_STATE] = 100.0
REWARDS[TERMINAL] = 0.0

VARIANCE_EPSILON = 1e-8  # as in SPEC section 5
# The targets of figure 2: name in the csv file, name in the figure.
TARGETS = {"td": "TD", "mve": "MVE", "steve": "STEVE", "best": "best candidate"}
# Rollouts do not depend on the tables, so those of many updates are drawn at a time.
STATES_PER_DRAW = 2**19


# ---- Targets (paper, section 3; SPEC section 5 without discount and termination) ----


def candidate_targets(returns: np.ndarray, q_reached: np.ndarray) -> np.ndarray:
    """The samples of T_h for every horizon h = 0 .. H, model m and Q-member l.

        T_h[m, l] = sum_{k=0..h} r_k[m]  +  Q_l(s_h[m])

    r_0 and s_0 are the real reward and next state; H = 0 gives TD targets alone.

    Args:
        returns: [..., H+1, M], the sums of the rewards r_0 .. r_h.
        q_reached: [..., H+1, M, L], every member's value of the state s_h reached.

    Returns:
        [..., H+1, M*L], one sample for each pair of model and member.
    """
    samples = returns[..., None] + q_reached
    return samples.reshape(*samples.shape[:-2], -1)  # [..., H+1, M*L]


def mean_and_variance(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """mu_h and var_h: mean and population variance over the samples of each T_h.

    Args:
        samples: [..., H+1, M*L].

    Returns:
        Two arrays [..., H+1].
    """
    count = samples.shape[-1]
    mu = samples.sum(-1) / count
    deviations = samples - mu[..., None]
    # np.var gives the same and takes twice as long on arrays this small.
    var = np.einsum("...i,...i->...", deviations, deviations) / count
    return mu, var


def steve_weights(var: np.ndarray) -> np.ndarray:
    """w_h proportional to 1 / (var_h + 1e-8), with sum 1 over h (last axis)."""
    precision = 1.0 / (var + VARIANCE_EPSILON)
    return precision / precision.sum(-1, keepdims=True)


def td_target(mu: np.ndarray, var: np.ndarray) -> np.ndarray:
    """mu_0: the real step and the tables' value of the state behind it."""
    return mu[..., 0]


def mve_target(mu: np.ndarray, var: np.ndarray) -> np.ndarray:
    """mu_H: the mean over models and members at the full horizon."""
    return mu[..., -1]


def steve_target(mu: np.ndarray, var: np.ndarray) -> np.ndarray:
    """sum_h w_h mu_h: equal variances give the mean of mu_0 .. mu_H."""
    return (steve_weights(var) * mu).sum(-1)


def best_candidate(mu: np.ndarray, true_value: np.ndarray) -> np.ndarray:
    """That mu_h which is nearest to the true value: known in hindsight only.

    Args:
        mu: [..., H+1].
        true_value: [...], of the start state.
    """
    nearest = np.abs(mu - true_value[..., None]).argmin(-1)
    return np.take_along_axis(mu, nearest[..., None], -1)[..., 0]


# ---- The chain and its models ----


def draw_rollouts(
    starts: np.ndarray,
    models: int,
    horizon: int,
    noise: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Goes from each start one real step and then `horizon` imagined ones.

    An imagined step goes to a state drawn uniformly from 0..100 with probability
    `noise`, drawn anew at every step and for every model, and otherwise where the
    chain goes. Its reward is that of leaving the state, also when it jumps. The
    terminal state is never left.

    Args:
        starts: [...], states 0..100.

    Returns:
        The states s_0 .. s_H and the returns r_0 + .. + r_h: both [..., H+1, M].
    """
    shape = (*starts.shape, models)
    left = np.broadcast_to(starts[..., None], shape)
    states, rewards = [left + 1], [REWARDS[left]]
    for _ in range(horizon):
        left = states[-1]
        reached = np.minimum(left + 1, TERMINAL)
        if noise > 0:
            jumps = (rng.random(shape) < noise) & (left != TERMINAL)
            anywhere = rng.integers(0, LAST_STATE, shape, endpoint=True)
            reached = np.where(jumps, anywhere, reached)
        states.append(reached)
        rewards.append(REWARDS[left])
    return np.stack(states, -2), np.cumsum(np.stack(rewards, -2), -2)


# ---- Learning ----


class Learner(NamedTuple):
    """One of the compared learners: what it has and which target it uses."""

    title: str
    members: int
    models: int
    horizon: int
    noise: float
    target: Callable[[np.ndarray, np.ndarray], np.ndarray]

    @property
    def slug(self) -> str:
        """The title as part of a file name."""
        return self.title.lower().replace(" ", "_").replace("-", "_")


class History(NamedTuple):
    """What is recorded at each update.

    Attributes:
        value_error: [U, T], mean over the states 0..100 of (mean Q - s)^2 after it.
        target_error: [U, 4, T], mean over the members' starts s of (target - s)^2 for
            the targets TD (mu_0), MVE (mu_H), the one used and the best candidate.
    """

    value_error: np.ndarray
    target_error: np.ndarray


def learners(horizon: int, ensemble: int, noise: float) -> list[Learner]:
    """The six learners of the figures (SPEC section 11).

    The models of an oracle's ensemble would all be alike, and so would their samples:
    one of them has the same mean and the same variance.
    """
    return [
        Learner("basic Q", 1, 1, 0, 0.0, td_target),
        Learner("ensemble Q", ensemble, 1, 0, 0.0, td_target),
        Learner("MVE-oracle", ensemble, 1, horizon, 0.0, mve_target),
        Learner("MVE-noisy", ensemble, ensemble, horizon, noise, mve_target),
        Learner("STEVE-oracle", ensemble, 1, horizon, 0.0, steve_target),
        Learner("STEVE-noisy", ensemble, ensemble, horizon, noise, steve_target),
    ]


def initial_tables(trials: int, members: int, rng: np.random.Generator) -> np.ndarray:
    """Tables [T, S, L] of uniform random integers in 0..100, the terminal state's 0."""
    shape = (trials, TERMINAL + 1, members)
    tables = rng.integers(0, LAST_STATE, shape, endpoint=True).astype(float)
    tables[:, TERMINAL] = 0.0
    return tables


def value_error(tables: np.ndarray) -> np.ndarray:
    """Mean over the states 0..100 of (mean Q - s)^2: [T, S, L] to [T]."""
    # np.mean gives the same and takes twice as long on a last axis this short.
    mean_q = np.einsum("tsl->ts", tables[:, :TERMINAL]) / tables.shape[-1]
    return np.square(mean_q - TRUE_VALUES).mean(-1)


def update_tables(
    tables: np.ndarray,
    starts: np.ndarray,
    states: np.ndarray,
    returns: np.ndarray,
    target: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> History:
    """Runs U updates, changing `tables` in place.

    The trials go side by side; the members go in turn, because each one's target
    contains what the members before it have just been set to.

    Args:
        tables: [T, S, L], contiguous.
        starts: [U, L, T], the state in which each member is set.
        states, returns: [U, L, T, H+1, M], the rollouts from there.
        target: one of the targets above, of mu and var.
    """
    updates, members, trials = starts.shape
    rows = tables.reshape(-1, members)  # [T*S, L], a view of the tables
    first_row = np.arange(trials) * tables.shape[1]  # of each trial
    start_rows = starts + first_row
    reached_rows = states + first_row[:, None, None]
    all_mu = np.empty((*starts.shape, states.shape[-2]))  # [U, L, T, H+1]
    used = np.empty(starts.shape)  # [U, L, T]
    errors = np.empty((updates, trials))
    for u in range(updates):
        for member in range(members):
            q_reached = rows.take(reached_rows[u, member], axis=0)  # [T, H+1, M, L]
            samples = candidate_targets(returns[u, member], q_reached)
            mu, var = mean_and_variance(samples)  # [T, H+1]
            all_mu[u, member] = mu
            used[u, member] = target(mu, var)
            rows[start_rows[u, member], member] = used[u, member]
        errors[u] = value_error(tables)

    true_value = TRUE_VALUES[starts]
    # 2018 release: off by one; here: the value of the state that the target is for.
    compared = (
        all_mu[..., 0],
        all_mu[..., -1],
        used,
        best_candidate(all_mu, true_value),
    )
    target_error = [np.square(t - true_value).mean(1) for t in compared]  # 4 x [U, T]
    return History(errors, np.stack(target_error, 1))


def learn(
    learner: Learner, trials: int, steps: int, rng: np.random.Generator
) -> History:
    """Trains one learner from fresh tables; fewer steps give a prefix of the same."""
    tables = initial_tables(trials, learner.members, rng)
    history = History(np.empty((steps, trials)), np.empty((steps, 4, trials)))
    per_update = learner.members * trials * (learner.horizon + 1) * learner.models
    updates = max(1, STATES_PER_DRAW // per_update)
    for begin in range(0, steps, updates):
        shape = (updates, learner.members, trials)
        starts = rng.integers(0, LAST_STATE, shape, endpoint=True)
        states, returns = draw_rollouts(
            starts, learner.models, learner.horizon, learner.noise, rng
        )
        end = min(begin + updates, steps)
        taken = slice(end - begin)
        part = update_tables(
            tables, starts[taken], states[taken], returns[taken], learner.target
        )
        history.value_error[begin:end] = part.value_error
        history.target_error[begin:end] = part.target_error
    return history


def first_below(error: np.ndarray, limit: float = 1.0) -> int | None:
    """The first update after which the error, [U], is below the limit; None: never."""
    below = np.flatnonzero(error < limit)
    return int(below[0]) + 1 if below.size else None


# ---- Figures: the only part that needs matplotlib ----

MAX_POINTS = 1000  # of a drawn line: more cannot be seen and make a PDF heavy
WINDOWS = 100  # of figure 2

# Okabe and Ito's colours, which colour-blind readers tell apart; in grey print the
# dashes do it.
LEARNER_STYLES = {
    "basic Q": ("#000000", (0, (1, 1.2))),
    "ensemble Q": ("#009E73", (0, (7, 1.5, 1.5, 1.5))),
    "MVE-oracle": ("#56B4E9", "solid"),
    "MVE-noisy": ("#0072B2", (0, (4, 1.5))),
    "STEVE-oracle": ("#E69F00", "solid"),
    "STEVE-noisy": ("#D55E00", (0, (4, 1.5))),
}
TARGET_STYLES = {
    "TD": ("#000000", (0, (1, 1.2))),
    "MVE": ("#0072B2", (0, (4, 1.5))),
    "STEVE": ("#D55E00", "solid"),
    "best candidate": ("#009E73", (0, (7, 1.5, 1.5, 1.5))),
}


def draw_band(
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


def finish_axes(axes: "Axes", steps: int) -> None:
    axes.set_xlim(0, steps)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


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
        draw_band(axes, drawn + 1, error, title, LEARNER_STYLES[title])
    finish_axes(axes, steps)
    axes.set_ylabel("mean squared value error (reward\N{SUPERSCRIPT TWO})")
    axes.set_xlabel("updates")
    axes.set_title(f"Error of the learnt values\n{over_trials(error)}", fontsize=11)
    axes.legend(frameon=False, handlelength=3)
    return figure


def target_error_figure(histories: dict[str, History]) -> "Figure":
    """Figure 2: the error of the targets that the STEVE learners met, by window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)  # inches: keeps tick labels apart
    panels = figure.subplots(1, len(histories), sharey=True)
    for axes, (title, history) in zip(panels, histories.items(), strict=True):
        steps = len(history.target_error)
        edges = np.unique(np.linspace(0, steps, WINDOWS + 1).astype(int))
        sums = np.add.reduceat(history.target_error, edges[:-1])
        error = sums / np.diff(edges)[:, None, None]  # [windows, 4, T]
        middle = (edges[:-1] + 1 + edges[1:]) / 2
        for i, name in enumerate(TARGETS.values()):
            style = TARGET_STYLES[name]
            draw_band(axes, middle, error[:, i], name, style, zorder=9 - i)
        finish_axes(axes, steps)
        axes.set_title(f"Learner: {title}", fontsize=10)
        axes.set_xlabel(f"updates (windows of {math.ceil(steps / WINDOWS)})")
    panels[0].set_ylabel("squared error of the target (reward\N{SUPERSCRIPT TWO})")
    panels[0].legend(frameon=False, handlelength=3)
    figure.suptitle(
        f"Error of the targets that were at hand, {over_trials(error)}", fontsize=11
    )
    return figure


def rendered(figure: "Figure", kind: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=200)
    return buffer.getvalue()


# ---- Files and the table ----

TABLE_UPDATES = (1, 500, 1000, 2000, 3000, 5000, 7500, 10000)
FIGURES = ("value_error", "target_error")
FIGURE_KINDS = ("pdf", "png")


def steve_learners(compared: Sequence[Learner]) -> list[Learner]:
    """Those whose targets figure 2 shows."""
    return [learner for learner in compared if learner.target is steve_target]


def file_names(compared: Sequence[Learner]) -> list[str]:
    """Every file that `write_results` writes."""
    values = [f"{learner.slug}.csv" for learner in compared]
    targets = [f"{learner.slug}_targets.csv" for learner in steve_learners(compared)]
    return values + targets + [f"{f}.{kind}" for f in FIGURES for kind in FIGURE_KINDS]


def csv_bytes(columns: Sequence[str], values: np.ndarray) -> bytes:
    """A csv with a header; its first column is the update, 1 .. U.

    Args:
        columns: the names of the others.
        values: [U, columns], written with six digits.
    """
    line = "%d" + ",%.6g" * len(columns)
    rows = [line % (u, *row) for u, row in enumerate(values.tolist(), start=1)]
    return ("\n".join([",".join(["update", *columns]), *rows]) + "\n").encode()


def value_error_csv(history: History) -> bytes:
    """`update,mean,std,trial_0,..`: the value error after each update."""
    error = history.value_error
    trials = [f"trial_{i}" for i in range(error.shape[1])]
    values = np.column_stack([error.mean(1), error.std(1), error])
    return csv_bytes(["mean", "std", *trials], values)


def target_error_csv(history: History) -> bytes:
    """`update,td_mean,td_std,mve_mean,..`: the error of the four targets."""
    error = history.target_error
    names = [f"{t}_{part}" for t in TARGETS for part in ("mean", "std")]
    values = np.stack([error.mean(-1), error.std(-1)], -1)  # [U, 4, 2]
    return csv_bytes(names, values.reshape(len(values), -1))


def write_results(
    folder: Path, compared: Sequence[Learner], histories: dict[str, History]
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
        for kind in FIGURE_KINDS:
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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


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


def probability(text: str) -> float:
    """An argparse type: a number in [0, 1]."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number in [0, 1]")
    return number


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="toy_demo.py",
        description="Value estimation on a chain: Q, MVE and STEVE, the toy experiment "
        "of the paper. Writes csv files and two figures.",
        epilog="example: python toy_demo.py --trials 2 --out output/two_trials",
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
        type=probability,
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
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("the figures need matplotlib: pip install matplotlib")
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


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 for a failure, 2 for a user's mistake."""
    arguments = parse_arguments(argv)
    try:
        run(arguments)
    except UserError as error:
        print(f"toy_demo.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"toy_demo.py: cannot write the results: {error}", file=sys.stderr)
        return 1
    except MemoryError:
        print(
            "toy_demo.py: not enough memory: pass fewer --trials or --steps",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("toy_demo.py: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
