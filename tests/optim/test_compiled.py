"""torch.compile(optimizer.step): one graph, traced once, with the results of the eager step."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn import Parameter
from torch.optim.lr_scheduler import CosineAnnealingLR

from latewood.optim import CSGD, AdaBound, AMSBound, AvaGrad, AvaGradW, DelayedAdam

CASES = [
    (AvaGrad, {}),
    (AvaGrad, {"gamma_mode": "official"}),
    (AvaGrad, {"gamma_mode": "paper", "gamma_scope": "group"}),
    (AvaGradW, {"weight_decay": 0.1, "gamma_scope": "tensor"}),
    (DelayedAdam, {"weight_decay": 0.1}),
    (AdaBound, {}),
    (AMSBound, {"weight_decay": 0.1, "weight_decay_mode": "decoupled"}),
    (CSGD, {"momentum": 0.9}),
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run(optimizer_class, options, steps, compiler=None):
    generator = torch.Generator().manual_seed(0)
    parameters = [
        Parameter(torch.randn(shape, dtype=torch.float64, generator=generator))
        for shape in ((3, 4), (5,))
    ]
    lr = torch.tensor(0.05, dtype=torch.float64)
    optimizer = optimizer_class(
        [{"params": parameters[:1]}, {"params": parameters[1:]}], lr=lr, **options
    )
    scheduler = CosineAnnealingLR(optimizer, steps)
    step = torch.compile(optimizer.step, backend=compiler) if compiler else optimizer.step
    for p in parameters:
        p.grad = torch.zeros_like(p)
    for _ in range(steps):
        for p in parameters:
            p.grad.copy_(torch.randn(p.shape, dtype=torch.float64, generator=generator))
        step()
        scheduler.step()
    return parameters


@pytest.mark.parametrize(("optimizer_class", "options"), CASES)
def test_one_graph_without_recompilation_and_the_same_walk(optimizer_class, options):
    counter = CompileCounter()
    compiled = run(optimizer_class, options, 100, counter)
    assert counter.frame_count == 1
    for a, b in zip(compiled, run(optimizer_class, options, 100), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
