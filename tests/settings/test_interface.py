"""What lies between an environment and the nets."""

import math

import numpy as np
import pytest

from steve.settings.interface import Interface, Leaf


def interface(low, high, rescale=False):
    return Interface((Leaf((), 3),), (low,), (high,), (1,), "float32", rescale, 0.0)


@pytest.mark.parametrize(
    ("low", "high"), [(-2000, 2000), (-2, 2), (0, 10), (5, 10), (-0.01, 0.01)]
)
def test_a_box_that_actions_do_not_span_is_noted_with_reach_and_key(low, high):
    note = interface(low, high).reach_note()
    assert (
        f"actions are in [-1, 1], but the environment's box is [{low}, {high}]" in note
    )
    assert "env.rescale_actions" in note
    assert interface(low, high, rescale=True).reach_note() is None


@pytest.mark.parametrize(
    ("low", "high"),
    [(-1, 1), (-0.4, 0.4), (0, 1), (-1, 2), (-math.inf, math.inf), (0, math.inf)],
)
def test_the_papers_boxes_and_unbounded_ones_are_not(low, high):
    assert interface(low, high).reach_note() is None


@pytest.mark.parametrize("rescale", [False, True])
def test_actions_come_back_from_the_environments_units(rescale):
    there = interface(0, 10, rescale)
    actions = np.array([[0.0], [0.25], [1.0]], np.float32)
    assert there.from_env(there.to_env(actions)).tolist() == actions.tolist()
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        there.from_env(np.zeros((3, 2)))
