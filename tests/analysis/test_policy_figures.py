"""The figures of a policy and its nets."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from steve.analysis import policy_figures
from steve.analysis.inspection import EpisodeValues, Errors, ModelError


def judged_episode(length: int, members_agree: bool) -> EpisodeValues:
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(4), length)
    spread = np.zeros(length) if members_agree else np.ones(length)
    value = rng.random(length)
    return EpisodeValues(value, spread, 0.0, value, weights)


@pytest.mark.parametrize("members_agree", [True, False])
def test_only_an_ensemble_is_said_to_have_a_spread(members_agree):
    judged = judged_episode(5, members_agree)
    figure = policy_figures.episode_figure(judged, judged.value, judged.value, "title")
    labels = [line.get_label() for line in figure.axes[-1].lines]
    assert any("1 sd" in label for label in labels) != members_agree


def test_stacked_weights_cover_each_other_without_a_seam():
    judged = judged_episode(6, True)
    figure = policy_figures.episode_figure(judged, judged.value, judged.value, "title")
    bands = figure.axes[0].collections
    orders = [band.get_zorder() for band in bands]
    assert (np.diff(orders) < 0).all()  # w_0 is in front of all
    for h, band in enumerate(bands):
        box = band.get_paths()[0].get_extents()
        top = judged.weights[:, : h + 1].sum(1).max()
        np.testing.assert_allclose([box.x0, box.x1, box.y0, box.y1], [0, 6, 0, top])


def test_a_log_scale_names_the_lines_that_it_cannot_show():
    far_apart = np.array([1e-4, 1e-2])
    zero = Errors(far_apart, far_apart, np.zeros(2))
    other = Errors(far_apart, far_apart, far_apart)
    errors = ModelError(other, other, zero, np.array([9, 9]))
    panels = policy_figures.model_error_figure(errors, 3).axes
    said = [axes.get_title().splitlines() for axes in panels]
    assert "error without a model: 0" in said[2]
    assert "error without a model: 0" not in said[0] + said[1]


@pytest.mark.parametrize("count", [4, 16, 21])
def test_the_panels_keep_their_height_whatever_the_horizon(count):
    rng = np.random.default_rng(0)
    value = rng.random(200)
    judged = EpisodeValues(
        value, value, 0.0, value, rng.dirichlet(np.ones(count), len(value))
    )
    figure = policy_figures.episode_figure(judged, value, value, "title")
    FigureCanvasAgg(figure).draw()
    heights = [axes.get_window_extent().height for axes in figure.axes]
    np.testing.assert_allclose(heights, [164, 246], atol=12)
    legend = figure.axes[0].get_legend().get_window_extent()
    assert legend.y0 >= 0
    assert legend.y1 <= figure.bbox.height
    assert legend.x1 <= figure.bbox.width


def test_the_weights_of_a_long_episode_are_means_of_equal_shares():
    weights = np.tile([[1.0, 0.0], [0.0, 1.0]], (500, 1))
    value = np.zeros(1000)
    judged = EpisodeValues(value, value, 0.0, value, weights)
    axes = policy_figures.episode_figure(judged, value, value, "title").axes[0]
    assert axes.get_ylabel() == "weight,\nmean of 10 steps"
    box = axes.collections[0].get_paths()[0].get_extents()
    assert (box.x1, box.y1) == (1000, 0.5)


def test_weights_that_are_not_finite_do_not_hide_negative_ones():
    judged = judged_episode(6, True)
    weights = judged.weights.copy()
    weights[0], weights[1, :2] = np.nan, [-1.0, 2.0]
    judged = judged._replace(weights=weights)
    figure = policy_figures.episode_figure(judged, judged.value, judged.value, "title")
    assert len(figure.axes[0].lines) == weights.shape[1]
    assert not figure.axes[0].collections


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_line_that_is_not_finite_is_not_called_zero(value):
    broken = Errors(np.full(2, value), np.full(2, np.nan), np.ones(2))
    panels = policy_figures.model_error_figure(
        ModelError(broken, broken, broken, np.array([9, 9])), None
    ).axes
    assert not any(": 0" in axes.get_title() for axes in panels)


def test_a_line_of_zeros_is_named_on_a_linear_scale_too():
    near = np.array([1.0, 2.0])
    each = Errors(near, np.zeros(2), near)
    panels = policy_figures.model_error_figure(
        ModelError(each, each, each, np.array([9, 9])), None
    ).axes
    for axes in panels[:3]:
        assert len(axes.lines) == 2
        assert "spread of the members: 0" in axes.get_title().splitlines()
