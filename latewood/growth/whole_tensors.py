"""The tensors of a model's layers that are stored in one piece."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrize

from latewood.core.coupling.trace import layer_tensors
from latewood.core.selection import parametrization_list, stored_tensor

__all__ = ["whole_tensors"]


def whole_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, before any transformation.

    What weight norm and the like store as several tensors is left out: it keeps its shape.

    Args:
        model: any module.
    """
    return {
        name: stored_tensor(module, attribute)
        for name, (module, attribute) in layer_tensors(model)
        if not parametrize.is_parametrized(module, attribute)
        or parametrization_list(module, attribute).is_tensor
    }
