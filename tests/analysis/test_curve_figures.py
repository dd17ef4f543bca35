"""The figures of curves: what is in them, and that nothing overlaps."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from steve.analysis import curve_figures
from steve.analysis.curve_figures import Panel, curves_figure, line_styles
from steve.analysis.drawing import origin, rendered

ENVIRONMENTS = [
    "BipedalWalkerHardcore-v2", "HalfCheetah-v1", "Hopper-v1", "Humanoid-v1",
    "RoboschoolHumanoid-v1", "RoboschoolHumanoidFlagrun-v1", "Swimmer-v1",
    "Walker2d-v1",
]  # fmt: skip
ALGORITHMS = [
    "STEVE", "MVE-TDk", "DDPG", "ensemble MVE-TDk", "TD-lambda 0.25 MVE", "COV-STEVE",
    "mean-MVE",
]  # fmt: skip


def made_up(environments: int, algorithms: int, seeds: int = 4) -> list[Panel]:
    """Panels of straight lines with an interval and, from 4 seeds on, an IQM."""
    place = np.linspace(0, 200_000, 21)
    panels = []
    for name in ENVIRONMENTS[:environments]:
        parts = [
            pd.DataFrame(
                {
                    "environment": name,
                    "algorithm": algorithm,
                    "frames": place,
                    "seeds": seeds,
                    "mean": (mean := i * 500 + place / 100),
                    "low": mean - 200,
                    "high": mean + 200,
                    "iqm": mean + 50 if seeds >= 4 else np.nan,
                }
            )
            for i, algorithm in enumerate(ALGORITHMS[:algorithms])
        ]
        panels.append(Panel(name, "score (sum of rewards)", pd.concat(parts)))
    return panels


@pytest.mark.parametrize(("environments", "algorithms"), [(1, 7), (3, 3), (8, 7)])
def test_nothing_is_clipped_and_no_parts_overlap(environments, algorithms):
    figure = curves_figure(made_up(environments, algorithms), "frames", "Score")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text()]
    legend = figure.legends[0].get_window_extent()
    boxes = [text.get_window_extent() for text in texts] + [legend]
    width, height = figure.bbox.size
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    panels = [axes.get_tightbbox() for axes in figure.axes if axes.axison]
    assert len(panels) == environments
    parts = [*panels, legend, *(text.get_window_extent() for text in figure.texts)]
    assert len(parts) == environments + 2  # and the title
    for i, one in enumerate(parts):
        assert not any(one.overlaps(other) for other in parts[:i])


def test_a_panel_shows_mean_interval_and_interquartile_mean():
    panel = made_up(1, 2)[0]
    axes = curves_figure([panel], "frames", "Score").axes[0]
    assert axes.get_title() == ENVIRONMENTS[0]
    assert axes.get_xlabel() == "environment frames"
    assert axes.get_ylabel() == "score (sum of rewards)"
    for i, name in enumerate(["STEVE", "MVE-TDk"]):
        rows = panel.curves[panel.curves["algorithm"] == name]
        mean, _, iqm = axes.lines[3 * i : 3 * i + 3]
        assert mean.get_label() == name
        np.testing.assert_array_equal(mean.get_xdata(), rows["frames"])
        np.testing.assert_array_equal(mean.get_ydata(), rows["mean"])
        np.testing.assert_array_equal(iqm.get_ydata(), rows["iqm"])
        band = axes.collections[i].get_paths()[0].get_extents()
        assert (band.y0, band.y1) == (rows["low"].min(), rows["high"].max())


def test_where_runs_miss_the_line_is_thin():
    panel = made_up(1, 1)[0]
    panel.curves.loc[panel.curves["frames"] > 100_000, "seeds"] = 2
    figure = curves_figure([panel], "frames", "Score")
    thick, thin = figure.axes[0].lines[:2]
    assert np.isfinite(thick.get_ydata()).sum() == 11
    assert np.isfinite(thin.get_ydata()).sum() == 11  # joined to it at one point
    assert thin.get_linewidth() < thick.get_linewidth()
    assert "thin" in figure._suptitle.get_text()


@pytest.mark.parametrize(
    ("seeds", "said", "unsaid"),
    [
        (1, "single runs", "mean"),
        (2, "band: range", "interval"),
        (3, "band: range", "interval"),
        (4, "band: 95% bootstrap interval", "range"),
        (5, "markers", "no value"),
    ],
)
def test_the_title_says_what_is_drawn(seeds, said, unsaid):
    figure = curves_figure(made_up(1, 2, seeds), "frames", "Score")
    title = " ".join(figure._suptitle.get_text().split())
    assert said in title
    assert unsaid not in title


def test_the_papers_algorithms_look_the_same_in_every_figure():
    all_of_them = line_styles(ALGORITHMS)
    assert len(all_of_them) == 7
    for key in ("color", "linestyle", "marker"):  # each alone tells 7 apart
        assert len({style[key] for style in all_of_them.values()}) == 7
    for name in curve_figures.NAMED:
        assert line_styles([name])[name] == all_of_them[name]


def test_more_groups_than_colours_still_differ():
    styles = line_styles([f"run{i}" for i in range(30)])
    looks = {(style["color"], style["linestyle"]) for style in styles.values()}
    assert len(looks) == 30


def test_a_style_belongs_to_the_name_and_not_to_what_else_is_drawn():
    alone = line_styles(["STEVE, learning_rate 0.001"])
    others = ["DDPG", "a", "STEVE", "STEVE, learning_rate 0.001", "b"]
    for names in (others, others[::-1]):
        assert alone.items() <= line_styles(names).items()
    assert line_styles(["STEVE H=3"])["STEVE H=3"] == line_styles(["STEVE"])["STEVE"]


def test_one_evaluation_is_a_mark():
    panel = made_up(1, 1, seeds=1)[0]
    panel = panel._replace(curves=panel.curves.iloc[1:2])
    axes = curves_figure([panel], "frames", "Score").axes[0]
    (mark,) = [line for line in axes.lines if line.get_marker() == "o"][:1]
    assert list(mark.get_xdata()) == [10_000]
    assert axes.get_xlim() == (0, 20_000)


def test_a_long_name_is_broken_at_its_joints():
    name = "HandManipulateBlockRotateZ_ContinuousTouchSensorsDense-v1"
    panels = [panel._replace(title=name) for panel in made_up(3, 1)]
    figure = curves_figure(panels, "frames", "Score")
    FigureCanvasAgg(figure).draw()
    titles = [axes.title for axes in figure.axes]
    assert {title.get_text().replace("\n", "") for title in titles} == {name}
    boxes = [title.get_window_extent() for title in titles]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
    assert boxes[0].x0 >= 0
    assert boxes[-1].x1 <= figure.bbox.width


def test_the_legend_has_the_number_of_runs():
    figure = curves_figure(made_up(2, 2), "frames", "Score")
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["STEVE (n = 4)", "MVE-TDk (n = 4)"]


def test_each_panel_has_the_number_of_runs_where_environments_have_others():
    panels = [made_up(2, 2, seeds=3)[0], made_up(2, 2, seeds=2)[1]]
    figure = curves_figure(panels, "frames", "Score")
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["STEVE", "MVE-TDk"]
    titles = [" ".join(axes.get_title().split()) for axes in figure.axes]
    assert titles == [f"{ENVIRONMENTS[0]} (n = 3)", f"{ENVIRONMENTS[1]} (n = 2)"]
    losses = [panel._replace(title="Q loss", label=panel.title) for panel in panels]
    figure = curves_figure(losses, "frames", "Losses", columns=1)
    assert [axes.get_title() for axes in figure.axes] == ["Q loss", "Q loss"]
    assert [axes.get_ylabel() for axes in figure.axes] == titles
    # Within one they differ: the legend can only say between which.
    panels[0].curves.loc[panels[0].curves["algorithm"] == "STEVE", "seeds"] = 2
    figure = curves_figure(panels, "frames", "Score")
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["STEVE (n = 2)", "MVE-TDk (n = 2 to 3)"]


def test_many_lines_have_a_panel_each_and_the_others_in_grey():
    curves = made_up(1, 7)[0].curves
    panels = curve_figures._panels("A-v0", "score", curves, None)
    assert [panel.title for panel in panels][:2] == ["STEVE (n = 4)", "MVE-TDk (n = 4)"]
    figure = curves_figure(panels, "frames", "Score")
    assert not figure.legends
    for axes in figure.axes[:7]:
        grey = [x for x in axes.lines if x.get_color() == curve_figures.OTHERS]
        assert (len(grey), len(axes.collections)) == (6, 1)


def test_hours_below_a_tenth_are_minutes():
    panel = made_up(1, 1)[0]
    hours = panel.curves["frames"] / 200_000 * 0.05
    panel = panel._replace(curves=panel.curves.assign(hours=hours))
    axes = curves_figure([panel], "hours", "Score").axes[0]
    assert axes.get_xlabel() == "minutes of learning"
    assert axes.get_xlim()[1] == pytest.approx(3.0)


def test_each_run_is_drawn_thin_under_the_mean():
    panel = made_up(1, 1)[0]
    place = panel.curves["frames"]
    single = [
        pd.DataFrame({"algorithm": "STEVE", "run": run, "frames": place, "value": run})
        for run in range(4)
    ]
    panel = panel._replace(single=pd.concat(single))
    axes = curves_figure([panel], "frames", "Score").axes[0]
    assert sum(line.get_linewidth() == 0.5 for line in axes.lines) == 4


def test_a_figure_says_what_made_it():
    figure = curves_figure(made_up(1, 1), "frames", "Score")
    for kind in ("png", "svg"):
        assert b"plot.py output; steve" in rendered(
            figure, kind, origin("plot.py output", "1.0")
        )


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_the_same_figure_gives_the_same_bytes(kind):
    one, other = (curves_figure(made_up(1, 2), "frames", "Score") for _ in range(2))
    content = rendered(one, kind)
    assert content == rendered(other, kind)
    assert b"CreationDate" not in content  # of a PDF; it has a resolution of 1 s
    assert b"<dc:date>" not in content  # of an SVG
