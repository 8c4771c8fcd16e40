"""Copies of a model that grow with it: moving averages, teachers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn
from torch.optim.swa_utils import AveragedModel

from latewood.errors import invalid
from latewood.growth.whole_tensors import whole_tensors

__all__ = ["averaged_models", "require_alike"]


def averaged_models(copies: Iterable[nn.Module] | nn.Module) -> list[nn.Module]:
    """The copies, each without torch's ``AveragedModel`` around it.

    Args:
        copies: one or several.

    Raises:
        RequestError: something that is no module.
    """
    listed = [copies] if isinstance(copies, nn.Module) else list(copies)
    for number, copied in enumerate(listed):
        if not isinstance(copied, nn.Module):
            raise invalid(f"copies[{number}]", copied, "a module of the model's structure")
    return [copied.module if isinstance(copied, AveragedModel) else copied for copied in listed]


def require_alike(models: Sequence[nn.Module]) -> None:
    """Refuses copies whose tensors have other names or shapes than the model's.

    Args:
        models: the model, then its copies.

    Raises:
        RequestError: the first difference, with the number of the copy.
    """
    first, *others = [
        {name: tuple(tensor.shape) for name, tensor in whole_tensors(model).items()}
        for model in models
    ]
    for number, shapes in enumerate(others):
        for name, shape in first.items():
            if shapes.get(name) != shape:
                what = f"shape {shapes[name]}" if name in shapes else "nothing"
                raise invalid(
                    f"copies[{number}]",
                    f"a model with {what} for {name}",
                    f"the model's structure, with shape {shape}",
                )
