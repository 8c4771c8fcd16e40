"""Means and their intervals, against values of a table of Student's t."""

import math

import pytest

from latewood.core.statistics import half_width, mean
from latewood.errors import RequestError


def test_worked_interval():
    # Standard deviation 1, and t of 0.975 at two degrees of freedom is 4.302653.
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    # Two values: their distance is sqrt(2) standard deviations, t is 12.7062.
    assert half_width([0.0, 2.0]) == pytest.approx(12.706205, rel=1e-6)
    assert half_width([0.0, 2.0], confidence=0.5) == pytest.approx(1.0)
    assert half_width([5.0] * 4) == 0.0


def test_one_value_has_no_interval():
    assert math.isnan(half_width([3.0])) and mean([3.0]) == 3.0


def test_wrong_arguments():
    with pytest.raises(RequestError, match="values: got"):
        mean([])
    with pytest.raises(RequestError, match=r"confidence: got 1\.0"):
        half_width([1.0, 2.0], confidence=1.0)
