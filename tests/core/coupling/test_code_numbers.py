"""What code does with sizes beside giving them to operations: it compares them and computes."""

import math

import pytest
import torch
from torch import nn

from latewood.core.coupling import slice_channels, trace_channels, verify_plan, widen_channels
from latewood.errors import RequestError
from latewood.slim import slim
from latewood.sparsity import FixedMasks


class Net(nn.Module):
    """Two layers, and what the code does with the activations between them."""

    def __init__(self, between):
        super().__init__()
        self.first, self.last, self.width, self.between = (
            nn.Linear(4, 12), nn.Linear(12, 3), 12, between,
        )  # fmt: skip

    def forward(self, x):
        hidden = self.first(x).relu()
        return self.last(hidden) * self.between(self, hidden)


def examples(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


INPUTS = (examples(2, 4),)


def insists(condition):
    def between(model, hidden):
        assert condition(model, hidden), "the model insists on it"
        return 1.0

    return between


@pytest.mark.parametrize(
    "condition",
    [
        lambda model, hidden: hidden.shape[-1] == model.width,
        lambda model, hidden: model.width == hidden.size(1),
        lambda model, hidden: hidden.shape == (len(hidden), model.width),
        lambda model, hidden: hidden.shape[-1] > 0,
        lambda model, hidden: hidden.numel() != 0,
    ],
)
def test_an_attribute_that_code_checks_follows(condition):
    model = Net(insists(condition))
    plan = trace_channels(model, INPUTS)
    assert verify_plan(model, plan, INPUTS) <= 1e-12
    slice_channels(model, plan, {"first": range(5)})
    assert model(*INPUTS).shape == (2, 3)
    assert model.width in (5, 12)


@pytest.mark.parametrize(
    ("between", "verb"),
    [
        (insists(lambda model, hidden: hidden.shape[-1] == 12), "compares"),
        (insists(lambda model, hidden: hidden.shape[-1] > 8), "compares"),
        (insists(lambda model, hidden: hidden.shape[-1] != 7), "compares"),
        (insists(lambda model, hidden: hidden.shape[-1] in (4, 12)), "compares"),
        (lambda model, hidden: 1 / math.sqrt(hidden.shape[-1]), "computes with"),
        (lambda model, hidden: 1 / hidden.shape[-1], "computes with"),
        (lambda model, hidden: hidden.shape[-1] ** -0.5, "computes with"),
        (lambda model, hidden: hidden.size(1), "computes with"),
        (lambda model, hidden: hidden.numel(), "computes with"),
        (lambda model, hidden: len(hidden.T), "computes with"),
        (lambda model, hidden: hidden.size(1) * 0.5, "computes with"),
        (lambda model, hidden: 8 - int(hidden.size(1)), "computes with"),
        (lambda model, hidden: hidden.size(1) // 4, "computes with"),
        (lambda model, hidden: hidden.size(1) >> 2, "computes with"),
        (insists(lambda model, hidden: hidden.shape[-1] > 7.5), "computes with"),
        (insists(lambda model, hidden: hidden.shape[-1] // 8 == 1), "compares"),
        (lambda model, hidden: torch.tensor(float(hidden.size(1))), "computes with"),
        (lambda model, hidden: torch.full((3,), hidden.size(1)), "computes with"),
    ],
)
def test_a_number_that_does_not_follow_is_a_barrier(between, verb):
    model = Net(between)
    plan = trace_channels(model, INPUTS)
    assert [barrier.reason for barrier in plan["first"].barriers] == [
        f"the code of the model {verb} their number"
    ]


def test_a_multiple_that_code_insists_on_is_one():
    model = Net(insists(lambda model, hidden: hidden.shape[-1] % 4 == 0))
    plan = trace_channels(model, INPUTS)
    assert plan["first"].multiple_of == 4 and not plan["first"].barriers
    assert verify_plan(model, plan, INPUTS) <= 1e-12
    with pytest.raises(RequestError, match="multiples of 4"):
        slice_channels(model, plan, {"first": range(6)})


def test_channels_whose_numbers_must_agree_go_together():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 8), nn.Linear(4, 8)
            self.first, self.second = nn.Linear(8, 2), nn.Linear(8, 2)

        def forward(self, x):
            one, two = self.one(x), self.two(x)
            if one.shape != two.shape:
                raise ValueError("one and two differ")
            return self.first(one) + self.second(two)

    plan = trace_channels(Two(), INPUTS)
    assert {member.tensor for member in plan["one"].members} >= {"one.weight", "two.weight"}


def test_the_width_of_torch_s_transformer_follows():
    class Translator(nn.Module):
        def __init__(self):
            super().__init__()
            self.source, self.target = nn.Linear(3, 8), nn.Linear(5, 8)
            self.body = nn.Transformer(8, 2, 1, 1, 16, norm_first=True, batch_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, source, target):
            return self.head(self.body(self.source(source), self.target(target)))

    model, inputs = Translator().eval(), (examples(1, 4, 3), examples(1, 2, 5))
    plan = trace_channels(model, inputs)
    stream = next(
        group for group in plan if any(number.attribute == "d_model" for number in group.resized)
    )
    sizes = {number.attribute for number in stream.resized}
    assert "d_model" in sizes and {barrier.kind for barrier in stream.barriers} == {"normalised"}
    before = model.body.d_model
    widen_channels(model, plan, {stream.name: [0]}, allow={"normalised"})
    assert model.body.d_model > before
    assert model(*inputs).shape == (1, 2, 2)


@pytest.mark.parametrize("is_cell", [False, True])
def test_a_state_that_code_makes_follows_the_units(is_cell):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.size = 6
            self.layer = nn.GRUCell(3, 6) if is_cell else nn.LSTM(3, 6, batch_first=True)
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            if is_cell:
                return self.head(self.layer(x[:, 0], x.new_zeros(len(x), self.size)))
            start = torch.zeros(1, len(x), self.size)
            return self.head(self.layer(x, (start, start))[0])

    model, inputs = Recurrent(), (examples(2, 4, 3),)
    plan = trace_channels(model, inputs)
    assert verify_plan(model, plan, inputs) <= 1e-12
    slice_channels(model, plan, {"layer": [0, 2]})
    assert model.size == 2
    model(*inputs)


def test_a_weight_that_is_read_along_both_axes_becomes_slim():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(6, 6)

        def forward(self, x):
            # The first column of what is read is always zero; that of the way back is not.
            x = torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], 1)
            return nn.functional.linear(self.encoder(x).relu(), self.encoder.weight.t())

    model, inputs = Tied(), (examples(3, 6),)
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[4] = False
    FixedMasks(model, {"encoder.weight": mask})
    with torch.no_grad():
        model.encoder.bias[4] = 0
    assert slim(model, inputs).encoder.weight.shape == (5, 6)
