"""plot.py: whole calls on made-up experiments."""

import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from support import PROJECT
from support_results import DDPG, STEVE, write_experiment

from steve import plot

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


def test_the_spread_of_up_to_three_runs_is_called_their_range(results, capsys):
    options = ["--at", "500", "--smooth", "0", "--out", "fig.svg", "--overwrite"]
    assert plot.main(["results", *options]) == 0
    printed = capsys.readouterr().out
    assert cells(printed, "environment")[0][4:7] == ["mean", "range", "IQM"]
    assert "interval" not in printed
    for seed in range(1, 4):
        rows = [(n / 10, n, 100 * n, 10.0 * n + seed) for n in range(1, 11)]
        write_experiment(results / f"ddpg{seed}", rows, DDPG, seed=seed)
    assert plot.main(["results", *options]) == 0
    printed = capsys.readouterr().out
    assert "95% interval" in printed
    ddpg, steve = cells(printed, "Chain-v0")
    assert "(range)" not in ddpg
    assert steve[7:11] == ["50.0", "..", "51.0", "(range)"]


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


def test_a_folder_in_place_of_a_file_is_named_before_anything_is_written(
    results, capsys
):
    Path("fig_losses.svg").mkdir()
    assert plot.main(["results", "--out", "fig.svg", "--overwrite"]) == 2
    message = capsys.readouterr().err
    assert (
        message
        == "plot.py: fig_losses.svg is there, and is no file: pass another --out\n"
    )
    assert {path.name for path in Path().iterdir()} == {"results", "fig_losses.svg"}


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


def test_statistics_over_environments_and_the_published_runs(results, capsys):
    for seed in range(2):
        rows = [(n / 10, n, 5000 * n, 100.0 * n) for n in range(1, 11)]
        folder = Path("mine", f"steve{seed}")
        write_experiment(folder, rows, STEVE, seed=seed, environment="Hopper-v1")
    options = ["--reference", "--normalize", "Hopper-v1=18,882", "--out", "fig.svg"]
    options += ["--smooth", "1"]
    assert plot.main(["mine", "results", *options]) == 0
    printed = capsys.readouterr().out
    assert "DDPG (results)" in printed
    assert "P(better)" in printed
    assert Path("fig_aggregate.svg").is_file()
    table = pd.read_csv("fig_aggregate.csv").set_index("algorithm")
    assert table.loc["STEVE", "runs"] == 2
    # The mean of 100, 200, .. is that of the whole run.
    assert table.loc["STEVE", "mean"] == pytest.approx((525 - 18) / (882 - 18), abs=0.1)
    # The runs of each line, by their folders.
    assert (
        "Chain-v0, STEVE: results/Chain-v0/steve0, results/Chain-v0/steve1" in printed
    )


def test_the_command_in_the_figures_makes_them_again():
    words = ["a run", "--normalize", "A=0,1", "--normalize", "B=0.1234567,2", "C=3,4"]
    asked = plot.parse_arguments(words)
    assert [name for name, _ in asked.normalize] == ["A", "B", "C"]
    again = plot.parse_arguments(shlex.split(plot._command(asked))[1:])
    assert again == asked


def test_an_algorithm_that_lacks_an_environment_is_named(results, capsys):
    rows = [(0.1, 1, 100, 1.0), (0.2, 2, 200, 2.0)]
    for seed in range(2):
        folder = Path("mine", f"steve{seed}")
        write_experiment(folder, rows, STEVE, seed=seed, environment="Hopper-v1")
    options = ["--normalize", "Chain-v0=0,1", "Hopper-v1=0,1", "--out", "fig.svg"]
    assert plot.main(["mine", "results", *options]) == 0
    printed = capsys.readouterr().out
    assert "note: without runs on all of Chain-v0, Hopper-v1: DDPG\n" in printed
    assert "(range)" not in printed.split("optimality gap")[1].split("\n\n")[0]
    options = ["--normalize", "Hopper-v1=0,1", "--out", "one.svg"]
    assert plot.main(["mine", *options]) == 0
    printed = capsys.readouterr().out
    assert "(range)" in printed.split("optimality gap")[1].split("\n\n")[0]


@pytest.mark.parametrize("wrong", ["Hopper-v1", "Hopper-v1=1", "A=2,1", "A=0,inf"])
def test_a_wrong_reference_score_is_one_line(capsys, wrong):
    with pytest.raises(SystemExit):
        plot.main(["results", "--normalize", wrong])
    assert "LOW below HIGH" in capsys.readouterr().err


def test_an_unreadable_run_is_a_note(results, capsys):
    (results / "steve1" / "hps.json").write_text('{"env": {"name": "A", "new": 1}}')
    assert plot.main(["results", "--out", "fig.svg"]) == 0
    printed = capsys.readouterr().out
    assert "note: a run is left out: results/Chain-v0/steve1/hps.json" in printed
    assert "1 of 1" in printed


def test_the_example_of_the_page_draws_a_figure(results):
    page = (PROJECT / "docs" / "figures.md").read_text()
    (example,) = re.findall(r"```python\n([^`]*curves_figure[^`]*)```", page)
    program = example.replace("InvertedPendulum-v5", "Chain-v0").replace(
        '"output"', '"results"'
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert Path("quickstart.pdf").read_bytes().startswith(MAGIC["pdf"])
