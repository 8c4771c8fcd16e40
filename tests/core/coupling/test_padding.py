"""Groups that norms hold: norms recognised, padding that keeps the function, why it is refused."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latewood.core.coupling import (
    NORMALISED,
    Norm,
    additions,
    can_widen,
    trace_channels,
    widen_channels,
)
from latewood.core.double_precision import in_float64
from latewood.errors import RequestError


class RootMean(nn.Module):
    """As in language models: computes in float32 whatever it is given."""

    def __init__(self, size, offset=0.0, on_root=False):
        super().__init__()
        self.gain, self.offset = nn.Parameter(torch.rand(size) + 0.5), offset
        self.small, self.on_root = 1e-3, on_root

    def forward(self, x):
        x = x.float()
        if self.on_root:
            x = x / (x.square().mean(-1, keepdim=True).sqrt() + self.small)
        else:
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.small)
        return x * (self.gain + self.offset if self.offset else self.gain)


class WrittenLayerNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.g, self.b = nn.Parameter(torch.rand(size) + 0.5), nn.Parameter(torch.randn(size))
        self.e = 1e-2

    def forward(self, x):
        deviation = (x - x.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True)
        return self.g * (x - x.mean(-1, keepdim=True)) / torch.sqrt(deviation + self.e) + self.b


class FixedEps(nn.Module):
    """nanoGPT's: its eps is a number in the code, beside an attribute that is not used."""

    def __init__(self, size):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(size)), nn.Parameter(torch.zeros(size))
        self.eps = 1e-5

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Stream(nn.Module):
    """A residual stream with a norm before each of two branches and at its end; tied or not."""

    def __init__(self, norm, tied=False, post=False, curved=False, depthwise=False):
        super().__init__()
        self.embed, self.places = nn.Embedding(7, 6), nn.Parameter(torch.randn(5, 6))
        self.norms = nn.ModuleList(norm(6) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(6, 8) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(8, 6) for _ in range(2))
        self.head = nn.Linear(6, 7)
        if tied:
            self.head.weight = self.embed.weight
        self.post, self.curved = post, curved
        self.depthwise = nn.Conv1d(6, 6, 1, groups=6) if depthwise else None

    def forward(self, tokens):
        x = self.embed(tokens) + self.places[: tokens.shape[1]]
        if self.depthwise is not None:
            x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=False):
            y = down(F.gelu(up(x if self.post else norm(x))))
            x = norm(x + y) if self.post else x + y
        x = F.softplus(x) if self.curved else x
        return self.head(self.norms[2](x))


TOKENS = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 1]])
NORMS = {
    "layer": (nn.LayerNorm, Norm("norms.0", "layer", "norms.0.weight", "norms.0.bias", "eps")),
    "layer without shift": (
        lambda size: nn.LayerNorm(size, bias=False),
        Norm("norms.0", "layer", "norms.0.weight", None, "eps"),
    ),
    "torch rms": (
        lambda size: nn.RMSNorm(size, eps=1e-3),
        Norm("norms.0", "rms", "norms.0.weight", None, "eps"),
    ),
    "written rms": (RootMean, Norm("norms.0", "rms", "norms.0.gain", None, "small")),
    "rms with 1 + weight": (
        lambda size: RootMean(size, 1.0),
        Norm("norms.0", "rms", "norms.0.gain", None, "small", 1.0),
    ),
    "eps on the root": (
        lambda size: RootMean(size, on_root=True),
        Norm("norms.0", "rms", "norms.0.gain", None, "small", on_root=True),
    ),
    "written layer": (WrittenLayerNorm, Norm("norms.0", "layer", "norms.0.g", "norms.0.b", "e")),
}


def stream(norm, **options):
    torch.manual_seed(0)
    model = Stream(norm, **options).double()
    with torch.no_grad():
        for module in model.norms:
            for parameter in module.parameters():
                parameter.uniform_(0.4, 1.6)
    plan = trace_channels(model, TOKENS)
    (name,) = (group.name for group in plan.owner("up.0.weight", 1))
    return model, plan, name


def outputs(model):
    with in_float64(), torch.no_grad():
        return model(TOKENS)


def change(model, before):
    return float((outputs(model) - before).abs().max() / before.abs().max())


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", NORMS)
def test_padding_keeps_the_function_twice_by_any_number(kind, tied, training):
    build, norm = NORMS[kind]
    model, plan, name = stream(build, tied=tied)
    assert norm in plan[name].norms
    assert len(plan[name].norms) == 3
    assert plan[name].padding.obstacle == ""
    model.train(training)
    before = outputs(model)
    for count in (5, 3):
        requests = {group.name: 4 for group in plan.free} | {name: count}
        plan = widen_channels(model, plan, requests, fill="pair", allow=NORMALISED)
        assert change(model, before) < 1e-12
    assert plan[name].width == model.up[0].in_features == 14
    # New channels that nothing reads, or whose readers were all 0, would be no growth.
    reader = model.up[1].weight[:8, 6:]
    assert len(reader.unique()) == reader.numel()


@pytest.mark.parametrize("kind", ["layer", "written rms"])
def test_padded_channels_learn(kind):
    model, plan, name = stream(NORMS[kind][0])
    wider = widen_channels(model, plan, {name: 4}, fill="pair", allow=NORMALISED)
    model(TOKENS).square().sum().backward()
    for addition in additions(plan, wider):
        if addition.tensor in ("embed.weight", "down.0.weight"):
            gradient = model.get_parameter(addition.tensor).grad
            rows = gradient.index_select(addition.axis, addition.new.flatten())
            rows = rows.movedim(addition.axis, 0).flatten(1)
            assert torch.linalg.matrix_rank(rows) > 1  # each channel in a way of its own


def test_scale_and_eps_follow():
    model, plan, name = stream(RootMean)
    before, eps = model.norms[1].gain.detach().clone(), model.norms[1].small
    widen_channels(model, plan, {name: 2}, fill="pair", allow=NORMALISED)
    assert model.norms[1].small == pytest.approx(eps * 6 / 8)
    torch.testing.assert_close(model.norms[1].gain[:6], before * (6 / 8) ** 0.5)
    assert model.norms[1].gain[6:].tolist() == [1.0, 1.0]
    assert not model.down[0].weight[6:].any()
    assert not model.embed.weight[:, 6:].any()


@pytest.mark.parametrize("left_out", ["eps", "scale"])
def test_without_eps_or_scale_the_function_would_change(left_out):
    model, plan, name = stream(WrittenLayerNorm)
    before, old = outputs(model), copy.deepcopy(model)
    widen_channels(model, plan, {name: 6}, fill="pair", allow=NORMALISED)
    for norm, was in zip(model.norms, old.norms, strict=True):
        if left_out == "eps":
            norm.e = was.e
        else:
            with torch.no_grad():
                norm.g[:6] = was.g
    assert change(model, before) > 1e-4


def test_pairs_under_a_layer_norm_would_not_be_exact():
    """The negative control: random rows twice, read with opposite signs, behind a layer norm."""
    model, plan, name = stream(nn.LayerNorm)
    before = outputs(model)
    wider = widen_channels(model, plan, {name: 4}, fill="copy", allow=NORMALISED)
    with torch.no_grad():
        for addition in additions(plan, wider):
            tensor = model.get_parameter(addition.tensor)
            first, second = (half.flatten() for half in addition.new.chunk(2))
            shape = list(tensor.shape)
            shape[addition.axis] = len(first)
            drawn = torch.randn(shape, dtype=torch.float64)
            sign = -1 if "consumer" in addition.roles else 1
            tensor.index_copy_(addition.axis, first, drawn)
            tensor.index_copy_(addition.axis, second, sign * drawn)
    assert change(model, before) > 0.1


def test_group_norms_keep_the_channels_of_a_group_and_would_not_be_exact_otherwise():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 8, 1), nn.GroupNorm(4, 8), nn.GELU(), nn.Conv1d(8, 2, 1))
    model, inputs = model.double(), torch.randn(2, 2, 3, dtype=torch.float64)
    plan = trace_channels(model, inputs)
    assert plan["0"].width == 4  # groups are the channels
    (norm,) = plan["0"].norms
    assert norm == Norm("1", "group", "1.weight", "1.bias", "eps")
    before = model(inputs).detach()
    widen_channels(model, plan, {"0": 2}, fill="pair")
    assert (model[1].num_groups, model[1].num_channels) == (6, 12)
    assert (model(inputs) - before).abs().max() < 1e-12 * before.abs().max()
    model[1].num_groups = 4
    assert (model(inputs) - before).abs().max() > 0.01 * before.abs().max()


@pytest.mark.parametrize(
    ("norm", "options", "says"),
    [
        (FixedEps, {}, "norms.0 has no attribute that its eps could be changed by"),
        (nn.RMSNorm, {}, "norms.0 has no attribute that its eps could be changed by"),
        (
            lambda size: nn.LayerNorm(size, elementwise_affine=False),
            {},
            "norms.0 has no scale that could make up for the number of channels",
        ),
        (nn.LayerNorm, {"post": True}, "would not be the mean of the others in norms"),
        (nn.LayerNorm, {"curved": True}, "softplus in the model makes other values of them"),
        (nn.LayerNorm, {"depthwise": True}, "conv1d in depthwise has a kernel for each channel"),
        (RootMean, {"curved": True}, "would not be 0 in norms.2: softplus in the model"),
    ],
)
def test_what_padding_would_change_is_refused_before_anything_changes(norm, options, says):
    model, plan, name = stream(norm, **options)
    assert not can_widen(plan[name])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RequestError, match=f"{name}: cannot become wider: .*{says}"):
        widen_channels(model, plan, {name: 2}, fill="pair", allow=NORMALISED)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("options", [{"post": True}, {"depthwise": True}])
def test_rms_norms_may_stand_behind_a_sum_or_a_depthwise_kernel(options):
    model, plan, name = stream(RootMean, **options)
    before = outputs(model)
    widen_channels(model, plan, {name: 3}, fill="pair", allow=NORMALISED)
    assert change(model, before) < 1e-12
    if model.depthwise is not None:
        # Zeros before it and zeros in it would never learn.
        assert model.depthwise.weight[6:].all()
        assert not model.depthwise.bias[6:].any()


def test_a_norm_has_to_be_allowed():
    model, plan, name = stream(nn.LayerNorm)
    with pytest.raises(RequestError, match="averages over the channels"):
        widen_channels(model, plan, {name: 2}, fill="pair")


class Inline(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x):
        x = self.first(x)
        return self.last(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.scale)


def test_a_norm_that_is_no_module_of_its_own_is_unknown():
    model = Inline()
    plan = trace_channels(model, torch.randn(4, 3))
    assert plan["first"].norms == (Norm("", "unknown"),)
    with pytest.raises(RequestError, match="the model computes no layer norm or RMS norm"):
        widen_channels(model, plan, {"first": 2}, fill="pair", allow=NORMALISED)


class Products(nn.Module):
    """Two paths of one stream multiplied, both 0 in new channels: they would never learn."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 6), nn.Linear(3, 6)
        self.norm, self.head = RootMean(6), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.norm(self.left(x) * self.right(x)))


def test_channels_that_would_stay_at_zero_are_refused():
    model = Products()
    plan = trace_channels(model, torch.randn(4, 3))
    (group,) = (group for group in plan if group.padding)
    with pytest.raises(RequestError, match="multiplies new channels by new channels, both 0"):
        widen_channels(model, plan, {group.name: 2}, fill="pair", allow=NORMALISED)


class Mixer(nn.Module):
    """A branch mixes positions, with a bias that is the same for every channel."""

    def __init__(self, norm, bias):
        super().__init__()
        self.first, self.norm, self.last_norm = nn.Linear(3, 6), norm(6), norm(6)
        self.mix, self.back = nn.Linear(4, 5, bias=bias), nn.Linear(5, 4, bias=bias)
        self.last = nn.Linear(6, 2)

    def forward(self, x):
        x = self.first(x)
        x = x + self.back(torch.tanh(self.mix(self.norm(x).transpose(1, 2)))).transpose(1, 2)
        return self.last(self.last_norm(x))


@pytest.mark.parametrize(("bias", "allowed"), [(True, False), (False, True)])
def test_positions_that_are_mixed_pass_on_what_channels_hold(bias, allowed):
    torch.manual_seed(0)
    model = Mixer(RootMean, bias).double()
    inputs = torch.randn(2, 4, 3, dtype=torch.float64)
    plan = trace_channels(model, inputs)
    (group,) = (group for group in plan if group.padding)
    assert can_widen(group) is allowed
    if allowed:
        with in_float64(), torch.no_grad():
            before = model(inputs)
            widen_channels(model, plan, {group.name: 4}, fill="pair", allow=NORMALISED)
            assert (model(inputs) - before).abs().max() < 1e-12 * before.abs().max()
    else:
        assert "linear in mix adds a number to every channel" in group.padding.obstacle


def test_twins_are_padded_from_their_own_weights():
    model, plan, name = stream(nn.LayerNorm)
    average = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(0.9).add_(0.01)
    expected = outputs(average)
    widen_channels(model, plan, {name: 3}, fill="pair", twins=[average], allow=NORMALISED)
    assert change(average, expected) < 1e-12
    assert torch.equal(average.up[0].weight[:, 6:], model.up[0].weight[:, 6:])
    assert average.norms[0].eps == model.norms[0].eps


def test_means_of_masked_weights_are_refused(mask):
    from latewood.core.transforms import attach

    model, plan, name = stream(nn.LayerNorm)
    attach(model.down[0], "weight", mask(model.down[0].weight.shape).double())
    with pytest.raises(RequestError, match=r"down.0.weight has a transformation"):
        widen_channels(model, plan, {name: 2}, fill="pair", allow=NORMALISED)


def test_everything_runs_in_float64():
    norm, x = RootMean(6), torch.randn(4, 6)
    wide = x.double()
    exact = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-3) * norm.gain.double()
    with in_float64(), torch.no_grad():
        computed = norm(x)
        assert torch.zeros(2).dtype is norm.gain.dtype is torch.float64
    assert (computed - exact).abs().max() < 1e-14
    assert norm.gain.dtype is torch.get_default_dtype() is torch.float32
