"""What a training step takes at several widths of a network, measured on this machine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latewood.core import trace_channels
from latewood.core.timing import typical_times, usual_clock
from latewood.errors import invalid
from latewood.growth.phase_costs import network_cost
from latewood.growth.widen import widen
from latewood.slim.comparison import Examples

__all__ = ["MakeOptimizer", "StepCost", "TrainStep", "measure_steps"]

TrainStep = Callable[[nn.Module, Optimizer], object]
"""Takes one training step of a model with its optimizer."""

MakeOptimizer = Callable[[nn.Module], Optimizer]
"""Builds the optimizer of a model."""


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What a network takes at some widths.

    Args:
        widths: by group.
        macs: multiply-accumulates of a forward pass on the example.
        parameters: entries of its parameters.
        seconds: of a training step, the median over several turns.
        widening_seconds: of the widening that made it of the narrowest; 0 for that one.
    """

    widths: Mapping[str, int]
    macs: int
    parameters: int
    seconds: float
    widening_seconds: float


def measure_steps(
    model: nn.Module,
    example_inputs: Examples,
    candidates: Sequence[Mapping[str, int]],
    *,
    train_step: TrainStep | None = None,
    make_optimizer: MakeOptimizer | None = None,
    seconds: float = 0.5,
    clock: Callable[[], float] | None = None,
    report: Callable[[float], object] | None = None,
) -> list[StepCost]:
    """Measures a training step of a network at several widths, in turns.

    Args:
        model: with the narrowest widths; it stays as it is.
        example_inputs: what it is called with; batch size 1 gives MACs per sample.
        candidates: widths by group, none below the model's; all copies are in memory at once.
        train_step: of a copy; None squares the outputs on the example and steps.
        make_optimizer: of a copy; None is SGD with momentum.
        seconds: of measuring, about.
        clock: as for ``core.timing.typical_times``.
        report: as for ``core.timing.typical_times``.

    Returns:
        The cost of each candidate.

    Raises:
        RequestError: widths that a copy cannot have.
    """
    if not seconds > 0.0:
        raise invalid("seconds", seconds, "a positive number of seconds")
    plan = trace_channels(model, example_inputs)
    step = train_step or _plain_step(example_inputs)
    make = make_optimizer or _plain_optimizer
    device = next(model.parameters()).device
    now = usual_clock(device) if clock is None else clock
    twins: list[nn.Module] = []
    spent: list[float] = []
    for candidate in candidates:
        twin = copy.deepcopy(model).train()
        wider = {name: width for name, width in candidate.items() if width != plan[name].width}
        start = now()
        if wider:
            widen(twin, example_inputs, wider, plan=plan)
        spent.append(now() - start if wider else 0.0)
        twins.append(twin)
    optimizers = [make(twin) for twin in twins]

    def taken(number: int) -> Callable[[], object]:
        return lambda: step(twins[number], optimizers[number])

    forms = {str(number): taken(number) for number in range(len(twins))}
    # Long turns: in short ones each copy would find the cache full of the others.
    microseconds = typical_times(
        forms,
        device,
        seconds=seconds,
        turn_seconds=0.02,
        clock=clock,
        inference=False,
        report=report,
    )
    return [
        StepCost(
            widths=dict(candidate),
            macs=cost.macs,
            parameters=cost.parameters,
            seconds=1e-6 * microseconds[str(number)],
            widening_seconds=spent[number],
        )
        for number, (candidate, cost) in enumerate(
            zip(candidates, (network_cost(twin, example_inputs) for twin in twins), strict=True)
        )
    ]


def _plain_optimizer(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)


def _plain_step(example_inputs: Any) -> TrainStep:
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs

    def step(model: nn.Module, optimizer: Optimizer) -> None:
        optimizer.zero_grad()
        outputs = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
        tensors = [value for value in _tensors(outputs) if value.is_floating_point()]
        torch.stack([value.square().mean() for value in tensors]).sum().backward()
        optimizer.step()

    return step


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, Mapping) else tree
    return (
        [t for part in parts for t in _tensors(part)]
        if isinstance(tree, (Mapping, list, tuple))
        else []
    )
