"""Learning curves: by hand, against known distributions, and from noisy runs."""

import re

import numpy as np
import pandas as pd
import pytest
from support_results import DDPG, STEVE, write_experiment, write_noisy

from steve.analysis import curves
from steve.analysis.curves import (
    RANGE_RUNS,
    aggregate,
    curve,
    frames_to_reach,
    line,
    load_curves,
    reach_table,
    score_table,
)
from steve.analysis.loaded import load_runs
from steve.analysis.records import find_runs
from steve.util import UserError

SERIES = np.array([[10.0, 20, 20, 30], [1.0, 2, 4, 6]])


# ---- One run ------------------------------------------------------------------------


def test_a_curve_by_hand():
    at = np.array([5.0, 10, 19, 20, 29, 30, 40, 41])
    known = [np.nan, 1, 1, 7 / 3, 7 / 3, 4, 4, np.nan]  # (1+2+4)/3, (2+4+6)/3
    np.testing.assert_allclose(curve(SERIES, at, 10.0), known)


def test_a_curve_ends_where_its_run_did_whatever_the_window():
    """No further behind its last score than from one score to the next: 10."""
    at = np.array([30.0, 40, 41, 60])
    np.testing.assert_allclose(
        curve(SERIES, at, 100.0), [13 / 4, 13 / 4, np.nan, np.nan]
    )
    single = SERIES[:, :1]
    np.testing.assert_allclose(curve(single, np.array([10.0, 11]), 100.0), [1, np.nan])


def test_without_smoothing_a_curve_is_the_mean_of_the_last_policy():
    at = np.array([10.0, 15, 20, 25, 30])
    np.testing.assert_allclose(curve(SERIES, at, 0.0), [1, 1, 3, 3, 6])


def test_a_line_is_straight_between_measurements():
    at = np.array([5.0, 10, 15, 20, 25, 30, 40, 41])
    drawn = [np.nan, 1, 2, 3, 4.5, 6, np.nan, np.nan]  # 3: the mean of 2 and 4
    np.testing.assert_allclose(line(SERIES, at, 0.0), drawn)
    drawn = [np.nan, 1, 5 / 3, 7 / 3, 19 / 6, 4, 4, np.nan]
    np.testing.assert_allclose(line(SERIES, at, 10.0), drawn)


def test_a_policy_has_one_weight_however_many_episodes_it_has(tmp_path):
    rows = [(0.1, 1, 100, 0.0), (0.2, 2, 200, 3.0), *[(0.2, 2, 200, 9.0)] * 5]
    write_experiment(tmp_path / "a0", rows)
    (run,) = find_runs([tmp_path])
    table = score_table([run], at=[200], smooth=1.0)
    assert table["mean"].tolist() == [4.0]  # of 0 and (3 + 5 x 9) / 6


@pytest.mark.parametrize("window", [0.0, 0.1, 0.5])
def test_a_curve_never_contains_a_later_score(window):
    rng = np.random.default_rng(0)
    x, y = np.sort(rng.random(50)), rng.random(50)
    before = np.linspace(0, x[30], 40, endpoint=False)
    changed = np.where(np.arange(50) < 30, y, 1e9)
    np.testing.assert_array_equal(
        curve(np.stack([x, changed]), before, window),
        curve(np.stack([x, y]), before, window),
    )


# ---- Runs together ------------------------------------------------------------------


def test_mean_and_interquartile_mean_by_hand():
    row = aggregate(np.array([[1.0], [2], [3], [100]])).iloc[0]
    assert (row["seeds"], row["mean"], row["iqm"]) == (4, 26.5, 2.5)
    # Of three runs, none could be left out on either side.
    assert np.isnan(aggregate(np.array([[1.0], [2], [3]]))["iqm"][0])


def test_the_interval_of_two_runs_is_their_range():
    # The mean of two draws is 0 or 10 with probability 1/4 each.
    row = aggregate(np.array([[0.0], [10.0]])).iloc[0]
    assert (row["low"], row["mean"], row["high"]) == (0, 5, 10)


def test_the_interval_of_many_runs_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(5.0, 2.0, (400, 3))
    table = aggregate(values)
    half = 1.96 * values.std(0) / np.sqrt(400)
    np.testing.assert_allclose(table["high"] - table["mean"], half, rtol=0.1)
    np.testing.assert_allclose(table["mean"] - table["low"], half, rtol=0.1)


def test_a_single_run_has_no_interval_and_equal_runs_have_a_point():
    single = aggregate(np.array([[3.0, 4.0]]))
    assert single["mean"].tolist() == [3, 4]
    assert single[["low", "high", "iqm"]].isna().all(axis=None)
    equal = aggregate(np.full((4, 2), 1000.0))
    assert (equal[["mean", "low", "high", "iqm"]] == 1000).all(axis=None)


def test_where_runs_miss_there_is_the_mean_of_the_others_alone():
    table = aggregate(np.array([[1.0, 1, np.nan], [2, np.nan, np.nan], [3, 3, np.nan]]))
    assert table["seeds"].tolist() == [3, 2, 0]
    np.testing.assert_array_equal(table["mean"], [2, 2, np.nan])
    assert table["low"].notna().tolist() == [True, False, False]


# ---- Folders ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """STEVE and DDPG with four seeds each on A-v0, STEVE with one on B-v0."""
    root = tmp_path_factory.mktemp("results")
    for seed in range(4):
        same = {"seed": seed, "environment": "A-v0", "suffix": ".gz"}
        write_noisy(root / "A-v0" / f"steve{seed}", STEVE, **same)
        write_noisy(root / "A-v0" / f"ddpg{seed}", DDPG, half=70_000, **same)
    one = {"seed": 0, "environment": "B-v0", "frames": 50_000}
    write_noisy(root / "B-v0" / "steve0", STEVE, **one)
    return root


def test_the_curves_of_a_folder_follow_what_its_runs_are_made_of(noisy):
    table = load_curves(noisy)
    assert isinstance(table, pd.DataFrame)
    assert table.columns.tolist() == [
        "environment", "algorithm", "frames", "seeds", "mean", "low", "high", "iqm",
    ]  # fmt: skip
    groups = table.groupby(["environment", "algorithm"])
    assert groups["seeds"].max().to_dict() == {
        ("A-v0", "DDPG"): 4,
        ("A-v0", "STEVE"): 4,
        ("B-v0", "STEVE"): 1,
    }
    assert groups["frames"].max().tolist() == [100_000, 100_000, 50_000]
    steve, ddpg = (
        groups.get_group(("A-v0", name)).set_index("frames")
        for name in ("STEVE", "DDPG")
    )
    for half, group in ((40_000, steve), (70_000, ddpg)):
        assert abs(group.loc[half, "mean"] - 2500) < 1000  # best 5000, seeds +-12%
        inside = group["mean"].between(group["low"], group["high"])
        assert inside.all()
        assert group.index.min() == 10_000  # nothing before the first evaluation
    assert steve.loc[50_000, "low"] > ddpg.loc[50_000, "high"]


def test_other_axes_quantities_and_groups(noisy):
    hours = load_curves(noisy, x="hours", points=11)
    ends = hours.groupby("algorithm")["hours"].max()
    assert ends["STEVE"] > 3 * ends["DDPG"]
    updates = load_curves(noisy, x="updates", quantity="q_loss", group_by="experiment")
    assert set(updates["algorithm"]) == {"ddpg", "steve"}
    usage = load_curves(noisy, quantity="model_usage", smooth=0.0)
    assert set(usage["algorithm"]) == {"STEVE"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"x": "frame"}, "x must be frames or hours or updates, not 'frame'"),
        ({"group_by": "seed"}, "group_by must be algorithm or experiment, not 'seed'"),
        ({"smooth": -1.0}, "smooth must be between 0 and 1, not -1.0"),
        ({"smooth": 7}, "smooth must be between 0 and 1, not 7"),
        ({"points": 1}, "points must be at least 2, not 1"),
        ({"quantity": "frames"}, "quantity and x are both 'frames'"),
        (
            {"quantity": "q_los"},
            "no run has measured 'q_los'; there are model_usage, policy_loss, q_loss,",
        ),
    ],
)
def test_an_argument_of_another_value_is_one_line(noisy, given, said):
    with pytest.raises(UserError, match=f"^{re.escape(said)}"):
        load_curves(noisy, **given)


@pytest.mark.parametrize("load", [load_curves, load_runs])
def test_a_list_in_place_of_folders_is_a_mistake(noisy, load):
    with pytest.raises(UserError, match="give folders one by one, not as a list"):
        load([noisy])


def test_a_run_that_has_just_begun_has_measured_nothing(tmp_path):
    write_experiment(tmp_path / "a0", [])
    with pytest.raises(UserError, match=r"measured 'score'; there is nothing yet"):
        load_curves(tmp_path)


@pytest.mark.parametrize("load", [load_curves, load_runs, find_runs])
def test_without_a_folder_nothing_is_read(load):
    folders = [()] if load is find_runs else []
    with pytest.raises(UserError, match="name a folder of experiments"):
        load(*folders)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_interval_of_up_to_three_runs_is_their_range(count):
    values = np.arange(count, dtype=float)[:, None] ** 2
    (row,) = aggregate(values).itertuples()
    is_range = [row.low, row.high] == [values.min(), values.max()]
    assert is_range == (count <= RANGE_RUNS)


def test_a_score_is_reached_by_a_whole_window(tmp_path):
    """The first evaluation alone is above; windows are of 20 frames, then below."""
    scores = (50, 0, 10, 40, 40, 40)
    rows = [(i, i, 10 * i, score) for i, score in enumerate(scores, 1)]
    write_experiment(tmp_path / "run0", rows)
    (run,) = find_runs([tmp_path])
    assert frames_to_reach(run, 30, 20) == 50
    assert frames_to_reach(run, 41, 20) == np.inf
    table = reach_table([run], 30, smooth=20 / 60)
    assert table[["reached", "frames"]].to_numpy().tolist() == [[1, 50]]


def test_what_a_reader_should_know_is_a_warning(tmp_path):
    for name in ("a0", "a1"):
        write_experiment(tmp_path / name, [(0.1, 1, 100, 1.0)], seed=7)
    with pytest.warns(UserWarning, match="a seed occurs twice"):
        load_curves(tmp_path)


def test_runs_without_evaluations_do_not_disturb_the_others(tmp_path):
    write_experiment(tmp_path / "a0", [(0.1, 1, 100, 3.0)])
    write_experiment(tmp_path / "a1", [], seed=1)
    with pytest.warns(UserWarning, match="no evaluation"):
        assert load_curves(tmp_path)["mean"].unique().tolist() == [3.0]


# ---- Tables -------------------------------------------------------------------------


def two_runs(tmp_path):
    """Scores 10, 20, 30, .. and 0, 10, 20, .. at 100, 200, .. frames, hours 0.1 .."""
    for seed in range(2):
        rows = [(n / 10, n, 100 * n, 10.0 * (n - seed)) for n in range(1, 11 - seed)]
        write_experiment(tmp_path / f"a{seed}", rows, seed=seed)
    return find_runs([tmp_path])


def test_the_table_of_scores_by_hand(tmp_path):
    table = score_table(two_runs(tmp_path), at=[50, 200, 450, 1000], smooth=0.0)
    assert table["frames"].tolist() == [50, 200, 450, 1000]
    assert (table["runs"] == 2).all()
    assert table["seeds"].tolist() == [0, 2, 2, 1]
    np.testing.assert_allclose(table["mean"], [np.nan, 15, 35, 100])
    np.testing.assert_allclose(table["low"], [np.nan, 10, 30, np.nan])
    np.testing.assert_allclose(table["hours"], [np.nan, 0.2, 0.45, 1.0])


def test_the_window_reaches_back_in_the_table_too(tmp_path):
    table = score_table(two_runs(tmp_path), at=[500], smooth=0.2)  # 200 frames back
    assert table["mean"].tolist() == [35.0]  # of 30, 40, 50 and 20, 30, 40


def test_default_frame_counts_are_those_that_all_runs_have(tmp_path):
    runs = two_runs(tmp_path)
    assert curves.default_frames(runs, "Chain-v0") == [220, 450, 900]
    assert (score_table(runs)["seeds"] == 2).all()


def test_frames_and_hours_to_a_score_are_medians(tmp_path):
    runs = two_runs(tmp_path)
    row = reach_table(runs, 45.0, smooth=0.0).iloc[0]  # at 500 and 600 frames
    assert (row["runs"], row["reached"], row["frames"]) == (2, 2, 550)
    assert row["hours"] == pytest.approx(0.55)


def test_a_run_that_never_reaches_a_score_counts_as_infinitely_long(tmp_path):
    runs = two_runs(tmp_path)
    row = reach_table(runs, 95.0, smooth=0.0).iloc[0]
    assert (row["reached"], row["frames"], row["hours"]) == (1, np.inf, np.inf)
    rows = [(n / 10, n, 100 * n, 10.0 * n) for n in range(1, 11)]
    write_experiment(tmp_path / "a2", rows, seed=2)
    row = reach_table(find_runs([tmp_path]), 95.0, smooth=0.0).iloc[0]
    assert (row["reached"], row["frames"]) == (2, 1000)


@pytest.fixture
def unequal(tmp_path):
    """Scores that are the frames: STEVE to 400, DDPG to 200, and 50 elsewhere."""
    for name, content, environment, ends in (
        ("steve0", STEVE, "Chain-v0", (100, 200, 300, 400)),
        ("ddpg0", DDPG, "Chain-v0", (100, 200)),
        ("other0", DDPG, "Other-v0", (50,)),
    ):
        rows = [(end / 1000, n, end, float(end)) for n, end in enumerate(ends, 1)]
        write_experiment(tmp_path / name, rows, content, environment=environment)
    return find_runs([tmp_path])


def test_windows_and_places_are_those_of_the_environments_longest_run(unequal):
    chain = [run for run in unequal if run.environment == "Chain-v0"]
    table = score_table(chain, at=[200], smooth=0.25)  # 100 frames back for both
    assert table["mean"].tolist() == [150.0, 150.0]
    reached = reach_table(chain, 160.0, smooth=0.25)
    assert reached["frames"].tolist() == [np.inf, 300.0]
    drawn = curves.aggregated_curves(chain, smooth=0.25, points=5)
    assert drawn.groupby("algorithm")["frames"].max().to_dict() == {
        "DDPG": 200,
        "STEVE": 400,
    }


def test_a_group_that_ends_early_has_places_of_its_own(tmp_path):
    """Between two of the longest run's there would be none."""
    for name, content, scale in (("steve0", STEVE, 1000), ("ddpg0", DDPG, 1)):
        rows = [(n, n, n * scale, float(n)) for n in range(1, 11)]
        write_experiment(tmp_path / name, rows, content)
    drawn = curves.aggregated_curves(find_runs([tmp_path]), smooth=0.0, points=101)
    steve, ddpg = (drawn[drawn["algorithm"] == name] for name in ("STEVE", "DDPG"))
    assert steve["frames"].max() == 10_000
    assert 40 < len(ddpg) <= 101
    assert ddpg["frames"].max() > 9.8
    assert set(ddpg["frames"]) & set(steve["frames"]) == set()


def test_default_frame_counts_are_those_of_the_environment(unequal):
    assert curves.default_frames(unequal, "Chain-v0") == [50, 100, 200]
    assert curves.default_frames(unequal, "Other-v0") == [12, 25, 50]


def test_single_curves_are_smoothed_too(unequal):
    table = curves.single_curves(unequal, smooth=1.0, points=2)
    ends = table[table["frames"] == 400]
    assert ends["value"].tolist() == [250.0]  # of 100, 200, 300 and 400
