"""plot.py: whole calls on made-up experiments, and what is in the figures."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from support_results import DDPG, STEVE, write_experiment

from steve import plot
from steve.analysis import curve_figures
from steve.analysis.curve_figures import Panel, curves_figure, line_styles
from steve.analysis.drawing import rendered, wants_log_scale

PROJECT = Path(__file__).resolve().parents[1]
MAGIC = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
LOG = ("hours", "epoch", "updates", "frames")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def results():
    """Two seeds of STEVE and one of DDPG; scores 10 n, at 100 n frames, 0.1 n hours."""
    root = Path("results", "Chain-v0")
    for name, content, seed in (
        ("steve0", STEVE, 0),
        ("steve1", STEVE, 1),
        ("ddpg0", DDPG, 0),
    ):
        rows = [(n / 10, n, 100 * n, 10.0 * n + seed) for n in range(1, 11)]
        valuerl = [(n / 10, n, n, 100 * n, 1 / n, 0.5) for n in range(1, 11)]
        logs = {"valuerl": ((*LOG, "q_loss", "model_usage"), valuerl)}
        if content is STEVE:
            losses = [(*row[:4], 2.0) for row in valuerl]
            logs["worldmodel"] = ((*LOG, "reward_loss"), losses)
        write_experiment(root / name, rows, content, seed=seed, **logs)
    return root


def cells(printed: str, first: str) -> list[list[str]]:
    """The lines of a printed table that begin with a word."""
    rows = [line.split() for line in printed.splitlines()]
    return [row for row in rows if row[:1] == [first]]


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# ---- Calls --------------------------------------------------------------------------


def test_a_call_prints_tables_and_writes_figures_and_csv(results, capsys):
    assert plot.main(["results", "--reach", "55"]) == 0
    folder = Path("output", "plots")
    names = ("score", "model_usage", "losses")
    expected = {f"{n}.{kind}" for n in names for kind in ("png", "pdf")}
    expected |= {"table.csv", "reach.csv", "curves.csv"}
    assert {path.name for path in folder.iterdir()} == expected
    for path in folder.iterdir():
        if path.suffix != ".csv":
            assert path.read_bytes().startswith(MAGIC[path.suffix[1:]])
    printed = capsys.readouterr().out
    for path in folder.iterdir():
        assert str(path) in printed


def test_the_printed_tables_by_hand(results, capsys):
    options = ["--at", "500", "--reach", "55", "--smooth", "0", "--out", "fig.svg"]
    assert plot.main(["results", *options]) == 0
    rows = cells(capsys.readouterr().out, "Chain-v0")
    assert rows == [
        ["Chain-v0", "DDPG", "500", "1", "of", "1", "50.0", "-", "-", "0.5"],
        [
            *["Chain-v0", "STEVE", "500", "2", "of", "2", "50.5"],
            *["50.0", "..", "51.0", "-", "0.5"],
        ],
        ["Chain-v0", "DDPG", "1", "of", "1", "600", "0.6"],
        ["Chain-v0", "STEVE", "2", "of", "2", "600", "0.6"],
    ]
    (ddpg, steve) = read_csv(Path("fig_table.csv"))
    assert (ddpg["algorithm"], ddpg["mean"], ddpg["low"]) == ("DDPG", "50", "")
    assert (steve["mean"], steve["low"], steve["high"]) == ("50.5", "50", "51")
    drawn = pd.read_csv("fig_curves.csv")
    assert set(drawn["quantity"]) == {"score", "model_usage", "q_loss", "reward_loss"}


def test_a_score_that_is_never_reached_is_a_dash(results, capsys):
    assert plot.main(["results", "--reach", "1e6", "--out", "fig.svg"]) == 0
    assert cells(capsys.readouterr().out, "Chain-v0")[-1][-2:] == ["-", "-"]


def test_the_default_folder_gets_a_number_when_it_is_taken(results):
    Path("output", "plots").mkdir(parents=True)
    assert plot.main(["results"]) == 0
    assert list(Path("output", "plots").iterdir()) == []
    assert len(list(Path("output", "plots-2").iterdir())) == 8


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_the_suffix_of_out_says_the_format(results, kind):
    assert plot.main(["results", "--out", f"new/folder/fig.{kind}"]) == 0
    figures = {"fig", "fig_model_usage", "fig_losses"}
    written = {path.name for path in Path("new", "folder").iterdir()}
    assert written == {f"{name}.{kind}" for name in figures} | {
        "fig_table.csv",
        "fig_curves.csv",
    }
    assert Path(f"new/folder/fig.{kind}").read_bytes().startswith(MAGIC[kind])


def test_the_same_call_again_replaces_nothing_and_is_no_mistake(results):
    for _ in range(2):
        assert plot.main(["results", "--out", "fig.svg"]) == 0


def test_a_file_that_is_there_is_kept_unless_told(results, capsys):
    kept = Path("fig_losses.svg")
    kept.write_text("made by the user")
    assert plot.main(["results", "--out", "fig.svg"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "fig_losses.svg is there already; --overwrite" in message
    assert {path.name for path in Path().iterdir()} == {"results", "fig_losses.svg"}
    assert kept.read_text() == "made by the user"
    assert plot.main(["results", "--out", "fig.svg", "--overwrite"]) == 0
    assert kept.read_bytes().startswith(MAGIC["svg"])


def test_results_redraw_from_csv_alone(tmp_path):
    write_experiment(tmp_path / "results" / "a0", [(0.1, 1, 100, 3.0)], suffix=".gz")
    assert plot.main(["results", "--out", "fig.svg"]) == 0
    written = {path.name for path in Path().iterdir()} - {"results"}
    assert written == {"fig.svg", "fig_table.csv", "fig_curves.csv"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing"], "missing is not a folder"),
        (["empty"], "empty holds no EXPERIMENT.greedy.csv"),
        (["results", "--out", "fig.jpg"], "must end in .png, .pdf, .svg"),
        (["results", "--out", "fig"], "must end in .png, .pdf, .svg"),
        (["begun"], "no run has an evaluation yet"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(results, capsys, arguments, said):
    Path("empty").mkdir()
    write_experiment(Path("begun", "a0"), [])
    before = sorted(Path().rglob("*"))
    assert plot.main(arguments) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert said in message
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["results", "--x", "days"],
        ["results", "--smooth", "1.5"],
        ["results", "--smooth", "nan"],
        ["results", "--at", "0"],
        ["results", "--reach", "inf"],
        ["results", "--group", "seed"],
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(wrong, capsys):
    with pytest.raises(SystemExit) as stopped:
        plot.main(wrong)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_failed_write_is_one_line(results, capsys):
    Path("file").write_text("")
    assert plot.main(["results", "--out", "file/fig.png"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "file" in message


def test_reading_curves_imports_neither_matplotlib_nor_tensorflow(results):
    code = (
        "import sys\n"
        "from steve import plot\n"
        "from steve.analysis import curves\n"
        "assert not {'matplotlib', 'tensorflow'} & set(sys.modules)\n"
        "assert plot.main(['results', '--out', 'fig.svg']) == 0\n"
        "assert not {'matplotlib.pyplot', 'tensorflow'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# ---- Figures ------------------------------------------------------------------------

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
    [(1, "single runs", "mean"), (3, "over 3 runs", "markers"), (4, "markers", "thin")],
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


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_the_same_figure_gives_the_same_bytes(kind):
    one, other = (curves_figure(made_up(1, 2), "frames", "Score") for _ in range(2))
    content = rendered(one, kind)
    assert content == rendered(other, kind)
    assert b"CreationDate" not in content  # of a PDF; it has a resolution of 1 s
    assert b"<dc:date>" not in content  # of an SVG


@pytest.mark.parametrize(
    ("values", "wanted"),
    [([1, 100], True), ([1, 40], False), ([-1, 100], False), ([0, 100], False)],
)
def test_a_log_scale_is_for_positive_values_far_apart(values, wanted):
    assert wants_log_scale(np.array([np.nan, *values])) == wanted
