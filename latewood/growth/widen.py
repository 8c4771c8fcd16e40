"""Widens a network in place by pairs of channels that leave what it computes as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.optim import Optimizer

from latewood.core import ChannelPlan, trace_channels, widen_channels
from latewood.core.coupling import BarrierKind
from latewood.errors import invalid
from latewood.growth.group_names import group_named
from latewood.slim.comparison import Examples

__all__ = ["Widening", "widen"]

_HELD_BY_NORMS: Final[tuple[BarrierKind, ...]] = ("normalised",)


@dataclass(frozen=True)
class Widening:
    """What a widening did.

    Args:
        before: plan of the network as it was.
        plan: of the network as it is now; new channels stand behind the old ones.
    """

    before: ChannelPlan
    plan: ChannelPlan


def widen(
    model: nn.Module,
    example_inputs: Examples,
    widths: Mapping[str, int],
    *,
    optimizers: Iterable[Optimizer] = (),
    copies: Iterable[nn.Module] = (),
    init: str = "pair",
    rescale: str = "none",
    seed: int = 0,
) -> Widening:
    """Makes some channel groups wider; parameters stay the same objects.

    Args:
        model: any module that ``core.trace_channels`` can follow.
        example_inputs: what it is called with.
        widths: the new widths by the name of a layer or of a group.
        optimizers: whose state is to follow.
        copies: further models of the same structure that grow alike.
        init: what new channels begin with; "pair".
        rescale: what happens to old weights; "none".
        seed: of the new channels.

    Returns:
        The plans before and after.

    Raises:
        RequestError: a name that matches nothing, a width that pairs do not reach, or a group that
            cannot change; nothing has changed then.
    """
    if init != "pair":
        raise invalid("init", init, "'pair'")
    if rescale != "none":
        raise invalid("rescale", rescale, "'none'")
    plan = trace_channels(model, example_inputs)
    added: dict[str, int] = {}
    for name, width in widths.items():
        group = group_named(plan, name)
        more = width - group.width
        if more <= 0 or more % 2:
            near = group.width + 2 * max(1, round(more / 2))
            raise invalid(
                f"widths[{name!r}]", width, f"{group.width} and an even number, as {near}"
            )
        added[group.name] = more
    wider = widen_channels(
        model,
        plan,
        added,
        fill="pair",
        generator=torch.Generator().manual_seed(seed),
        twins=copies,
        optimizers=optimizers,
        allow=_HELD_BY_NORMS,
    )
    return Widening(plan, wider)
