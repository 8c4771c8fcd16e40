"""Networks that compute with stuck cells: what is read where, and that all is put back."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm

from latewood.core import finalize
from latewood.core.integer_codes import integer_codes
from latewood.errors import RequestError
from latewood.faults import Crossbar, DropConnect, LineFaults, StuckAt, encode, injected, read_back
from latewood.faults.injection import Injection
from latewood.precision import LearnedPrecision
from latewood.sparsity import FixedMasks

FAULTS = StuckAt(0.1, 0.02)


def seeded(factory):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return factory()


def convnet():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4),
        nn.ReLU(), nn.ConvTranspose2d(8, 4, 2), nn.Flatten(), nn.Linear(100, 5),
    )  # fmt: skip


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 6, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


NETWORKS = {
    "conv": (convnet, (2, 3, 8, 8)),
    "attention": (Attention, (2, 4, 8)),
    "lstm": (Recurrent, (2, 3, 5)),
    "linear": (lambda: nn.Linear(4, 3), (2, 4)),
    "encoder": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
        ),
        (2, 4, 8),
    ),
}


def network_of(name, dtype=torch.float32):
    factory, shape = NETWORKS[name]
    model = seeded(factory).to(dtype).eval()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return model, x


def outputs_of(model, x):
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_model_computes_with_what_is_read(name):
    model, x = network_of(name)
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        for layer, module in by_hand.named_modules():
            for parameter, weight in module.named_parameters(recurse=False):
                if "weight" not in parameter or weight.dim() < 2:
                    continue
                parts = [(slice(None), layer)]
                if parameter.startswith("in_proj"):
                    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
                    parts = [
                        (slice(8 * k, 8 * k + 8), f"{layer}.{part}") for k, part in enumerate(names)
                    ]
                elif parameter != "weight":
                    parts = [(slice(None), f"{layer}.{parameter}")]
                for rows, stream in parts:
                    part = weight[rows]
                    read = read_back(part, Crossbar(), FAULTS, map=3, seed=7, name=stream)
                    part.copy_(encode(part, Crossbar()).scale * read)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    clean = outputs_of(model, x)
    with injected(model, Crossbar(), FAULTS, map=3, seed=7) as faulty:
        assert faulty is model
        output = outputs_of(model, x)
    assert torch.equal(output, outputs_of(by_hand, x))
    assert not torch.allclose(output, clean, atol=1e-3)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert torch.equal(outputs_of(model, x), clean)
    assert type(model) is type(by_hand)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    model, x = network_of("linear", dtype)
    with injected(model, Crossbar(), FAULTS):
        assert outputs_of(model, x).dtype == dtype
    quantized = encode(model.weight, Crossbar())
    with injected(model, Crossbar(), StuckAt()):
        assert torch.equal(model.weight, (quantized.scale * quantized.codes).to(dtype))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_model_as_it_was(error):
    model, x = network_of("lstm")
    clean, names = outputs_of(model, x), list(model.state_dict())
    parameters = list(map(id, model.parameters()))
    with pytest.raises(error), injected(model, Crossbar(), FAULTS):
        raise error
    assert torch.equal(outputs_of(model, x), clean)
    assert list(model.state_dict()) == names and list(map(id, model.parameters())) == parameters


def test_the_order_of_layers_and_other_layers_do_not_matter():
    class Layers(nn.Module):
        def __init__(self, names):
            super().__init__()
            for name in names:
                setattr(self, name, nn.Linear(6, 6, bias=False))
                with torch.no_grad():
                    draw = torch.Generator().manual_seed(ord(name))
                    getattr(self, name).weight.copy_(torch.randn(6, 6, generator=draw))

    one, other = Layers("abc"), Layers("cb")
    with injected(one, Crossbar(), FAULTS, map=2), injected(other, Crossbar(), FAULTS, map=2):
        assert torch.equal(one.b.weight, other.b.weight)
        assert torch.equal(one.c.weight, other.c.weight)


def test_gradients_pass_to_the_weights():
    model, x = network_of("conv")
    model.train()
    with injected(model, Crossbar(), FAULTS):
        model(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model[7].weight.grad.any()


def test_a_compiled_model_has_the_same_faults():
    model, x = network_of("linear")
    with injected(model, Crossbar(), FAULTS, map=1):
        expected = outputs_of(model, x)
    torch.compiler.reset()
    outer = nn.Sequential(torch.compile(nn.Sequential(copy.deepcopy(model)), backend="eager"))
    plain = nn.Sequential(nn.Sequential(copy.deepcopy(model)))
    with injected(outer, Crossbar(), FAULTS, map=1), injected(plain, Crossbar(), FAULTS, map=1):
        torch.testing.assert_close(outputs_of(outer, x), outputs_of(plain, x))
    assert not torch.equal(expected, outputs_of(model, x))


def test_a_tied_weight_has_one_map_and_an_embedding_stays_digital():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 6)
            self.hidden, self.again = nn.Linear(6, 6), nn.Linear(6, 6)
            self.head = nn.Linear(6, 10, bias=False)
            self.head.weight = self.embedding.weight
            self.again.weight = self.hidden.weight

    model = seeded(Tied)
    before = model.embedding.weight.clone()
    with injected(model, Crossbar(), FAULTS):
        assert torch.equal(model.embedding.weight, before)
        assert not torch.equal(model.head.weight, before)
        assert torch.equal(model.again.weight, model.hidden.weight)
        read = read_back(before, Crossbar(), FAULTS, name="head")
        assert torch.equal(model.head.weight, encode(before, Crossbar()).scale * read)
    assert model.head.weight is model.embedding.weight
    assert model.again.weight is model.hidden.weight


def test_a_weight_that_stores_inputs_first():
    transformers = pytest.importorskip("transformers")
    layer = seeded(lambda: transformers.pytorch_utils.Conv1D(6, 20))
    crossbar = Crossbar(granularity="channel")
    codes, scale = encode(layer.weight, crossbar, channel_axis=1)
    assert scale.shape == (1, 6)
    with injected(layer, crossbar, StuckAt(lines=LineFaults(row=0.4))):
        gone = layer.weight == 0
    # The rows of an array are the inputs, here the first axis; there is an array for each sign.
    for sign in (1, -1):
        rows = [gone[row][sign * codes[row] > 0] for row in range(20)]
        assert all(bool(row.all()) or not row.any() for row in rows)
        assert 2 < sum(bool(row.any()) for row in rows) < 18


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_networks_of_others(kind):
    transformers = pytest.importorskip("transformers")
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=16
        )
        model = seeded(lambda: transformers.GPT2LMHeadModel(config)).eval()
    else:
        config = transformers.BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=16,
        )  # fmt: skip
        model = seeded(lambda: transformers.BertForMaskedLM(config)).eval()
    tokens = torch.randint(0, 20, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        clean = model(tokens).logits
        with injected(model, Crossbar(), FAULTS):
            faulty = model(tokens).logits
        again = model(tokens).logits
    assert not torch.equal(faulty, clean) and torch.equal(again, clean)


def test_masks_are_pairs_at_rest():
    model = seeded(lambda: nn.Linear(20, 20, bias=False))
    mask = torch.rand(20, 20, generator=torch.Generator().manual_seed(0)) > 0.5
    method = FixedMasks(model, {"weight": mask})
    with injected(model, Crossbar(), StuckAt(0.5)):
        assert not model.weight[~mask].any()
    with injected(model, Crossbar(), StuckAt(0, 0.3)):
        assert model.weight[~mask].any()
    finalize(model, [method])
    assert not model.weight[~mask].any()


@pytest.mark.parametrize("finished", [False, True], ids=["snapped", "finished"])
def test_learned_precisions_keep_their_integers(finished):
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)))
    mask = torch.ones(8, 6, dtype=torch.bool)
    mask[:, 2] = False
    masks = FixedMasks(model, {"0.weight": mask})
    method = LearnedPrecision(model, total_steps=4, target_bits=2.0, exclude=("last",))
    assert integer_codes(model[0], "weight") is None  # nothing is fixed yet
    method.snap()
    if finished:
        finalize(model, [method, masks])
    model.eval()
    codes = integer_codes(model[0], "weight")
    weight = model[0].weight.detach().clone()
    torch.testing.assert_close(codes.unit * codes.codes, weight, rtol=1e-6, atol=0)
    assert not codes.codes[:, 2].any() and bool((codes.codes[mask] % 2 != 0).all())
    with injected(model, Crossbar(), StuckAt()):
        torch.testing.assert_close(model[0].weight, weight, rtol=1e-6, atol=0)
    with Injection(model, Crossbar(3, 1), StuckAt(0.3, 0.1)) as injection:
        injection.use_map(0)
        steps = model[0].weight.detach() / codes.unit
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
        assert bool((steps.abs() < 2.0**codes.bits + 1e-4).all())
        assert not torch.equal(model[0].weight, weight)
    assert torch.equal(model[0].weight, weight)
    with injected(model, Crossbar(3, 1), StuckAt(0, 1.0)):
        assert not model[0].weight.any()
    with (
        pytest.raises(RequestError, match="scheme: got 'offset'"),
        injected(model, Crossbar(8, 2, "offset"), FAULTS),
    ):
        pass
    assert torch.equal(model[0].weight, weight)


def test_a_mask_that_is_not_binary_leaves_no_integers():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8)))
    method = LearnedPrecision(model, total_steps=4, target_bits=2.0, exclude=())
    FixedMasks(model, {"0.weight": torch.ones(8, 6, dtype=torch.bool)}, scale=1.4)
    method.snap()
    with (
        pytest.raises(RequestError, match="finalize the masks"),
        injected(model, Crossbar(), FAULTS),
    ):
        pass


def test_include_and_exclude_choose_layers():
    model, _ = network_of("conv")
    before = {name: p.clone() for name, p in model.named_parameters()}
    with injected(model, Crossbar(), FAULTS, exclude=["0", "7"]):
        assert torch.equal(model[0].weight, before["0.weight"])
        assert not torch.equal(model[3].weight, before["3.weight"])


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (nn.ReLU(), "model: got 'ReLU'"),
        (nn.Linear(0, 3), "weight that has elements"),
        (nn.LazyLinear(3), "lazy"),
        (parametrizations.weight_norm(nn.Linear(3, 3)), "weight_norm|weight norm|_WeightNorm"),
        (parametrizations.spectral_norm(nn.Linear(3, 3)), "SpectralNorm"),
        (nn.Linear(3, 3, device="meta"), "meta"),
        (spectral_norm(nn.Linear(3, 3)), "what torch.nn.utils.spectral_norm divides"),
        (prune.l1_unstructured(nn.Linear(3, 3), "weight", 0.5), "torch.nn.utils.prune"),
        (nn.Linear(3, 3).to(torch.float8_e4m3fn), "16 bits or more"),
        ("net", "model: got str"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*zero-element")
def test_models_without_weights_for_crossbars_are_refused(model, says):
    with pytest.raises(RequestError, match=says), injected(model, Crossbar(), FAULTS):
        pass


def test_nan_and_a_second_crossbar_are_refused():
    model = nn.Linear(3, 3)
    with injected(model, Crossbar(), FAULTS), pytest.raises(RequestError, match="already"):  # noqa: SIM117
        with injected(model, Crossbar(), FAULTS):
            pass
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    with (
        pytest.raises(RequestError, match="model, weight: got 'NaN"),
        injected(model, Crossbar(), FAULTS),
    ):
        pass


def test_one_injection_takes_many_maps():
    model, x = network_of("attention")
    expected = []
    for number in (4, 1, 4):
        with injected(model, Crossbar(), FAULTS, map=number):
            expected.append(outputs_of(model, x))
    with Injection(model, Crossbar(), FAULTS) as injection:
        for number, output in zip((4, 1, 4), expected, strict=True):
            changed = injection.use_map(number)
            assert torch.equal(outputs_of(model, x), output)
        assert set(changed) == {
            "attention.q_proj_weight", "attention.k_proj_weight", "attention.v_proj_weight",
            "attention.out_proj",
        }  # fmt: skip
        assert 0 < injection.effective_rate(changed) < 1
        assert injection.effective_rate(injection.use_map(None)) == 0
        assert injection.weights == 256


@pytest.mark.parametrize("level", ["cell", "weight"])
def test_where_all_weights_are_zero_nothing_is_read(level):
    """The unit is max |W| / q_max = 0: stuck cells have no size of their own."""
    faults = StuckAt(0.1, 0.3, level=level)
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)))
    with torch.no_grad():
        model[0].weight.zero_()
        model[1].weight[2:4] = 0.0
    with injected(model, Crossbar(), faults):
        assert not model[0].weight.any() and model[1].weight[2:4].any()
    with injected(model, Crossbar(granularity="channel"), faults):
        assert not model[1].weight[2:4].any() and model[1].weight[:2].any()
        largest = model[1].parametrizations.weight.original.abs().amax()
        assert model[1].weight.abs().amax() <= 1.001 * largest


def test_emulated_cells_of_a_layer_of_zeros_are_zero():
    model = nn.Linear(6, 6)
    nn.init.zeros_(model.weight)
    DropConnect(model, rate=0.5, hrs_share=0.0, emulate="cells")
    assert not model.weight.any()
