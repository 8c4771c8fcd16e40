"""Every kind of parameter gives the matrices that it stands for, under names of its own."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from latewood.errors import RequestError
from latewood.spectra import SpectralProbe, Views, factors


def views(model, **options):
    return {view.name: view.read() for view in Views(**options).of(model)}


class Attention(nn.Module):
    """Fused attention with 4 heads of 3, of which pairs share their keys and values."""

    def __init__(self, kv_heads=2):
        super().__init__()
        self.num_heads = 4
        self.num_key_value_heads = kv_heads
        self.qkv_proj = nn.Linear(12, 3 * (4 + 2 * kv_heads), bias=False)
        self.o_proj = nn.Linear(12, 12, bias=False)


class Conv1D(nn.Module):
    """As Hugging Face stores a linear layer: (in, out)."""

    def __init__(self, out, inputs):
        super().__init__()
        self.nf = out
        self.weight = nn.Parameter(torch.randn(inputs, out))


class Gpt2Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads = 2
        self.c_attn = Conv1D(24, 8)
        self.c_proj = Conv1D(8, 8)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 5, 7))


class Stacked(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_local_experts = 3
        self.weights = nn.Parameter(torch.randn(3, 5, 7))


class Table(nn.Module):
    """Three axes, but no experts: position, head, width."""

    def __init__(self):
        super().__init__()
        self.biases_by_place = nn.Parameter(torch.randn(3, 5, 7))
        self.places = nn.Parameter(torch.randn(3, 5, 7))


class Adapted(nn.Module):
    """A linear layer as PEFT wraps it."""

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(6, 5, bias=False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(6, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 5, bias=False)})
        self.scaling = {"default": 0.5}
        self.merged_adapters = []


class Loralib(nn.Linear):
    def __init__(self):
        super().__init__(6, 5, bias=False)
        self.lora_A = nn.Parameter(torch.randn(2, 6))
        self.lora_B = nn.Parameter(torch.randn(5, 2))
        self.scaling = 2.0
        self.merged = False


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_multihead_attention_split():
    layer = nn.MultiheadAttention(8, 2)
    whole = layer.in_proj_weight.detach()
    assert list(views(layer)) == ["in_proj_weight", "out_proj.weight"]
    parts = views(layer, split="qkv")
    for part, rows in zip(("query", "key", "value"), whole.split(8), strict=True):
        assert torch.equal(parts[f"in_proj_weight[{part}]"], rows)
    heads = views(layer, split="heads")
    assert torch.equal(heads["in_proj_weight[key heads]"], whole[8:16].unflatten(0, (2, 4)))


def test_grouped_queries_split():
    layer = Attention()
    weight = layer.qkv_proj.weight.detach()
    parts = views(layer, split="qkv")
    assert torch.equal(parts["qkv_proj.weight[query]"], weight[:12])
    assert torch.equal(parts["qkv_proj.weight[key]"], weight[12:18])
    assert torch.equal(parts["qkv_proj.weight[value]"], weight[18:])
    heads = views(layer, split="heads")
    assert heads["qkv_proj.weight[query heads]"].shape == (4, 3, 12)
    assert torch.equal(heads["qkv_proj.weight[value heads]"], weight[18:].unflatten(0, (2, 3)))
    # Rows that no such heads could have: left whole rather than split somewhere.
    layer.num_key_value_heads = 3
    assert "qkv_proj.weight" in views(layer, split="qkv")


def test_hugging_face_orientation():
    layer = Gpt2Attention()
    weight = layer.c_attn.weight.detach()
    assert torch.equal(views(layer)["c_attn.weight"], weight.T)
    assert torch.equal(views(layer, split="qkv")["c_attn.weight[key]"], weight.T[8:16])


def test_stacks_of_experts_are_batches_and_other_tables_are_not():
    assert views(Experts())["gate_up_proj"].shape == (3, 5, 7)
    assert views(Stacked())["weights"].shape == (3, 5, 7)
    assert views(Table())["places"].shape == (3, 35)
    (observation,) = SpectralProbe(Experts(), every=1).observe(0)
    assert 0.7 < observation.values["effective_rank/gate_up_proj"] < 1


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3), (3, 6, 4)),
        (nn.Conv2d(4, 6, (3, 2), groups=2), (12, 3, 2)),
        (nn.Conv2d(4, 4, 3, groups=4), (36, 1, 1)),
        (nn.Conv3d(2, 3, 2), (8, 3, 2)),
        (nn.ConvTranspose2d(4, 6, 2, groups=2), (8, 3, 2)),
    ],
)
def test_taps(layer, shape):
    taps = views(layer, conv="taps")["weight"]
    assert taps.shape == shape
    weight = layer.weight.detach()
    if isinstance(layer, nn.ConvTranspose2d):
        assert torch.equal(taps[1], weight[:2, :, 0, 1].T)
        assert torch.equal(taps[4], weight[2:, :, 0, 0].T)
    elif layer.groups == 1:
        assert torch.equal(taps[1], weight.flatten(2)[..., 1])
    # All energy is there once.
    assert torch.isclose(taps.square().sum(), weight.square().sum())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3), (6, 12)),
        (nn.Conv1d(4, 6, 3, groups=2), (2, 3, 6)),
        (nn.Conv2d(4, 4, 3, groups=4), (4, 1, 9)),
        (nn.Conv3d(2, 3, 2), (3, 16)),
        (nn.ConvTranspose3d(2, 3, 2), (3, 16)),
    ],
)
def test_kernels_of_every_dimension(layer, shape):
    assert views(layer)["weight"].shape == shape


def test_adapters():
    layer = nn.Sequential(Adapted())
    part = layer[0]
    down, up = part.lora_A["default"].weight.detach(), part.lora_B["default"].weight.detach()
    base = part.base_layer.weight.detach()
    plain = ["0.base_layer.weight", "0.lora_A.default.weight", "0.lora_B.default.weight"]
    assert list(views(layer)) == plain
    product = views(layer, lora="product")
    assert list(product) == ["0.base_layer.weight", "0.base_layer.weight[lora default]"]
    assert torch.allclose(product["0.base_layer.weight[lora default]"], 0.5 * up @ down)
    merged = views(layer, lora="merged")
    assert list(merged) == ["0.base_layer.weight"]
    assert torch.allclose(merged["0.base_layer.weight"], base + 0.5 * up @ down)
    part.merged_adapters = ["default"]
    assert torch.equal(views(layer, lora="merged")["0.base_layer.weight"], base)


def test_adapters_of_loralib():
    layer = Loralib()
    added = 2 * (layer.lora_B @ layer.lora_A).detach()
    assert torch.allclose(views(layer, lora="product")["weight[lora default]"], added)
    assert torch.allclose(views(layer, lora="merged")["weight"], layer.weight.detach() + added)
    values = factors(views(layer, lora="product")["weight[lora default]"], 0).values
    assert (values[2:] < 1e-6 * values[0]).all()


def test_tied_weights_are_seen_once():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    model[1].weight = model[0].weight
    assert list(views(model)) == ["0.weight"]


def test_names_without_wrappers():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    compiled = torch.compile(model)
    assert list(views(compiled)) == ["0.weight", "1.weight"]
    inside = nn.Sequential(torch.compile(nn.Linear(4, 4)), nn.Linear(4, 3))
    assert list(views(inside)) == ["0.weight", "1.weight"]
    assert list(views(nn.DataParallel(model))) == ["0.weight", "1.weight"]


def test_parametrized_weights_in_low_precision():
    model = nn.Sequential(
        weight_norm(nn.Linear(4, 5)), spectral_norm(nn.Conv2d(2, 3, 3)), nn.Linear(4, 5)
    )
    model[2].to(torch.bfloat16)
    found = {view.name: view for view in Views().of(model)}
    assert torch.allclose(found["0.weight"].read(), model[0].weight.detach())
    with torch.no_grad():
        model.eval()
        assert torch.allclose(found["1.weight"].read(), model[1].weight.flatten(1), atol=1e-6)
    assert found["2.weight"].dtype == torch.bfloat16
    assert found["0.weight"].dtype == torch.float32


class Low(nn.Module):
    def forward(self, weight):
        return weight.float()


def test_dtype_is_that_of_what_is_stored():
    layer = nn.Linear(4, 3).bfloat16()
    parametrize.register_parametrization(layer, "weight", Low(), unsafe=True)
    (view,) = Views().of(layer)
    assert view.dtype == torch.bfloat16
    assert view.read().dtype == torch.float32


def test_a_model_that_changes():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    chosen = Views(include=("1",))
    assert [view.name for view in chosen.of(model)] == ["1.weight"]
    model[1] = nn.Linear(4, 9)
    assert [view.read().shape for view in chosen.again(model)] == [(9, 4)]
    assert chosen.again(model[:1]) == []
    assert chosen.again(nn.ReLU()) == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"split": "qk"}, "split"),
        ({"conv": "operator"}, "conv"),
        ({"lora": "sum"}, "lora"),
        ({"include": ("3",)}, "include"),
    ],
)
def test_bad_choices_are_refused(options, named):
    with pytest.raises(RequestError, match=named):
        views(nn.Linear(3, 2), **options)
