"""Slim modules against the models they come from."""

import copy

import pytest
import torch
from torch import nn

from latewood.core.coupling import trace_channels
from latewood.core.measure import parameter_count
from latewood.errors import RequestError, WorkError
from latewood.slim import slim, slim_recipe
from latewood.sparsity import FixedMasks

NAMES = [
    "resnet20",
    "resnet50",
    "wide_resnet28",
    "vgg11",
    "mobilenet_v1",
    "unet",
    "lstm_language_model",
    "lstm_classifier",
    "mlp",
    "convnet",
    "lenet",
    "transformer",
]


def double(inputs):
    return tuple(each.double() if each.is_floating_point() else each for each in inputs)


def difference(one, other, inputs):
    with torch.no_grad():
        exact = one(*inputs)
        return float((exact - other(*inputs)).abs().max() / exact.abs().max())


@pytest.mark.parametrize("side", ["made", "read"])
@pytest.mark.parametrize("name", NAMES)
def test_slim_finds_exactly_what_was_switched_off_and_computes_the_same(name, side, zoo, off):
    model, inputs = zoo(name)
    model, inputs = model.double(), double(inputs)
    kept = off(model, inputs, side=side)
    smaller = slim(model, inputs)
    assert slim_recipe(smaller).steps == (kept,)
    assert parameter_count(smaller) < 0.8 * parameter_count(model)
    assert difference(model, smaller, inputs) <= 1e-12


@pytest.mark.parametrize("name", ["resnet20", "lstm_language_model"])
def test_named_channels_give_the_same_module(name, zoo, off):
    model, inputs = zoo(name)
    kept = off(model, inputs, side="made")
    found, named = slim(model, inputs), slim(model, inputs, keep=kept)
    for (key, one), other in zip(
        found.state_dict().items(), named.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), key


def test_the_model_stays_as_it_is(zoo, off):
    model, inputs = zoo("convnet")
    off(model, inputs, side="made")
    before = copy.deepcopy(model.state_dict())
    model.train()
    slim(model, inputs)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def conv_norm(activation=None):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        activation or nn.ReLU(),
        nn.Conv2d(6, 4, 3, padding=1),
        nn.Flatten(),
        nn.Linear(4 * 36, 2),
    )
    model[1].bias.data.fill_(0.5)
    return model.double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)


def test_a_weight_mask_in_front_of_a_batch_norm_removes_nothing():
    model, inputs = conv_norm()
    model[0].weight.data[:3] = 0
    smaller = slim(model, inputs)
    assert smaller[0].out_channels == 6
    # The trap itself: as a channel that is gone, it would change the output.
    gone = copy.deepcopy(model)
    gone[1].weight.data[:3] = 0
    gone[1].bias.data[:3] = 0
    assert difference(model, gone, (inputs,)) > 1e-3
    with pytest.raises(RequestError, match=r"channels \[0\].*batch norm"):
        slim(model, inputs, keep={"0": [1, 2, 3, 4, 5]})


def test_a_constant_that_the_activation_cuts_off_goes():
    model, inputs = conv_norm()
    model[0].weight.data[:3] = 0
    model[1].bias.data[:2] = -0.5
    assert slim_recipe(slim(model, inputs)).steps == ({"0": [2, 3, 4, 5]},)


def test_a_channel_that_is_zero_only_on_the_example_stays():
    model, inputs = conv_norm()
    model[1].bias.data[:3] = -100.0
    with torch.no_grad():
        assert float(model[:3](inputs)[:, :3].abs().max()) == 0
    assert slim(model, inputs)[0].out_channels == 6


@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.ReLU(inplace=True)])
def test_norms_switched_off_leave_what_the_activation_makes_of_zero(activation):
    model, inputs = conv_norm(activation)
    model[1].weight.data[:3] = 0
    model[1].bias.data[:3] = 0
    left = 6 if isinstance(activation, nn.Sigmoid) else 3
    assert slim(model, inputs)[0].out_channels == left


def test_constants_are_folded_into_the_bias_that_reads_them():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 5, 3),
        nn.Sigmoid(),
        nn.Conv2d(5, 4, 3),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).double()
    model[0].weight.data[1] = 0
    model[2].weight.data[2:] = 0
    inputs = torch.randn(2, 1, 9, 9, dtype=torch.float64)
    smaller = slim(model, inputs)
    assert slim_recipe(smaller).steps == ({"0": [0, 2, 3, 4], "2": [0, 1]},)
    assert difference(model, smaller, (inputs,)) <= 1e-12
    assert not torch.equal(model[6].bias, smaller[6].bias)


def test_what_only_removed_channels_read_goes_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    model[4].weight.data[:, 2:] = 0
    model[2].weight.data[:2, 1:] = 0
    smaller = slim(model, torch.randn(1, 3))
    assert slim_recipe(smaller).steps == ({"0": [0], "2": [0, 1]},)


def test_no_layer_is_emptied():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    model[2].weight.data.zero_()
    inputs = torch.randn(4, 3, dtype=torch.float64)
    smaller = slim(model, inputs)
    assert smaller[0].out_features == 1
    assert torch.equal(smaller(inputs), model(inputs))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 6, bias=False)
        self.inner = nn.Linear(6, 5)
        self.outer = nn.Linear(5, 6, bias=False)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        stream = self.stem(x)
        return self.head(stream + self.outer(self.inner(stream).relu()))


def test_a_stream_shrinks_only_where_all_that_write_to_it_agree():
    torch.manual_seed(0)
    model, inputs = Residual(), torch.randn(1, 3)
    model.outer.weight.data[:3] = 0
    assert slim(model, inputs).stem.out_features == 6
    model.stem.weight.data[1:] = 0
    assert slim_recipe(slim(model, inputs)).steps == ({"stem": [0, 3, 4, 5]},)


def test_units_that_wake_up_from_a_bias_stay():
    torch.manual_seed(0)
    model = nn.LSTM(3, 4, num_layers=2, batch_first=True)
    wrapped = nn.Sequential()
    wrapped.add_module("lstm", model)
    wrapped.add_module("first", First())
    wrapped.add_module("head", nn.Linear(4, 2))
    for name, parameter in model.named_parameters():
        # Only the lower layer keeps a bias, where nothing but the weights can tell.
        if name != "bias_hh_l0":
            parameter.data.unflatten(0, (4, 4))[:, :2] = 0
    inputs = torch.randn(2, 5, 3)
    assert slim(wrapped, inputs).lstm.hidden_size == 4
    for gate in range(4):
        model.bias_hh_l0.data[4 * gate : 4 * gate + 2] = 0
    smaller = slim(wrapped, inputs)
    assert smaller.lstm.hidden_size == 2
    assert torch.allclose(smaller(inputs), wrapped(inputs), atol=1e-6)


class First(nn.Module):
    def forward(self, pair):
        return pair[0]


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_other_recurrent_layers_lose_units_too(kind):
    torch.manual_seed(0)
    model = nn.Sequential(kind(3, 4), First(), nn.Linear(4, 2)).double()
    gates = 3 if kind is nn.GRU else 1
    for parameter in model[0].parameters():
        parameter.data.unflatten(0, (gates, 4))[:, 1] = 0
    smaller = slim(model, torch.randn(5, 2, 3, dtype=torch.float64))
    assert smaller[0].hidden_size == 3


class Steered(nn.Module):
    """Reads a channel that weights leave at zero, unless a number taken from the data is high."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 2)

    def forward(self, x):
        hidden = self.first(x)
        offset = max(0.0, x.sum().item() - 100)
        return self.second(hidden.relu() + offset)


def test_a_number_taken_from_the_data_spoils_what_comes_after_it():
    model = Steered()
    model.first.weight.data[0] = 0
    model.first.bias.data[0] = 0
    model.second.bias.data.zero_()
    assert slim(model, torch.zeros(1, 3)).first.out_features == 4


class Overwritten(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 2)

    def forward(self, x):
        hidden = self.first(x)
        other = hidden.view(-1, 4)
        hidden += x[:, :1]
        return self.second(other)


def test_a_change_in_place_reaches_all_views():
    model = Overwritten()
    model.first.weight.data[0] = 0
    model.first.bias.data[0] = 0
    assert slim(model, torch.zeros(1, 3)).first.out_features == 4


def test_masks_are_folded_in(zoo):
    model, inputs = zoo("mlp")
    trace = trace_channels(model, inputs)
    mask = torch.ones(12, 16, dtype=torch.bool)
    mask[:, ::2] = False
    FixedMasks(model, {"linear2.weight": mask})
    smaller = slim(model, inputs)
    assert slim_recipe(smaller).steps == ({trace.groups[0].name: list(range(1, 16, 2))},)
    assert type(smaller.linear2) is nn.Linear
    assert not any("parametrizations" in name for name in smaller.state_dict())


def test_slimming_twice_keeps_both_steps(zoo, off):
    model, inputs = zoo("mlp")
    off(model, inputs, side="made")
    once = slim(model, inputs)
    once.head.weight.data[:, 0] = 0
    twice = slim(once, inputs)
    steps = slim_recipe(twice).steps
    assert len(steps) == 2 and steps[1] == {"linear2": list(range(1, once.head.in_features))}


def test_a_slim_module_trains(zoo, off):
    model, inputs = zoo("convnet")
    off(model, inputs, side="made")
    smaller = slim(model, inputs).train()
    smaller(*inputs).sum().backward()
    assert all(parameter.grad is not None for parameter in smaller.parameters())


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"linear9": [0]}, "linear9"),
        ([0], "keep: got .*a dict"),
        ({"linear1": 3}, "keep.'linear1'.: got 3; expected a list"),
        ({"linear1": []}, "at least one"),
        ({"linear1": [0, 0]}, "distinct"),
        ({"linear1": [0, 16]}, "0 to 15"),
        ({"head": [0]}, "output"),
        ({"linear1": [0]}, "do not|does not"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(keep, message, zoo):
    model, inputs = zoo("mlp")
    with pytest.raises(RequestError, match=message):
        slim(model, inputs, keep=keep)


def test_a_module_that_differs_is_not_returned(zoo, off):
    model, inputs = zoo("resnet20")
    off(model, inputs, side="made")
    with pytest.raises(WorkError, match="differs by"):
        slim(model, inputs, tolerance=-1.0)


class RootOfInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        with torch.no_grad():
            self.second.weight[:, 0] = 0

    def forward(self, inputs):
        return self.second(self.first(inputs.sqrt()))


def test_drawn_inputs_that_a_model_cannot_take_are_no_difference():
    torch.manual_seed(0)
    model, inputs = RootOfInputs(), torch.rand(5, 3)
    assert slim(model, inputs).first.out_features == 3
    with pytest.raises(WorkError, match="nan"):
        slim(model, -inputs)


def test_only_slim_modules_have_a_recipe():
    with pytest.raises(RequestError, match="slim"):
        slim_recipe(nn.Linear(2, 2))


class TiedBias(nn.Module):
    """Two layers with one bias, of which only the first reads the constant."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 4)
        self.third.bias = self.second.bias

    def forward(self, x):
        return self.third(torch.tanh(self.second(torch.sigmoid(self.first(x)))))


def test_a_constant_is_not_folded_into_a_bias_that_another_layer_uses():
    torch.manual_seed(0)
    model, inputs = TiedBias(), torch.randn(2, 3)
    model.first.weight.data[1] = 0
    assert slim(model, inputs).first.out_features == 5
    with pytest.raises(RequestError, match=r"channels \[1\]"):
        slim(model, inputs, keep={"first": [0, 2, 3, 4]})
    model.third.bias = nn.Parameter(model.second.bias.detach().clone())
    assert slim(model, inputs).first.out_features == 4


class BareNorm(nn.Module):
    """torch's own functions, which have their arguments in another order."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, 5))
        self.norm = nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 2)

    def forward(self, tokens):
        norm = self.norm
        found = torch.embedding(self.table, tokens)
        found = torch.batch_norm(
            found,
            norm.weight,
            norm.bias,
            norm.running_mean,
            norm.running_var,
            False,
            0,
            1e-5,
            False,
        )
        return self.head(found.relu())


def test_the_functions_of_torch_itself_are_followed():
    torch.manual_seed(0)
    model, tokens = BareNorm().double().eval(), torch.randint(0, 7, (4,))
    model.norm.weight.data[2] = model.norm.bias.data[2] = 0
    # Not the mean: that of a channel that is alive.
    model.norm.running_mean[1] = 0
    smaller = slim(model, tokens)
    assert smaller.table.shape == (7, 4) and smaller.head.in_features == 4
    assert difference(model, smaller, (tokens,)) <= 1e-12
