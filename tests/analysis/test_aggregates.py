"""Statistics over environments: by hand, and next to the library rliable."""

import json
from functools import partial

import numpy as np
import pytest
from support import PROJECT
from support_results import DDPG, STEVE, write_experiment

from steve.analysis import aggregates
from steve.analysis.aggregates import (
    interval,
    iqm,
    over_environments,
    probability_of_improvement,
    profile,
)
from steve.analysis.curve_figures import aggregate_figure
from steve.analysis.records import find_runs
from steve.util import UserError

ONE = [np.array([0.0, 1.0]), np.array([2.0, 30.0])]


def test_the_interquartile_mean_is_of_all_runs_together():
    assert iqm(ONE) == 1.5  # of 0, 1, 2, 30: the middle half is 1 and 2
    assert aggregates.mean(ONE) == 8.25  # of 0.5 and 16


def test_a_run_above_the_goal_does_not_make_up_for_another():
    # of 1, 0 and of 0, 0
    assert aggregates.optimality_gap(ONE) == 0.25
    assert aggregates.optimality_gap(ONE, goal=3.0) == 1.5  # of 3, 2 and of 1, 0


def test_a_profile_is_the_mean_share_above_each_score():
    at = np.array([-1.0, 0.0, 1.5, 30.0])
    # 2 of 2 and 2 of 2; 1 and 2; 0 and 2; 0 and 0
    np.testing.assert_array_equal(profile(ONE, at), [1, 0.75, 0.5, 0])


def test_environments_count_alike_in_the_probability_of_improvement():
    ours = [np.array([1.0, 3.0]), np.array([5.0])]
    theirs = [np.array([2.0, 3.0]), np.array([5.0, 6.0, 7.0, 8.0])]
    # (0 + 0 + 1 + 1/2) / 4 and (1/2 + 0 + 0 + 0) / 4
    assert probability_of_improvement(ours, theirs) == pytest.approx(0.25)
    assert probability_of_improvement(theirs, ours) == pytest.approx(0.75)
    assert probability_of_improvement(ours, ours) == 0.5


def test_the_bootstrap_draws_within_each_environment():
    apart = [np.zeros(4), np.ones(4)]
    assert interval(aggregates.mean, apart) == (0.5, 0.5)
    # Drawn from both together, the mean would be anything from 0 to 1.


def test_the_interval_of_many_runs_is_that_of_the_normal_distribution():
    rng = np.random.default_rng(1)
    scores = [rng.normal(0.0, 2.0, 400), rng.normal(1.0, 1.0, 100)]
    low, high = interval(aggregates.mean, scores)
    deviation = np.sqrt(sum(each.var() / len(each) for each in scores)) / 2
    half = 1.96 * deviation
    np.testing.assert_allclose([high - low], [2 * half], rtol=0.1)


@pytest.fixture(scope="module")
def rliable():
    """Scores of A and B, and what rliable computes from them (README.md there)."""
    return json.loads((PROJECT / "tests/data/aggregates/rliable.json").read_text())


def scores_of(rliable, name):
    return list(np.transpose(rliable["scores"][name]))  # [runs] of each environment


@pytest.mark.parametrize("name", ["A", "B"])
def test_point_estimates_are_those_of_rliable(rliable, name):
    scores = scores_of(rliable, name)
    np.testing.assert_allclose(iqm(scores), rliable["iqm"][name])
    np.testing.assert_allclose(aggregates.mean(scores), rliable["mean"][name])
    gap = aggregates.optimality_gap(scores)
    np.testing.assert_allclose(gap, rliable["gap"][name])
    shares = profile(scores, np.array(rliable["at"]))
    np.testing.assert_allclose(shares, rliable["profile"][name])


def test_the_probability_of_improvement_is_that_of_rliable(rliable):
    pair = scores_of(rliable, "A"), scores_of(rliable, "B")
    ours = probability_of_improvement(*pair)
    np.testing.assert_allclose(ours, rliable["improvement"])


def assert_one_of(ours, theirs):
    """Both ends of an interval lie among those that rliable has with other seeds.

    Args:
        ours: [2, ...].
        theirs: [seeds, 2, ...], with as many resamples.
    """
    theirs = np.array(theirs)
    off = np.abs(np.array(ours).reshape(theirs[0].shape) - theirs.mean(0))
    assert (off <= 4 * theirs.std(0) + 1e-9).all()


@pytest.mark.parametrize("name", ["A", "B"])
def test_intervals_are_those_of_rliable(rliable, name):
    scores = scores_of(rliable, name)
    assert_one_of(interval(iqm, scores), rliable["iqm_intervals"][name])
    shares = partial(profile, at=np.array(rliable["at"]))
    assert_one_of(interval(shares, scores), rliable["profile_intervals"][name])


def test_the_interval_of_the_probability_of_improvement_is_that_of_rliable(rliable):
    pair = scores_of(rliable, "A"), scores_of(rliable, "B")
    ours = interval(probability_of_improvement, *pair)
    assert_one_of(ours, rliable["improvement_intervals"])


@pytest.fixture
def runs(tmp_path):
    """STEVE is at 10 + seed on A and 1 on B, DDPG at 5 on A and has no run on B."""
    for seed in range(2):
        for folder, content, environment, score in (
            ("a/steve", STEVE, "A-v0", 10.0 + seed),
            ("b/steve", STEVE, "B-v0", 1.0),
            ("a/ddpg", DDPG, "A-v0", 5.0),
        ):
            rows = [(0.1, 1, 100, score)]
            path = tmp_path / f"{folder}{seed}"
            write_experiment(path, rows, content, seed=seed, environment=environment)
    return find_runs([tmp_path])


def test_scores_are_normalised_by_the_references(runs):
    over = over_environments(runs, {"A-v0": (0.0, 10.0)})
    table = over.scores.set_index("algorithm")
    assert table["runs"].to_dict() == {"DDPG": 2, "STEVE": 2}
    assert table.loc["DDPG", ["iqm", "low", "high", "mean"]].tolist() == [0.5] * 4
    row = table.loc["STEVE"]
    assert row[["low", "iqm", "high"]].tolist() == pytest.approx([1.0, 1.05, 1.1])
    better = over.improvement.set_index(["algorithm", "than"])["probability"]
    assert better.to_dict() == {("DDPG", "STEVE"): 0.0, ("STEVE", "DDPG"): 1.0}
    assert len(aggregate_figure(over).axes) == 2


def test_a_run_without_a_score_by_then_is_named(tmp_path):
    write_experiment(tmp_path / "short0", [(0.1, 1, 100, 1.0), (0.2, 2, 200, 2.0)])
    write_experiment(tmp_path / "late0", [(0.1, 1, 900, 1.0), (0.2, 2, 1000, 2.0)])
    with pytest.raises(
        UserError, match=r"late0\.greedy\.csv has no score by 200 frames"
    ):
        over_environments(find_runs([tmp_path]), {"Chain-v0": (0.0, 1.0)})


def test_of_the_spread_of_a_single_run_nothing_is_said():
    single = [ONE[0], np.array([2.0])]
    for scores, statistic in (
        ((single,), iqm),
        ((ONE, single), probability_of_improvement),
    ):
        assert np.isnan(interval(statistic, *scores)).all()
    low, high = interval(lambda drawn: profile(drawn, np.arange(3.0)), single)
    assert np.isnan(low).all()
    assert low.shape == high.shape == (3,)


def test_only_algorithms_with_runs_on_all_environments_are_compared(runs):
    over = over_environments(runs, {"A-v0": (0.0, 10.0), "B-v0": (0.0, 2.0)})
    assert over.scores["algorithm"].tolist() == ["STEVE"]
    assert over.scores["mean"].tolist() == pytest.approx([(1.05 + 0.5) / 2])
    assert over.improvement.empty
    with pytest.raises(UserError, match="C-v0: no run"):
        over_environments(runs, {"C-v0": (0.0, 1.0)})


def test_the_low_reference_is_0_and_the_high_one_1(runs):
    over = over_environments(runs, {"A-v0": (5.0, 10.0)})
    table = over.scores.set_index("algorithm")
    assert table["mean"].to_dict() == pytest.approx({"DDPG": 0.0, "STEVE": 1.1})
    assert table["gap"].to_dict() == {"DDPG": 1.0, "STEVE": 0.0}
    assert over.profiles["score"].min() == 0.0


def test_negative_scores_are_in_the_profiles(runs):
    over = over_environments(runs, {"A-v0": (10.0, 20.0)})
    assert over.profiles["score"].min() == -0.5


def test_an_interval_of_improvement_is_around_its_probability(runs):
    improvement = over_environments(runs, {"A-v0": (0.0, 10.0)}).improvement
    assert improvement[["low", "high"]].to_numpy().tolist() == [[0, 0], [1, 1]]


def test_the_window_is_a_share_of_the_longest_run(tmp_path):
    write_experiment(tmp_path / "a0", [(0.1, 1, 100, 1.0), (0.2, 2, 200, 3.0)])
    longer = [(0.1, 1, 100, 1.0), (0.2, 2, 200, 3.0), (0.3, 3, 400, 9.0)]
    write_experiment(tmp_path / "a1", longer, seed=1)
    over = over_environments(
        find_runs([tmp_path]), {"Chain-v0": (0.0, 1.0)}, smooth=0.25
    )
    assert over.scores["mean"].tolist() == [2.0]  # 100 frames back: of 1 and 3
