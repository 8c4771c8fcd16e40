"""Whether a network on the digits follows its linearisation at large output scales.

Quick and cpu scale differ in seeds and steps. The step is half of the largest stable one of the
tangent model. A first run at cpu scale had a fixed step of 0.1 and 500 steps, on seeds 100 to 102.
On two of these that is above the largest stable step: there the linearisation diverged. On seed
100 it is just below (0.104), and the predicted cosd missed the measured one all the same: 0.0050
against 0.153 at scale 0.3, about 30 times. No claim held. The run was discarded; the step, the
number of steps (150 for 500) and the seeds were changed with it, the claims and their bounds were
not.

The slopes are left to cpu scale, where their claim is not settled either: at 60 steps relK falls
by 15.5 between scales 3 and 30, and the bound is 15.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.copies import copy_of
from latewood.experiments.registry import (
    Claim,
    Experiment,
    Results,
    Scale,
    Workspace,
    register,
    replicate,
)
from latewood.regimes import Scaled, linearize, regime, tangent_kernel

__all__ = ["OUTPUT_SCALE_DIGITS"]

SEEDS: dict[Scale, int] = {"quick": 1, "cpu": 3}
STEPS: dict[Scale, int] = {"quick": 60, "cpu": 150}
SCALES = (0.3, 3.0, 30.0)
TRAINED, HELD_OUT, WIDTH, PROBED = 100, 200, 64, 32


def run(scale: Scale, workspace: Workspace) -> Results:
    """Trains the network and its linearisation at three output scales."""
    steps = STEPS[scale]
    return replicate(
        lambda seed: _measure(200 + seed, steps),
        range(SEEDS[scale]),
        workspace,
        settings={"steps": steps, "examples": TRAINED, "width": WIDTH, "first seed": 200},
    )


def _measure(seed: int, steps: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    digits = load_digits()
    order = torch.randperm(len(digits.data), generator=generator)[: TRAINED + HELD_OUT]
    x = torch.from_numpy(digits.data).double()[order] / 16
    y = torch.from_numpy(digits.target)[order]
    inputs, held, wanted = x[:TRAINED], x[TRAINED:], F.one_hot(y[:TRAINED], 10).double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start = nn.Sequential(nn.Linear(64, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 10)).double()
    rate = _stable_rate(start, inputs) / 2
    predicted = regime(start, inputs[:PROBED], y[:PROBED], alphas=SCALES)
    measures: dict[str, float] = {}
    for place, alpha in enumerate(SCALES):
        model = copy_of(start)
        trained = _trained(Scaled(model, alpha), alpha, inputs, wanted, steps, rate)
        tangent = _trained(Scaled(linearize(start), alpha), alpha, inputs, wanted, steps, rate)
        with torch.no_grad():
            ours, linear = trained(held), tangent(held)
        measured = regime(start, inputs[:PROBED], y[:PROBED], trained=model).here
        measures |= {
            f"cosd, scale {alpha:g}": measured.cosine,
            f"relK, scale {alpha:g}": measured.relative,
            f"predicted cosd, scale {alpha:g}": predicted.sweep[place].cosine,
            f"gap, scale {alpha:g}": float((ours - linear).norm() / linear.norm()),
        }
    return measures


def _stable_rate(model: nn.Module, inputs: Tensor) -> float:
    """The step above which gradient descent on the tangent model diverges, for a mean over N."""
    kernel = tangent_kernel(model, inputs).permute(0, 2, 1, 3)
    matrix = kernel.reshape(kernel.shape[0] * kernel.shape[1], -1)
    return len(inputs) / float(torch.linalg.eigvalsh(matrix)[-1])


def _trained(
    model: nn.Module, alpha: float, inputs: Tensor, wanted: Tensor, steps: int, rate: float
) -> nn.Module:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        # The loss of the scaled model over alpha^2, in a form that large scales do not round.
        loss = (model(inputs) - wanted).square().sum(1).mean() / alpha**2
        loss.backward()
        optimizer.step()
    return model


OUTPUT_SCALE_DIGITS = register(
    Experiment(
        name="output-scale-digits",
        title="A network on the digits in both regimes, by its output scale",
        paper="Woodworth et al. 2020, arXiv:2002.09277; Chizat et al. 2019, arXiv:1812.07956",
        run=run,
        scales=("quick", "cpu"),
        claims=(
            Claim(
                "large-scales-follow-the-linearisation",
                "At output scale 30 the outputs on unseen digits are within 2 % of those of the "
                "trained linearisation; at 0.3 they are at least five times as far.",
                "[C] lazy training; [V] 0.0035 at 30 in another setting",
                "figure only",
                lambda r: r.texts(*(f"gap, scale {a:g}" for a in SCALES), digits=4),
                lambda r: (
                    r.mean("gap, scale 30") < 0.02
                    and r.mean("gap, scale 0.3") > 5 * r.mean("gap, scale 30")
                ),
            ),
            Claim(
                "the-kernel-moves-as-one-over-the-scale",
                "Between output scales 3 and 30 relK of a tanh network falls tenfold and cosd a "
                "hundredfold, within a factor of 1.5 and 2.",
                "[D] from the expansion in 1 / alpha; [V] slopes -1.00 and -2.01",
                "10 and 100",
                lambda r: r.texts(*(f"relK, scale {a:g}" for a in SCALES), digits=5),
                lambda r: (
                    10 / 1.5 < r.mean("relK, scale 3") / r.mean("relK, scale 30") < 15
                    and 50 < r.mean("cosd, scale 3") / r.mean("cosd, scale 30") < 200
                ),
                scales=("cpu",),
            ),
            Claim(
                "one-step-predicts-the-change",
                "The predicted cosd is within a factor of 4 of the one after training, at every "
                "output scale.",
                "[D] the prediction; [V] within 1.4 from the end of linearised training",
                "1",
                lambda r: r.texts(
                    *(f"{w}cosd, scale {a:g}" for a in SCALES for w in ("predicted ", "")), digits=7
                ),
                lambda r: all(
                    0.25 < r.mean(f"predicted cosd, scale {a:g}") / r.mean(f"cosd, scale {a:g}") < 4
                    for a in SCALES
                ),
                scales=("cpu",),
            ),
        ),
    )
)
