"""Networks that nobody here wrote learn their bits, and compute afterwards what they did before."""

import copy
import warnings

import pytest
import torch
from torch import nn

from latewood.core import finalize, parameter_groups
from latewood.errors import RequestError
from latewood.growth import Growth
from latewood.models import mlp
from latewood.precision import (
    LearnedPrecision,
    NoiseSettings,
    input_format,
    quantize,
    quantized_layers,
    weight_format,
)

STEPS = 6


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight, self.last = self.one.weight, nn.Linear(8, 3)

    def forward(self, inputs):
        hidden = torch.relu(self.one(torch.relu(self.first(inputs))))
        return self.last(self.two(3 * hidden))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.GRU(6, 8, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, inputs):
        return self.head(self.layers(inputs)[0])


def of_transformers(name):
    def made():
        library = pytest.importorskip("transformers")
        small = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
        if name == "gpt2":
            sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
            return library.GPT2LMHeadModel(library.GPT2Config(**small, **sizes))
        sizes = {
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 32,
        }  # fmt: skip
        if name == "bert":
            return library.BertForSequenceClassification(library.BertConfig(vocab_size=50, **sizes))
        return library.LlamaForCausalLM(library.LlamaConfig(**small, **sizes)).bfloat16()

    return made


def mobilenet():
    return pytest.importorskip("torchvision").models.mobilenet_v2(width_mult=0.25, num_classes=4)


def grouped():
    return nn.Sequential(
        nn.Conv3d(4, 8, 3, groups=2, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 1, groups=8),
        nn.ConvTranspose3d(8, 4, 2),
    )  # fmt: skip


TOKENS = torch.arange(16).view(2, 8) % 50
NETWORKS = {
    "bert": (of_transformers("bert"), TOKENS),
    "gpt2": (of_transformers("gpt2"), TOKENS),
    "llama-bf16": (of_transformers("llama"), TOKENS),
    "mobilenet": (mobilenet, torch.linspace(-1, 1, 6144).view(2, 3, 32, 32)),
    "tied": (Tied, torch.linspace(-1, 1, 32).view(4, 8)),
    "recurrent": (Recurrent, torch.linspace(-1, 1, 48).view(2, 4, 6)),
    "grouped": (grouped, torch.linspace(-1, 1, 512).view(2, 4, 4, 4, 4)),
}


def outputs_of(model, inputs):
    outputs = model(inputs)
    return getattr(outputs, "logits", outputs)


def trained(model, inputs, **arguments):
    arguments = {"activations": True, "noise": NoiseSettings(lr=2.0), **arguments}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*stay in float|.*left in float")
        method = LearnedPrecision(model, total_steps=STEPS, target_bits=2.0, **arguments)
    optimizer = torch.optim.SGD(parameter_groups(model, [method]), lr=1e-3)
    model.train()
    for _ in range(STEPS):
        loss = outputs_of(model, inputs).float().square().mean() + method.penalty()
        optimizer.zero_grad(), loss.backward(), optimizer.step(), method.step()
    model.eval()
    return method


@pytest.mark.parametrize("name", NETWORKS)
def test_the_plain_network_computes_what_was_evaluated(name):
    build, inputs = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
        method = trained(model, inputs)
    assert 1.5 <= method.metrics()["bits"] <= 2.0
    before = outputs_of(model, inputs).detach()
    finalize(model, [method])
    torch.testing.assert_close(outputs_of(model, inputs).detach(), before, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        outputs_of(copy.deepcopy(model), inputs).detach(), before, rtol=1e-5, atol=1e-6
    )
    for _, layer, parameter_name in quantized_layers(model):
        kind, weight = weight_format(layer, parameter_name), getattr(layer, parameter_name)
        rounded = quantize(weight.float() / kind.scale, kind.bits.expand(weight.shape)) * kind.scale
        tolerance = 0.01 if weight.dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(rounded, weight.detach().float(), rtol=tolerance, atol=tolerance)


def test_each_reader_of_a_tied_weight_has_an_input_format_of_its_own():
    build, inputs = NETWORKS["tied"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
    finalize(model, [trained(model, inputs)])
    assert model.one.weight is model.two.weight
    assert torch.equal(weight_format(model.one).bits, weight_format(model.two).bits)
    assert input_format(model.two).scale > 1.5 * input_format(model.one).scale


def test_frozen_weights_stay_in_place_until_they_are_rounded():
    model = Tied()
    model.one.weight.requires_grad_(False)
    before = model.one.weight.clone()
    method = trained(model, NETWORKS["tied"][1])
    assert torch.equal(model.one.parametrizations.weight.original, before)
    finalize(model, [method])
    assert not model.one.weight.requires_grad


def test_what_has_no_format_is_named():
    model = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.warns(UserWarning, match=r"left in float: 0\.weight \(without elements\)"):
        LearnedPrecision(model, total_steps=10, target_bits=2.0)
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    with pytest.raises(RequestError, match=r"0\.weight has the parametrization"):
        LearnedPrecision(normed, total_steps=10, target_bits=2.0)
    with pytest.raises(RequestError, match="Embedding"):
        LearnedPrecision(nn.Embedding(4, 4), total_steps=10, target_bits=2.0)


def test_a_network_grows_in_the_noise_phase():
    model = mlp(in_features=6, hidden=(8, 8), num_classes=3)
    inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    growth = Growth(
        model, inputs, schedule={"name": "late", "end": 2.0, "at": 0.4}, total_steps=12,
        steps_per_epoch=3, rescale="none",
    )  # fmt: skip
    method = LearnedPrecision(model, total_steps=12, target_bits=2.0, snap_at=0.9)
    methods = [growth, method]
    optimizer = torch.optim.SGD(parameter_groups(model, methods), lr=0.05)
    sizes = []
    for step in range(12):
        if step % 3 == 0:
            before = model.eval()(inputs).detach()
            changed = growth.restructure(optimizer)
            if changed:
                torch.testing.assert_close(model(inputs).detach(), before, atol=1e-6, rtol=0)
            model.train()
        loss = model(inputs).square().mean() + method.penalty()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        growth.step(), method.step()
        sizes.append(model.linear2.weight.numel())
    assert sizes[0] < sizes[-1]
    finalize(model, methods)
    assert weight_format(model.linear2).bits.shape[1] == model.linear2.weight.shape[1]
