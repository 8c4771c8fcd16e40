"""VGG networks for 32x32 images: one classifier after global pooling."""

from __future__ import annotations

from torch import nn

from latewood.errors import invalid
from latewood.models.parts import (
    GlobalAveragePool,
    Initialization,
    initialize,
    require_positive,
)

__all__ = ["vgg", "vgg11", "vgg13", "vgg16"]

_POOL = 0
# Output channels of the convolutions in order, and where there is a max pooling.
_PLANS: dict[int, tuple[int, ...]] = {
    11: (64, _POOL, 128, _POOL, 256, 256, _POOL, 512, 512, _POOL, 512, 512, _POOL),
    13: (
        *(64, 64, _POOL, 128, 128, _POOL, 256, 256, _POOL),
        *(512, 512, _POOL, 512, 512, _POOL),
    ),
    16: (
        *(64, 64, _POOL, 128, 128, _POOL, 256, 256, 256, _POOL),
        *(512, 512, 512, _POOL, 512, 512, 512),
    ),
}


def _features(plan: tuple[int, ...], in_channels: int, conv_bias: bool, norm: bool) -> nn.Module:
    features = nn.Sequential()
    width, convolutions, pools = in_channels, 0, 0
    for entry in plan:
        if entry == _POOL:
            pools += 1
            features.add_module(f"pool{pools}", nn.MaxPool2d(2))
            continue
        convolutions += 1
        conv = nn.Conv2d(width, entry, 3, padding=1, bias=conv_bias)
        features.add_module(f"conv{convolutions}", conv)
        if norm:
            features.add_module(f"norm{convolutions}", nn.BatchNorm2d(entry))
        features.add_module(f"relu{convolutions}", nn.ReLU())
        width = entry
    return features


def vgg(
    depth: int,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    conv_bias: bool = True,
    norm: bool = True,
    hidden: list[int] | tuple[int, ...] = (),
    init: Initialization = "torch",
) -> nn.Sequential:
    """The VGG network of a depth for 32x32 images: 3x3 convolutions and a linear classifier.

    11 has eight convolutions, 13 has ten, both with five max poolings; 16 has thirteen, with four.
    With ``hidden=[512]`` the latter has the 14.99 million values that pruning papers state.

    Args:
        depth: 11, 13 or 16.
        num_classes: outputs.
        in_channels: channels of the image.
        width: factor on the convolutions' channel counts.
        conv_bias: whether the convolutions have biases.
        norm: batch normalisation after each convolution.
        hidden: widths of linear layers between the pooling and the classifier.
        init: weight initialisation.

    Returns:
        A model from (batch, in_channels, height, width), sides at least 32 (16 for depth 16), to
        (batch, num_classes).

    Raises:
        RequestError: an unknown depth, or a size that is not positive.

    Source: depth 16 is the CIFAR variant of arXiv 2408.11804.
    """
    if depth not in _PLANS:
        raise invalid("depth", depth, f"one of {', '.join(map(str, _PLANS))}")
    require_positive(num_classes=num_classes, in_channels=in_channels, width=width)
    plan = tuple(
        entry if entry == _POOL else max(1, round(width * entry)) for entry in _PLANS[depth]
    )
    model = nn.Sequential()
    model.add_module("features", _features(plan, in_channels, conv_bias, norm))
    model.add_module("pool", GlobalAveragePool())
    features = plan[-1] or plan[-2]
    for index, outputs in enumerate(hidden, start=1):
        require_positive(hidden=outputs)
        model.add_module(f"linear{index}", nn.Linear(features, outputs))
        model.add_module(f"relu{index}", nn.ReLU())
        features = outputs
    model.add_module("head", nn.Linear(features, num_classes))
    initialize(model, init)
    return model


def vgg11(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    conv_bias: bool = True,
    norm: bool = True,
    hidden: list[int] | tuple[int, ...] = (),
    init: Initialization = "torch",
) -> nn.Sequential:
    """VGG-11, eight convolutions and five max poolings; arguments as for ``vgg``."""
    return vgg(
        11,
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        conv_bias=conv_bias,
        norm=norm,
        hidden=hidden,
        init=init,
    )


def vgg13(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    conv_bias: bool = True,
    norm: bool = True,
    hidden: list[int] | tuple[int, ...] = (),
    init: Initialization = "torch",
) -> nn.Sequential:
    """VGG-13, ten convolutions and five max poolings; arguments as for ``vgg``."""
    return vgg(
        13,
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        conv_bias=conv_bias,
        norm=norm,
        hidden=hidden,
        init=init,
    )


def vgg16(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    conv_bias: bool = True,
    norm: bool = True,
    hidden: list[int] | tuple[int, ...] = (),
    init: Initialization = "torch",
) -> nn.Sequential:
    """VGG-16, thirteen convolutions and four max poolings; arguments as for ``vgg``."""
    return vgg(
        16,
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        conv_bias=conv_bias,
        norm=norm,
        hidden=hidden,
        init=init,
    )
