"""The penalty's flow, the temperatures and the controller against their closed forms."""

import pytest

from latewood.errors import RequestError
from latewood.sparsity.structured.logit_dynamics import (
    flow,
    growth_logit,
    growth_ratio,
    penalty_weight,
)

FLOW = (
    4.350402387288,
    11.253720815694,
    26.035749854820,
    62.579834394255,
    158.406421155578,
    415.426314740559,
)


def test_the_flow_is_the_specs():
    for z, value in enumerate(FLOW, start=1):
        assert flow(z) == pytest.approx(value, abs=1e-12 * value + 5e-13)
        assert flow(-z) == -flow(z)


@pytest.mark.parametrize(
    ("logit", "weight", "temperature", "time", "moved"),
    [
        (-3.0, -0.25, 1.0, 20.0, -2.747571517606),
        (-5.0, -0.4, 1.0, 20.0, -4.945369738680),
        (0.3, 0.01, 10.0, 20.0, 0.130654881862),
    ],
)
def test_the_flow_falls_evenly_while_the_penalty_carries_a_logit(
    logit, weight, temperature, time, moved
):
    fallen = flow(temperature * logit) - flow(temperature * moved)
    assert fallen == pytest.approx(weight * temperature**2 * time, abs=1e-10)


@pytest.mark.parametrize(("a", "steps"), [(2, 45), (3, 104), (4, 250), (5, 634), (6, 1662)])
def test_growth_takes_as_long_as_asked(a, steps):
    # Learning rate 0.1 with momentum 0.9 moves by 1 a step.
    assert growth_logit(weight=-0.25, time=steps) == pytest.approx(-a, abs=6e-3)
    assert growth_logit(weight=-0.25, time=flow(a) / 0.25) == pytest.approx(-a, abs=1e-12)


def test_the_ratio_of_the_temperatures():
    assert growth_ratio(100.0, 160) == pytest.approx(1.029200527194, abs=5e-13)
    assert growth_ratio(100.0, 40) == pytest.approx(1.122018454302, abs=5e-13)


def test_the_controller_changes_its_sign_at_the_budget():
    def weight(sparsity, normalised=False):
        return penalty_weight(0.5, sparsity=sparsity, wanted=0.5, normalised=normalised)

    assert weight(0.8) == pytest.approx(-0.15)
    assert weight(0.5) == 0.0
    assert weight(0.2) == pytest.approx(0.15)
    assert weight(1.0, normalised=True) == -0.5
    with pytest.raises(RequestError, match="wanted"):
        penalty_weight(0.5, sparsity=0.5, wanted=1.0, normalised=True)
