"""Where a model is, and its inputs there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["device_of", "on_device"]


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter is; the CPU for a model without parameters."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def on_device(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The inputs on the model's device."""
    device = device_of(model)
    return [tensor.to(device) for tensor in inputs]
