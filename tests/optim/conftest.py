"""The three problems that the golden traces of the optimizers are made on, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

_GRADIENTS = [
    (1.0, -2.0),
    (3.0, -1.0),
    (0.5, 2.0),
    (-3.0, 1.0),
    (0.0, 4.0),
    (2.0, 0.0),
    (-1.0, -1.0),
    (1.5, 0.25),
    (-0.5, 0.75),
    (2.5, -3.0),
]


class Problem:
    """Parameters, and how their gradients come about at each step."""

    def __init__(self, start: list[list[float]], gradients: Callable[..., list[Tensor]]) -> None:
        self.parameters = [Parameter(torch.tensor(s, dtype=torch.float64)) for s in start]
        self._gradients = gradients

    def backward(self, step: int) -> None:
        values = [p.detach().clone().requires_grad_() for p in self.parameters]
        for parameter, gradient in zip(self.parameters, self._gradients(step, values), strict=True):
            parameter.grad = gradient

    def values(self) -> list[float]:
        return [x for parameter in self.parameters for x in parameter.detach().tolist()]


def _script(step: int, values: list[Tensor]) -> list[Tensor]:
    return [torch.tensor(_GRADIENTS[step], dtype=torch.float64)]


def _quadratic(step: int, values: list[Tensor]) -> list[Tensor]:
    curvatures = (torch.tensor([1.0, 10.0, 0.1]).double(), torch.tensor([4.0]).double())
    centres = (torch.tensor([1.0, -1.0, 2.0]).double(), torch.tensor([0.5]).double())
    curvatures[0][2] = 0.1
    return [a * (z.detach() - c) for a, z, c in zip(curvatures, values, centres, strict=True)]


def _rosenbrock(step: int, values: list[Tensor]) -> list[Tensor]:
    (x,) = values
    loss = (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    return list(torch.autograd.grad(loss, values))


_PROBLEMS: dict[str, tuple[list[list[float]], Callable[..., list[Tensor]]]] = {
    "S": ([[1.0, -1.0]], _script),
    "Q": ([[0.0, 0.0, 0.0], [1.0]], _quadratic),
    "R": ([[-1.2, 1.0]], _rosenbrock),
}


@pytest.fixture
def problem() -> Callable[[str], Problem]:
    """Makes a fresh problem "S" (given gradients), "Q" (quadratic) or "R" (Rosenbrock)."""
    return lambda name: Problem(*_PROBLEMS[name])


@pytest.fixture
def trace(problem: Callable[[str], Problem]) -> Callable[..., dict[int, list[float]]]:
    """Runs ten steps and returns the values after each, then gamma where the group has a tensor."""

    def run(
        name: str, optimizer_class: type[torch.optim.Optimizer], **options: Any
    ) -> dict[int, list[float]]:
        case = problem(name)
        optimizer = optimizer_class(case.parameters, **options)
        rows = {}
        for step in range(10):
            case.backward(step)
            optimizer.step()
            gamma = optimizer.param_groups[0].get("gamma")
            tail = [gamma.item()] if isinstance(gamma, Tensor) else []
            rows[step + 1] = case.values() + tail
        return rows

    return run
