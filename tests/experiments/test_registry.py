"""The registry: intervals against scipy, refusals, discovery."""

from __future__ import annotations

import math
from pathlib import Path

import numpy
import pytest
from scipy import stats

from latewood.errors import RequestError
from latewood.experiments import (
    Claim,
    Experiment,
    Results,
    Workspace,
    experiments,
    registry,
    replicate,
)


def _claim(name: str = "better", source: str = "[R] section 5") -> Claim:
    return Claim(name, "A beats B.", source, "figure only", lambda r: "x", lambda r: True)


def test_interval_is_students_t() -> None:
    values = [0.97, 0.965, 0.98, 0.955, 0.972]
    low, high = stats.t.interval(0.95, 4, numpy.mean(values), stats.sem(values))
    results = Results({"accuracy": values})
    assert results.interval("accuracy") == pytest.approx((high - low) / 2, rel=1e-12)
    assert results.mean("accuracy") == pytest.approx(numpy.mean(values), rel=1e-15)


def test_texts_are_those_of_the_quantities() -> None:
    results = Results({"a": [0.5, 0.7], "b": [0.1]})
    assert results.texts("a", "b", scale=100, unit="%", digits=1) == (
        f"a {results.text('a', scale=100, unit='%', digits=1)}, b 10.0 % (1 seed)"
    )
    assert results.texts("b") == "b 0.10 (1 seed)"


def test_one_seed_has_no_interval() -> None:
    results = Results({"accuracy": [0.5]})
    assert math.isnan(results.interval("accuracy"))
    assert results.text("accuracy", scale=100, unit="%", digits=1) == "50.0 % (1 seed)"


def test_differences_are_paired_by_seed() -> None:
    # Unpaired, the spread of either would swamp the constant difference of 1.
    results = Results({"a": [2.0, 12.0, 102.0], "b": [1.0, 11.0, 101.0]})
    assert results.difference("a", "b") == pytest.approx(1.0)
    assert results.difference_text("a", "b") == "1.00 ± 0.00 (3 seeds)"


@pytest.mark.parametrize("source", ["section 5", "[X] section 5", "[P]", "[P]section"])
def test_a_claim_needs_a_label(source: str) -> None:
    with pytest.raises(RequestError, match="source"):
        _claim(source=source)


def test_claims_of_one_experiment_have_different_names() -> None:
    with pytest.raises(RequestError, match="claims"):
        Experiment("x", "X", "Paper", lambda scale, workspace: Results({}), (_claim(), _claim()))


def test_an_experiment_name_can_be_typed() -> None:
    with pytest.raises(RequestError, match="hyphens"):
        Experiment("Not this", "X", "Paper", lambda scale, workspace: Results({}), ())


def test_two_modules_cannot_share_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})

    def mine(scale: str, workspace: Workspace) -> Results:
        return Results({})

    def other(scale: str, workspace: Workspace) -> Results:
        return Results({})

    other.__module__ = "elsewhere"
    registry.register(Experiment("x", "X", "Paper", mine, ()))
    registry.register(Experiment("x", "X again", "Paper", mine, ()))
    with pytest.raises(RequestError, match="no other experiment"):
        registry.register(Experiment("x", "X", "Paper", other, ()))


def test_replicate_collects_one_value_per_seed(tmp_path: Path) -> None:
    results = replicate(lambda seed: {"twice": 2 * seed}, [3, 1], Workspace(tmp_path))
    assert results.values("twice") == [6.0, 2.0]
    assert results.settings == {"seeds": [3, 1]}


def test_replicate_refuses_seeds_that_measure_different_things(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="quantities"):
        replicate(lambda seed: {f"q{seed}": 1.0}, [0, 1], Workspace(tmp_path))


def test_experiments_are_found_in_alphabetical_order() -> None:
    found = experiments()
    assert list(found) == sorted(found)
    assert all(name == experiment.name for name, experiment in found.items())
