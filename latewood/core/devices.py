"""Where a model is, and its inputs there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["device_of", "on_device"]


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter is; the CPU for a model without parameters."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


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
