"""What growing keeps, to the last digits: functions, variances, gradients, momentum, first steps.

Quick and cpu scale are the same measurements with one and with five seeds.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core import macs, trace_channels
from latewood.core.modes import evaluated
from latewood.experiments.papers import GROWTH
from latewood.experiments.registry import (
    Claim,
    Experiment,
    Results,
    Scale,
    Workspace,
    register,
    replicate,
)
from latewood.growth import StageRates, Stages, WideningSettings, phased, widen
from latewood.growth.growing_widths import growing_widths
from latewood.growth.initialisations import Init
from latewood.growth.phase_costs import phase_costs
from latewood.models import mlp, mobilenet_v1, resnet20, transformer, vgg11
from latewood.training.randomness import derive, seed_torch

__all__ = ["INVARIANTS", "newborn_steps", "schedule_cost", "schedule_cost_of_real_widths"]

SEEDS: dict[Scale, int] = {"quick": 1, "cpu": 5}
EPOCHS = 160
EVENTS = 2

FAMILIES = ("MLP", "ResNet-20", "Transformer")


def run(scale: Scale, workspace: Workspace) -> Results:
    """Grows small networks, looks, and counts what the paper's schedule costs."""
    results = replicate(_measure, range(SEEDS[scale]), workspace)
    costs = {}
    for name in workspace.track(NETWORKS, "costs"):
        costs[f"{name} cost"] = [schedule_cost(name)]
        costs[f"{name} cost, real widths"] = [schedule_cost_of_real_widths(name)]
    return Results(
        {**results.measurements, **costs},
        {**results.settings, "events": EVENTS, "dtype": "float64", "epochs of the costs": EPOCHS},
    )


def _measure(seed: int) -> dict[str, float]:
    with torch.random.fork_rng(devices=[]):
        seed_torch(derive(seed, "invariants"), torch.device("cpu"))
        measurements = {f"{name} change": _change(name, seed) for name in FAMILIES}
        measurements |= _variances(seed) | _pair_gradients(seed) | _momentum(seed)
    return measurements | {
        "zero state": max(newborn_steps("zero", counters=False)),
        "filled state": max(newborn_steps("carry", counters=False)),
        "own counts": max(newborn_steps("carry", counters=True)),
    }


def _family(name: str) -> tuple[nn.Module, Tensor]:
    if name == "MLP":
        model: nn.Module = mlp(in_features=8, hidden=(6, 10), num_classes=3)
        return model.double(), torch.randn(16, 8, dtype=torch.float64)
    if name == "ResNet-20":
        return resnet20(width=0.25).double(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    model = transformer(vocabulary=11, context=6, width=8, layers=2, heads=2)
    return model.double(), torch.randint(11, (4, 6))


def _change(name: str, seed: int) -> float:
    """The largest relative change of the outputs over the events, in both modes."""
    model, inputs = _family(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    worst = 0.0
    for event in range(EVENTS):
        _step(model, inputs, optimizer)
        before = _outputs(model, inputs)
        grown = {
            group.name: group.width + 2 * group.multiple_of
            for group in trace_channels(model, inputs)
            if all(barrier.kind == "normalised" for barrier in group.barriers)
        }
        # The norms' eps goes with them: only then is nothing lost.
        widen(model, inputs, grown, optimizers=optimizer, seed=derive(seed, event))
        for old, new in zip(before, _outputs(model, inputs), strict=True):
            worst = max(worst, float((new - old).abs().max() / old.abs().max()))
    return worst


def _outputs(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    """In evaluation mode, and of a copy in training mode."""
    with torch.no_grad():
        twin = copy.deepcopy(model).train()
        with evaluated(model):
            return [model(inputs), twin(inputs)]


def _step(model: nn.Module, inputs: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    outputs = model.train()(inputs).flatten(0, -2)
    F.cross_entropy(outputs, torch.arange(len(outputs)) % outputs.shape[-1]).backward()
    optimizer.step()
    optimizer.zero_grad()


def _variances(seed: int) -> dict[str, float]:
    """Variance of old units of a hidden layer after an event, and of its weights over three.

    Random channels stand for copies that have parted: they are what parted copies become.
    """
    width, wider = 200, 240
    inputs = torch.randn(500, 50, dtype=torch.float64)
    model = mlp(in_features=50, hidden=(width, width), num_classes=4, bias=False).double()
    nn.init.normal_(_weight(model, "linear1"), std=(2 / 50) ** 0.5)
    nn.init.normal_(_weight(model, "linear2"), std=(2 / width) ** 0.5)
    before = float(model[:4](inputs).detach().var())
    measured = {}
    inits: tuple[tuple[str, Init], ...] = (("at the event", "pair"), ("parted", "random"))
    for name, init in inits:
        twin = copy.deepcopy(model)
        widen(twin, inputs, {"linear1": wider}, init=init, rescale="vt", seed=seed)
        ratio = float(twin[:4](inputs).detach().var()) / before
        measured[f"variance {name}"] = ratio if name == "parted" else ratio * wider / width
    square = mlp(in_features=4, hidden=(400, 400), num_classes=2).double()
    weight = _weight(square, "linear2")
    nn.init.normal_(weight, std=400**-0.5)
    settings, off = WideningSettings(gain=1.0), 0.0
    for event, size in enumerate((480, 576, 692)):
        widen(
            square,
            torch.zeros(1, 4, dtype=torch.float64),
            {"linear1": size, "linear2": size},
            rescale="vt",
            seed=derive(seed, event),
            settings=settings,
        )
        moment = float(weight.detach().square().mean()) * size
        off = max(off, abs(moment - 1.0) * size)
    return measured | {"moment off": off}


def _pair_gradients(seed: int) -> dict[str, float]:
    """Gradients of the two copies of new units: opposite before them, equal behind them."""
    model = mlp(in_features=8, hidden=(6,), num_classes=3).double()
    inputs = torch.randn(16, 8, dtype=torch.float64)
    widen(model, inputs, {"linear1": 14}, seed=seed)
    F.cross_entropy(model(inputs), torch.arange(16) % 3).backward()
    gradients = [_weight(model, layer).grad for layer in ("linear1", "head")]
    assert gradients[0] is not None and gradients[1] is not None
    made, read = gradients[0][6:], gradients[1][:, 6:]
    opposite = float((made[:4] + made[4:]).abs().max() / made.abs().max())
    equal = float((read[:, :4] - read[:, 4:]).abs().max() / read.abs().max())
    return {"sum of gradients": opposite, "difference of gradients": equal}


def _weight(model: nn.Module, layer: str) -> nn.Parameter:
    return model.get_parameter(f"{layer}.weight")


def _momentum(seed: int) -> dict[str, float]:
    """How far momenta are from the old ones over the factor that a norm undoes, and from zero."""
    model, inputs = _family("ResNet-20")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    _step(model, inputs, optimizer)
    names = dict(model.named_parameters())
    old = {n: optimizer.state[p]["momentum_buffer"].clone() for n, p in names.items()}
    grown = {
        group.name: 2 * group.width for group in trace_channels(model, inputs) if not group.barriers
    }
    done = widen(model, inputs, grown, optimizers=optimizer, rescale="vt", seed=seed)
    carried = newborn = 0.0
    for name, parameter in names.items():
        momentum = optimizer.state[parameter]["momentum_buffer"]
        corner = tuple(slice(0, size) for size in old[name].shape)
        wanted = old[name] / done.rescaling.undone.get(name, 1.0)
        carried = max(carried, float((momentum[corner] - wanted).abs().max()))
        rest = momentum.clone()
        rest[corner] = 0.0
        newborn = max(newborn, float(rest.abs().max()))
    return {"momentum off": carried, "newborn momentum": newborn}


def newborn_steps(
    state: str, *, counters: bool, count: int = 10**4, steps: int = 40
) -> list[float]:
    """Lengths of Adam's steps of a new unit's weight, in units of the rate, constant gradients.

    Args:
        state: what becomes of the state at the event (``WideningSettings``).
        counters: whether new entries have step counts of their own.
        count: Adam's steps before the event.
        steps: after it.
    """
    assert state in ("carry", "zero")
    model = mlp(in_features=1, hidden=(2,), num_classes=1).double()
    weight, rate = _weight(model, "linear1"), 1e-3
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, eps=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter in model.parameters():
        moments = optimizer.state[parameter]
        moments["step"].fill_(count)
        moments["exp_avg"].fill_(1.0)
        moments["exp_avg_sq"].fill_(1.0)
    optimizer.zero_grad()
    stages = Stages()
    StageRates(model, stages, rule="constant", counters=counters).attach(optimizer)
    widen(
        model,
        torch.zeros(1, 1, dtype=torch.float64),
        {"linear1": 4},
        optimizers=optimizer,
        stages=stages,
        settings=WideningSettings(state="zero" if state == "zero" else "carry"),
    )
    lengths = []
    for _ in range(steps):
        before = float(weight.detach()[2])
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        lengths.append((before - float(weight.detach()[2])) / rate)
    return lengths


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "ResNet-20": resnet20,
    "VGG-11": vgg11,
    "MobileNetV1": mobilenet_v1,
}


def schedule_cost(name: str) -> float:
    """Multiply-accumulates of the paper's schedule over those of training the full network.

    Nine phases from a quarter of the width, a fifth wider and longer from phase to phase; batches
    are of one size, so that steps go with epochs.

    Args:
        name: of one of the paper's networks for CIFAR-10.
    """
    schedule, examples = phased(end=4.0), torch.zeros(1, 3, 32, 32)
    model = _paper_network(name, 0.25)
    widths = growing_widths(trace_channels(model, examples), schedule, ())
    costs = phase_costs(model, examples, widths)
    return _spent([cost.macs for cost in costs], schedule.starts(EPOCHS))


def schedule_cost_of_real_widths(name: str) -> float:
    """The same if widths need not be whole: a fifth more in every phase, up to the full width.

    Multiply-accumulates are ``a f^2 + b f`` in the fraction f of the channels.
    """
    examples = (torch.zeros(1, 3, 32, 32),)
    half, full = (macs(_paper_network(name, fraction), examples) for fraction in (0.5, 1.0))
    square = 2 * full - 4 * half
    fractions = [min(1.0, 0.25 * 1.2**phase) for phase in range(8)] + [1.0]
    costs = [square * fraction**2 + (full - square) * fraction for fraction in fractions]
    return _spent(costs, phased(end=4.0).starts(EPOCHS))


def _paper_network(name: str, fraction: float) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return NETWORKS[name](width=fraction)


def _spent(costs: Sequence[float], starts: Sequence[int]) -> float:
    lengths = [after - before for before, after in itertools.pairwise([*starts, EPOCHS])]
    spent = sum(length * cost for length, cost in zip(lengths, costs, strict=True))
    return spent / (EPOCHS * costs[-1])


def _tiny(results: Results, *names: str) -> str:
    return ", ".join(f"{name} {max(results.values(name)):.1e}" for name in names)


def _near(results: Results, name: str, value: float, by: float) -> bool:
    return all(abs(measured - value) <= by for measured in results.values(name))


_GRADIENTS = ("sum of gradients", "difference of gradients")
_COSTS = {"ResNet-20 cost, real widths": 0.529, "VGG-11 cost": 0.532, "MobileNetV1 cost": 0.539}

INVARIANTS = register(
    Experiment(
        name="growth-invariants",
        title="What a growth event keeps",
        paper=GROWTH,
        run=run,
        scales=("quick", "cpu"),
        claims=(
            Claim(
                "the-function-is-kept",
                "Two events with pairs, a training step before each, change the outputs of a "
                "perceptron, a ResNet-20 and a Transformer by at most 1e-12 of the largest, in "
                "training and in evaluation mode.",
                "[S] growth is function-preserving; [I] streams under layer norms are padded",
                "-",
                lambda r: _tiny(r, *(f"{name} change" for name in FAMILIES)),
                lambda r: all(max(r.values(f"{name} change")) <= 1e-12 for name in FAMILIES),
            ),
            Claim(
                "variance-at-the-event",
                "Variance transfer leaves old hidden units with C_t / C_{t+1} of their variance "
                "while copies are alike, within 2 %.",
                "[D] from the rule of variance transfer",
                "1 (over the ratio of widths)",
                lambda r: r.text("variance at the event", digits=4),
                lambda r: _near(r, "variance at the event", 1.0, 0.02),
            ),
            Claim(
                "variance-once-parted",
                "It is 1 again once the copies are independent, within 10 %.",
                "[R] the aim of variance transfer; [D]",
                "1",
                lambda r: r.text("variance parted", digits=3),
                lambda r: _near(r, "variance parted", 1.0, 0.1),
            ),
            Claim(
                "weights-stay-well-initialised",
                "Fan-in times the mean square of a hidden weight stays 1 over three events, within "
                "four standard errors (2 / width, as new entries come twice).",
                "[R] section on variance transfer; [V] .998, 1.0005, .997",
                "0 (distance times width; at most 8)",
                lambda r: r.text("moment off"),
                lambda r: max(r.values("moment off")) <= 8.0,
            ),
            Claim(
                "copies-part",
                "Gradients of the two copies of a new unit are opposite before it and equal behind "
                "it, to 1e-12: the first step parts them without noise.",
                "[D] from the signs",
                "0",
                lambda r: _tiny(r, *_GRADIENTS),
                lambda r: all(max(r.values(name)) <= 1e-12 for name in _GRADIENTS),
            ),
            Claim(
                "momentum-is-carried",
                "Old entries keep their momentum, over c where a norm undoes the factor c, to "
                "1e-12; new ones have none.",
                "[D] from the gradients",
                "0",
                lambda r: _tiny(r, "momentum off", "newborn momentum"),
                lambda r: (
                    max(r.values("momentum off")) <= 1e-12
                    and max(r.values("newborn momentum")) == 0.0
                ),
            ),
            Claim(
                "no-long-first-steps",
                "Under an old step count, Adam moves entries with an empty state by up to 6.57 "
                "times the rate; with step counts of their own, or filled second moments, by 1.",
                "[V] an independent computation",
                "6.568 and 1.0",
                lambda r: r.texts("zero state", "filled state", "own counts", digits=3),
                lambda r: (
                    _near(r, "zero state", 6.568, 2e-3)
                    and max(r.values("filled state")) <= 1.0 + 1e-4
                    and _near(r, "own counts", 1.0, 1e-6)
                ),
            ),
            Claim(
                "the-schedules-cost",
                "The paper's schedule takes 52.9, 53.2 and 53.9 % of the multiply-accumulates of "
                "ResNet-20 (with widths that need not be whole), VGG-11 and MobileNetV1, within "
                "one point.",
                "[R] the paper's tables; [V] an independent count with recalled rules",
                "54.90, 52.91 and 53.80 %",
                lambda r: r.texts(*_COSTS, scale=100, unit="%"),
                lambda r: all(_near(r, name, cost, 0.01) for name, cost in _COSTS.items()),
            ),
            Claim(
                "pairs-cost-nothing-more",
                "That channels come in pairs makes the schedule of ResNet-20 dearer by at most one "
                "point.",
                "[I] the rule of whole pairs, on layers that begin with 4 channels",
                "54.90 %",
                lambda r: r.texts(
                    "ResNet-20 cost", "ResNet-20 cost, real widths", scale=100, unit="%"
                ),
                lambda r: r.difference("ResNet-20 cost", "ResNet-20 cost, real widths") <= 0.01,
            ),
        ),
    )
)
