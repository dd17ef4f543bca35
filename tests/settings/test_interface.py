"""What lies between an environment and the nets."""

import math

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
