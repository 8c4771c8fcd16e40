"""Resizing: the same objects, smaller or larger, with optimizer state, and nothing on refusal."""

import copy
from typing import ClassVar

import pytest
import torch
from torch import nn

from latewood.core.coupling import (
    Resized,
    slice_channels,
    trace_channels,
    widen_channels,
)
from latewood.core.selection import select_parameters
from latewood.core.transforms import PRECISION, Follows, attach
from latewood.errors import RequestError


class Branches(nn.Module):
    """Convolutions, batch norm, a concatenation, a flatten: every kind of index map."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.right = nn.Conv2d(1, 2, 3, bias=False)
        self.mix = nn.Conv2d(5, 4, 1)
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        joined = torch.cat([torch.relu(self.norm(self.left(x))), torch.tanh(self.right(x))], 1)
        return self.head(torch.relu(self.mix(joined)).flatten(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = 3
        self.qkv = nn.Linear(3, 18)
        self.out = nn.Linear(6, 2)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


CASES = {
    "branches": (Branches, (2, 1, 4, 4)),
    "recurrent": (Recurrent, (2, 5, 3)),
    "heads": (Heads, (2, 5, 3)),
}


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(0)
    build, shape = CASES[request.param]
    model, inputs = build().double(), torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model.eval(), inputs, trace_channels(model, inputs)


def train(model, inputs, optimizer, steps=2):
    for _ in range(steps):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, amsgrad=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_slicing_takes_the_same_entries_of_weights_and_state(case, make):
    model, inputs, plan = case
    optimizer = make(model.parameters())
    train(model, inputs, optimizer)
    reference, state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict()["state"])
    before = dict(model.named_parameters())
    keep = {group.name: range(1, group.width) for group in plan.free}
    smaller = slice_channels(model, plan, keep, optimizers=[optimizer])
    after = dict(model.named_parameters())
    assert all(after[name] is before[name] for name in before)
    for parameter, old in zip(after.values(), reference.parameters(), strict=True):
        assert (parameter.grad is None) == (parameter.shape != old.shape)
    for number, (name, parameter) in enumerate(after.items()):
        expected = dict(reference.named_parameters())[name]
        moments = {key: value for key, value in state[number].items() if value.ndim}
        for axis in range(parameter.ndim):
            gone = {
                index
                for group in plan.free
                for member in group.members
                if (member.tensor, member.axis) == (name, axis)
                for index in member.indices[0].tolist()
            }
            kept = torch.tensor([i for i in range(expected.shape[axis]) if i not in gone])
            expected = expected.index_select(axis, kept)
            moments = {key: value.index_select(axis, kept) for key, value in moments.items()}
        assert torch.equal(parameter, expected)
        for key, value in moments.items():
            assert torch.equal(optimizer.state[parameter][key], value)
    assert smaller.free[0].width == plan.free[0].width - 1
    train(model, inputs, optimizer)


def test_slicing_twice_is_slicing_once(case):
    model, inputs, plan = case
    twin = copy.deepcopy(model)
    names = [group.name for group in plan.free if group.width > 2]
    once = slice_channels(model, plan, {name: [2] for name in names})
    twice = slice_channels(twin, plan, {name: [0, 2] for name in names})
    twice = slice_channels(twin, twice, {name: [1] for name in names})
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, two)
    for one, two in zip(once, twice, strict=True):
        for left, right in zip(one.members, two.members, strict=True):
            assert torch.equal(left.indices, right.indices)
    assert torch.equal(model(inputs), twin(inputs))


def test_slicing_one_side_of_a_concatenation_moves_the_other():
    model = Branches()
    plan = trace_channels(model, torch.randn(1, 1, 4, 4))
    smaller = slice_channels(model, plan, {"left": [1]})
    (reader,) = smaller["right"].having("consumer")
    assert reader.indices.tolist() == [[1], [2]]
    assert model.mix.in_channels == 3
    assert (model.left.out_channels, model.norm.num_features) == (1, 1)


def zero_readers(model, plan, old):
    with torch.no_grad():
        for group in plan.free:
            for member in group.having("consumer"):
                parameter = model.get_parameter(member.tensor)
                added = member.indices[old[group.name].width :].flatten()
                parameter.index_fill_(member.axis, added, 0)


def test_widening_with_unread_copies_keeps_the_function(case):
    model, inputs, plan = case
    optimizer = torch.optim.Adam(model.parameters())
    train(model, inputs, optimizer)
    before = model(inputs)
    identities = [id(parameter) for parameter in model.parameters()]
    copies = {group.name: [0, group.width - 1, 0] for group in plan.free}
    wider = widen_channels(model, plan, copies, optimizers=[optimizer])
    assert [group.width for group in wider.free] == [group.width + 3 for group in plan.free]
    assert [id(parameter) for parameter in model.parameters()] == identities
    for group in wider.free:
        for member in group.members:
            data = model.state_dict()[member.tensor]
            old = plan[group.name].width
            added = data.index_select(member.axis, member.indices[old:].flatten())
            sources = torch.tensor(copies[group.name])
            source = data.index_select(member.axis, member.indices[sources].flatten())
            assert torch.equal(added, source)
            if member.tensor in dict(model.named_parameters()):
                moment = optimizer.state[model.get_parameter(member.tensor)]["exp_avg_sq"]
                assert not moment.index_select(member.axis, member.indices[old:].flatten()).any()
    zero_readers(model, wider, plan)
    assert torch.allclose(model(inputs), before, rtol=0, atol=1e-14)
    again = trace_channels(model, inputs)
    for one, two in zip(wider, again, strict=True):
        for left, right in zip(one.members, two.members, strict=True):
            assert torch.equal(left.indices.flatten().sort()[0], right.indices.flatten().sort()[0])
    train(model, inputs, optimizer)


def test_slicing_undoes_widening_bit_by_bit(case):
    model, inputs, plan = case
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wider = widen_channels(model, plan, {group.name: [1, 1] for group in plan.free})
    back = slice_channels(model, wider, {group.name: range(group.width) for group in plan.free})
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    for one, two in zip(plan, back, strict=True):
        for left, right in zip(one.members, two.members, strict=True):
            assert torch.equal(left.indices, right.indices)
    assert model(inputs).shape[0] == 2


def test_widening_puts_blocks_where_their_kind_is():
    model = Branches()
    plan = trace_channels(model, torch.randn(1, 1, 4, 4))
    wider = widen_channels(model, plan, {"left": [0, 2], "mix": [3]})
    (reader,) = wider["left"].having("consumer")
    assert reader.indices.flatten().tolist() == [0, 1, 2, 3, 4]
    (reader,) = wider["right"].having("consumer")
    assert reader.indices.flatten().tolist() == [5, 6]
    (reader,) = wider["mix"].having("consumer")
    assert reader.indices[4].tolist() == [16, 17, 18, 19]
    assert model.head.in_features == 20


def test_widening_an_lstm_adds_to_every_gate():
    model = Recurrent()
    plan = trace_channels(model, torch.randn(1, 5, 3))
    wider = widen_channels(model, plan, {"lstm": [0]})
    rows = next(m for m in wider["lstm"].members if m.tensor == "lstm.weight_hh_l1" and m.axis == 0)
    assert rows.indices[4].tolist() == [4, 9, 14, 19]
    assert model.lstm.hidden_size == 5


def test_counts_in_modules_follow():
    model = Heads()
    plan = trace_channels(model, torch.randn(1, 5, 3))
    wider = widen_channels(model, plan, {"qkv": [0, 1]})
    assert model.heads == 5
    slice_channels(model, wider, {"qkv": [4]})
    assert model.heads == 1
    assert (model.qkv.out_features, model.out.in_features) == (6, 2)


def test_transformations_of_the_weights_shape_follow(mask, precision):
    torch.manual_seed(0)
    model, inputs = Recurrent(), torch.randn(2, 5, 3)
    plan = trace_channels(model, inputs)
    plain = copy.deepcopy(model)
    for selected in select_parameters(model):
        attach(selected.module, selected.parameter_name, mask(selected.tensor.shape))
        attach(selected.module, selected.parameter_name, precision())
    optimizer = torch.optim.Adam(model.parameters())
    train(model, inputs, optimizer)
    effective = {selected.name: selected.tensor.detach() for selected in select_parameters(model)}
    slice_channels(model, plan, {"lstm": [1, 3]}, optimizers=[optimizer])
    with torch.no_grad():
        for selected in select_parameters(plain):
            selected.tensor.copy_(effective[selected.name])
    slice_channels(plain, plan, {"lstm": [1, 3]})
    for one, two in zip(select_parameters(model), select_parameters(plain), strict=True):
        # Not bit by bit: torch's sigmoid rounds differently at the end of a vector.
        assert torch.allclose(one.tensor, two.tensor, rtol=1e-6)
    train(model, inputs, optimizer)


def test_an_old_loss_that_is_still_alive_does_not_break_the_next_step(case):
    model, inputs, plan = case
    loss = model(inputs).sum()
    loss.backward()
    slice_channels(model, plan, {group.name: [0] for group in plan.free})
    model(inputs).sum().backward()
    assert all(parameter.grad.shape == parameter.shape for parameter in model.parameters())
    assert loss.grad_fn is not None


def test_channels_last_weights_stay_so():
    model = Branches().to(memory_format=torch.channels_last)
    model.mix.weight.data = torch.randn(4, 5, 3, 3).to(memory_format=torch.channels_last)
    model.mix.padding = (1, 1)
    plan = trace_channels(model, torch.randn(1, 1, 4, 4))
    slice_channels(model, plan, {"mix": [0, 2]})
    assert model.mix.weight.is_contiguous(memory_format=torch.channels_last)
    assert not model.mix.weight.is_contiguous()


@pytest.mark.parametrize(
    ("change", "request_", "says"),
    [
        (slice_channels, {"nothing": [0]}, "group: got 'nothing'; expected one of left"),
        (slice_channels, {"left": []}, r"keep\['left'\]: got \[\]; expected distinct channels"),
        (slice_channels, {"left": [0, 0]}, "distinct channels"),
        (
            slice_channels,
            {"left": [3]},
            r"keep\['left'\]: got \[3\]; expected integers from 0 to 2",
        ),
        (slice_channels, {"left": [-1]}, "from 0 to 2"),
        (slice_channels, {"left": [True]}, "from 0 to 2"),
        (slice_channels, {"left": torch.tensor([0.5])}, "from 0 to 2"),
        (slice_channels, {"head": [0]}, "head: its channels cannot change: the model's output"),
        (slice_channels, {"left": [0], "left.inputs": [0]}, "reads data of fixed size"),
        (widen_channels, {"left": [3]}, r"copies\['left'\]: got \[3\]"),
        (widen_channels, {"head": [0]}, "cannot change"),
    ],
)
def test_a_wrong_request_changes_nothing(change, request_, says):
    model = Branches()
    plan = trace_channels(model, torch.randn(1, 1, 4, 4))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RequestError, match=says):
        change(model, plan, request_)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_state_that_does_not_follow_its_parameter_changes_nothing():
    model, inputs = Branches(), torch.randn(1, 1, 4, 4)
    plan = trace_channels(model, inputs)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.state[model.head.weight]["rows"] = torch.zeros(2)
    with pytest.raises(RequestError, match=r"its rows of head\.weight has shape \(2,\)"):
        slice_channels(model, plan, {"mix": [0]}, optimizers=[optimizer])
    assert model.mix.weight.shape == (4, 5, 1, 1)


@pytest.mark.parametrize(
    "follows", [{}, {"blocks": Follows()}, {"blocks": Follows(axis=0)}, {"blocks": Follows(axis=2)}]
)
def test_a_transformation_that_does_not_follow_its_weight_is_refused(precision, follows):
    model, inputs = Branches(), torch.randn(1, 1, 4, 4)
    plan = trace_channels(model, inputs)
    odd = precision()
    odd.register_buffer("blocks", torch.zeros(7, 3))
    odd.follows = follows
    attach(model.head, "weight", odd)
    says = (
        r"head\.weight: Precision holds blocks of shape \(7, 3\) for a weight of shape \(2, 16\); "
        r"expected Precision\.follows to say"
    )
    with pytest.raises(RequestError, match=says):
        slice_channels(model, plan, {"mix": [0]})
    assert model.mix.weight.shape == (4, 5, 1, 1)


class PerChannel(nn.Module):
    """Values for each output and for each input, as a vector or broadcast."""

    order = PRECISION
    follows: ClassVar = {
        "outputs": Follows(axis=0),
        "column": Follows(axis=0, start=7.0),
        "inputs": Follows(axis=1),
        "row": Follows(axis=-1),
        "chosen": Follows(start=0.0),
    }

    def __init__(self, outputs, inputs):
        super().__init__()
        self.outputs = nn.Parameter(torch.arange(1.0, outputs + 1))
        self.column = nn.Parameter(torch.arange(1.0, outputs + 1).view(-1, 1))
        self.inputs = nn.Parameter(torch.arange(1.0, inputs + 1))
        self.register_buffer("row", torch.arange(1.0, inputs + 1).view(1, -1))
        self.register_buffer("chosen", torch.ones(outputs, inputs, dtype=torch.bool))

    def forward(self, weight):
        scaled = weight * self.outputs[:, None] * self.column * self.inputs * self.row
        return torch.where(self.chosen, scaled, weight)


# A square weight too: which axis a vector follows cannot be told from its length.
@pytest.mark.parametrize("hidden", [4, 3])
def test_values_a_channel_follow_the_axis_that_they_say(hidden):
    model = nn.Sequential(nn.Linear(3, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 2))
    plan = trace_channels(model, torch.randn(1, 3))
    for layer in model:
        attach(layer, "weight", PerChannel(layer.out_features, layer.in_features))
    inputs = torch.randn(5, 3)
    effective = [layer.weight.detach() for layer in model]
    plan = slice_channels(model, plan, {"0": [0, 2]})
    first, second, third = (layer.parametrizations.weight[0] for layer in model)
    assert first.outputs.tolist() == first.column.flatten().tolist() == [1.0, 3.0]
    assert second.inputs.tolist() == second.row.flatten().tolist() == [1.0, 3.0]
    assert first.inputs.tolist() == [1.0, 2.0, 3.0]
    assert second.outputs.tolist() == third.inputs.tolist() == list(range(1, hidden + 1))
    assert torch.equal(model[0].weight, effective[0][[0, 2]])
    assert torch.equal(model[1].weight, effective[1][:, [0, 2]])
    widen_channels(model, plan, {"0": [1]})
    assert first.outputs.tolist() == [1.0, 3.0, 3.0]
    assert first.column.flatten().tolist() == [1.0, 3.0, 7.0]
    assert first.chosen.tolist() == [[True] * 3] * 2 + [[False] * 3]
    assert second.row.flatten().tolist() == [1.0, 3.0, 3.0]
    assert model(inputs).shape == (5, 2)


def test_a_mask_of_one_entry_follows_a_weight_that_becomes_wider(mask):
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 2))
    plan = trace_channels(model, torch.randn(1, 1))
    attach(model[0], "weight", mask(model[0].weight.shape))
    widen_channels(model, plan, {"0": [0, 0]})
    assert model[0].parametrizations.weight[0].logits.shape == model[0].weight.shape == (3, 1)


def test_a_group_of_one_wide_channel_is_not_widened():
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(4, 2))
    plan = trace_channels(model, torch.randn(1, 1, 4, 4))
    with pytest.raises(RequestError, match="a group of at least two channels"):
        widen_channels(model, plan, {"0": [0]})


def test_a_count_moves_by_what_a_channel_is_of_it():
    model = Heads()
    plan = trace_channels(model, torch.randn(1, 5, 3))
    assert plan["qkv"].resized == (Resized("", "heads", 1),)
    slice_channels(model, plan, {"qkv": [0]})
    assert model.heads == 1
