"""Verdicts over seeds: decided, or open where the interval contains the threshold."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from latewood.experiments import Results
from latewood.experiments.judgement import judge

VALUES = [0.97, 0.965, 0.98, 0.955, 0.972]
LOW, HIGH = map(float, stats.t.interval(0.95, 4, sum(VALUES) / 5, stats.sem(VALUES)))


def outcome(check, **measurements):
    return judge(check, Results(measurements)).outcome


@pytest.mark.parametrize(
    ("threshold", "verdict"),
    [
        (LOW - 1e-9, "holds"),
        (LOW + 1e-9, "undecided"),
        (HIGH - 1e-9, "undecided"),
        (HIGH + 1e-9, "does not hold"),
    ],
)
def test_open_where_the_interval_contains_the_threshold(threshold, verdict):
    assert outcome(lambda r: r.mean("a") > threshold, a=VALUES) == verdict
    assert outcome(lambda r: threshold <= r.mean("a"), a=VALUES) == verdict
    assert outcome(lambda r: -r.mean("a") < -threshold, a=VALUES) == verdict


def test_the_margin_is_that_of_the_open_comparison():
    judgement = judge(lambda r: r.mean("b") > 0 and r.mean("a") > 0.97, Results({
        "a": VALUES, "b": [1.0, 1.1, 1.0, 1.1, 1.0],
    }))  # fmt: skip
    assert judgement.margin == pytest.approx((sum(VALUES) / 5 - 0.97, (HIGH - LOW) / 2))
    assert judge(lambda r: r.mean("a") > 0, Results({"a": VALUES})).margin is None


def test_differences_are_paired_by_seed():
    # Either mean is known to +- 60 only, their difference to +- 0.1.
    a, b = [2.01, 12.03, 51.98], [1.0, 11.0, 51.0]
    assert outcome(lambda r: r.mean("a") > r.mean("b"), a=a, b=b) == "holds"
    assert outcome(lambda r: r.difference("a", "b") > 0.5, a=a, b=b) == "holds"
    assert outcome(lambda r: r.mean("a") - 2 < r.mean("b"), a=a, b=b) == "holds"
    assert outcome(lambda r: r.difference("b", "a") > 0, a=a, b=b) == "does not hold"
    assert outcome(lambda r: r.mean("a") > 20, a=a) == "undecided"


def test_quantities_with_other_numbers_of_seeds_are_independent():
    a, b = [2.0, 12.0, 52.0], [1.0, 11.0, 51.0, 20.0]
    assert outcome(lambda r: r.mean("a") > r.mean("b"), a=a, b=b) == "undecided"


def test_ratios_and_products_follow_the_seeds():
    # b is twice a at every seed, whatever a is.
    a = [3.5, 5.0, 6.5]
    b = [7.001, 10.0, 12.999]
    assert outcome(lambda r: r.mean("b") > 9.5, b=b) == "undecided"
    assert outcome(lambda r: r.mean("b") > 1.8 * r.mean("a"), a=a, b=b) == "holds"
    assert outcome(lambda r: r.mean("b") / r.mean("a") > 1.99, a=a, b=b) == "holds"
    assert outcome(lambda r: 1 - r.mean("a") / r.mean("b") < 0.49, a=a, b=b) == "does not hold"
    assert outcome(lambda r: 1 / r.mean("a") > 0.19, a=a) == "undecided"
    assert outcome(lambda r: abs(r.mean("b") - 2 * r.mean("a")) < 0.1, a=a, b=b) == "holds"


def test_an_open_comparison_matters_only_where_the_check_depends_on_it():
    sure, wide = [1.0, 1.01, 0.99], [-5.0, 0.1, 5.0]

    def either(r):
        return r.mean("wide") > 0 or r.mean("sure") > 0.5

    def both(r):
        return r.mean("wide") > 0 and r.mean("sure") > 5

    assert outcome(either, sure=sure, wide=wide) == "holds"
    assert outcome(both, sure=sure, wide=wide) == "does not hold"
    assert outcome(lambda r: r.mean("wide") > 0 and True, wide=wide) == "undecided"
    several = {f"q{i}": wide for i in range(30)} | {"sure": sure}
    names = list(several)
    everyone = judge(lambda r: all(r.mean(name) > 0 for name in names), Results(several))
    assert everyone.outcome == "undecided"
    largest = judge(lambda r: max(r.mean(name) for name in names) < 100, Results(several))
    assert largest.outcome == "holds"


def test_single_seeds_are_judged_as_they_are():
    assert outcome(lambda r: r.mean("a") > 0.9, a=[0.91]) == "holds"
    assert outcome(lambda r: r.mean("a") > 0.9, a=[0.89]) == "does not hold"
    assert outcome(lambda r: min(r.values("a")) > 0, a=[0.1, 9.0]) == "holds"
    assert outcome(lambda r: r.mean("a") >= 1, a=[1.0, 1.0, 1.0]) == "holds"


def test_values_without_an_end_are_judged_as_they_are():
    assert outcome(lambda r: r.mean("a") > 3, a=[1.0, math.inf]) == "holds"
    assert outcome(lambda r: r.mean("a") > 3, a=[1.0, math.nan]) == "does not hold"


def test_texts_are_the_same():
    results = Results({"a": [1.0, 2.0], "b": [1.5, 2.5]})

    def check(judged):
        assert judged.text("a") == results.text("a")
        assert judged.difference_text("a", "b") == results.difference_text("a", "b")
        return f"{judged.mean('a'):.3f}" == "1.500"

    assert judge(check, results).outcome == "holds"
