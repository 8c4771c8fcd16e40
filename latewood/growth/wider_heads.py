"""Larger heads: new entries of queries and keys that leave the scores as they are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latewood.core import ChannelGroup, ChannelPlan, state_rule
from latewood.core.coupling.trace import layer_tensors
from latewood.core.selection import stored_tensor
from latewood.core.state_rules import unwrapped_optimizer
from latewood.errors import RequestError
from latewood.growth.initialisations import Init

__all__ = ["keep_scores", "require_pairs_of_queries"]


def require_pairs_of_queries(plan: ChannelPlan, grown: Mapping[str, int], init: Init) -> None:
    """Refuses other initialisations than pairs for entries of queries and keys.

    Args:
        plan: of the model.
        grown: new widths by group.
        init: how new channels are made.

    Raises:
        RequestError: a group of queries and keys, whose products copies would count twice.
    """
    for name in grown:
        if plan[name].queries and init != "pair":
            raise RequestError(
                f"init: got {init!r} for {name}, entries of queries and keys: their products would "
                "change; expected 'pair'"
            )


def keep_scores(
    model: nn.Module, group: ChannelGroup, before: int, optimizers: Iterable[Optimizer]
) -> None:
    r"""Makes pairs of new entries cancel in the scores, and undoes a factor that follows the size.

    Queries of the second copies change their sign, so that q k - q k = 0. Where the scores are
    divided by the root of the size, all queries are multiplied by :math:`\sqrt{d' / d}`, and their
    state follows.

    Args:
        model: after its heads became larger by pairs.
        group: of the plan of the model as it is now.
        before: its width before.
        optimizers: whose state is to follow.
    """
    places = dict(layer_tensors(model))
    factor = math.sqrt(group.width / before) if group.score_scale == "size" else 1.0
    second = range(before + (group.width - before) // 2, group.width)
    for queries in group.queries:
        tensor = stored_tensor(*places[queries.tensor])
        key = (queries.tensor, queries.axis)
        indices = next(m.indices for m in group.members if (m.tensor, m.axis) == key)
        positions = indices[:, list(queries.columns)]
        factors = torch.ones(tensor.shape[queries.axis], dtype=torch.float64)
        factors[positions.flatten()] = factor
        with torch.no_grad():
            for optimizer in map(unwrapped_optimizer, optimizers):
                for name, power in state_rule(optimizer).powers.items():
                    value = optimizer.state.get(tensor, {}).get(name)
                    if isinstance(value, Tensor) and value.shape == tensor.shape and power:
                        value.div_(_along(factors.pow(power), value, queries.axis))
            factors[positions[list(second)].flatten()] *= -1.0
            tensor.mul_(_along(factors, tensor, queries.axis))


def _along(factors: Tensor, tensor: Tensor, axis: int) -> Tensor:
    shape = [-1 if dim == axis else 1 for dim in range(tensor.ndim)]
    return factors.to(tensor).view(shape)
