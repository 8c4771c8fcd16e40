"""Where Adam and AdaBound stay away from the optimum, and what converges instead.

One coordinate in [-1, 1]: the gradient is C with probability p = (1 + delta)/(C + 1), else -1, so
that the expected loss is delta x and the best point is -1. Many runs go side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import Parameter

from latewood.experiments.registry import (
    Claim,
    Experiment,
    Results,
    Scale,
    Workspace,
    register,
    replicate,
)
from latewood.optim import (
    AdaBound,
    AvaGrad,
    CorrectedBounds,
    DelayedAdam,
    HyperbolicBounds,
    SwitchedBounds,
    regret_bound,
)

__all__ = ["FAILURE", "SLOWNESS"]

LARGE, DELTA = 200.0, 1.0
BETAS = (0.0, 0.9)
# A parameter a run costs a Python object each, so there are fewer of those.
RUNS, FEW = 400, 60
STEPS: dict[Scale, int] = {"quick": 2000, "cpu": 20000, "full": 20000}
LOOSE: dict[Scale, int] = {"quick": 500, "cpu": 5000, "full": 5000}
SEEDS: dict[Scale, int] = {"quick": 1, "cpu": 3, "full": 5}
ALPHA = 0.5

MakeOptimizer = Callable[[list[Parameter]], torch.optim.Optimizer]


def gradients(steps: int, runs: int, seed: int) -> Iterator[Tensor]:
    """Stochastic gradients of the problem, (runs,) a step."""
    generator = torch.Generator().manual_seed(seed)
    probability = (1.0 + DELTA) / (LARGE + 1.0)
    for _ in range(steps):
        drawn = torch.rand(runs, generator=generator, dtype=torch.float64)
        yield torch.where(drawn < probability, LARGE, -1.0).double()


def walk(make: MakeOptimizer, steps: int, seed: int, *, separate: bool = False) -> Iterator[Tensor]:
    """Iterates of all runs after each step, with step sizes alpha/sqrt(t) and clipped to [-1, 1].

    Args:
        make: builds the optimizer, whose learning rate is alpha.
        steps: how many.
        seed: of the gradients.
        separate: one parameter a run, for an optimizer whose coordinates see one another.

    Yields:
        (RUNS,) float64, or (FEW,) of separate runs.
    """
    runs = FEW if separate else RUNS
    x = torch.zeros(runs, dtype=torch.float64)
    parameters = [Parameter(part) for part in (x.unbind() if separate else [x])]
    optimizer = make(parameters)
    alphas = [group["lr"] for group in optimizer.param_groups]
    for t, gradient in enumerate(gradients(steps, runs, seed), start=1):
        parts = gradient.unbind() if separate else [gradient]
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part
        for group, alpha in zip(optimizer.param_groups, alphas, strict=True):
            group["lr"] = alpha / math.sqrt(t)
        optimizer.step()
        # The parameters are views of x.
        yield x.clamp_(-1.0, 1.0)


def _failure(scale: Scale, workspace: Workspace) -> Results:
    makers: dict[str, tuple[MakeOptimizer, bool]] = {
        "Adam": (lambda p: torch.optim.Adam(p, lr=0.05, betas=BETAS, eps=0.1), False),
        "Adam, momentum 0.5": (lambda p: torch.optim.Adam(p, lr=0.5, betas=(0.5, 0.9)), False),
        "Delayed Adam": (
            lambda p: DelayedAdam(
                p, lr=0.05, betas=BETAS, eps=0.1, bias_correction=False, first_step="take"
            ),
            False,
        ),
        "AvaGrad": (
            lambda p: AvaGrad(p, lr=0.05, betas=BETAS, eps=0.1, gamma_scope="tensor"),
            True,
        ),
        "SGD": (lambda p: torch.optim.SGD(p, lr=0.05), False),
    }
    steps = STEPS[scale]

    def measure(seed: int) -> dict[str, float]:
        measurements = {}
        for name, (make, separate) in makers.items():
            length = min(steps, 2000) if separate else steps
            *_, last = walk(make, length, seed, separate=separate)
            measurements[name] = last.mean().item()
        return measurements

    settings = {
        "steps": steps,
        "steps of AvaGrad": min(steps, 2000),
        "runs": RUNS,
        "runs of AvaGrad": FEW,
    }
    return replicate(measure, range(SEEDS[scale]), workspace, settings=settings)


def _slowness(scale: Scale, workspace: Workspace) -> Results:
    loose, steps = LOOSE[scale], STEPS[scale]
    beta2 = BETAS[1]
    switched = SwitchedBounds(ALPHA / LARGE, ALPHA / math.sqrt(1.0 - beta2), loose)
    # The released family with a speed that leaves the clip without effect as long.
    slow = min(ALPHA / (LARGE - ALPHA), math.sqrt(1.0 - beta2) / ALPHA) / loose
    corrected = CorrectedBounds(HyperbolicBounds(1.0), 3.0)
    final = 0.05

    def adabound(**options: object) -> MakeOptimizer:
        common = {"lr": ALPHA, "betas": BETAS, "eps": 1e-12, "bias_correction": False}
        return lambda p: AdaBound(p, **{"final_lr": 1.0, **common, **options})  # type: ignore[arg-type]

    def measure(seed: int) -> dict[str, float]:
        adam = walk(adabound(gamma=0.0), loose, seed)
        bounded = walk(adabound(bounds=switched), steps, seed)
        released = walk(adabound(gamma=slow), loose, seed)
        least, apart = math.inf, 0.0
        for _ in range(loose):
            a, b, c = next(adam), next(bounded), next(released)
            least = min(least, b.mean().item() + 1.0)
            apart = max(apart, float((a - b).abs().max()), float((a - c).abs().max()))
        start = b.mean().item()
        *_, last = bounded
        drift = 2.0 * ALPHA * DELTA / LARGE * (math.sqrt(steps) - math.sqrt(loose))
        regrets = _regrets(adabound(final_lr=final, bounds=corrected), steps, seed)
        bound = regret_bound(
            corrected, steps, dimension=1, diameter=2.0, gradient=LARGE, final_rate=final
        )
        return {
            "least suboptimality up to K": least,
            "distance from Adam up to K": apart,
            "mean after all steps": last.mean().item(),
            "closed form": start - drift,
            "corrected: regret over bound": regrets[-1] / bound,
            "corrected: growth exponent": math.log(regrets[-1] / regrets[0]) / math.log(4.0),
        }

    settings = {"K": loose, "steps": steps, "runs": RUNS, "C": LARGE, "gamma of the family": slow}
    return replicate(measure, range(SEEDS[scale]), workspace, settings=settings)


def _regrets(make: MakeOptimizer, steps: int, seed: int) -> tuple[float, float]:
    """Mean expected regret at a quarter of the steps and at all of them, against x = -1."""
    total, quarter = 0.0, 0.0
    before = torch.zeros(RUNS, dtype=torch.float64)
    for t, x in enumerate(walk(make, steps, seed), start=1):
        total += DELTA * (before.mean().item() + 1.0)
        before = x.clone()
        if t == steps // 4:
            quarter = total
    return quarter, total


FAILURE = register(
    Experiment(
        name="adam-failure",
        title="A stochastic problem on which Adam moves away from the optimum",
        paper="Savarese et al. 2019, arXiv:1912.01823; Savarese 2019, arXiv:1908.04457",
        run=_failure,
        claims=(
            Claim(
                name="adam-fails",
                statement="Adam's expected iterate goes to the worst point, with momentum too.",
                source="[P] arXiv:1908.04457, section 3; [M] size",
                paper_figure="expected iterate does not decrease",
                measured=lambda r: r.texts("Adam", "Adam, momentum 0.5", digits=3),
                holds=lambda r: min(r.mean("Adam"), r.mean("Adam, momentum 0.5")) > 0.5,
            ),
            Claim(
                name="delayed-rates-converge",
                statement="Delayed Adam, AvaGrad and SGD go to the optimum at -1.",
                source="[P] arXiv:1912.01823, abstract; [M] size",
                paper_figure="converges",
                measured=lambda r: r.texts("Delayed Adam", "AvaGrad", "SGD", digits=3),
                holds=lambda r: (
                    max(r.mean("Delayed Adam"), r.mean("AvaGrad"), r.mean("SGD")) < -0.5
                ),
            ),
        ),
    )
)

SLOWNESS = register(
    Experiment(
        name="adabound-slowness",
        title="AdaBound as slow as Adam for as long as one likes, and the corrected bounds",
        paper="Savarese 2019, arXiv:1908.04457",
        run=_slowness,
        claims=(
            Claim(
                name="arbitrarily-long",
                statement="Up to any K, AdaBound stays at an expected suboptimality of 1 or more.",
                source="[P] Theorem 2",
                paper_figure="at least 1",
                measured=lambda r: r.texts("least suboptimality up to K", digits=3),
                holds=lambda r: min(r.values("least suboptimality up to K")) >= 1.0,
            ),
            Claim(
                name="adam-until-k",
                statement="Until K its iterates are Adam's, with the released bounds as well.",
                source="[P] Theorem 2 and Claim 1",
                paper_figure="equal",
                measured=lambda r: r.texts("distance from Adam up to K", digits=3),
                holds=lambda r: max(r.values("distance from Adam up to K")) == 0.0,
            ),
            Claim(
                name="closed-form",
                statement="After K the mean iterate falls by (2 alpha delta/C)(sqrt T - sqrt K).",
                source="[D] from the bounds of Theorem 2",
                paper_figure="closed form",
                measured=lambda r: r.texts("mean after all steps", "closed form", digits=3),
                holds=lambda r: abs(r.difference("mean after all steps", "closed form")) < 0.03,
            ),
            Claim(
                name="corrected-regret",
                statement="With bounds that satisfy the condition, regret stays below Theorem 3's.",
                source="[P] Theorem 3",
                paper_figure="at most 1 times the bound",
                measured=lambda r: r.texts("corrected: regret over bound", digits=3),
                holds=lambda r: max(r.values("corrected: regret over bound")) <= 1.0,
            ),
            Claim(
                name="corrected-growth",
                statement="That regret grows no faster than the root of the number of steps.",
                source="[P] Theorem 3",
                paper_figure="exponent 0.5",
                measured=lambda r: r.texts("corrected: growth exponent", digits=3),
                holds=lambda r: r.mean("corrected: growth exponent") <= 0.6,
            ),
        ),
    )
)
