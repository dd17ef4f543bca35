"""The visualizer's figures and tables, from the numbers of `inspection`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .drawing import (
    BLACK,
    BLUE,
    DASH_DOT,
    DASHED,
    DOTTED,
    GREEN,
    ORANGE,
    PANELS_PER_ROW,
    SOLID,
    VERMILION,
    csv_bytes,
    finish_axes,
    significant,
    text_table,
    wants_log_scale,
)
from .episodes import Episode
from .inspection import (
    BINS,
    LONGEST_ROLLOUT,
    EpisodeValues,
    Errors,
    Histogram,
    ModelError,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# ---- Pictures: the only part that needs matplotlib ----------------------------------

MODEL_STYLES: dict[str, tuple[str, str, Any]] = {
    "error": ("error of the members' mean", VERMILION, SOLID),
    "spread": ("spread of the members", BLUE, DASHED),
    "trivial": ("error without a model", BLACK, DOTTED),
}
LEGEND_ROWS = 7  # of the weights, beside their panel
SMOOTHED = 100  # steps of an episode that can be told apart in its weights
VALUE_LABEL = "value estimate Q(s, a)"
SPREAD_LABEL = VALUE_LABEL + ", \N{PLUS-MINUS SIGN} 1 sd of its members"


def weights_figure(histogram: Histogram, weighting: str) -> "Figure":
    """One panel for each weight: how often it lay in which bin."""
    from matplotlib.figure import Figure

    count = len(histogram.counts)
    columns = min(count, PANELS_PER_ROW)
    lines = -(-count // columns)
    figure = Figure(figsize=(0.6 + 2.1 * columns, 0.9 + 2.0 * lines))
    figure.set_layout_engine("constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    total = max(1, int(histogram.counts[0].sum()))
    widths = np.diff(histogram.edges)
    for h, axes in enumerate(panels.flat):
        if h >= count:
            axes.set_axis_off()
            continue
        shares = 100 * histogram.counts[h] / total
        left = histogram.edges[:-1]
        axes.bar(left, shares, widths, align="edge", color=BLUE, edgecolor="white")
        axes.axvline(histogram.mean[h], color=VERMILION, linestyle=DASHED)
        axes.set_title(f"$w_{{{h}}}$, mean {histogram.mean[h]:.2f}", fontsize=10)
        axes.set_xlim(histogram.edges[0], histogram.edges[-1])
        axes.set_xticks(histogram.edges[:: BINS // 2])
        for label, side in zip(
            axes.get_xticklabels(), ("left", "center", "right"), strict=False
        ):
            label.set_horizontalalignment(side)  # the next panel has labels too
        axes.tick_params(labelbottom=h + columns >= count)
        finish_axes(axes)
    beyond = "; the outer bars hold all beyond" if histogram.is_open else ""
    figure.supxlabel(f"weight (dashed: its mean{beyond})", fontsize=10)
    figure.supylabel("share of transitions (%)", fontsize=10)
    figure.suptitle(
        f"{weighting}'s weights of the candidate targets, {total:,} transitions",
        fontsize=11,
    )
    return figure


def model_error_figure(errors: ModelError, horizon: int | None) -> "Figure":
    """Three panels: errors of observation, reward and termination against k."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(9.0, 3.8))
    layout = ConstrainedLayoutEngine(w_pad=0.08)  # inches: keeps tick labels apart
    figure.set_layout_engine(layout)
    steps = np.arange(1, len(errors.rollouts) + 1)
    panels = figure.subplots(1, 3)
    named = {
        "observation\n(without a model: as at the start)": errors.observation,
        "reward\n(without a model: always the mean)": errors.reward,
        "termination probability\n(without a model: share of ends)": (
            errors.termination
        ),
    }
    for axes, (title, each) in zip(panels, named.items(), strict=True):
        for field, (label, color, dashes) in MODEL_STYLES.items():
            line = getattr(each, field)
            if not np.any(line):
                continue  # it would lie on the axis: the title says so
            axes.plot(steps, line, color=color, linestyle=dashes, label=label)
        values = np.concatenate(each)
        if wants_log_scale(values[values != 0]):
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        if horizon and horizon <= len(steps):
            axes.axvline(horizon, color="#888888", linewidth=0.8, zorder=0)
            axes.annotate(
                f"H = {horizon}",
                (horizon, 0.99),
                xycoords=axes.get_xaxis_transform(),
                xytext=(3, 0),
                textcoords="offset points",
                verticalalignment="top",
                color="#555555",
                fontsize=8,
            )
        axes.set_title("\n".join([title, *zeros(each)]), fontsize=9)
        axes.set_xticks(steps if len(steps) <= LONGEST_ROLLOUT else steps[4::5])
        axes.set_xlabel("imagined steps")
        finish_axes(axes)
    panels[0].set_ylabel("root mean square, in its own unit")
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], label=label, color=color, linestyle=dashes)
        for label, color, dashes in MODEL_STYLES.values()
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=3,
        frameon=False,
        handlelength=3,
    )
    figure.suptitle(
        f"The model's error along real actions, {errors.rollouts[0]:,} starts",
        fontsize=11,
    )
    return figure


def zeros(errors: Errors) -> list[str]:
    """Names the lines that are 0 everywhere: no line can be seen on the axis."""
    return [
        f"{label}: 0"
        for field, (label, *_) in MODEL_STYLES.items()
        if not np.any(getattr(errors, field))
    ]


def episode_figure(
    judged: EpisodeValues,
    returns: np.ndarray,
    with_value: np.ndarray,
    title: str,
    reward_scale: float = 1.0,
) -> "Figure":
    """Strip chart of an episode: its weights above, values and returns below.

    Args:
        judged: by the nets.
        returns: realised, [T]; nothing after the last step.
        with_value: realised, [T], and after a cut the value estimate of the last
            state; equal to `returns` where the episode terminated.
        title: of the picture.
        reward_scale: that values and returns contain.
    """
    from matplotlib.figure import Figure

    has_weights = judged.weights is not None
    figure = Figure(figsize=(9.0, 5.4 if has_weights else 3.6), layout="constrained")
    panels = figure.subplots(
        2 if has_weights else 1,
        1,
        sharex=True,
        squeeze=False,
        height_ratios=[2, 3] if has_weights else None,
    )[:, 0]
    steps = np.arange(len(returns))
    if judged.weights is not None:
        _plot_weights(panels[0], judged.weights)
    axes = panels[-1]
    low, high = judged.value - judged.value_std, judged.value + judged.value_std
    axes.fill_between(steps, low, high, color=BLUE, alpha=0.2, linewidth=0)
    label = SPREAD_LABEL if judged.value_std.any() else VALUE_LABEL
    axes.plot(steps, judged.value, color=BLUE, label=label)
    if judged.target is not None:
        style = {"color": GREEN, "linestyle": DOTTED, "linewidth": 1.2}
        axes.plot(steps, judged.target, label="target with these weights", **style)
    if judged.final_value:
        style = {"color": ORANGE, "linestyle": DASH_DOT}
        label = "return, after the cut Q of the last state"
        axes.plot(steps, with_value, label=label, **style)
    axes.plot(
        steps,
        returns,
        color=VERMILION,
        linestyle=DASHED,
        label="realised return",
    )
    axes.set_xlim(0, max(1, len(steps)))
    scaled = f" x {reward_scale:g}" if reward_scale != 1 else ""
    axes.set_ylabel(f"discounted sum of rewards{scaled}")
    axes.set_xlabel("step")
    finish_axes(axes)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=2 if len(labels) > 3 else 3,
        frameon=False,
        handlelength=3,
        fontsize=9,
    )
    figure.suptitle(title, fontsize=11)
    return figure


def _plot_weights(axes: "Axes", weights: np.ndarray) -> None:
    """The weights of one episode, stacked to 1; as lines where some are negative.

    Of a long episode they are means over equal shares of its steps: single steps would
    be too narrow to be seen.
    """
    import matplotlib

    length, count = weights.shape
    stride = -(-length // SMOOTHED)
    edges = np.append(np.arange(0, length, stride), length)
    sums = np.add.reduceat(weights, edges[:-1], axis=0)
    weights = sums / np.diff(edges)[:, None]
    colors = matplotlib.colormaps["cividis"](np.linspace(0.0, 1.0, count))
    labels = [f"$w_{{{h}}}$" for h in range(count)]
    if (weights < -1e-5).any():
        for h in range(count):
            axes.plot(edges[:-1], weights[:, h], color=colors[h], label=labels[h])
    else:
        tops = np.cumsum(weights, axis=1)
        tops = np.r_[tops, tops[-1:]]  # the last step has a width too
        # Each covers all below it: side by side they would leave pale seams.
        for h in range(count):
            axes.fill_between(
                edges,
                tops[:, h],
                step="post",
                color=colors[h],
                linewidth=0,
                label=labels[h],
                zorder=2 - h / count,
            )
        axes.set_ylim(0, 1)
    axes.set_ylabel("weight" if stride == 1 else f"weight,\nmean of {stride} steps")
    finish_axes(axes)
    columns = -(-count // LEGEND_ROWS)
    axes.legend(
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        reverse=columns == 1,  # as they are stacked
        ncols=columns,
        columnspacing=0.8,
        fontsize=9 if columns > 1 else None,
    )


def ending(episode: Episode) -> str:
    if episode.broken:
        return "not finite"
    return "terminated" if episode.terminated else "cut"


def summary(episodes: Sequence[Episode]) -> str:
    """Mean, standard deviation (of the population) and median of scores and lengths."""
    columns = {
        "score": [episode.score for episode in episodes],
        "length": [float(episode.length) for episode in episodes],
    }
    return "\n".join(
        f"{name}: mean {significant(float(np.mean(values)))}, standard deviation "
        f"{significant(float(np.std(values)))}, "
        f"median {significant(float(np.median(values)))}"
        for name, values in columns.items()
    )


def episodes_csv(episodes: Sequence[Episode]) -> bytes:
    rows = [
        (i, e.seed, e.length, e.score, ending(e)) for i, e in enumerate(episodes, 1)
    ]
    return csv_bytes(["episode", "seed", "length", "score", "ending"], rows)


def weights_csv(histogram: Histogram) -> bytes:
    """`low,high,w_0,..`: in how many transitions each weight lay in each bin."""
    names = [f"w_{h}" for h in range(len(histogram.counts))]
    edges = histogram.edges.copy()
    if histogram.is_open:
        edges[[0, -1]] = -np.inf, np.inf
    counts = histogram.counts.T.tolist()
    rows = [
        (low, high, *row)
        for low, high, row in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    return csv_bytes(["low", "high", *names], rows)


def weights_table(histogram: Histogram) -> str:
    total = max(1, int(histogram.counts[0].sum()))
    rows = [["weight", *(f"w_{h}" for h in range(len(histogram.counts)))]]
    for i in range(BINS):
        low, high = (f"{edge:.2f}" for edge in histogram.edges[i : i + 2])
        label = f"{low} to {high}"
        if histogram.is_open and i in (0, BINS - 1):
            label = f"below {high}" if i == 0 else f"from {low}"
        shares = 100 * histogram.counts[:, i] / total
        rows.append([label, *(f"{share:.1f}%" for share in shares)])
    rows.append(["mean", *(f"{mean:.3f}" for mean in histogram.mean)])
    return text_table(rows)


def model_error_columns(errors: ModelError) -> tuple[list[str], list[tuple]]:
    """Names and rows: k, number of rollouts, then three numbers for each quantity."""
    quantities = ("observation", "reward", "termination")
    names = [f"{q}_{field}" for q in quantities for field in Errors._fields]
    columns = [
        getattr(getattr(errors, q), f) for q in quantities for f in Errors._fields
    ]
    counts = errors.rollouts.tolist()
    rows = list(zip(range(1, len(counts) + 1), counts, *columns, strict=True))
    return ["steps", "rollouts", *names], rows


def model_error_table(errors: ModelError) -> str:
    _, rows = model_error_columns(errors)
    quantities = ("observation", "reward", "termination")
    header = [
        "steps ahead",
        *(f"{q} {part}" for q in quantities for part in ("error", "spread")),
    ]
    lines = [
        [str(row[0]), *(f"{row[i]:.4g}" for i in (2, 3, 5, 6, 8, 9))] for row in rows
    ]
    return text_table([header, *lines])


def episode_csv(
    episode: Episode, judged: EpisodeValues, returns: np.ndarray, with_value: np.ndarray
) -> bytes:
    """One row for each step of the strip chart."""
    columns = {
        "reward": episode.reward,
        "value": judged.value,
        "value_std": judged.value_std,
        "return": returns,
        "return_with_value": with_value,
    }
    if judged.weights is not None and judged.target is not None:
        columns["target"] = judged.target
        for h in range(judged.weights.shape[1]):
            columns[f"w_{h}"] = judged.weights[:, h]
    rows = zip(range(episode.length), *columns.values(), strict=True)
    return csv_bytes(["step", *columns], list(rows))
