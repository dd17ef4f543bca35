"""results/toy.py: the toy chain next to the numbers of the 2018 release's script."""

import pandas as pd
import pytest
from support import PROJECT
from support_results import write_csv

from steve.util import UserError

RESULTS = PROJECT / "results"
TITLES = ("basic_q", "mve_oracle", "steve_oracle", "mve_noisy", "steve_noisy")


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(str(RESULTS))
    import toy

    return toy


@pytest.fixture
def theirs(program):
    return pd.read_csv(program.THEIRS, comment="#")


def write_demo(folder, updates: int = 600) -> None:
    """toy_demo's output: the error falls by 1 at each update, from 560.5 on."""
    folder.mkdir()
    for title in TITLES:
        rows = [(u, 560.5 - u, 2.0, 0, 0, 0) for u in range(1, updates + 1)]
        header = ("update", "mean", "std", "trial_0", "trial_1", "trial_2")
        write_csv(folder / f"{title}.csv", header, rows)


def test_the_readme_has_the_table_of_what_is_kept(program, theirs):
    """`python results/toy.py` prints it; paste it when the curves are made again."""
    ours = pd.read_csv(RESULTS / "toy.csv")
    readme = (RESULTS / "README.md").read_text()
    assert program.table(ours, theirs) in readme
    assert program.largest_difference(ours, theirs) in " ".join(readme.split())


def test_what_is_kept_agrees_with_the_2018_script(program, theirs):
    """No pair of means is further apart than chance explains for one of 32."""
    ours = pd.read_csv(RESULTS / "toy.csv")
    words = program.largest_difference(ours, theirs).split()
    assert float(words[words.index("standard") - 1]) < 3
    for learner, there in program.FIRST_2018.items():
        here = program.first_below(ours, learner)
        assert (here is None) == (there is None)
        assert here is None or here == pytest.approx(there, rel=0.03)


def test_the_first_update_below_1_is_kept_exactly(program, theirs, tmp_path):
    write_demo(tmp_path / "demo")
    kept = program.kept_curves(tmp_path / "demo", theirs)
    one = kept[kept["learner"] == "STEVE-noisy"]
    assert one["update"].tolist() == [1, *range(50, 600, 50), 560, 600]
    assert one["trials"].unique().tolist() == [3]
    assert program.first_below(kept, "STEVE-noisy") == 560  # 0.5


def test_a_call_keeps_curves_and_draws_them_with_2018s(program, tmp_path, capsys):
    write_demo(tmp_path / "demo")
    program.run(tmp_path / "demo", tmp_path / "results")
    rows = capsys.readouterr().out.splitlines()
    assert rows[2].startswith("| 1 | 560 +- 2 / 1,615 +- 132 |")
    assert [row.split(" |")[0] for row in rows[3:5]] == ["| 500", "| first below 1"]
    drawn = tmp_path / "results" / "figures" / "toy.png"
    before = drawn.read_bytes()
    program.run(None, tmp_path / "results")
    assert drawn.read_bytes() == before


@pytest.mark.parametrize("what", ["trials", "update"])
def test_curves_of_less_do_not_replace_those_that_are_kept(program, tmp_path, what):
    write_demo(tmp_path / "demo")
    program.run(tmp_path / "demo", tmp_path / "results")
    path = tmp_path / "results" / "toy.csv"
    there = pd.read_csv(path)
    there[what] += 1
    there.to_csv(path, index=False)
    before = path.read_bytes()
    with pytest.raises(UserError, match="--to FOLDER"):
        program.run(tmp_path / "demo", tmp_path / "results")
    assert path.read_bytes() == before


def test_another_folder_is_refused_in_one_line(program, theirs, tmp_path):
    with pytest.raises(UserError, match=r"basic_q\.csv"):
        program.kept_curves(tmp_path, theirs)
    write_demo(tmp_path / "demo")
    path = tmp_path / "demo" / "basic_q.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:5], *lines[6:], ""]))
    with pytest.raises(UserError, match="updates 1, 2"):
        program.kept_curves(tmp_path / "demo", theirs)
