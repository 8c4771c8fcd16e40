"""The soft factors of structures: between what makes a channel and everything that reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from latewood.core import MASK

__all__ = ["ChannelFactors", "Estimator", "Gate", "LayerFactor"]

Estimator = Literal["soft", "ste"]


class Gate(nn.Module):
    """The logits of some structures that are sampled together, and their temperatures.

    Args:
        size: (n) number of structures.
        estimator: "soft" makes the factor of what is present ``sigmoid(beta s)``; "ste" makes it 1
            and keeps the gradient of the sigmoid.
        dtype: of the logits, float32 at least.
        device: of the logits.
    """

    temperature: Tensor

    def __init__(
        self, size: int, *, estimator: Estimator, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.estimator = estimator
        self.logits = nn.Parameter(torch.zeros(size, dtype=dtype, device=device))
        # The method keeps it in its own state, with the ages that it comes from.
        ones = torch.ones(size, dtype=dtype, device=device)
        self.register_buffer("temperature", ones, persistent=False)

    def chances(self) -> Tensor:
        """The chance of each structure to be sampled, ``sigmoid(beta s)``, shape (n,)."""
        return torch.sigmoid(self.temperature * self.logits)

    def factors(self) -> Tensor:
        """The factor of each structure while it is present, shape (n,)."""
        soft = self.chances()
        return soft - soft.detach() + 1.0 if self.estimator == "ste" else soft

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Gate:
        """Moves with the model but stays in float32 when the model goes to half precision."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            half = moved.dtype in (torch.float16, torch.bfloat16)
            return tensor.to(moved.device) if half else moved

        super()._apply(move, recurse)
        return self


class ChannelFactors(nn.Module):
    """Multiplies what reads channels by the channels' factors.

    Scaling the reader's weight is scaling the channel where it is read: after its norm and its
    activation, in every branch, and at the cost of a product with the weight only.

    Args:
        axis: of the weight along which it reads.
        gates: whose channels are on that axis.
        channel: int64, for each position of the axis the channel that it reads, as its number in
            the row of all gates' channels; -1 where no gate governs.
    """

    order = MASK
    channel: Tensor

    def __init__(self, axis: int, gates: Sequence[Gate], channel: Tensor) -> None:
        super().__init__()
        self.axis = axis
        self.gates = nn.ModuleList(gates)
        self.set_channels(channel)

    def set_channels(self, channel: Tensor) -> None:
        """Says anew which channel each position of the axis reads."""
        device = self.gates[0].get_parameter("logits").device
        self.register_buffer("channel", channel.to(device), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight times the factors, in its own shape and dtype."""
        factors = [cast(Gate, gate).factors() for gate in self.gates]
        row = torch.cat([*factors, factors[0].new_ones(1)])[self.channel]
        shape = [1] * weight.ndim
        shape[self.axis] = -1
        return weight * row.view(shape).to(weight.dtype)


class LayerFactor(nn.Module):
    """Multiplies the last tensors of a residual branch by the factor of its layer.

    Args:
        gate: of all layers.
        number: of the layer, among the gate's.
    """

    order = MASK

    def __init__(self, gate: Gate, number: int) -> None:
        super().__init__()
        self.gate = gate
        self.number = number

    def forward(self, weight: Tensor) -> Tensor:
        """The weight times the factor, in its own shape and dtype."""
        factor = self.gate.factors()[self.number]
        return weight * factor.to(weight.dtype)
