"""Figures of learning curves: a panel for each environment, a line for each group."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from .curves import aggregated_curves
from .drawing import (
    BLACK,
    BLUE,
    DASH_DOT,
    DASHED,
    DOTTED,
    GREEN,
    ORANGE,
    PANELS_PER_ROW,
    PURPLE,
    SKY,
    SOLID,
    VERMILION,
    finish_axes,
    wants_log_scale,
)
from .records import SCORE, USAGE, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

LOSSES = {
    "q_loss": "Q",
    "policy_loss": "policy",
    "transition_loss": "transition",
    "termination_loss": "termination",
    "reward_loss": "reward",
}
X_LABELS = {
    "frames": "environment frames",
    "hours": "hours of learning",
    "updates": "updates of the learner",
}

# The paper's three algorithms look the same in every figure.
NAMED = ("STEVE", "MVE-TDk", "DDPG")
COLORS = (VERMILION, BLUE, BLACK, GREEN, PURPLE, SKY, ORANGE)
DASHES = (
    SOLID,
    DASHED,
    DOTTED,
    DASH_DOT,
    (0, (9, 2)),
    (0, (5, 1.2, 1, 1.2, 1, 1.2)),
    (0, (2, 2.5)),
)
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
MARKED = 10  # markers on a line
VISIBLE = 0.01  # share of points where runs miss, below which it is not mentioned
INCH_PER_LETTER = 0.075  # of legend and title


class Panel(NamedTuple):
    """One quantity of one environment; curves as of `aggregated_curves`."""

    title: str
    label: str
    curves: pd.DataFrame
    may_be_log: bool = False


def line_styles(names: Sequence[str]) -> dict[str, dict]:
    """Colour, dashes and marker of each group, 49 different ones."""
    others = sorted(set(names) - set(NAMED))
    styles = {}
    for i, name in enumerate([*NAMED, *others]):
        turn = (i + i // len(COLORS)) % len(DASHES)
        styles[name] = {
            "color": COLORS[i % len(COLORS)],
            "linestyle": DASHES[turn],
            "marker": MARKERS[i % len(MARKERS)],
        }
    return {name: styles[name] for name in styles if name in set(names)}


def plot_curves(axes: "Axes", panel: Panel, x: str, styles: dict[str, dict]) -> None:
    """Each group's mean, interval and interquartile mean; thin where runs miss."""
    alpha = 0.2 if len(styles) <= 4 else 0.1
    for i, (name, style) in enumerate(styles.items()):
        rows = panel.curves[panel.curves["algorithm"] == name]
        place, mean = rows[x], rows["mean"]
        few = rows["seeds"] < rows["seeds"].max()
        beside = few | few.shift(fill_value=False) | few.shift(-1, fill_value=False)
        line = {"color": style["color"], "linestyle": style["linestyle"]}
        axes.plot(place, mean.where(~few), linewidth=1.6, label=name, **line)
        axes.plot(place, mean.where(beside), linewidth=0.7, **line)
        axes.fill_between(
            place, rows["low"], rows["high"], alpha=alpha, color=line["color"], lw=0
        )
        every = max(1, len(rows) // MARKED)
        axes.plot(
            place,
            rows["iqm"],
            linestyle="none",
            marker=style["marker"],
            markersize=3.5,
            markerfacecolor="white",
            markeredgewidth=0.9,
            color=style["color"],
            markevery=((2 * i + 1) * every // (2 * len(styles)), every),
        )


def curves_figure(
    panels: Sequence[Panel], x: str, title: str, columns: int = PANELS_PER_ROW
) -> "Figure":
    """The panels row by row, with one legend below."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    together = pd.concat([panel.curves for panel in panels])
    styles = line_styles(together["algorithm"].tolist())
    lines = -(-len(panels) // columns)
    columns = -(-len(panels) // lines)  # 6 panels: two rows of 3, not 4 and 2
    width = 4.8 if columns == 1 else 0.4 + 2.3 * columns
    panel_height = 2.6 if columns == 1 else 1.75
    per_row = max(1, int(width / (INCH_PER_LETTER * max(map(len, styles)) + 0.6)))
    legend_rows = -(-len(styles) // per_row)
    height = 0.9 + panel_height * lines + 0.18 * legend_rows
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for i, (axes, panel) in enumerate(zip(grid, panels, strict=False)):
        if panel.curves.empty:
            axes.set_axis_off()
            continue
        plot_curves(axes, panel, x, styles)
        axes.set_title(panel.title, fontsize=9)
        if i % columns == 0:
            axes.set_ylabel(panel.label, fontsize=8)
        axes.set_xlim(0, panel.curves[x].max() or 1)
        axes.tick_params(labelsize=8)
        if x != "hours":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if i + columns >= len(panels):
            axes.set_xlabel(X_LABELS[x], fontsize=8)
        if panel.may_be_log and wants_log_scale(panel.curves["mean"]):
            axes.set_yscale("log")
        finish_axes(axes)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    below = textwrap.fill(statistics(together), int(width / INCH_PER_LETTER))
    figure.suptitle(f"{title}\n{below}", fontsize=9)
    figure.legend(
        handles=legend_handles(styles, together),
        loc="outside lower center",
        ncols=-(-len(styles) // legend_rows),
        frameon=False,
        handlelength=3.2,
        fontsize=8,
    )
    return figure


def statistics(curves: pd.DataFrame) -> str:
    """What lines, bands and markers are, for a title."""
    counts = curves.groupby(["environment", "algorithm"])["seeds"]
    few, many = counts.max().min(), counts.max().max()
    if many == 1:
        return "single runs"
    count = f"{many}" if few == many else f"{few} to {many}"
    text = f"mean and 95% bootstrap interval over {count} runs"
    if curves["iqm"].notna().any():
        text += "; markers: interquartile mean"
    if (counts.transform("max") > curves["seeds"]).mean() > VISIBLE:
        text += "; thin: where some runs have no value"
    return text


def legend_handles(styles: dict[str, dict], curves: pd.DataFrame) -> list["Line2D"]:
    """A line for each group, with its marker where that is drawn."""
    from matplotlib.lines import Line2D

    marked = set(curves.loc[curves["iqm"].notna(), "algorithm"])
    return [
        Line2D(
            [],
            [],
            label=name,
            linewidth=1.6,
            markersize=3.5,
            markerfacecolor="white",
            **{**style, "marker": style["marker"] if name in marked else None},
        )
        for name, style in styles.items()
    ]


def all_figures(
    runs: Sequence[Record], x: str, group_by: str, smooth: float
) -> tuple[dict[str, "Figure"], pd.DataFrame]:
    """The figures by name, as far as there is something to draw, and their curves."""
    quantities = (SCORE, USAGE, *LOSSES)
    curves = {q: aggregated_curves(runs, q, x, group_by, smooth) for q in quantities}
    curves = {q: table for q, table in curves.items() if len(table)}
    losses = [q for q in LOSSES if q in curves]
    environments = sorted({run.environment for run in runs})

    def of(quantity: str, environment: str) -> pd.DataFrame:
        table = curves[quantity]
        return table[table["environment"] == environment]

    figures = {}
    for quantity, label, title in (
        (SCORE, "score (sum of rewards)", "Score of the greedy policy"),
        (USAGE, "1 - mean $w_0$", "Model usage: weight of the imagined steps"),
    ):
        if quantity in curves:
            panels = [Panel(env, label, of(quantity, env)) for env in environments]
            panels = [panel for panel in panels if len(panel.curves)]
            figures[quantity] = curves_figure(panels, x, title)
    if losses:
        panels = [
            Panel(LOSSES[loss], env, of(loss, env), True)
            for env in environments
            for loss in losses
        ]
        figures["losses"] = curves_figure(panels, x, "Losses", len(losses))
    together = [table.assign(quantity=q) for q, table in curves.items()]
    return figures, pd.concat(together, ignore_index=True)
