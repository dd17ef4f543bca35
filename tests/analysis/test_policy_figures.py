"""The figures of a policy and its nets."""

import numpy as np
import pytest

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
    said = [[text.get_text() for text in axes.texts] for axes in panels]
    assert "error without a model: 0" in said[2]
    assert "error without a model: 0" not in said[0] + said[1]
