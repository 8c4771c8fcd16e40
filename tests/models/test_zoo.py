"""Every factory: parameter counts against the published numbers, shapes, gradients, state."""

import copy
import inspect
import typing
from functools import partial

import pytest
import torch
from pydantic import ConfigDict, create_model
from torch import nn

from latewood import models
from latewood.core.macs import macs
from latewood.core.selection import select_parameters
from latewood.errors import RequestError

IMAGENET = {"num_classes": 1000, "stem": "imagenet"}
WIKITEXT = {
    "vocabulary": 50_000,
    "context": 2048,
    "width": 768,
    "layers": 12,
    "heads": 12,
    "hidden": 768,
    "activation": "relu",
    "positions": "sinusoidal",
    "scale_embedding": True,
    "init": "uniform",
}
GPT2 = {"vocabulary": 50_257, "context": 1024, "width": 768, "layers": 12, "heads": 12}

COUNTS = [
    # LeNet-300-100: 784*300+300 + 300*100+100 + 100*10+10.
    ("mlp", {"in_features": 784}, 266_610),
    # The optimizers' study: 64*64+64 + 64*10+10.
    ("mlp", {"in_features": 64, "hidden": [64]}, 4_810),
    # The random-label network of the spectra: 3072*256+256 + 2*(256*256+256) + 256*10+10.
    ("mlp", {"in_features": 3072, "hidden": [256, 256, 256]}, 920_842),
    # LeNet-5: 156 + 2,416 + 48,120 + 10,164 + 850.
    ("lenet", {}, 61_706),
    # 1-32-64-64: convolutions 288 + 18,432 + 36,864, norms 2*160, head 650.
    ("convnet", {}, 56_554),
    # 3-16-32-64-64: 60,336 convolution weights, norms 2*176, head 650.
    (
        "convnet",
        {"in_channels": 3, "channels": [16, 32, 64, 64], "strides": [1, 2, 2, 2]},
        60_336 + 352 + 650,
    ),
    # Published: convolutions 270,256, norms 1,376, classifier 650.
    ("resnet20", {}, 272_282),
    ("resnet56", {}, 855_578),
    # Without the 2,560 weights of the two 1x1 shortcuts; with nine times as many.
    ("resnet20", {"shortcut": "pad"}, 272_282 - 2_560),
    ("resnet20", {"shortcut": "conv3x3"}, 272_282 + 8 * 2_560),
    # Norms on the shortcuts add 2*(32+64).
    ("resnet20", {"shortcut": "conv_norm"}, 272_282 + 192),
    # Published for ImageNet, all three.
    ("resnet18", IMAGENET, 11_689_512),
    ("resnet34", IMAGENET, 21_797_672),
    ("resnet50", {}, 25_557_032),
    # Published for ImageNet, both.
    ("resnet", {"depth": 101, **IMAGENET}, 44_549_160),
    ("resnet", {"depth": 152, **IMAGENET}, 60_192_808),
    # 464 + 18 * 4,672 + 13,952 + 17 * 18,560 + 55,552 + 17 * 73,984 + 650.
    ("resnet", {"depth": 110, "shortcut": "pad"}, 1_727_962),
    # The CIFAR stem has 27*64 weights instead of 147*64, the classifier 5,130 instead of 513,000.
    ("resnet18", {}, 11_689_512 - 120 * 64 - 513_000 + 5_130),
    # Convolutions 9,217,728 with biases 2,752, norms 5,504, classifier 5,130.
    ("vgg11", {}, 9_217_728 + 2_752 + 5_504 + 5_130),
    # 16, 32, 64, 64 and four times 128 channels.
    ("vgg11", {"width": 0.25}, 576_432 + 688 + 1_376 + 1_290),
    ("vgg11", {"conv_bias": False, "norm": False}, 9_217_728 + 5_130),
    ("vgg", {"depth": 11}, 9_231_114),
    # VGG-11 and two more convolutions: 64x576 and 128x1152, with 192 biases and 384 norm values.
    ("vgg13", {}, 9_231_114 + 36_864 + 147_456 + 192 + 384),
    # Convolutions 14,710,464 with biases 4,224, norms 8,448, classifier 5,130.
    ("vgg16", {}, 14_710_464 + 4_224 + 8_448 + 5_130),
    # Published as 14.99 M: one linear layer 512x512 more.
    ("vgg16", {"hidden": [512]}, 14_990_922),
    # Published as 36.5 M, 5.8 M and 1.5 M.
    ("wide_resnet28", {}, 36_479_194),
    ("wide_resnet28", {"width": 4}, 5_849_050),
    ("wide_resnet28", {"width": 2}, 1_467_610),
    # Published as 4.2 M; the CIFAR head is 10,250 instead of 1,025,000.
    ("mobilenet_v1", IMAGENET, 4_231_976),
    ("mobilenet_v1", {}, 4_231_976 - 1_025_000 + 10_250),
    # 4*128*(40+128) + 2*512 and 128*10+10.
    ("lstm_classifier", {"features": 40}, 86_016 + 1_024 + 1_290),
    # Published as 66.0 M: two tables 10,000x1500, two layers of 8*1500^2 + 12,000, biases 10,000.
    ("lstm_language_model", {"vocabulary": 10_000}, 30_000_000 + 36_024_000 + 10_000),
    ("lstm_language_model", {"vocabulary": 10_000, "tied": True}, 51_034_000),
    # Per direction 1024*(40+256) + 3*1024*(512+256) + 4*2048; head 29*512+29.
    ("bidirectional_lstm", {}, 2 * 2_670_592 + 14_877),
    # GPT-2 small, published as 124 M.
    ("transformer", GPT2 | {"tied": True}, 124_439_808),
    # Two tables 50,000x768, 12 * (2304*768+2304 + 3*(768*768+768) + 2*1536), last norm 1,536.
    ("transformer", WIKITEXT, 76_800_000 + 12 * 3_546_624 + 1_536),
    # Tables 2*114*128 and 114, attention 384*128+384 + 128*128+128, 2*512*128 + 640.
    ("grokking_transformer", {}, 29_298 + 66_048 + 131_712),
    ("grokking_transformer", {"norm": True}, 227_058 + 3 * 256),
    # Time 262,656; convolutions 1,548,864 each way and one bias; dense 1408*513; norms 2*1408.
    ("unet", {}, 262_656 + 2 * 1_548_864 + 1 + 722_304 + 2_816),
    # Down 2,800 + 13,952 + 55,552 (9 ab + 9 b^2 + 4 b), up 36,992 + 9,280, the head 17.
    ("segmentation_unet", {}, 72_304 + 46_272 + 17),
    # Published as 42.0 M with an auxiliary head of 2,365,205.
    ("deeplab", {"num_classes": 21, "depths": [3, 4, 6, 3]}, 42_004_074 - 2_365_205),
]

IMAGE = (2, 3, 32, 32)
SMALL = [
    ("mlp", {"in_features": 64}, (2, 1, 8, 8), (2, 10)),
    (
        "mlp",
        {"in_features": 6, "hidden": [], "norm": True, "bias": False},
        (2, 6),
        (2, 10),
    ),
    ("mlp", {"in_features": 6, "hidden": [8, 7], "norm": True, "num_classes": 3}, (2, 6), (2, 3)),
    ("lenet", {}, (2, 1, 28, 28), (2, 10)),
    ("lenet", {"image_size": 32, "padding": 0, "in_channels": 3}, IMAGE, (2, 10)),
    ("convnet", {}, (2, 1, 8, 8), (2, 10)),
    ("resnet18", {"width": 0.125}, IMAGE, (2, 10)),
    ("resnet18", {"width": 0.125, "stem": "imagenet"}, (2, 3, 64, 64), (2, 10)),
    ("resnet34", {"width": 0.125}, IMAGE, (2, 10)),
    ("resnet20", {}, IMAGE, (2, 10)),
    ("resnet20", {"shortcut": "pad", "in_channels": 1}, (2, 1, 28, 28), (2, 10)),
    ("resnet56", {"width": 0.5}, (2, 3, 16, 16), (2, 10)),
    ("resnet50", {"width": 0.125, "num_classes": 7}, (2, 3, 64, 64), (2, 7)),
    ("resnet", {"depth": 32, "width": 0.5}, IMAGE, (2, 10)),
    ("resnet", {"depth": 101, "width": 0.0625, "shortcut": "conv"}, IMAGE, (2, 10)),
    ("vgg", {"depth": 16, "norm": False}, IMAGE, (2, 10)),
    ("vgg11", {}, IMAGE, (2, 10)),
    ("vgg13", {"norm": False}, IMAGE, (2, 10)),
    ("vgg16", {"hidden": [16], "num_classes": 100}, IMAGE, (2, 100)),
    ("wide_resnet28", {"width": 1, "dropout": 0.3}, IMAGE, (2, 10)),
    ("mobilenet_v1", {"width": 0.25}, IMAGE, (2, 10)),
    ("lstm_classifier", {"features": 5, "layers": 2, "dropout": 0.5}, (2, 7, 5), (2, 10)),
    (
        "lstm_classifier",
        {"features": 5, "bidirectional": True, "pool": "last"},
        (2, 7, 5),
        (2, 10),
    ),
    ("bidirectional_lstm", {"features": 5, "hidden": 8}, (2, 7, 5), (2, 7, 29)),
    ("lstm_language_model", {"vocabulary": 11, "hidden": 8}, (2, 7), (2, 7, 11)),
    ("lstm_language_model", {"vocabulary": 11, "hidden": 8, "tied": True}, (2, 7), (2, 7, 11)),
    ("transformer", {"vocabulary": 11, "width": 16}, (2, 7), (2, 7, 11)),
    (
        "transformer",
        {"vocabulary": 11, "width": 16, "tied": True, "dropout": 0.2, "norm": False},
        (2, 7),
        (2, 7, 11),
    ),
    ("transformer", {**WIKITEXT, "vocabulary": 11, "width": 24, "layers": 2}, (2, 7), (2, 7, 11)),
    ("grokking_transformer", {}, (2, 3), (2, 114)),
    ("unet", {}, (2, 1, 28, 28), (2, 1, 28, 28)),
    ("segmentation_unet", {}, (2, 3, 24, 20), (2, 1, 24, 20)),
    (
        "deeplab",
        {"block": "basic", "depths": [1, 1, 1, 1], "width": 0.125, "channels": 8},
        (2, 3, 64, 48),
        (2, 1, 64, 48),
    ),
    ("unet", {"channels": [32, 32, 32, 64], "in_channels": 3}, (2, 3, 20, 36), (2, 3, 20, 36)),
]


def identity(case) -> str:
    return str(case) if isinstance(case, str) else ""


def inputs_for(name: str, shape: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    if name in ("lstm_language_model", "transformer", "grokking_transformer"):
        return (torch.randint(11, shape, generator=generator),)
    inputs = torch.randn(shape, generator=generator)
    return (inputs, torch.tensor([0, 999])) if name == "unet" else (inputs,)


@pytest.mark.parametrize(("name", "arguments", "expected"), COUNTS, ids=identity)
def test_parameter_count_is_the_published_one(name, arguments, expected) -> None:
    with torch.device("meta"):
        model = getattr(models, name)(**arguments)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_every_factory_has_its_count_checked() -> None:
    assert {name for name, _, _ in COUNTS} == set(models.__all__)
    assert {name for name, *_ in SMALL} == set(models.__all__)


@pytest.mark.parametrize(("name", "arguments", "shape", "expected"), SMALL, ids=identity)
def test_output_shape_and_gradients(name, arguments, shape, expected) -> None:
    model = getattr(models, name)(**arguments)
    outputs = model(*inputs_for(name, shape))
    assert outputs.shape == expected
    outputs.square().mean().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize(("name", "arguments", "shape", "expected"), SMALL, ids=identity)
def test_state_dict_and_copy_carry_the_function(name, arguments, shape, expected) -> None:
    inputs = inputs_for(name, shape)
    model = getattr(models, name)(**arguments).eval()
    other = getattr(models, name)(**arguments).eval()
    assert not torch.equal(model(*inputs), other(*inputs))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(*inputs), other(*inputs))
    assert torch.equal(model(*inputs), copy.deepcopy(model)(*inputs))


@pytest.mark.parametrize("name", ["resnet18", "resnet20", "resnet34", "resnet50", "resnet56"])
def test_a_named_residual_network_is_that_of_its_depth(name) -> None:
    named = inspect.signature(getattr(models, name)).parameters
    arguments = {key: each.default for key, each in named.items()} | {"width": 0.125}
    pair = []
    for make in (getattr(models, name), partial(models.resnet, int(name.removeprefix("resnet")))):
        torch.manual_seed(0)
        pair.append(make(**arguments).state_dict())
    assert pair[0].keys() == pair[1].keys()
    assert all(torch.equal(value, pair[1][key]) for key, value in pair[0].items())


@pytest.mark.parametrize("name", models.__all__)
def test_recipe_can_call_the_factory(name) -> None:
    factory = getattr(models, name)
    parameters = inspect.signature(factory).parameters
    others = [each for key, each in parameters.items() if key != "depth"]
    assert all(each.kind is each.KEYWORD_ONLY for each in others)
    hints = typing.get_type_hints(factory)
    fields = {
        key: (hints[key], ... if each.default is each.empty else each.default)
        for key, each in parameters.items()
    }
    schema = create_model(name, __config__=ConfigDict(strict=True, extra="forbid"), **fields)
    for known, arguments, _ in COUNTS:
        if known == name:
            schema(**arguments)


def matrix_shapes(model: nn.Module) -> list[tuple[int, int]]:
    shapes = []
    for each in select_parameters(model):
        weight = each.tensor
        if isinstance(each.module, nn.ConvTranspose2d):
            weight = weight.transpose(0, 1)
        shapes.append((weight.shape[0], weight[0].numel()))
    return shapes


def test_matrices_of_vgg16_are_those_of_the_spectra() -> None:
    with torch.device("meta"):
        shapes = matrix_shapes(models.vgg16())
    early = [(64, 27), (64, 576), (128, 576), (128, 1152), (256, 1152), (256, 2304), (256, 2304)]
    assert shapes == [*early, (512, 2304), *[(512, 4608)] * 5, (10, 512)]
    assert sum(map(sum, shapes)) == 38_181


def test_matrices_of_the_unet_are_those_of_the_spectra() -> None:
    with torch.device("meta"):
        shapes = matrix_shapes(models.unet())
    down = [(64, 9), (128, 576), (256, 1152), (512, 2304)]
    up = [(256, 4608), (128, 2304), (64, 1152), (1, 576)]
    dense = [(width, 512) for width in (64, 128, 256, 512, 256, 128, 64)]
    assert sorted(shapes) == sorted([(512, 512), *down, *up, *dense])
    assert shapes[-1] == (1, 576)


def test_matrices_of_the_bidirectional_lstm_are_those_of_the_spectra() -> None:
    with torch.device("meta"):
        shapes = matrix_shapes(models.bidirectional_lstm())
    first = [(1024, 40), (1024, 256)] * 2
    assert shapes == [*first, *[(1024, 512), (1024, 256)] * 6, (29, 512)]


def test_matrices_of_the_transformers_are_those_of_the_spectra() -> None:
    with torch.device("meta"):
        language = matrix_shapes(models.transformer(**WIKITEXT))
        grokking = matrix_shapes(models.grokking_transformer())
    block = [(2304, 768), *[(768, 768)] * 3]
    assert language == [*block * 12, (50_000, 768)]
    assert grokking == [(384, 128), (128, 128), (512, 128), (128, 512), (114, 128)]


@pytest.mark.parametrize(
    ("name", "arguments", "side", "expected"),
    [
        # Published for the convolutions; the classifier's matrix comes on top.
        ("resnet20", {}, 32, 40_812_544 + 640),
        ("resnet56", {}, 32, 125_747_200 + 640),
        ("resnet20", {"shortcut": "pad"}, 32, 40_551_040),
        ("resnet20", {"shortcut": "conv3x3"}, 32, 42_910_336),
        ("resnet20", {"shortcut": "pad", "width": 2}, 32, 161_318_144),
        ("resnet20", {"shortcut": "conv3x3", "width": 2}, 32, 170_755_328),
        # Weights times positions: 1024 (3x64 + 64x64) 9 + ... + 4 (3 * 512x512) 9, head 5,120.
        ("vgg16", {}, 32, 313_196_544 + 5_120),
        ("vgg11", {}, 32, 152_764_416 + 5_120),
        ("vgg13", {}, 32, 152_764_416 + 1024 * 36_864 + 256 * 147_456 + 5_120),
        # Published as 5.2, 4.09 and 0.569 billion.
        ("wide_resnet28", {}, 32, 5_243_328_768),
        ("resnet50", {}, 224, 4_089_184_256),
        ("mobilenet_v1", IMAGENET, 224, 568_740_352),
    ],
)
def test_multiply_accumulates_are_the_published_ones(name, arguments, side, expected) -> None:
    with torch.device("meta"):
        model = getattr(models, name)(**arguments)
        assert macs(model, (torch.zeros(1, 3, side, side),)) == expected


@pytest.mark.parametrize(
    ("name", "arguments", "argument"),
    [
        ("mlp", {"in_features": 0}, "in_features"),
        ("mlp", {"in_features": 4, "hidden": [3, -1]}, "hidden"),
        ("mlp", {"in_features": 4, "activation": "swish"}, "activation"),
        ("mlp", {"in_features": 4, "init": "he"}, "init"),
        ("lenet", {"image_size": 8}, "image_size"),
        ("convnet", {"strides": [1]}, "strides"),
        ("convnet", {"channels": [], "strides": []}, "strides"),
        ("resnet20", {"shortcut": "none"}, "shortcut"),
        ("resnet18", {"stem": "mnist"}, "stem"),
        ("resnet", {"depth": 19}, "depth"),
        ("resnet", {"depth": 20, "shortcut": ""}, "shortcut"),
        ("vgg", {"depth": 19}, "depth"),
        ("mobilenet_v1", {"stem": "mnist"}, "stem"),
        ("vgg16", {"num_classes": 0}, "num_classes"),
        ("wide_resnet28", {"width": 0}, "width"),
        ("lstm_classifier", {"features": 4, "pool": "max"}, "pool"),
        ("lstm_language_model", {"vocabulary": 4, "init_range": -1.0}, "init_range"),
        ("bidirectional_lstm", {"layers": 0}, "layers"),
        ("transformer", {"vocabulary": 4, "width": 10}, "width"),
        ("transformer", {"vocabulary": 4, "positions": "rotary"}, "positions"),
        ("transformer", {"vocabulary": 4, "init": "zeros"}, "init"),
        ("grokking_transformer", {"heads": 3}, "width"),
        ("unet", {"channels": [64, 128, 256]}, "channels"),
        ("unet", {"channels": [60, 128, 256, 512]}, "channels"),
        ("unet", {"time_features": 5}, "time_features"),
    ],
)
def test_impossible_argument_is_named(name, arguments, argument) -> None:
    with pytest.raises(RequestError, match=rf"^{argument}: "):
        getattr(models, name)(**arguments)
