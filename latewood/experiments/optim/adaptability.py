"""Learning rate and adaptability on digits: coupled in Adam, apart in AvaGrad; CSGD and AdaBound.

A multilayer perceptron 64-64-10. All points of a grid train side by side as rows of one matrix of
flat parameter vectors, so that a grid takes seconds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise, product

import torch
import torch.nn.functional as F
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
from latewood.optim import CSGD, AdaBound, AvaGrad, RateStudy, rate_study
from latewood.tasks.digits import digits

__all__ = ["DAMPENING", "DECOUPLING"]

SIZES = (64, 64, 10)
BATCH_SIZE = 64
EPOCHS: dict[Scale, int] = {"quick": 4, "cpu": 10, "full": 10}
DAMPENING_EPOCHS: dict[Scale, int] = {"quick": 5, "cpu": 15, "full": 15}
SEEDS: dict[Scale, int] = {"quick": 1, "cpu": 3, "full": 5}
RATES = [10.0**k for k in range(-5, 4)]
EPS: dict[Scale, list[float]] = {
    "quick": [10.0**k for k in (-8, -2, -1, 0, 1, 2)],
    "cpu": [10.0**k for k in range(-8, 3)],
    "full": [10.0**k for k in range(-8, 3)],
}
# Results this close are equal: validation losses differ by more between seeds.
TOLERANCE = 0.005

Data = tuple[Tensor, Tensor, Tensor, Tensor]
Step = Callable[[Tensor, Tensor, float], None]


def forward(vectors: Tensor, inputs: Tensor) -> Tensor:
    """Outputs of one network for each flat parameter vector.

    Args:
        vectors: (runs, values).
        inputs: (batch, 64).

    Returns:
        (runs, batch, 10).
    """
    hidden = inputs.expand(len(vectors), *inputs.shape)
    start = 0
    for layer, (before, after) in enumerate(pairwise(SIZES)):
        weight = vectors[:, start : start + before * after].view(-1, before, after)
        start += before * after
        bias = vectors[:, start : start + after].unsqueeze(1)
        start += after
        hidden = torch.baddbmm(bias, hidden.relu() if layer else hidden, weight)
    return hidden


def start(runs: int, seed: int) -> Tensor:
    """The same freshly drawn network for every run, (runs, values)."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for before, after in pairwise(SIZES):
        bound = before**-0.5
        drawn = torch.rand(before * after + after, generator=generator)
        parts.append((2.0 * drawn - 1.0) * bound)
    return torch.cat(parts).repeat(runs, 1)


def train(step: Step, runs: int, epochs: int, seed: int, data: Data) -> Tensor:
    """Trains all runs and returns their validation losses.

    Args:
        step: ``step(vectors, gradients, factor)`` moves all runs, at learning rates times factor.
        runs: how many.
        epochs: passes over the training part; rates fall to a fifth after 60 and 85 % of them.
        seed: of the network and the order of samples.
        data: training inputs and labels, validation inputs and labels.

    Returns:
        (runs,), inf where a run diverged.
    """
    inputs, labels, test_inputs, test_labels = data
    vectors = start(runs, seed).requires_grad_()
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        factor = 0.2 ** sum(epoch >= part * epochs for part in (0.6, 0.85))
        order = torch.randperm(len(inputs), generator=generator)
        # Batches of one size only, as the gradients of a remainder would be noisier.
        for indices in order.split(BATCH_SIZE)[: len(order) // BATCH_SIZE]:
            losses = _losses(forward(vectors, inputs[indices]), labels[indices])
            (gradients,) = torch.autograd.grad(losses.sum(), vectors)
            step(vectors.detach(), gradients, factor)
    with torch.no_grad():
        losses = _losses(forward(vectors, test_inputs), test_labels)
    return losses.nan_to_num(nan=math.inf)


def _losses(outputs: Tensor, labels: Tensor) -> Tensor:
    runs, batch, classes = outputs.shape
    losses = F.cross_entropy(outputs.reshape(-1, classes), labels.repeat(runs), reduction="none")
    return losses.view(runs, batch).mean(1)


def adam(rates: Sequence[float], eps: Sequence[float]) -> Step:
    """``torch.optim.Adam`` with a learning rate and an eps for every row."""
    rate, epsilon = (torch.tensor(values).unsqueeze(1) for values in (rates, eps))
    moments: list[Tensor] = []
    count = 0

    def step(vectors: Tensor, gradients: Tensor, factor: float) -> None:
        nonlocal count
        count += 1
        if not moments:
            moments.extend((torch.zeros_like(vectors), torch.zeros_like(vectors)))
        first, second = moments
        first.lerp_(gradients, 0.1)
        second.mul_(0.999).addcmul_(gradients, gradients, value=0.001)
        denominators = second.sqrt().div_((1.0 - 0.999**count) ** 0.5).add_(epsilon)
        vectors.sub_(first * (rate * (factor / (1.0 - 0.9**count))) / denominators)

    return step


def by_rows(make: Callable[[list[dict[str, object]]], torch.optim.Optimizer],
            options: Sequence[dict[str, object]]) -> Step:  # fmt: skip
    """An optimizer whose groups are the rows, each with options of its own."""
    optimizer: torch.optim.Optimizer | None = None

    def step(vectors: Tensor, gradients: Tensor, factor: float) -> None:
        nonlocal optimizer
        if optimizer is None:
            rows = zip(vectors, options, strict=True)
            optimizer = make([{"params": [Parameter(row)], **chosen} for row, chosen in rows])
            for group in optimizer.param_groups:
                group["full_lr"] = group["lr"]
        for group, gradient in zip(optimizer.param_groups, gradients, strict=True):
            group["params"][0].grad = gradient
            group["lr"] = group["full_lr"] * factor
        optimizer.step()

    return step


def _data() -> Data:
    task = digits()
    parts = (task.train, task.validation)
    (x, y), (u, w) = (part.gather(torch.arange(len(part))) for part in parts)
    return x.flatten(1), y, u.flatten(1), w


def _decoupling(scale: Scale, workspace: Workspace) -> Results:
    eps, epochs, data = EPS[scale], EPOCHS[scale], _data()
    points = list(product(eps, RATES))
    row_eps, row_rates = [e for e, _ in points], [rate for _, rate in points]
    options: list[dict[str, object]] = [{"lr": rate, "eps": e} for e, rate in points]

    @_quietly
    def measure(seed: int) -> dict[str, float]:
        steps = {
            "Adam": adam(row_rates, row_eps),
            "AvaGrad": by_rows(lambda rows: AvaGrad(rows, gamma_scope="group"), options),
        }
        measurements = {}
        for name, step in steps.items():
            losses = train(step, len(points), epochs, seed, data).view(len(eps), len(RATES))
            study = _study(eps, losses)
            measurements[f"{name}: slope"] = study.slope
            measurements[f"{name}: spread in decades"] = math.log10(study.spread)
            measurements[f"{name}: best loss"] = losses.min().item()
        return measurements

    settings = {"epochs": epochs, "eps": eps, "learning rates": RATES, "tolerance": TOLERANCE}
    return replicate(measure, range(SEEDS[scale]), workspace, settings=settings)


def _quietly(measure: Callable[[int], dict[str, float]]) -> Callable[[int], dict[str, float]]:
    def run(seed: int) -> dict[str, float]:
        with warnings.catch_warnings():
            # Dead units never have gradients, and the grid includes the eps for which that matters.
            warnings.filterwarnings("ignore", "AvaGrad: coordinates that never", RuntimeWarning)
            return measure(seed)

    return run


def _study(eps: Sequence[float], losses: Tensor) -> RateStudy:
    return rate_study(eps, RATES, losses.tolist(), higher_is_better=False, tolerance=TOLERANCE)


def _dampening(scale: Scale, workspace: Workspace) -> Results:
    epochs, data = DAMPENING_EPOCHS[scale], _data()
    gammas = {"AdaBound 1e-10": 1e-10, "AdaBound 1e-3": 1e-3, "AdaBound 100": 100.0}

    def measure(seed: int) -> dict[str, float]:
        steps: dict[str, Step] = {
            name: by_rows(lambda rows: AdaBound(rows, lr=1e-3, final_lr=0.1), [{"gamma": gamma}])
            for name, gamma in gammas.items()
        }
        # Heavy-ball momentum at a tenth of the rate is the dampened one at all of it.
        steps["dampened SGD"] = by_rows(lambda rows: torch.optim.SGD(rows, 0.01, 0.9), [{}])
        steps["CSGD"] = by_rows(lambda rows: CSGD(rows, lr=0.1, momentum=0.9), [{}])
        return {name: train(step, 1, epochs, seed, data).item() for name, step in steps.items()}

    settings = {"epochs": epochs, "momentum": 0.9, "final rate": 0.1}
    return replicate(measure, range(SEEDS[scale]), workspace, settings=settings)


DECOUPLING = register(
    Experiment(
        name="avagrad-decoupling",
        title="Learning rate and adaptability: coupled in Adam, apart in AvaGrad (digits)",
        paper="Savarese et al. 2019, arXiv:1912.01823",
        run=_decoupling,
        claims=(
            Claim(
                name="adam-is-coupled",
                statement="Adam's best learning rate grows in proportion to eps once eps is large.",
                source="[P] arXiv:1912.01823, abstract; [M] slope",
                paper_figure="a diagonal band; slope 1",
                measured=lambda r: r.texts("Adam: slope"),
                holds=lambda r: 0.9 <= r.mean("Adam: slope") <= 1.1,
            ),
            Claim(
                name="avagrad-is-not",
                statement="AvaGrad's best learning rate does not move with eps.",
                source="[P] arXiv:1912.01823, abstract; [M] slope",
                paper_figure="a vertical band; slope 0",
                measured=lambda r: r.texts("AvaGrad: slope"),
                holds=lambda r: abs(r.mean("AvaGrad: slope")) <= 0.15,
            ),
            Claim(
                name="spread",
                statement="Over ten decades of eps AvaGrad's best rate spreads by at most 10, "
                "Adam's by 10^4 or more.",
                source="[M] on this task",
                paper_figure="10 and 10^4",
                measured=lambda r: r.texts("AvaGrad: spread in decades", "Adam: spread in decades"),
                holds=lambda r: (
                    max(r.values("AvaGrad: spread in decades")) <= 1.0 + 1e-9
                    and min(r.values("Adam: spread in decades")) >= 4.0 - 1e-9
                ),
            ),
            Claim(
                name="as-good-as-adam",
                statement="The best of AvaGrad's matrix is as good as the best of Adam's.",
                source="[P] arXiv:1912.01823, results; [M] on this task",
                paper_figure="no worse",
                measured=lambda r: r.texts("AvaGrad: best loss", "Adam: best loss", digits=3),
                holds=lambda r: r.difference("AvaGrad: best loss", "Adam: best loss") <= 0.01,
            ),
        ),
    )
)

DAMPENING = register(
    Experiment(
        name="csgd-adabound",
        title="AdaBound's speed of clipping, and the SGD it ends in (digits)",
        paper="Savarese 2019, arXiv:1908.04457",
        run=_dampening,
        claims=(
            Claim(
                name="faster-clipping-helps",
                statement="AdaBound gets better the faster its bounds close in on SGD.",
                source="[P] arXiv:1908.04457, figure 1",
                paper_figure="accuracy rises with gamma",
                measured=lambda r: r.texts(
                    "AdaBound 1e-10", "AdaBound 1e-3", "AdaBound 100", digits=4
                ),
                holds=lambda r: (
                    r.difference("AdaBound 1e-3", "AdaBound 1e-10") < 0.0
                    and r.difference("AdaBound 100", "AdaBound 1e-3") < 0.0
                ),
                scales=("cpu", "full"),
            ),
            Claim(
                name="ends-in-sgd",
                statement="With gamma 100 it is dampened SGD.",
                source="[D] limit of large gamma; [M] too",
                paper_figure="indistinguishable",
                measured=lambda r: r.texts("AdaBound 100", "dampened SGD", digits=5),
                holds=lambda r: abs(r.difference("AdaBound 100", "dampened SGD")) <= 5e-3,
            ),
            Claim(
                name="csgd-matches",
                statement="CSGD, with two hyper-parameters in place of five, matches AdaBound.",
                source="[P] arXiv:1908.04457, section 4",
                paper_figure="dampened SGD 94.01 %, AdaBound 93.90 %; CSGD no significant change "
                "(CIFAR-10, WRN-28-2)",
                measured=lambda r: r.texts("CSGD", "AdaBound 1e-3", digits=3),
                holds=lambda r: r.difference("CSGD", "AdaBound 1e-3") <= 0.0,
            ),
        ),
    )
)
