"""The optimizers' experiments: their parts exactly, and their claims at the quick scale."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import Parameter

from latewood.experiments import Experiment, Results, Workspace
from latewood.experiments.optim import adaptability as on_digits
from latewood.experiments.optim import convergence as convergence

EXPERIMENTS = [
    convergence.FAILURE,
    convergence.SLOWNESS,
    on_digits.DECOUPLING,
    on_digits.DAMPENING,
]


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)
def test_every_claim_of_the_quick_scale_holds(experiment: Experiment, tmp_path) -> None:
    results = experiment.run("quick", Workspace(tmp_path))
    claims = [claim for claim in experiment.claims if "quick" in claim.scales]
    assert claims
    failed = [(c.name, c.measured(results)) for c in claims if not c.holds(results)]
    assert failed == []


BROKEN = {
    "adam-failure": {"Adam": -1.0, "Adam, momentum 0.5": -1.0, "Delayed Adam": 0.9,
                     "AvaGrad": 0.9, "SGD": 0.9},
    "adabound-slowness": {"least suboptimality up to K": 0.1, "distance from Adam up to K": 0.1,
                          "mean after all steps": 0.5, "closed form": 0.1,
                          "corrected: regret over bound": 2.0, "corrected: growth exponent": 1.0},
    "avagrad-decoupling": {"Adam: slope": 0.0, "AvaGrad: slope": 1.0,
                           "AvaGrad: spread in decades": 4.0, "Adam: spread in decades": 1.0,
                           "AvaGrad: best loss": 1.0, "Adam: best loss": 0.1},
    "csgd-adabound": {"AdaBound 1e-10": 0.1, "AdaBound 1e-3": 0.1, "AdaBound 100": 0.9,
                      "dampened SGD": 0.1, "CSGD": 0.9},
}  # fmt: skip


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)
def test_every_claim_can_fail(experiment: Experiment) -> None:
    results = Results({name: [value] for name, value in BROKEN[experiment.name].items()})
    assert [claim.name for claim in experiment.claims if claim.holds(results)] == []


def test_gradients_of_the_stochastic_problem_have_the_mean_of_its_slope() -> None:
    drawn = torch.stack(list(convergence.gradients(200, 2000, 0)))
    assert set(drawn.unique().tolist()) == {-1.0, convergence.LARGE}
    deviation = math.sqrt(2 * convergence.LARGE / drawn.numel())
    assert drawn.mean().item() == pytest.approx(convergence.DELTA, abs=4 * deviation)


def test_a_row_of_the_matrix_is_the_network_of_its_vector() -> None:
    vectors = on_digits.start(3, 0) + 0.01 * torch.arange(3).unsqueeze(1)
    inputs = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    w, b, u, c = vectors[1].split([64 * 64, 64, 64 * 10, 10])
    expected = (inputs @ w.view(64, 64) + b).relu() @ u.view(64, 10) + c
    torch.testing.assert_close(on_digits.forward(vectors, inputs)[1], expected)


def test_adam_by_rows_is_adam() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 7, generator=generator)
    singles = [Parameter(row.clone()) for row in vectors]
    choices = [(0.1, 1e-8), (0.01, 1.0)]
    references = [
        torch.optim.Adam([p], lr=lr, eps=eps) for p, (lr, eps) in zip(singles, choices, strict=True)
    ]
    step = on_digits.adam(*zip(*choices, strict=True))
    for _ in range(5):
        gradients = torch.randn(2, 7, generator=generator)
        step(vectors, gradients, 1.0)
        for p, reference, gradient in zip(singles, references, gradients, strict=True):
            p.grad = gradient
            reference.step()
    torch.testing.assert_close(vectors, torch.stack([p.detach() for p in singles]))
