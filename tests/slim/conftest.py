"""Models of the zoo with the channels of every free group switched off at random."""

import pytest
import torch
from torch import nn

from latewood import models
from latewood.core.coupling import slice_channels, trace_channels
from latewood.core.coupling.trace import layer_tensors


def narrowed(model, *inputs):
    """The model with an eighth of its channels, where its factory has no width."""
    plan = trace_channels(model, inputs)
    slice_channels(model, plan, {each.name: range(-(-each.width // 8)) for each in plan.free})
    return model, inputs


CASES = {
    "resnet20": lambda: (models.resnet20(width=0.5), (torch.randn(2, 3, 16, 16),)),
    "resnet18": lambda: (models.resnet18(width=0.0625), (torch.randn(1, 3, 16, 16),)),
    "resnet34": lambda: (models.resnet34(width=0.0625), (torch.randn(1, 3, 16, 16),)),
    "resnet56": lambda: (models.resnet56(width=0.25), (torch.randn(1, 3, 8, 8),)),
    "resnet50": lambda: (models.resnet50(width=0.125), (torch.randn(1, 3, 33, 33),)),
    "wide_resnet28": lambda: (models.wide_resnet28(width=1), (torch.randn(1, 3, 16, 16),)),
    "vgg11": lambda: narrowed(models.vgg11(hidden=(32,)), torch.randn(2, 3, 32, 32)),
    "vgg13": lambda: narrowed(models.vgg13(norm=False), torch.randn(1, 3, 32, 32)),
    "vgg16": lambda: narrowed(models.vgg16(), torch.randn(1, 3, 32, 32)),
    "mobilenet_v1": lambda: (models.mobilenet_v1(width=0.125), (torch.randn(1, 3, 32, 32),)),
    "unet": lambda: (
        models.unet(channels=(32, 32, 64, 64), time_features=8),
        (torch.randn(2, 1, 20, 20), torch.tensor([10.0, 500.0])),
    ),
    "deeplab": lambda: (
        models.deeplab(
            block="basic", depths=(1, 1, 1, 1), width=0.125, stem="cifar", channels=8, rates=(1, 2)
        ),
        (torch.randn(1, 3, 16, 16),),
    ),
    "segmentation_unet": lambda: (
        models.segmentation_unet(channels=(8, 12, 16)),
        (torch.randn(1, 3, 16, 12),),
    ),
    "lstm_language_model": lambda: (
        models.lstm_language_model(vocabulary=11, hidden=12),
        (torch.randint(0, 11, (3, 5)),),
    ),
    "lstm_classifier": lambda: (
        models.lstm_classifier(features=5, hidden=8, layers=2, bidirectional=True),
        (torch.randn(2, 4, 5),),
    ),
    "bidirectional_lstm": lambda: (
        models.bidirectional_lstm(features=5, hidden=8, layers=2, num_classes=4),
        (torch.randn(2, 4, 5), torch.tensor([4, 2])),
    ),
    "mlp": lambda: (
        models.mlp(in_features=6, hidden=(16, 12), num_classes=3, norm=True),
        (torch.randn(4, 6),),
    ),
    "convnet": lambda: (models.convnet(channels=(8, 12, 12)), (torch.randn(2, 1, 8, 8),)),
    "lenet": lambda: (models.lenet(), (torch.randn(1, 1, 28, 28),)),
    "transformer": lambda: (
        models.transformer(vocabulary=11, context=6, width=8, layers=2, heads=4),
        (torch.randint(0, 11, (1, 4)),),
    ),
    "grokking_transformer": lambda: (
        models.grokking_transformer(vocabulary=11, width=8, heads=4, hidden=12),
        (torch.randint(0, 11, (3, 3)),),
    ),
}


def build(name):
    torch.manual_seed(0)
    model, inputs = CASES[name]()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # away from the initial values, which hide mistakes in norms
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.weight.normal_(generator=generator)
                module.bias.normal_(generator=generator)
    return model.eval(), inputs


def switch_off(model, inputs, *, side):
    """Zeroes 40 % of the channels of each free group; returns the kept channels by group.

    "made": all that makes them and all norms' entries; "read": the weights that read them.
    """
    plan = trace_channels(model, inputs)
    places = dict(layer_tensors(model))
    keep = {}
    with torch.no_grad():
        for number, group in enumerate(plan.free):
            generator = torch.Generator().manual_seed(number)
            gone = torch.randperm(group.width, generator=generator)[: int(0.4 * group.width)]
            for member in group.members:
                tensor = getattr(*places[member.tensor])
                reads = member.role == "consumer"
                # The statistics of a norm stay: they are what makes a mask in front of it leak.
                if reads == (side == "read") and "running" not in member.tensor:
                    tensor.index_fill_(member.axis, member.indices[gone].flatten(), 0)
            if len(gone):
                keep[group.name] = sorted(set(range(group.width)) - set(gone.tolist()))
    return keep


@pytest.fixture
def zoo():
    return build


@pytest.fixture
def zoo_names():
    return set(CASES)


@pytest.fixture
def off():
    return switch_off
