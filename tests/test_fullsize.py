"""results/fullsize.py: runs at full size next to a third party's, with made-up runs."""

import math

import numpy as np
import pandas as pd
import pytest
from support import PROJECT
from support_results import DDPG, MVE_TDK, STEVE, write_csv, write_experiment

from steve.util import UserError

KEYS = ("environment", "algorithm", "frames", "mean", "std", "seeds")


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT / "results"))
    import fullsize

    return fullsize


def write_run(folder, name, value, *, seed=0, until=100_000, acting=None, content=DDPG):
    """A run whose greedy scores, and those of its actor, are the same everywhere."""
    frames = range(10_250, until + 1, 250)
    rows = [(x / 1e6, i, x, value) for i, x in enumerate(frames)]
    explores = 0.05 if "noexplore" not in name else 0
    policy = {**content["policy_config"], "explore_chance": explores}
    content = content | {"policy_config": policy}
    path = write_experiment(
        folder / "HalfCheetah-v1" / name,
        rows,
        content,
        seed=seed,
        environment="HalfCheetah-v1",
    )
    if acting is not None:
        ends = [x + i for x in range(8000, until + 1, 8000) for i in range(-7, 1)]
        rows = [(x, acting) for x in ends]
        write_csv(path.with_name(f"{name}.acting.csv"), ("frames", "score"), rows)
    return path


def theirs(*values, algorithm="DDPG", std=2.0, seeds=4) -> pd.DataFrame:
    places = zip((25_000, 50_000, 75_000, 100_000), values, strict=False)
    rows = [("HalfCheetah-v2", algorithm, x, y, std, seeds) for x, y in places]
    return pd.DataFrame(rows, columns=KEYS)


def test_the_third_partys_numbers_are_those_of_ten_seeds_at_four_points(program):
    table = program.third_party()
    assert len(table) == 2 * 3 * 4
    first = table.set_index(["environment", "algorithm", "frames"])
    assert first.loc["HalfCheetah-v2", "STEVE", 25_000].tolist() == [1492, 612, 10]
    assert set(table.loc[table["seeds"] == 6, "algorithm"]) == {"STEVE"}


def test_intervals_by_hand(program):
    """t(0.975; 3) = 3.1824; four values with deviation 2."""
    assert program.interval(10, 2, 4) == pytest.approx((6.8176, 13.1824), abs=1e-4)
    half = 3.1824 * 2 * math.sqrt(1 / 4 + 1)
    low, high = program.interval(10, 2, 4, 1)
    assert (low, high) == pytest.approx((10 - half, 10 + half), abs=1e-3)
    assert np.isnan(program.interval(10, math.nan, 1)).all()


def test_p_is_the_share_of_repeats_that_lie_as_far_from_theirs(program):
    half = program.interval(0, 2, 4, 3)[1]
    assert program.chance(half, 2, 4, 3) == pytest.approx(0.05)
    assert program.chance(-half, 2, 4, 3) == pytest.approx(0.05)
    assert program.chance(0, 2, 4, 3) == pytest.approx(1)
    assert program.chance(5, 2, 4, 1) < program.chance(4, 2, 4, 1)


def test_the_difference_that_shows_has_a_small_p_in_80_of_100_repeats(program):
    rng, count, more, repeats = np.random.default_rng(0), 10, 3, 20_000
    theirs = rng.normal(0, 1, (repeats, count))
    shift = program.detectable(1.0, count, more)
    ours = rng.normal(shift, 1, (repeats, more)).mean(axis=1)
    spread = theirs.std(axis=1, ddof=1)
    half = np.array([program.interval(0, 1, count, more)[1]]) * spread
    found = np.abs(ours - theirs.mean(axis=1)) > half
    assert found.mean() == pytest.approx(0.8, abs=0.01)
    assert program.detectable(2.0, count, more) == pytest.approx(2 * shift)


def test_values_of_each_seed_are_compared_with_theirs(program, tmp_path):
    for seed, value in enumerate((9.0, 11.0)):
        name = f"full_ddpg_noexplore{seed}"
        write_run(tmp_path, name, value, seed=seed, acting=value - 20)
    rows = program.compared(theirs(10.0), program.fullsize_runs([tmp_path]))
    assert rows["kind"].tolist() == ["acting", "greedy"]
    acting, greedy = rows.to_dict("records")
    assert (acting["mean"], acting["each"]) == (-10.0, "-11.0 -9.0")
    assert (greedy["mean"], greedy["seeds"]) == (10.0, 2)
    assert acting["p"] < 0.01
    assert acting["mean"] < acting["expected_low"]
    # Their returns are acting ones: greedy scores are not tested against them.
    assert np.isnan([greedy["p"], greedy["expected_low"], greedy["shows"]]).all()


def test_a_run_counts_as_far_as_it_has_come(program, tmp_path):
    write_run(tmp_path, "full_ddpg_noexplore0", 1.0, until=25_000, acting=2.0)
    write_run(tmp_path, "full_ddpg_noexplore1", 3.0, seed=1, until=24_000, acting=4.0)
    runs = program.fullsize_runs([tmp_path])
    rows = program.compared(theirs(0.0, 0.0), runs)
    assert rows["seeds"].tolist() == [1, 1, 0]
    # Its last episodes ended at 24,000, and it went on to 25,000.
    assert rows["mean"].tolist()[:2] == [2.0, 1.0]
    assert 0 < rows["p"][0] < 1  # of one seed, too
    assert rows["p"][1:].isna().all()
    printed = program.table(rows)
    assert "| HalfCheetah | DDPG | 50,000 | 0 [-3, 3] | - | 0 | - | - |" in printed


def test_a_run_in_two_folders_is_not_two_seeds(program, tmp_path):
    for folder in ("one", "two"):
        write_run(tmp_path / folder, "full_ddpg_noexplore0", 1.0)
    with pytest.raises(UserError, match=r"two/.* and .*one/.* are of one run"):
        program.fullsize_runs([tmp_path])


@pytest.mark.parametrize("name", ["full_ddpg0", "full_ddpg_noexplore0"])
def test_where_nothing_can_be_tested_there_is_a_table(program, tmp_path, name):
    """One explores, and of the other there are no acting returns."""
    write_run(tmp_path, name, 1.0)
    printed = program.table(
        program.compared(theirs(0.0), program.fullsize_runs([tmp_path]))
    )
    assert printed.endswith("| 1 | 1 (1) | - | - | - | - |")


def test_runs_that_explore_and_other_algorithms_are_kept_apart(program, tmp_path):
    write_run(tmp_path, "full_ddpg_noexplore0", 1.0)
    write_run(tmp_path, "full_ddpg0", 2.0)
    write_run(tmp_path, "full_mve_tdk_noexplore0", 3.0, content=MVE_TDK)
    write_run(tmp_path, "full_steve_noexplore0", 4.0, content=STEVE)
    write_run(tmp_path, "ddpg_noexplore0", 5.0)  # of a smaller size
    runs = program.fullsize_runs([tmp_path])
    rows = pd.concat(
        program.compared(theirs(0.0, algorithm=name), runs)
        for name in ("DDPG", "MVE-TDk", "STEVE")
    )
    assert rows["mean"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert rows["explores"].tolist() == [False, True, False, False]


@pytest.mark.parametrize("runs", [0, 2])
def test_table_and_figure_are_made_of_whatever_is_there(
    program, tmp_path, capsys, runs
):
    for seed in range(runs):
        name = f"full_steve_noexplore{seed}"
        write_run(tmp_path, name, 1500.0, seed=seed, acting=1.0, content=STEVE)
    write_run(tmp_path, "ddpg0", 5.0)
    out = tmp_path / "figure.svg"
    program.run([tmp_path], out)
    printed = capsys.readouterr().out
    assert f"{runs} runs of ours" in printed
    # These have no log of their learner.
    estimates = "| HalfCheetah-v1 | full_steve_noexplore | - | - |"
    assert (estimates in printed) == bool(runs)
    drawn = out.read_text()
    assert ("ours, each seed: acting" in drawn) == bool(runs)
    assert "HalfCheetah, MVE-TDk" in drawn
    written = pd.read_csv(tmp_path / "figure_table.csv")
    assert len(written) == 24 + (4 if runs else 0)
