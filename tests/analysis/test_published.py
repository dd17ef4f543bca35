"""The table of the runs in results/, and those runs next to others."""

import runpy

import pytest
from support import PROJECT
from support_results import DDPG, settings, write_experiment

import steve
from steve.analysis.curve_figures import line_styles
from steve.analysis.published import TABLE, reference_runs
from steve.analysis.records import find_runs, grouped

ROWS = [(0.1, 1, 100, 5.0), (0.2, 2, 200, 7.5)]


def test_the_table_has_a_row_for_each_policy_of_each_run():
    table = steve.load_results()
    assert table.columns.tolist() == [
        *("environment", "algorithm", "experiment"),
        *("seed", "frames", "score", "hours"),
    ]
    named = table[["environment", "experiment"]].drop_duplicates().agg("/".join, axis=1)
    folders = {path.parent for path in PROJECT.glob("results/*/*/hps.json")}
    assert {PROJECT / "results" / name for name in named} == folders
    assert table.notna().all(axis=None)
    runs = table.groupby(["environment", "algorithm", "seed"])
    assert len(runs) == len(list(PROJECT.glob("results/*/*/hps.json")))
    assert runs["frames"].apply(lambda frames: frames.is_unique).all()
    seeds = table.groupby(["environment", "algorithm"])["seed"].nunique()
    of_steve = list(PROJECT.glob("results/HalfCheetah-v1/steve[0-9]"))
    assert seeds["HalfCheetah-v1", "STEVE"] == len(of_steve)
    assert seeds["HalfCheetah-v1", "DDPG (ddpg_noexplore)"] == 3


def test_the_table_is_that_of_the_runs_that_are_here():
    """`python results/curves.py` writes it."""
    content = runpy.run_path(str(PROJECT / "results" / "curves.py"))["content"]
    assert content() == TABLE.read_bytes()


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (DDPG, {"DDPG", "MVE-TDk", "STEVE"}),
        (settings(), {"DDPG", "MVE-TDk", "STEVE", "MVE"}),
    ],
)
def test_references_are_of_the_same_environments_and_algorithms(
    tmp_path, content, names
):
    for name in ("HalfCheetah-v1", "Other-v0"):
        write_experiment(tmp_path / name / "a0", ROWS, content, environment=name)
    runs = find_runs([tmp_path])
    references = reference_runs(runs)
    assert {run.environment for run in references} == {"HalfCheetah-v1"}
    assert str(references[0].path.parent) == "results/HalfCheetah-v1/ddpg0"
    groups = {name for _, name in grouped([*runs, *references], "algorithm")}
    assert groups > {f"{name} (results)" for name in names}
    assert len(groups) == len(names) + 1


def test_a_reference_has_its_algorithms_colour():
    styles = line_styles(["DDPG", "DDPG (results)"])
    assert styles["DDPG (results)"].pop("alpha") < 1
    assert styles["DDPG"] == styles["DDPG (results)"]
