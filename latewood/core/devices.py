"""Where a model is, and its inputs there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from latewood.errors import RequestError

__all__ = ["device_of", "on_device", "require_values"]


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter is; the CPU for a model without parameters."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def require_values(model: nn.Module) -> None:
    """Refuses a model whose parameters or buffers have shapes only.

    Raises:
        RequestError: a tensor is on the meta device.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise RequestError(f"model: {name} is on the meta device; expected tensors with values")


def on_device(model: nn.Module, inputs: Any) -> Any:
    """The inputs on the model's device.

    Args:
        model: any module.
        inputs: tensors in nested tuples, lists and dicts; all else stays as it is.
    """
    return _moved(inputs, device_of(model))


def _moved(tree: Any, device: torch.device) -> Any:
    if isinstance(tree, Tensor):
        return tree.to(device)
    if type(tree) in (tuple, list):
        return type(tree)(_moved(item, device) for item in tree)
    if isinstance(tree, dict):
        return {name: _moved(item, device) for name, item in tree.items()}
    return tree
