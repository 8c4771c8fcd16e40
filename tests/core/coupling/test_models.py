"""Coupling on the project's models: counts, an independent tool, and exact removal of channels."""

import pytest
import torch
import torch_pruning
from torch import nn

from latewood import models
from latewood.core.coupling import slice_channels, trace_channels, verify_plan

CASES = {
    "resnet20": lambda: (models.resnet20(width=0.5), (torch.randn(1, 3, 16, 16),)),
    "resnet20 pad": lambda: (
        models.resnet20(width=0.5, shortcut="pad"),
        (torch.randn(1, 3, 16, 16),),
    ),
    "resnet50": lambda: (models.resnet50(width=0.125), (torch.randn(1, 3, 33, 33),)),
    "wide_resnet28": lambda: (models.wide_resnet28(width=1), (torch.randn(1, 3, 16, 16),)),
    "vgg11": lambda: (models.vgg11(hidden=(32,)), (torch.randn(1, 3, 32, 32),)),
    "mobilenet_v1": lambda: (models.mobilenet_v1(width=0.125), (torch.randn(1, 3, 32, 32),)),
    "lenet": lambda: (models.lenet(), (torch.randn(1, 1, 28, 28),)),
    "unet": lambda: (
        models.unet(channels=(32, 32, 64, 64), time_features=8),
        (torch.randn(1, 1, 20, 20), torch.ones(1)),
    ),
    "mlp": lambda: (models.mlp(in_features=6, hidden=(8, 8), num_classes=3), (torch.randn(1, 6),)),
    "lstm_classifier": lambda: (
        models.lstm_classifier(features=5, hidden=8, layers=2, bidirectional=True),
        (torch.randn(1, 4, 5),),
    ),
    "lstm_classifier last": lambda: (
        models.lstm_classifier(features=5, hidden=8, layers=2, bidirectional=True, pool="last"),
        (torch.randn(1, 4, 5),),
    ),
    "lstm_language_model": lambda: (
        models.lstm_language_model(vocabulary=11, hidden=8),
        (torch.randint(0, 11, (1, 4)),),
    ),
    "tied lstm_language_model": lambda: (
        models.lstm_language_model(vocabulary=11, hidden=8, tied=True),
        (torch.randint(0, 11, (1, 4)),),
    ),
    "bidirectional_lstm": lambda: (
        models.bidirectional_lstm(features=5, hidden=8, layers=2),
        (torch.randn(2, 4, 5), torch.tensor([4, 2])),
    ),
    "transformer": lambda: (
        models.transformer(vocabulary=11, context=6, width=8, layers=2, heads=4),
        (torch.randint(0, 11, (1, 4)),),
    ),
    "transformer without norms": lambda: (
        models.transformer(
            vocabulary=11, context=6, width=8, layers=2, heads=4, norm=False, tied=True
        ),
        (torch.randint(0, 11, (1, 4)),),
    ),
    "grokking_transformer": lambda: (
        models.grokking_transformer(vocabulary=11, width=8, heads=2, hidden=12),
        (torch.randint(0, 11, (1, 3)),),
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
    return model, inputs


@pytest.mark.parametrize("name", CASES)
def test_removing_unread_channels_keeps_the_function(name):
    model, inputs = build(name)
    plan = trace_channels(model, inputs)
    assert plan.free
    assert verify_plan(model, plan, inputs) <= 1e-12


@pytest.mark.parametrize("name", CASES)
def test_keeping_every_channel_changes_no_bit(name):
    model, inputs = build(name)
    model.eval()
    plan = trace_channels(model, inputs)
    before, state = model(*inputs), {k: v.clone() for k, v in model.state_dict().items()}
    same = slice_channels(model, plan, {group.name: range(group.width) for group in plan.free})
    assert torch.equal(model(*inputs), before)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])
    for old, new in zip(plan, same, strict=True):
        assert (old.name, old.width, old.barriers) == (new.name, new.width, new.barriers)
        for one, two in zip(old.members, new.members, strict=True):
            assert torch.equal(one.indices, two.indices)


@pytest.mark.parametrize("name", CASES)
def test_every_group_can_be_halved_and_trained(name):
    model, inputs = build(name)
    plan = trace_channels(model, inputs)
    optimizer = torch.optim.Adam(model.parameters())

    def step():
        optimizer.zero_grad()
        model.eval()(*inputs).square().mean().backward()
        optimizer.step()

    step()
    keep = {group.name: range(0, group.width, 2) for group in plan.free}
    smaller = slice_channels(model, plan, keep, optimizers=[optimizer])
    step()
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].shape == parameter.shape
    again = trace_channels(model, inputs)
    assert [group.width for group in again] == [group.width for group in smaller]
    for one, two in zip(smaller, again, strict=True):
        assert [(m.tensor, m.axis, m.role) for m in one.members] == [
            (m.tensor, m.axis, m.role) for m in two.members
        ]
        for left, right in zip(one.members, two.members, strict=True):
            assert torch.equal(left.indices, right.indices)


@pytest.mark.parametrize(
    ("build", "side", "count"),
    [
        (lambda: models.resnet20(), 16, 13),
        (lambda: models.resnet50(width=0.125), 33, 38),
        (lambda: models.vgg11(), 32, 9),
        (lambda: models.mobilenet_v1(width=0.125), 32, 15),
    ],
    ids=["resnet20", "resnet50", "vgg11", "mobilenet_v1"],
)
def test_published_counts_of_groups(build, side, count):
    plan = trace_channels(build(), torch.randn(1, 3, side, side))
    made = [group for group in plan if group.having("producer")]
    assert len(made) == count
    # Of these only the class logits are fixed.
    assert [group.name for group in made if group.barriers] == [made[-1].name]


def weight_axis(module, handler):
    """The axis of a layer's weight that the tool's handler cuts."""
    if not isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        return 0
    depthwise = getattr(module, "groups", 1) > 1
    reads = handler.__name__ == "prune_in_channels" and not depthwise
    return int(reads != isinstance(module, nn.ConvTranspose2d))


@pytest.mark.parametrize(
    "name", ["resnet20", "resnet50", "wide_resnet28", "vgg11", "mobilenet_v1", "unet", "lenet"]
)
def test_torch_pruning_finds_the_same_groups(name):
    model, inputs = build(name)
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=inputs)
    names = {module: name for name, module in model.named_modules()}
    theirs = {
        frozenset(
            (names[item.dep.target.module], weight_axis(item.dep.target.module, item.dep.handler))
            for item in group
            if item.dep.target.module in names
        )
        for group in graph.get_all_groups()
    }
    ours = {
        frozenset(
            (member.tensor.removesuffix(".weight"), member.axis)
            for member in group.members
            if member.tensor.endswith(".weight")
        )
        for group in trace_channels(model, inputs)
        if group.having("producer")
    }
    assert ours == theirs
