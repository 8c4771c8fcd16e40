"""Small convolutional networks: a plain stack with batch normalisation, and LeNet-5."""

from __future__ import annotations

from torch import nn

from latewood.errors import invalid
from latewood.models.parts import (
    GlobalAveragePool,
    Initialization,
    initialize,
    require_positive,
)

__all__ = ["convnet", "lenet"]


def convnet(
    *,
    channels: list[int] | tuple[int, ...] = (32, 64, 64),
    strides: list[int] | tuple[int, ...] = (1, 1, 2),
    in_channels: int = 1,
    num_classes: int = 10,
    init: Initialization = "torch",
) -> nn.Sequential:
    """3x3 convolutions without bias, each with batch normalisation and ReLU, then global pooling.

    Layers are named conv1, norm1, relu1, ..., pool and head. The default is the network of the
    handwritten digits, 1-32-64-64.

    Args:
        channels: output channels of each convolution.
        strides: stride of each convolution, as many as ``channels``.
        in_channels: channels of the image.
        num_classes: outputs.
        init: weight initialisation.

    Returns:
        A model from (batch, in_channels, height, width) to (batch, num_classes).

    Raises:
        RequestError: a size is not positive, or the two lists differ in length.
    """
    if not channels or len(strides) != len(channels):
        raise invalid("strides", list(strides), f"one stride per entry of channels={[*channels]}")
    require_positive(in_channels=in_channels, num_classes=num_classes)
    model = nn.Sequential()
    width = in_channels
    for index, (outputs, stride) in enumerate(zip(channels, strides, strict=True), start=1):
        require_positive(channels=outputs, strides=stride)
        model.add_module(
            f"conv{index}",
            nn.Conv2d(width, outputs, 3, stride=stride, padding=1, bias=False),
        )
        model.add_module(f"norm{index}", nn.BatchNorm2d(outputs))
        model.add_module(f"relu{index}", nn.ReLU())
        width = outputs
    model.add_module("pool", GlobalAveragePool())
    model.add_module("head", nn.Linear(width, num_classes))
    initialize(model, init)
    return model


def lenet(
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 28,
    padding: int = 2,
    init: Initialization = "torch",
) -> nn.Sequential:
    """LeNet-5: two 5x5 convolutions with 2x2 max pooling, then 120, 84 and the classes.

    Args:
        num_classes: outputs.
        in_channels: channels of the image.
        image_size: height and width of the image.
        padding: of the first convolution; 2 for 28x28 images, 0 for 32x32.
        init: weight initialisation.

    Returns:
        A model from (batch, in_channels, image_size, image_size) to (batch, num_classes).

    Raises:
        RequestError: a size is not positive, or the image is too small.

    Source: LeCun et al. 1998, figure 2, with full connections between the convolutions, ReLU and
    max pooling.
    """
    require_positive(num_classes=num_classes, in_channels=in_channels)
    side = ((image_size + 2 * padding - 4) // 2 - 4) // 2
    if side < 1:
        raise invalid("image_size", image_size, f"at least {16 - 2 * padding}")
    model = nn.Sequential()
    model.add_module("conv1", nn.Conv2d(in_channels, 6, 5, padding=padding))
    model.add_module("relu1", nn.ReLU())
    model.add_module("pool1", nn.MaxPool2d(2))
    model.add_module("conv2", nn.Conv2d(6, 16, 5))
    model.add_module("relu2", nn.ReLU())
    model.add_module("pool2", nn.MaxPool2d(2))
    model.add_module("flatten", nn.Flatten())
    model.add_module("linear1", nn.Linear(16 * side * side, 120))
    model.add_module("relu3", nn.ReLU())
    model.add_module("linear2", nn.Linear(120, 84))
    model.add_module("relu4", nn.ReLU())
    model.add_module("head", nn.Linear(84, num_classes))
    initialize(model, init)
    return model
