"""One factor on a whole weight, so that rescaling what is stored does not change the function."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latewood.core import MASK, attach, bake, stored_tensor, transformations
from latewood.core.coupling.resize import replace_data

__all__ = ["WeightScale", "bake_scales", "multiply_scale"]


class WeightScale(nn.Module):
    """Multiplies a weight by a number, outside of number formats.

    Args:
        factor: the number.
    """

    order = MASK
    uniform = True
    """It treats all entries alike: means of what is stored are means of what is made."""
    factor: Tensor

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor, dtype=torch.float64))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, multiplied."""
        return weight * self.factor.to(weight.dtype)


def multiply_scale(module: nn.Module, name: str, factor: float) -> None:
    """Multiplies what a layer computes with by a number, its stored weight staying as it is.

    Args:
        module: the layer.
        name: of the weight in it.
        factor: the number.
    """
    for transformation in transformations(module, name):
        if isinstance(transformation, WeightScale):
            replace_data(transformation.factor, transformation.factor * factor)
            return
    scale = WeightScale(factor).to(stored_tensor(module, name).device)
    attach(module, name, scale)


def bake_scales(model: nn.Module) -> None:
    """Folds the factors that ``rescale="vt_exact"`` (or "vt", where it needs them) left into the
    weights, for plain layers: at the end of training, since rates of learning change with them.

    Args:
        model: any module.
    """
    for module in list(model.modules()):
        names = list(getattr(module, "parametrizations", ()))
        for name in names:
            for transformation in transformations(module, name):
                if isinstance(transformation, WeightScale):
                    bake(module, name, transformation)
