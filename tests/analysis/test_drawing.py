"""How figures are drawn."""

import numpy as np
import pytest

from steve.analysis.drawing import wants_log_scale


@pytest.mark.parametrize(
    ("values", "wanted"),
    [([1, 100], True), ([1, 40], False), ([-1, 100], False), ([0, 100], False)],
)
def test_a_log_scale_is_for_positive_values_far_apart(values, wanted):
    assert wants_log_scale(np.array([np.nan, *values])) == wanted
