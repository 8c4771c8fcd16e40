"""Blocks and branches that do nothing, and branches that write to some channels only."""

import copy

import pytest
import torch
from torch import nn

from latewood import models
from latewood.core.coupling import trace_channels, verify_plan
from latewood.core.measure import parameter_count
from latewood.errors import RequestError
from latewood.slim import Scatter, load_slim, save_slim, slim, slim_recipe
from latewood.slim.idle_blocks import Skip, Zeros, idle_modules


def zero(*layers, rows=slice(None)):
    with torch.no_grad():
        for layer in layers:
            layer.weight[rows] = 0
            if layer.bias is not None:
                layer.bias[rows] = 0


def kinds(model):
    return [type(edit).__name__ for edit in slim_recipe(model).edits]


def difference(one, other, *inputs):
    with torch.no_grad():
        exact = one(*inputs)
        return float((exact - other(*inputs)).abs().max() / exact.abs().max())


@pytest.fixture
def resnet(zoo):
    model, inputs = zoo("resnet20")
    return model.double(), inputs[0].double()


def test_a_block_whose_branch_is_masked_becomes_an_identity(resnet):
    model, images = resnet
    zero(model.layer1[1].bn2, model.layer3[2].bn2)
    smaller = slim(model, images)
    assert kinds(smaller) == ["Skipped", "Channels"]
    assert [type(each) for each in smaller.layer1][1] is Skip
    assert [type(each) for each in smaller.layer3][2] is Skip
    gone = parameter_count(model.layer1[1]) + parameter_count(model.layer3[2])
    assert parameter_count(smaller) == parameter_count(model) - gone
    assert difference(model, smaller, images) <= 1e-12


def test_a_block_that_changes_the_shape_or_its_input_stays(resnet):
    model, images = resnet
    zero(model.layer2[0].bn2)  # stride and width
    zero(model.layer1[1].bn2, rows=slice(1, None))  # one channel is alive
    assert idle_modules(model, images) == {}


def test_what_only_a_dead_norm_reads_goes_with_its_block_that_cannot(resnet):
    model, images = resnet
    zero(model.layer2[0].bn2)
    before = model.layer2[0].conv2.weight.clone()
    smaller = slim(model, images)
    assert smaller.layer2[0].conv1.out_channels == smaller.layer2[0].conv2.in_channels == 1
    assert torch.equal(model.layer2[0].conv2.weight, before)
    assert difference(model, smaller, images) <= 1e-12


class Branching(nn.Module):
    """A convolution that a dead norm reads, and one more reader if asked for."""

    def __init__(self, reader):
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 3, 1), nn.Conv1d(3, 3, 1)
        self.norm, self.last = nn.BatchNorm1d(3), nn.Conv1d(3, 2, 1)
        self.reader = reader

    def forward(self, x):
        hidden = self.second(self.first(x).relu())
        return self.reader(self, hidden, self.last(self.norm(hidden) + 1))


@pytest.mark.parametrize(
    ("reader", "left"),
    [
        (lambda m, hidden, out: out, 1),
        (lambda m, hidden, out: out + hidden.sum(), 3),
        (lambda m, hidden, out: (out, hidden), 3),
        (lambda m, hidden, out: out + m.last(m.second(out[:, [0, 1, 0]])), 3),
    ],
)
def test_a_row_with_another_reader_stays(reader, left):
    torch.manual_seed(0)
    model = Branching(reader).double().eval()
    zero(model.norm)
    inputs = torch.randn(2, 2, 5, dtype=torch.float64)
    assert slim(model, inputs).first.out_channels == left


class Shifted(nn.Module):
    """A ReLU after the sum, of a stream that may be negative."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4))

    def forward(self, x):
        return torch.relu(x + self.branch(x))


def test_a_relu_is_an_identity_only_on_what_cannot_be_negative():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), Shifted(), Shifted(), nn.Linear(4, 2)).double()
    zero(model[1].branch[2], model[2].branch[2])
    inputs = torch.rand(6, 3, dtype=torch.float64)
    # The first ReLU cuts; only the second meets what one has cut.
    assert idle_modules(model, inputs) == {"1.branch": "zeros", "2": "identity"}
    smaller = slim(model, inputs)
    assert isinstance(smaller[1].branch, Zeros) and isinstance(smaller[2], Skip)
    assert difference(model, smaller, inputs) <= 1e-12


class Changed(nn.Module):
    """Returns the very tensor it was given, with other values."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        x *= 2
        x += self.layer(x)
        return x


def test_a_tensor_changed_in_place_is_not_the_one_that_came_in():
    model = nn.Sequential(nn.Linear(3, 4), Changed(), nn.Linear(4, 2))
    zero(model[1].layer)
    assert idle_modules(model, torch.randn(2, 3)) == {}


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Shifted()

    def forward(self, x):
        return self.block(self.block(x))


def test_a_module_must_do_nothing_each_time_it_runs():
    model = nn.Sequential(nn.Linear(3, 4), Twice(), nn.Linear(4, 2))
    zero(model[1].block.branch[2])
    assert idle_modules(model, torch.randn(2, 3)) == {"1.block.branch": "zeros"}


def test_transformer_blocks_and_their_attention_go():
    torch.manual_seed(0)
    model = models.transformer(vocabulary=11, context=6, width=8, layers=3, heads=4).double()
    tokens = torch.randint(0, 11, (2, 5))
    first, second, third = model.blocks
    zero(first.attention.out_proj, second.attention.out_proj, second.linear2)
    third.attention.out_proj.weight.data[:, :4] = 0
    smaller = slim(model.eval(), tokens)
    assert isinstance(smaller.blocks[0].attention, Zeros)
    assert isinstance(smaller.blocks[1], Skip)
    assert smaller.blocks[2].attention.heads == 2
    assert difference(model, smaller, tokens) <= 1e-12


def scattered(resnet):
    model, images = resnet
    zero(model.layer2[0].bn2, rows=slice(0, 10))
    zero(model.layer3[0].bn2)
    return model.eval(), images


def test_a_branch_writes_only_the_channels_that_it_has(resnet):
    model, images = scattered(resnet)
    smaller = slim(model, images, residual="scatter")
    narrow, scatter = smaller.layer2[0].bn2
    assert smaller.layer2[0].conv2.out_channels == narrow.num_features == 6
    assert scatter.kept.tolist() == list(range(10, 16)) and scatter.width == 16
    assert smaller.layer3[0].conv2.out_channels == 1
    assert parameter_count(smaller) < parameter_count(slim(model, images))
    assert difference(model, smaller, images) <= 1e-12


def test_scattered_branches_are_saved_exported_and_traced(resnet, tmp_path):
    model, images = scattered(resnet)
    smaller = slim(model, images, residual="scatter")
    save_slim(smaller, tmp_path / "net", arguments={"width": 0.5})
    again = load_slim(tmp_path / "net", models.resnet20)
    assert torch.equal(again(images), smaller(images))
    program = torch.export.export(smaller, (images,))
    torch.testing.assert_close(program.module()(images), smaller(images), rtol=0, atol=1e-12)
    plan = trace_channels(smaller, images)
    assert verify_plan(smaller, plan, images) <= 1e-12
    # More of the branch can go later, and the places in the stream follow.
    zero(smaller.layer2[0].bn2[0], rows=slice(0, 2))
    twice = slim(smaller, images)
    assert twice.layer2[0].bn2[1].kept.tolist() == [12, 13, 14, 15]
    save_slim(twice, tmp_path / "twice", arguments={"width": 0.5})
    assert torch.equal(load_slim(tmp_path / "twice", models.resnet20)(images), twice(images))


def test_scatter_adds_nothing_where_every_channel_is_written(resnet):
    model, images = resnet
    smaller = slim(model, images, residual="scatter")
    assert not any(isinstance(each, Scatter) for each in smaller.modules())


def test_inner_keeps_what_several_layers_write(zoo, off):
    model, inputs = zoo("resnet20")
    off(model, inputs, side="made")
    coupled, inner = slim(model, inputs), slim(model, inputs, residual="inner")
    assert coupled.layer1[0].conv2.out_channels < 8 == inner.layer1[0].conv2.out_channels
    assert inner.layer1[0].conv1.out_channels == coupled.layer1[0].conv1.out_channels < 8
    transformer, tokens = zoo("transformer")
    off(transformer, tokens, side="made")
    assert slim(transformer, tokens, residual="inner").blocks[0].attention.heads < 4


@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_widths_are_rounded_up(multiple, zoo, off):
    model, inputs = zoo("resnet20")
    plain = copy.deepcopy(model)
    off(model, inputs, side="made")
    rounded, exact = slim(model, inputs, round_to=multiple), slim(model, inputs)
    for name, layer in rounded.named_modules():
        if isinstance(layer, nn.Conv2d):
            least, full = (each.get_submodule(name).out_channels for each in (exact, plain))
            assert layer.out_channels == min(full, -(-least // multiple) * multiple), name
    assert difference(model, rounded, *inputs) <= 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"residual": "outer"}, "coupled, inner, scatter"),
        ({"round_to": 0}, "from 1 on"),
        ({"round_to": 2.0}, "from 1 on"),
        ({"keep": {"linear1": [0]}, "round_to": 8}, "keep alone"),
        ({"keep": {"linear1": [0]}, "residual": "inner"}, "keep alone"),
    ],
)
def test_wrong_options_are_refused(options, message, zoo):
    model, inputs = zoo("mlp")
    with pytest.raises(RequestError, match=message):
        slim(model, inputs, **options)


class Summed(nn.Module):
    """A residual block whose sum is computed as the case says."""

    def __init__(self, total):
        super().__init__()
        self.layer, self.total = nn.Linear(6, 6), total

    def forward(self, x):
        return self.total(self.layer, x)


def summed_in_place(layer, x):
    y = layer(x)
    y += x
    return y


def summed_in_rows(layer, x):
    rows = x.reshape(-1, 6)
    return (rows + layer(rows)).view(x.shape)


def summed_with_addmm(layer, x):
    return x + torch.addmm(layer.bias, x, layer.weight)


def summed_across(layer, x):
    windows = x.unflatten(0, (2, 2)).transpose(0, 1)
    return (windows + layer(windows)).transpose(0, 1).flatten(0, 1)


def summed_across_and_left_there(layer, x):
    windows = x.unflatten(0, (2, 2)).transpose(0, 1)
    return (windows + layer(windows)).flatten(0, 1)


def turned_in_place(layer, x):
    y = (x + layer(x)).view(6, 6).clone()
    return y.t_().reshape(x.shape)


def rolled(layer, x):
    return (x.roll(1, 0) + layer(x)).roll(-1, 0)


def rolled_on(layer, x):
    return (x.roll(1, 0) + layer(x)).roll(1, 0)


def doubled_in_place(layer, x):
    y = layer(x)
    y += x
    y += x
    return y


def chosen_by_value(layer, x):
    return x if float(x.sum()) < 1e9 else layer(x) + 1


def subtracted(layer, x):
    return layer(x) - x


@pytest.mark.parametrize(
    ("total", "idle"),
    [
        (summed_in_place, True),
        (summed_in_rows, True),
        (summed_with_addmm, True),
        (summed_across, True),
        (rolled, True),
        (summed_across_and_left_there, False),
        (rolled_on, False),
        (turned_in_place, False),
        (doubled_in_place, False),
        (subtracted, False),
        (chosen_by_value, False),
    ],
)
def test_a_sum_is_followed_through_shapes_and_orders_and_back(total, idle):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), Summed(total), nn.Linear(6, 2)).double().eval()
    zero(model[1].layer)
    inputs = torch.randn(4 if "turned" not in total.__name__ else 6, 6).double()
    expected = {"1": "identity"} if idle else {}
    found = idle_modules(model, inputs)
    assert {name: kind for name, kind in found.items() if name == "1"} == expected
    assert difference(model, slim(model, inputs), inputs) <= 1e-12


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_blocks_of_transformers_without_a_branch_go(transformers_kit, name):
    model, inputs = transformers_kit.build(name)
    ends = {
        "llama": ("model.layers.0", ("self_attn.o_proj", "mlp.down_proj")),
        "t5": ("encoder.block.0.layer.1", ("DenseReluDense.wo",)),
    }
    block, layers = ends[name]
    zero_all = [model.get_submodule(f"{block}.{layer}") for layer in layers]
    with torch.no_grad():
        for layer in zero_all:
            for parameter in layer.parameters():
                parameter.zero_()
    assert idle_modules(model, inputs)[block] == "identity"
