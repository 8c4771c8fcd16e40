"""What a network takes in each phase of its growth, found on a copy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from latewood.core import ChannelPlan, macs
from latewood.growth.initialisations import Init
from latewood.growth.variance_transfer import Rescale
from latewood.growth.widen import WideningSettings, widen, with_loss
from latewood.slim.comparison import Examples

__all__ = ["PhaseCost", "network_cost", "phase_costs"]


@dataclass(frozen=True)
class PhaseCost:
    """The size of a network.

    Args:
        macs: multiply-accumulates of a forward pass on the example.
        parameters: entries of its parameters.
    """

    macs: int
    parameters: int


def phase_costs(
    model: nn.Module,
    example_inputs: Examples,
    widths: Mapping[str, Sequence[int]],
    *,
    init: Init = "pair",
    rescale: Rescale = "none",
    settings: WideningSettings | None = None,
    loss: Callable[[nn.Module], Tensor] | None = None,
    plan: ChannelPlan | None = None,
) -> list[PhaseCost]:
    """Widens a copy phase by phase and counts; the model stays as it is.

    Args:
        model: with the widths of the first phase.
        example_inputs: what it is called with.
        widths: of each group by phase.
        init: what new channels begin with (``widen``).
        rescale: what happens to old weights (``widen``).
        settings: finer points (``widen``).
        loss: of the copy on a batch, where ``init`` asks for one.
        plan: of the model, if it is known.

    Returns:
        The cost of each phase.

    Raises:
        RequestError: one of the widenings is refused.
    """
    twin = copy.deepcopy(model)
    costs = [network_cost(twin, example_inputs)]
    phases = max((len(listed) for listed in widths.values()), default=1)
    for phase in range(1, phases):
        wanted = {
            name: listed[phase]
            for name, listed in widths.items()
            if listed[phase] > listed[phase - 1]
        }
        if wanted:
            done = widen(
                twin,
                example_inputs,
                wanted,
                init=init,
                rescale=rescale,
                plan=plan,
                settings=with_loss(settings or WideningSettings(), loss, twin),
            )
            plan = done.plan
        costs.append(network_cost(twin, example_inputs) if wanted else costs[-1])
    return costs


def network_cost(model: nn.Module, example_inputs: Examples) -> PhaseCost:
    """The size of a network as it is.

    Args:
        model: any module.
        example_inputs: what it is called with.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    return PhaseCost(macs(model, inputs), sum(p.numel() for p in model.parameters()))
