"""What several model families share: activations by name, weight initialisation, pooling."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from latewood.errors import invalid

__all__ = [
    "Activation",
    "GlobalAveragePool",
    "Initialization",
    "activation_layer",
    "initialize",
    "require_positive",
    "sinusoidal_positions",
]

Activation = Literal["relu", "gelu", "tanh", "silu", "identity"]
Initialization = Literal["torch", "kaiming_normal", "kaiming_uniform", "xavier_normal"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "identity": nn.Identity,
}

_INITIALIZERS = {
    "kaiming_normal": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "kaiming_uniform": lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity="relu"),
    "xavier_normal": nn.init.xavier_normal_,
}


class GlobalAveragePool(nn.Module):
    """Mean over all positions: (batch, channels, height, width) to (batch, channels)."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mean(dim=(2, 3))


def activation_layer(name: Activation) -> nn.Module:
    """The activation module of that name.

    Args:
        name: "relu", "gelu", "tanh", "silu" or "identity".

    Raises:
        RequestError: the name is none of these.
    """
    if name not in _ACTIVATIONS:
        raise invalid("activation", name, f"one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]()


def initialize(model: nn.Module, scheme: Initialization) -> None:
    """Draws the weights of all convolutions and linear layers anew and sets their biases to zero.

    "kaiming_*" has variance 2 / fan_in, "xavier_normal" 2 / (fan_in + fan_out); "torch" keeps
    what the layers' constructors drew.

    Args:
        model: changed in place; uses the global generator.
        scheme: "torch", "kaiming_normal", "kaiming_uniform" or "xavier_normal".

    Raises:
        RequestError: the scheme is none of these.
    """
    if scheme == "torch":
        return
    if scheme not in _INITIALIZERS:
        raise invalid("init", scheme, f"torch or one of {', '.join(_INITIALIZERS)}")
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            _INITIALIZERS[scheme](module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def require_positive(**sizes: float) -> None:
    """Refuses sizes that are not above zero.

    Args:
        sizes: the arguments of a factory by name.

    Raises:
        RequestError: names the first argument that is zero or negative.
    """
    for name, size in sizes.items():
        if size <= 0:
            raise invalid(name, size, "a number above 0")


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """Fixed position vectors: sines at even and cosines at odd indices.

    P[t, 2i] = sin(t / 10000^(2i / width)), P[t, 2i + 1] = cos(t / 10000^(2i / width)).

    Args:
        length: number of positions.
        width: entries of a vector.

    Returns:
        (length, width) float32.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5.
    """
    position = torch.arange(length, dtype=torch.float32).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    positions = torch.zeros(length, width)
    positions[:, 0::2] = torch.sin(position * frequency)
    positions[:, 1::2] = torch.cos(position * frequency[: width // 2])
    return positions
