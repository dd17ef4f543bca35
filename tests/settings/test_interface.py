"""What lies between an environment and the nets."""

import math
import re

import numpy as np
import pytest

from steve.settings.interface import Interface, Leaf, to_box


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


def test_where_the_bounds_are_equal_an_action_comes_back_as_a_finite_number():
    there = Interface(
        (Leaf((), 1, ()),), (-1.0, 0.5), (1.0, 0.5), (2,), "float32", True, 0.0
    )
    back = there.from_env(np.array([[0.0, 0.5]]))
    assert back.tolist() == [[0.0, -1.0]]
    assert there.to_env(back).tolist() == [[0.0, 0.5]]


def nested():
    leaves = Leaf(("a",), 3, (3,)), Leaf(("b", 1), 6, (2, 3))
    return Interface(leaves, (-1.0,), (1.0,), (1,), "float32", True, 0.0)


def matrix():
    return Interface(
        (Leaf((), 6, (1, 6)),), (-1.0,), (1.0,), (1,), "float32", True, 0.0
    )


def test_a_part_in_another_shape_is_no_batch_next_to_one_that_is_none():
    """`Contract` lets training take the same."""
    flat = nested().flatten({"a": np.ones((1, 3)), "b": (0, np.zeros((2, 3)))})
    assert flat.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("container", [tuple, list])
@pytest.mark.parametrize("count", [2, 3])
def test_the_parts_of_a_batch_may_be_in_a_tuple_or_a_list(container, count):
    leaves = Leaf((0,), 2, (2,)), Leaf((1,), 2, (2,))
    pair = Interface(leaves, (-1.0,), (1.0,), (1,), "float32", True, 0.0)
    batch = container([np.zeros((count, 2)), np.ones((count, 2))])
    assert pair.flatten(batch).tolist() == [[0, 0, 1, 1]] * count
    one = container([np.zeros(2), np.ones(2)])
    assert pair.flatten(one).tolist() == [0, 0, 1, 1]


def test_an_action_without_axes_is_an_array_too():
    action = to_box(np.array(0.5), np.array(-2.0), np.array(2.0), True)
    assert isinstance(action, np.ndarray)
    assert action == 1.0


@pytest.mark.parametrize(
    ("shape", "flat"),
    [((1, 6), (6,)), ((1, 1, 6), (1, 6)), ((2, 1, 6), (2, 6)), ((6,), (6,))],
)
def test_a_box_with_several_axes_is_told_from_a_batch_of_it(shape, flat):
    assert matrix().flatten(np.zeros(shape)).shape == flat
    assert Interface.from_json(matrix().to_json()) == matrix()


def test_without_shapes_an_interface_comes_back_too():
    assert Interface.from_json(interface(0, 1).to_json()) == interface(0, 1)


@pytest.mark.parametrize("shapes", [((), (3,)), ((1,), (3, 1)), ((1, 1), (1, 3))])
def test_an_environment_may_give_its_numbers_in_another_shape(shapes):
    leaves = Leaf(("a",), 1, (1,)), Leaf(("b",), 3, (3,))
    interface = Interface(leaves, (-1.0,), (1.0,), (1,), "float32", True, 0.0)
    one, other = (np.ones(shape) for shape in shapes)
    flat = interface.flatten({"a": one, "b": 2 * other})
    assert flat.reshape(-1).tolist() == [1, 2, 2, 2]
    batch = {"a": np.ones((5, *shapes[0])), "b": np.ones((5, *shapes[1]))}
    assert interface.flatten(batch).shape == (5, 4)


@pytest.mark.parametrize(
    ("obs", "said"),
    [
        ({"a": np.zeros(3)}, "obs['b'][1] is missing"),
        ((np.zeros(3), np.zeros(6)), "obs['a'] is missing"),
        ({"a": np.zeros(3), "b": (0, "x")}, "obs['b'][1] is missing, or holds no"),
        ({"a": [1.0, None, 2.0], "b": (0, 0)}, "obs['a'] is missing, or holds no"),
        (
            {"a": np.zeros((2, 2, 3)), "b": (0, np.zeros((2, 2, 2, 3)))},
            "obs['a'] has shape (2, 2, 3); the policy was trained on 3 numbers",
        ),
        (
            {"a": np.zeros((2, 3)), "b": (0, np.zeros((3, 2, 3)))},
            "the parts of obs are batches of different lengths: (2,), (3,)",
        ),
        (
            {"a": np.zeros(3), "b": (0, np.zeros((2, 2, 3)))},
            "the parts of obs are batches of different lengths: (), (2,)",
        ),
        (np.zeros((2, 3, 9)), "obs has shape (2, 3, 9); a flat observation has "),
        (np.zeros(7), "obs has shape (7,); a flat observation has "),
        ([[0.0] * 9, [0.0]], "obs['a'] is missing"),
    ],
)
def test_an_observation_of_another_form_is_one_line(obs, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        nested().flatten(obs)
    with pytest.raises(ValueError, match=r"obs has shape \(2, 3, 6\)"):
        matrix().flatten(np.zeros((2, 3, 6)))
    with pytest.raises(ValueError, match="obs is missing, or holds no numbers"):
        matrix().flatten([[0.0] * 6, [0.0]])
