"""Figures of learning curves: a panel for each environment, a line for each group.

More than `FEW` groups of one environment get a panel each.
"""

import re
import textwrap
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from .aggregates import OverEnvironments
from .curves import RANGE_RUNS, aggregated_curves, single_curves
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

LOSSES = {  # name and unit
    "q_loss": "Q loss (return$^2$)",
    "policy_loss": "policy loss (return)",
    "transition_loss": "transition loss (obs.$^2$)",
    "termination_loss": "termination loss (nats)",
    "reward_loss": "reward loss (reward$^2$)",
}
X_LABELS = {
    "frames": "environment frames",
    "hours": "hours of learning",
    "updates": "updates of the learner",
}
SHORT_HOURS = 0.1  # where all is shorter, the axis is in minutes

# Each of these looks the same in every figure; the paper's three come first.
NAMED = ("STEVE", "MVE-TDk", "DDPG")
KNOWN = (
    *NAMED,
    "ensemble MVE-TDk",
    "COV-STEVE",
    "TD-lambda 0.25 MVE",
    "mean-MVE",
    "MVE",
    "TD-lambda 0.75 MVE",
    "ensemble DDPG",
    "single-net STEVE",
)
NO_DIFFERENCE = re.compile(r" H=3$| unpaced$")  # to colour and dashes
RESULTS = " (results)"  # at the end of the name of a group that is compared with
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
FEW = 5  # lines that a panel can hold with their bands
VISIBLE = 0.01  # share of points where runs miss, below which it is not mentioned
INCH_PER_LETTER = 0.075  # of legend and title
OTHERS = "#BBBBBB"


class Panel(NamedTuple):
    """One quantity of one environment; curves as of `aggregated_curves`.

    Attributes:
        single: as of `single_curves`; none are drawn without.
        shown: the groups that are drawn in full, the others in grey; None: all.
    """

    title: str
    label: str
    curves: pd.DataFrame
    may_be_log: bool = False
    single: pd.DataFrame | None = None
    shown: tuple[str, ...] | None = None


def line_styles(names: Sequence[str]) -> dict[str, dict]:
    """Colour, dashes and marker of each group, 49 different ones.

    A style belongs to the name: it does not depend on what else is drawn, unless two
    names that are not `KNOWN` fall on the same one.
    """
    count = len(COLORS)
    styles: dict[str, dict] = {}
    taken: set[int] = set()
    unique = list(dict.fromkeys(names))
    for name in sorted(unique, key=lambda n: (_plain(n) not in KNOWN, n != _plain(n))):
        plain = _plain(name)
        if plain in KNOWN:
            place = KNOWN.index(plain)
        else:
            place = zlib.crc32(plain.encode()) % count**2
        compared = name.endswith(RESULTS)
        while not compared and place in taken and len(taken) < count**2:
            place = (place + 1) % count**2
        taken |= set() if compared else {place}
        styles[name] = {
            "color": COLORS[place % count],
            "linestyle": DASHES[(place + place // count) % len(DASHES)],
            "marker": MARKERS[place % len(MARKERS)],
        }
        if compared:
            styles[name]["alpha"] = 0.45
    first = [name for name in NAMED if name in styles]
    return {name: styles[name] for name in dict.fromkeys([*first, *unique])}


def _plain(name: str) -> str:
    """The name without what makes no difference to its style."""
    plain = name.removesuffix(RESULTS)
    while NO_DIFFERENCE.search(plain):
        plain = NO_DIFFERENCE.sub("", plain)
    return plain


def plot_curves(axes: "Axes", panel: Panel, x: str, styles: dict[str, dict]) -> None:
    """Each group's mean, interval and interquartile mean; thin where runs miss."""
    for i, (name, style) in enumerate(styles.items()):
        rows = panel.curves[panel.curves["algorithm"] == name]
        if rows.empty:
            continue
        place, mean = rows[x], rows["mean"]
        if panel.shown is not None and name not in panel.shown:
            axes.plot(place, mean, color=OTHERS, linewidth=0.6, zorder=1)
            continue
        few = rows["seeds"] < rows["seeds"].max()
        beside = few | few.shift(fill_value=False) | few.shift(-1, fill_value=False)
        line = {key: style[key] for key in style if key != "marker"}
        color = style["color"]
        axes.plot(place, mean.where(~few), linewidth=1.6, label=name, **line)
        axes.plot(place, mean.where(beside), linewidth=0.7, **line)
        if len(rows) == 1:  # no line can be seen of one point
            axes.plot(place, mean, marker="o", markersize=4, **line)
        if panel.shown is not None or len(styles) <= FEW:
            axes.fill_between(
                place, rows["low"], rows["high"], alpha=0.15, color=color, lw=0
            )
            if not name.endswith(RESULTS):
                _plot_single(axes, panel, name, x, color)
        every = max(1, len(rows) // MARKED)
        axes.plot(
            place,
            rows["iqm"],
            linestyle="none",
            marker=style["marker"],
            markersize=3.5,
            markerfacecolor="white",
            markeredgewidth=0.9,
            color=color,
            markevery=((2 * i + 1) * every // (2 * len(styles)), every),
        )


def _plot_single(axes: "Axes", panel: Panel, name: str, x: str, color: str) -> None:
    """The runs of a group, where there are several."""
    if panel.single is None:
        return
    runs = panel.single[panel.single["algorithm"] == name].groupby("run")
    if len(runs) > 1:
        for _, run in runs:
            axes.plot(run[x], run["value"], color=color, linewidth=0.5, alpha=0.5)


def curves_figure(
    panels: Sequence[Panel], x: str, title: str, columns: int = PANELS_PER_ROW
) -> "Figure":
    """The panels row by row, with one legend below."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    together = pd.concat([panel.curves for panel in panels])
    x_label = X_LABELS[x]
    if x == "hours" and together[x].max() < SHORT_HOURS:
        panels, x_label = (
            [_in_minutes(panel) for panel in panels],
            "minutes of learning",
        )
    styles = line_styles(together["algorithm"].tolist())
    lines = -(-len(panels) // columns)
    columns = -(-len(panels) // lines)  # 6 panels: two rows of 3, not 4 and 2
    width = 4.8 if columns == 1 else 0.4 + 2.3 * columns
    panel_height = 2.6 if columns == 1 else 1.75
    letters = int(width / INCH_PER_LETTER)
    counts = runs_by_environment(together)
    names = legend_names(styles, together, letters - 8, bool(counts))
    shown = any(panel.shown is None for panel in panels)  # else titles name the lines
    longest = max(len(part) for name in names.values() for part in name.split("\n"))
    per_row = max(1, int(width / (INCH_PER_LETTER * longest + 0.6)))
    legend_rows = -(-len(styles) // per_row) if shown else 0
    height = 0.9 + panel_height * lines + 0.18 * legend_rows
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=not shown).ravel()
    for i, (axes, panel) in enumerate(zip(grid, panels, strict=False)):
        if panel.curves.empty:
            axes.set_axis_off()
            continue
        plot_curves(axes, panel, x, styles)
        name, label = panel_texts(panel, counts, letters // columns - 6)
        axes.set_title(name, fontsize=9)
        if i % columns == 0:
            axes.set_ylabel(label, fontsize=8)
        _limit(axes, panel.curves[x])
        axes.tick_params(labelsize=8)
        if x != "hours":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if i + columns >= len(panels):
            axes.set_xlabel(x_label, fontsize=8)
        if panel.may_be_log and wants_log_scale(panel.curves["mean"]):
            axes.set_yscale("log")
        finish_axes(axes)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    has_runs = any(panel.single is not None for panel in panels)
    below = textwrap.fill(statistics(together, not shown, has_runs), letters)
    figure.suptitle(f"{_wrapped(title, letters)}\n{below}", fontsize=9)
    if shown:
        figure.legend(
            handles=legend_handles(styles, together, names),
            loc="outside lower center",
            ncols=-(-len(styles) // legend_rows),
            frameon=False,
            handlelength=3.2,
            fontsize=8,
        )
    return figure


def _limit(axes: "Axes", places: pd.Series) -> None:
    """From 0 to the last place; around a single one, so that its mark is whole."""
    single = places.nunique() == 1
    axes.set_xlim(0, places.max() * (2 if single else 1) or 1)
    if single:
        axes.set_xticks([0, places.max(), 2 * places.max()])


def _in_minutes(panel: Panel) -> Panel:
    def scaled(table: pd.DataFrame | None) -> pd.DataFrame | None:
        return None if table is None else table.assign(hours=60 * table["hours"])

    return panel._replace(
        curves=panel.curves.assign(hours=60 * panel.curves["hours"]),
        single=scaled(panel.single),
    )


def _wrapped(text: str, width: int) -> str:
    """Lines of at most so many letters, broken where names have a joint."""
    lines = [""]
    for part in re.findall(r"[^\s_+/-]*[\s_+/-]*", text):
        for piece in textwrap.wrap(part, width, drop_whitespace=False):
            if len(lines[-1]) + len(piece.rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def panel_texts(panel: Panel, counts: dict[str, int], width: int) -> tuple[str, str]:
    """A panel's title and label, with the runs behind the environment's name.

    Args:
        panel: what is drawn.
        counts: of runs, of the environments that have any to tell.
        width: of a title, in letters.
    """
    title, label = _wrapped(panel.title, width), panel.label
    environment = panel.curves["environment"].iloc[0]
    if environment in counts:
        count = f"(n = {counts[environment]})"
        if panel.title == environment:
            has_room = len(title.split("\n")[-1]) + 1 + len(count) <= width
            title += (" " if has_room else "\n") + count
        elif label == environment:
            label += f" {count}"
    return title, label


def statistics(curves: pd.DataFrame, alone: bool, has_runs: bool) -> str:
    """What lines, bands and markers are, for a title.

    Args:
        curves: of all panels.
        alone: whether each group has a panel.
        has_runs: whether single runs are drawn.
    """
    counts = curves.groupby(["environment", "algorithm"])["seeds"]
    few, many = counts.max().min(), counts.max().max()
    if many == 1:
        return "single runs"
    text = "mean over runs"
    if curves["algorithm"].nunique() <= FEW or alone:
        text = f"mean{', thin: each run' if has_runs else ''}; band: "
        interval = "95% bootstrap interval"
        if many <= RANGE_RUNS:
            text += "range"
        else:
            ranges = f", of up to {RANGE_RUNS} runs their range"
            text += interval + (ranges if few <= RANGE_RUNS else "")
    if curves["iqm"].notna().any():
        text += "; markers: interquartile mean"
    if (counts.transform("max") > curves["seeds"]).mean() > VISIBLE:
        text += "; thin mean: some runs have no value"
    return text


def runs_by_environment(curves: pd.DataFrame) -> dict[str, int]:
    """How many runs each group has, by environment.

    Empty where groups of an environment differ, and where all environments have the
    same: the legend says it then.
    """
    counts = curves.groupby(["environment", "algorithm"])["seeds"].max()
    by_environment = counts.groupby("environment").agg(["min", "max"])
    few, many = by_environment["min"], by_environment["max"]
    return many.to_dict() if (few == many).all() and many.nunique() > 1 else {}


def legend_names(
    styles: dict[str, dict], curves: pd.DataFrame, width: int, alone: bool = False
) -> dict[str, str]:
    """What the legend says of each group: its name, and unless alone its runs."""
    counts = curves.groupby(["algorithm", "environment"])["seeds"].max()
    names = {}
    for name in styles:
        few, many = counts[name].min(), counts[name].max()
        count = f"{many}" if few == many else f"{few} to {many}"
        text = name if alone else f"{name} (n = {count})".replace(") (n", ", n")
        names[name] = _wrapped(text, width)
    return names


def legend_handles(
    styles: dict[str, dict], curves: pd.DataFrame, names: dict[str, str]
) -> list["Line2D"]:
    """A line for each group, with its marker where that is drawn."""
    from matplotlib.lines import Line2D

    marked = set(curves.loc[curves["iqm"].notna(), "algorithm"])
    return [
        Line2D(
            [],
            [],
            label=names[name],
            linewidth=1.6,
            markersize=3.5,
            markerfacecolor="white",
            **{**style, "marker": style["marker"] if name in marked else None},
        )
        for name, style in styles.items()
    ]


def _panels(
    environment: str, label: str, curves: pd.DataFrame, single: pd.DataFrame | None
) -> list[Panel]:
    """One panel, or, of many groups, one for each with the others in grey."""
    names = list(dict.fromkeys(curves["algorithm"]))
    panel = Panel(environment, label, curves, single=single)
    if len(names) <= FEW:
        return [panel]
    names = list(line_styles(names)) if set(names) & set(NAMED) else names
    counts = curves.groupby("algorithm")["seeds"].max()
    return [
        panel._replace(title=f"{name} (n = {counts[name]})", shown=(name,))
        for name in names
    ]


def all_figures(
    runs: Sequence[Record], x: str, group_by: str, smooth: float
) -> tuple[dict[str, "Figure"], pd.DataFrame]:
    """The figures by name, as far as there is something to draw, and their curves."""
    quantities = (SCORE, USAGE, *LOSSES)
    curves = {q: aggregated_curves(runs, q, x, group_by, smooth) for q in quantities}
    curves = {q: table for q, table in curves.items() if len(table)}
    single = {q: single_curves(runs, q, x, group_by, smooth) for q in (SCORE, USAGE)}
    losses = [q for q in LOSSES if q in curves]
    environments = sorted({run.environment for run in runs})

    def of(table: pd.DataFrame, environment: str) -> pd.DataFrame:
        return table[table["environment"] == environment]

    figures = {}
    for quantity, label, title in (
        (SCORE, "score (sum of rewards)", "Score of the greedy policy"),
        (USAGE, "1 - mean $w_0$ (share)", "Model usage: weight of the imagined steps"),
    ):
        if quantity not in curves:
            continue
        known = [e for e in environments if len(of(curves[quantity], e))]
        if len(known) == 1:
            only = known[0]
            panels = _panels(only, label, curves[quantity], single[quantity])
            title += f", {only}" if len(panels) > 1 else ""
        else:
            panels = [
                Panel(
                    env,
                    label,
                    of(curves[quantity], env),
                    single=of(single[quantity], env),
                )
                for env in known
            ]
        figures[quantity] = curves_figure(panels, x, title)
    if losses:
        panels = [
            Panel(LOSSES[loss], env, of(curves[loss], env), True)
            for env in environments
            for loss in losses
        ]
        figures["losses"] = curves_figure(panels, x, "Losses", len(losses))
    together = [table.assign(quantity=q) for q, table in curves.items()]
    return figures, pd.concat(together, ignore_index=True)


def aggregate_figure(over: OverEnvironments) -> "Figure":
    """Interquartile means with their intervals, and performance profiles."""
    from matplotlib.figure import Figure

    styles = line_styles(over.scores["algorithm"].tolist())
    names = list(styles)
    scores = over.scores.set_index("algorithm").loc[names].reset_index()
    figure = Figure(figsize=(7.2, 2.0 + 0.2 * len(names)), layout="constrained")
    means, shares = figure.subplots(1, 2)
    for place, row in enumerate(scores.itertuples()):
        color = styles[row.algorithm]["color"]
        means.plot([row.low, row.high], [place, place], color=color, linewidth=4)
        means.plot([row.iqm], [place], color=color, marker="o", markeredgecolor="white")
    labels = [
        f"{_wrapped(row.algorithm, 24)}\n(n = {row.runs})"
        for row in scores.itertuples()
    ]
    means.set_yticks(range(len(names)), labels, fontsize=8)
    means.set_ylim(len(names) - 0.5, -0.5)
    means.set_xlabel("interquartile mean of normalised scores", fontsize=8)
    for name, style in styles.items():
        rows = over.profiles[over.profiles["algorithm"] == name]
        line = {key: style[key] for key in style if key != "marker"}
        shares.plot(rows["score"], rows["share"], label=name, linewidth=1.4, **line)
        if len(names) <= FEW:
            band = {"color": style["color"], "alpha": 0.15, "lw": 0}
            shares.fill_between(rows["score"], rows["low"], rows["high"], **band)
    shares.set_xlabel("normalised score", fontsize=8)
    shares.set_ylabel("share of runs above it", fontsize=8)
    shares.set_ylim(0, 1.02)
    for axes in (means, shares):
        axes.tick_params(labelsize=8)
        finish_axes(axes)
    figure.suptitle(
        "Over environments; bars and bands: 95% stratified bootstrap", fontsize=9
    )
    figure.legend(
        *shares.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=min(4, len(names)),
        frameon=False,
        handlelength=3.2,
        fontsize=8,
    )
    return figure
