"""How figures are drawn."""

import numpy as np
import pytest

from steve.analysis.drawing import significant, wants_log_scale


@pytest.mark.parametrize(
    ("values", "wanted"),
    [([1, 100], True), ([1, 40], False), ([-1, 100], False), ([0, 100], False)],
)
def test_a_log_scale_is_for_positive_values_far_apart(values, wanted):
    assert wants_log_scale(np.array([np.nan, *values])) == wanted


@pytest.mark.parametrize(
    ("score", "printed"),
    [
        (0.0, "0.0"),
        (0.0695874, "0.0696"),
        (-4.5678, "-4.57"),
        (1234.56, "1,234.6"),
        (2.5e12, "2.5e+12"),
    ],
)
def test_a_score_of_any_size_has_significant_digits(score, printed):
    assert significant(score) == printed
