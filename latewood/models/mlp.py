"""Fully connected networks."""

from __future__ import annotations

from torch import nn

from latewood.models.parts import (
    Activation,
    Initialization,
    activation_layer,
    initialize,
    require_positive,
)

__all__ = ["mlp"]


def mlp(
    *,
    in_features: int,
    hidden: list[int] | tuple[int, ...] = (300, 100),
    num_classes: int = 10,
    activation: Activation = "relu",
    norm: bool = False,
    bias: bool = True,
    init: Initialization = "torch",
) -> nn.Sequential:
    """Fully connected network that flattens its input; the default is LeNet-300-100.

    Layers are named linear1, linear2, ... and head.

    Args:
        in_features: entries of one flattened input.
        hidden: width of each hidden layer; empty for a linear model.
        num_classes: outputs.
        activation: after each hidden layer.
        norm: batch normalisation before each activation.
        bias: whether linear layers have biases.
        init: weight initialisation.

    Returns:
        A model from (batch, ...) to (batch, num_classes).

    Raises:
        RequestError: a size is not positive.
    """
    require_positive(in_features=in_features, num_classes=num_classes)
    model = nn.Sequential()
    model.add_module("flatten", nn.Flatten())
    width = in_features
    for index, outputs in enumerate(hidden, start=1):
        require_positive(hidden=outputs)
        model.add_module(f"linear{index}", nn.Linear(width, outputs, bias=bias))
        if norm:
            model.add_module(f"norm{index}", nn.BatchNorm1d(outputs))
        model.add_module(f"activation{index}", activation_layer(activation))
        width = outputs
    model.add_module("head", nn.Linear(width, num_classes, bias=bias))
    initialize(model, init)
    return model
