"""Widening in pairs: the function stays, new channels learn, every copy gets the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latewood.core.coupling import additions, slice_channels, trace_channels, widen_channels
from latewood.errors import RequestError


class Chain(nn.Module):
    """The tiny worked example of the method's description: x = 2, u = (2, 1), h = (1, 4), y = 5."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.u, self.h = (nn.Linear(*size, bias=False) for size in ((1, 2), (2, 2), (2, 1)))
        with torch.no_grad():
            self.x.weight.copy_(torch.tensor([[1.0], [0.5]]))
            self.u.weight.copy_(torch.tensor([[1.0, -1.0], [2.0, 0.0]]))
            self.h.weight.copy_(torch.tensor([[1.0, 1.0]]))

    def forward(self, x):
        return self.h(torch.relu(self.u(torch.relu(self.x(x)))))


class Residual(nn.Module):
    """Convolutions with batch norm and a residual, a gate by squeeze and excitation, a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.squeeze, self.excite = nn.Linear(6, 3), nn.Linear(3, 6)
        self.branch = nn.Conv2d(6, 6, 1)
        self.slope, self.scale = nn.PReLU(6), nn.Parameter(torch.rand(6, 1, 1))
        self.head = nn.Linear(96, 2)

    def forward(self, x):
        x = self.slope(self.norm(self.stem(x)))
        y = self.depthwise(x)
        gate = torch.sigmoid(self.excite(F.gelu(self.squeeze(y.mean((2, 3))))))
        x = x + self.scale * self.branch(y * gate[:, :, None, None])
        return self.head(torch.tanh(x).flatten(1))


class Joined(nn.Module):
    """A concatenation of two widths read by a transposed convolution, and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv1d(2, 4, 3), nn.Conv1d(2, 6, 3)
        self.grouped = nn.Conv1d(6, 9, 1, groups=3)
        self.norm = nn.GroupNorm(3, 9)
        self.up = nn.ConvTranspose1d(13, 5, 2)
        self.head = nn.Conv1d(5, 2, 1)

    def forward(self, x):
        right = F.gelu(self.norm(self.grouped(self.right(x))))
        return self.head(torch.relu(self.up(torch.cat([self.left(x), right], 1))))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(3, 16), nn.Linear(8, 4)
        self.up, self.gate, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.down(F.glu(self.both(x)))
        return self.head(F.silu(self.gate(x)) * self.up(x))


class Attention(nn.Module):
    """Four heads of queries, of which two share one of keys and values; a bias for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 5
        self.q, self.k, self.v = nn.Linear(3, 20), nn.Linear(3, 10), nn.Linear(3, 10)
        self.out = nn.Linear(20, 2)
        self.table = nn.Parameter(torch.randn(4, 6, 6))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (-1, self.size)).transpose(1, 2)
                   for f in (self.q, self.k, self.v))  # fmt: skip
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.table)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Recurrent(nn.Module):
    def __init__(self, kind, **options) -> None:
        super().__init__()
        self.inner = kind(3, 4, num_layers=2, bidirectional=True, batch_first=True, **options)
        self.cell = nn.GRUCell(8 if "proj_size" not in options else 6, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        steps = self.inner(x)[0].unbind(1)
        state = None
        for step in steps:
            state = self.cell(step, state)
        return self.head(state)


class Tied(nn.Module):
    """One table is read at the start and at the end of a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.up, self.down = nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, tokens):
        x = self.embed(tokens)
        return F.linear(x + self.down(torch.tanh(self.up(x))), self.embed.weight)


STRUCTURES = {
    "chain": (Chain, (3, 1)),
    "convolutions": (Residual, (3, 3, 4, 4)),
    "concatenation": (Joined, (3, 2, 8)),
    "gated": (Gated, (4, 3)),
    "attention": (Attention, (2, 6, 3)),
    "lstm": (lambda: Recurrent(nn.LSTM), (3, 4, 3)),
    "projected lstm": (lambda: Recurrent(nn.LSTM, proj_size=3), (3, 4, 3)),
    "gru": (lambda: Recurrent(nn.GRU), (3, 4, 3)),
    "tied": (Tied, torch.arange(7).view(1, 7)),
}


def built(name):
    torch.manual_seed(0)
    build, shape = STRUCTURES[name]
    model = build().double()
    inputs = torch.randn(shape, dtype=torch.float64) if isinstance(shape, tuple) else shape
    with torch.no_grad():
        for buffer_name, buffer in model.named_buffers():
            if "running" in buffer_name:
                buffer.uniform_(0.5, 2)
    return model, inputs


def change(model, inputs, before):
    after = model(inputs)
    return float((after - before).detach().abs().max() / before.abs().max())


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_pairs_keep_the_function_twice(name, training):
    model, inputs = built(name)
    plan = trace_channels(model, inputs)
    assert plan.free
    model.train(training)
    before = model(inputs).detach()
    sizes = sum(parameter.numel() for parameter in model.parameters())
    for count in (2, 6):
        plan = widen_channels(model, plan, {group.name: count for group in plan.free}, fill="pair")
        assert change(model, inputs, before) < 1e-12
        larger = sum(parameter.numel() for parameter in model.parameters())
        assert larger > sizes
        sizes = larger
    again = trace_channels(model, inputs)
    assert [group.width for group in again] == [group.width for group in plan]
    # Were a copy not identical, or read with another sign, the function would not be kept.
    group = plan.free[-1]
    member = group.having("consumer")[-1]
    with torch.no_grad():
        tensor = model.get_parameter(member.tensor)
        tensor.index_fill_(member.axis, member.indices[-1], 1.0)
    assert name == "tied" or change(model, inputs, before) > 1e-6


def test_the_worked_example():
    model = Chain().double()
    plan = trace_channels(model, torch.tensor([[2.0]], dtype=torch.float64))
    wider = widen_channels(model, plan, {"x": 2, "u": 2}, fill="pair")
    with torch.no_grad():
        for layer, rows in ((model.x, [[0.3]] * 2), (model.u, [[0.1, 0.2, 0.3, 0.4]] * 2)):
            layer.weight[2:] = torch.tensor(rows)
        model.u.weight[:2, 2:] = torch.tensor([[0.1, -0.1], [-0.2, 0.2]])
        model.h.weight[:, 2:] = torch.tensor([[0.7, -0.7]])
    hidden = {}
    for name in ("x", "u"):
        getattr(model, name).register_forward_hook(
            lambda _, __, output, name=name: hidden.update({name: output.relu().flatten().tolist()})
        )
    output = model(torch.tensor([[2.0]], dtype=torch.float64))
    assert hidden["x"] == pytest.approx([2, 1, 0.6, 0.6])
    assert hidden["u"] == pytest.approx([1, 4, 0.82, 0.82])
    assert output.item() == pytest.approx(5)
    assert [group.width for group in wider.free] == [4, 4]


def test_what_is_drawn_has_the_form_of_the_worked_example():
    model = Chain()
    plan = trace_channels(model, torch.tensor([[2.0]]))
    widen_channels(model, plan, {"x": 4, "u": 6}, fill="pair")
    rows, columns = model.u.weight[2:], model.u.weight[:2, 2:]
    assert torch.equal(model.x.weight[2:4], model.x.weight[4:])
    assert torch.equal(rows[:3], rows[3:])
    assert len(rows[:3].unique()) == 3 * 6  # free on the new columns too
    assert torch.equal(columns[:, :2], -columns[:, 2:])
    assert len(columns.abs().unique()) == 4
    assert torch.equal(model.h.weight[:, 2:5], -model.h.weight[:, 5:])


@pytest.mark.parametrize("name", ["chain", "convolutions", "attention", "gru"])
def test_copies_get_opposite_gradients_where_made_and_equal_ones_where_read(name):
    model, inputs = built(name)
    plan = trace_channels(model, inputs)
    group = plan.free[-1].name
    wider = widen_channels(model, plan, {group: 4}, fill="pair")
    model(inputs).square().sum().backward()
    signs = 0
    for addition in additions(plan, wider):
        if addition.roles not in ({"producer"}, {"consumer"}) or "hh" in addition.tensor:
            continue
        gradient = model.get_parameter(addition.tensor).grad
        first, second = (
            gradient.index_select(addition.axis, half.flatten()) for half in addition.new.chunk(2)
        )
        sign = -1 if addition.roles == {"producer"} else 1
        torch.testing.assert_close(first, sign * second, rtol=0, atol=1e-13)
        assert first.abs().max() > 1e-9
        signs += sign
    assert signs <= 0


def test_deviations_are_arguments():
    model = nn.Sequential(nn.Linear(400, 4), nn.ReLU(), nn.Linear(4, 400))
    plan = trace_channels(model, torch.randn(1, 400))
    nn.init.zeros_(model[2].weight)
    usual = copy.deepcopy(model)
    widen_channels(usual, plan, {"0": 40}, fill="pair")
    old = model[0].weight.std()
    assert usual[0].weight[4:].std().item() == pytest.approx(old.item(), rel=0.05)
    # Zeros would leave new channels dead: what they would have at random instead.
    assert usual[2].weight[:, 4:].std().item() == pytest.approx(0.5, rel=0.05)
    assert usual[0].bias[4:].tolist() == [0.0] * 40
    by_name = copy.deepcopy(model)
    widen_channels(by_name, plan, {"0": 40}, fill="pair", std={"2.weight": 3.0, "0.bias": 0.1})
    assert by_name[2].weight[:, 4:].std().item() == pytest.approx(3, rel=0.05)
    assert torch.equal(by_name[0].bias[4:24], by_name[0].bias[24:])
    assert 0.05 < by_name[0].bias[4:].std() < 0.2
    called = copy.deepcopy(model)
    widen_channels(called, plan, {"0": 40}, fill="pair", std=lambda name, old: old.shape[1] / 100)
    assert called[0].weight[4:].std().item() == pytest.approx(4, rel=0.05)
    assert called[2].weight[:, 4:].std().item() == pytest.approx(0.04, rel=0.05)


def test_what_is_per_channel_starts_as_a_norm_does_or_as_its_source():
    model, inputs = built("convolutions")
    plan = trace_channels(model, inputs)
    with torch.no_grad():
        model.norm.weight.normal_()
    (group,) = (group.name for group in plan.free if "stem" in group.name)
    widen_channels(model, plan, {group: [2, 5, 2, 5]}, fill="pair")
    assert model.norm.weight[6:].tolist() == model.norm.running_var[6:].tolist() == [1.0] * 4
    assert model.norm.bias[6:].tolist() == model.norm.running_mean[6:].tolist() == [0.0] * 4
    assert torch.equal(model.scale[6:], model.scale[[2, 5, 2, 5]])
    assert torch.equal(model.depthwise.weight[6:], model.depthwise.weight[[2, 5, 2, 5]])
    assert model.slope.weight.shape == (10,)


def test_the_same_seed_gives_the_same_numbers_and_twins_get_them_too():
    model, inputs = built("convolutions")
    plan = trace_channels(model, inputs)
    models = [copy.deepcopy(model) for _ in range(4)]
    average = copy.deepcopy(model).float()
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(0.9)
    expected = average(inputs.float())
    requests = {group.name: 2 for group in plan.free}
    for number, seed in enumerate((None, 0, 1)):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        widen_channels(models[number], plan, requests, fill="pair", generator=generator)
    widen_channels(models[3], plan, requests, fill="pair", twins=[average])
    weights = [each.branch.weight for each in models]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[3])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(average.branch.weight[6:], weights[3][6:].float())
    torch.testing.assert_close(average(inputs.float()), expected)


def test_masks_follow_and_the_function_stays(mask, precision):
    from latewood.core.selection import select_parameters
    from latewood.core.transforms import attach

    model, inputs = built("gru")
    plan = trace_channels(model, inputs)
    for selected in select_parameters(model):
        attach(selected.module, selected.parameter_name, mask(selected.tensor.shape).double())
    before = model(inputs).detach()
    widen_channels(model, plan, {group.name: 4 for group in plan.free}, fill="pair")
    assert change(model, inputs, before) < 1e-12


@pytest.mark.parametrize(
    ("request_", "options", "says"),
    [
        ({"u": 3}, {}, r"copies\['u'\]: got 3; expected a positive even number of new channels"),
        ({"u": 0}, {}, "positive even number"),
        ({"u": True}, {}, "got True"),
        ({"u": [0, 1]}, {}, "the second half as the first"),
        ({"u": [0, 1, 0]}, {}, "an even number of channels"),
        ({"h": 2}, {}, "h: its channels cannot change: the model's output"),
        ({"u": 2}, {"fill": "pairs"}, "fill: got 'pairs'; expected one of copy, pair"),
        ({"u": 2}, {"std": 0.0}, "std of u.weight: got 0.0; expected a positive number"),
        (
            {"u": 2},
            {"std": {"w": 1.0}},
            "std: got 'w'; expected names of tensors, such as u",
        ),
        ({"u": 2}, {"std": lambda name, old: -1.0}, "expected a positive number"),
        ({"u": 2}, {"twins": [nn.Linear(2, 2)]}, r"twins\[0\]: got 'u.weight of shape None'"),
    ],
)
def test_a_wrong_request_changes_nothing(request_, options, says):
    model = Chain()
    plan = trace_channels(model, torch.tensor([[2.0]]))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RequestError, match=says):
        widen_channels(model, plan, request_, **{"fill": "pair", **options})
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_twin_of_the_same_tensors_is_refused():
    model = Chain()
    plan = trace_channels(model, torch.tensor([[2.0]]))
    with pytest.raises(RequestError, match=r"a model that shares u\.weight"):
        widen_channels(model, plan, {"u": 2}, fill="pair", twins=[model])
    assert model.u.weight.shape == (2, 2)


def test_the_row_of_an_embedding_that_stands_for_nothing_stays_zero():
    model = nn.Sequential(nn.Embedding(5, 4, padding_idx=1), nn.Linear(4, 2))
    plan = trace_channels(model, torch.tensor([[0, 1]]))
    widen_channels(model, plan, {"0": 4}, fill="pair")
    assert not model[0].weight[1].any()
    assert model[0].weight[0].all()


def test_a_depthwise_kernel_of_which_one_channel_was_left_grows_again():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 1), nn.Conv1d(4, 4, 3, groups=4), nn.Conv1d(4, 2, 1))
    model, inputs = model.double(), torch.randn(2, 2, 5, dtype=torch.float64)
    plan = slice_channels(model, trace_channels(model, inputs), {"0": [1]})
    before = model(inputs).detach()
    widen_channels(model, plan, {"0": 4}, fill="pair")
    assert (model[1].groups, model[1].weight.shape) == (5, (5, 1, 3))
    assert change(model, inputs, before) < 1e-12


class TiedBack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))

    def forward(self, x):
        return F.linear(torch.relu(F.linear(x, self.weight)), self.weight.t())


def test_a_tie_that_would_never_learn_is_refused():
    model = TiedBack()
    plan = trace_channels(model, torch.randn(1, 3))
    (group,) = plan.free
    with pytest.raises(RequestError, match="weight makes the channels and is all that reads them"):
        widen_channels(model, plan, {group.name: 2}, fill="pair")
    assert model.weight.shape == (4, 3)


def test_pairs_of_random_columns_in_a_tied_table_would_break_it():
    """The negative control: (V, V) in the columns of a tied embedding is not exact."""
    model, inputs = built("tied")
    plan = trace_channels(model, inputs)
    before = model(inputs).detach()
    (stream,) = (group.name for group in plan.free if "embed" in group.name)
    widen_channels(model, plan, {stream: 4}, fill="pair")
    assert change(model, inputs, before) < 1e-12
    assert not model.embed.weight[:, 6:].any()
    with torch.no_grad():
        model.embed.weight[:, 6:] = torch.randn(7, 2, dtype=torch.float64).repeat(1, 2)
    assert change(model, inputs, before) > 0.1
