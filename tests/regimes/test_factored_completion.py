"""Completion by factors: its iteration on products is gradient descent; width and scale."""

import pytest
import torch

from latewood.errors import RequestError, WorkError
from latewood.regimes import matrix_completion


@pytest.fixture
def rank_one():
    generator = torch.Generator().manual_seed(1)
    u, v = torch.randn(2, 6, 1, generator=generator, dtype=torch.float64)
    mask = torch.zeros(36, dtype=torch.bool)
    mask[torch.randperm(36, generator=generator)[:24]] = True
    return u @ v.T, mask.reshape(6, 6)


def test_it_is_gradient_descent_on_both_factors(rank_one):
    target, mask = rank_one
    done = matrix_completion(target, mask, alpha=0.3, width=4, seed=5, lr=0.02, tolerance=0.05)
    drawn = (
        torch.randn(12, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 0.3
    )
    u, v = drawn[:6].clone().requires_grad_(), drawn[6:].clone().requires_grad_()
    for _ in range(int(done.steps)):
        loss = ((u @ v.T - target)[mask] ** 2).sum()
        grads = torch.autograd.grad(loss, (u, v))
        with torch.no_grad():
            u -= 0.02 * grads[0]
            v -= 0.02 * grads[1]
    torch.testing.assert_close(done.matrix, (u @ v.T).detach(), rtol=1e-9, atol=1e-10)
    assert float(done.residual) <= 0.05


def test_scale_times_width_decides(rank_one):
    ratio = torch.tensor([1e-3, 10.0])[:, None]
    widths = [6, 400]
    alphas = (ratio / torch.tensor(widths)).sqrt()
    done = matrix_completion(*rank_one, alpha=alphas, width=widths, tolerance=1e-2)
    assert done.matrix.shape == (2, 2, 6, 6)
    assert bool((done.excess_nuclear_norm[0].abs() < 0.1).all())
    assert float(done.movement[1, 1]) < 0.15 * float(done.movement[0].min())
    assert float(done.error[0].max()) < 0.3 * float(done.error[1].min())


def test_what_cannot_be_is_refused(rank_one):
    target, mask = rank_one
    for given, name in (
        ({"observed": torch.zeros_like(mask)}, "observed"),
        ({"observed": mask.float()}, "observed"),
        ({"width": 0}, "width"),
        ({"width": 2.5}, "width"),
        ({"alpha": 0.0}, "alpha"),
        ({"seed": [1, 2, 3], "width": [1, 2]}, "alpha"),
        ({"target": torch.ones(6)}, "target"),
    ):
        arguments = {"target": target, "observed": mask, "alpha": 1.0, "width": 3} | given
        with pytest.raises(RequestError, match=name):
            matrix_completion(arguments.pop("target"), arguments.pop("observed"), **arguments)
    with pytest.raises(WorkError, match="after 2 steps"):
        matrix_completion(target, mask, alpha=1e-3, width=3, most_steps=2)
