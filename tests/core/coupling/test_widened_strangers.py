"""Networks that nobody here wrote become wider twice and compute what they did."""

from __future__ import annotations

import pytest
import torch

from latewood.core.coupling import NORMALISED, can_widen, trace_channels, widen_channels
from latewood.core.coupling.model_runs import ModelRuns

transformers = pytest.importorskip("transformers")
torchvision = pytest.importorskip("torchvision")

PICTURE = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WORDS = {**SIZES, "vocab_size": 64, "intermediate_size": 48, "max_position_embeddings": 40}
GPT = {"vocab_size": 64, "n_positions": 40, "n_embd": 32, "n_layer": 2, "n_head": 4}
PICTURES = {**SIZES, "intermediate_size": 48, "image_size": 32, "patch_size": 8}
TOKENS = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(1))
IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def of_transformers(kind, task, **settings):
    config = getattr(transformers, f"{kind}Config")(**settings)
    return getattr(transformers, f"{kind}{task}")(config)


# How to build it, its inputs, and whether norms hold a residual stream that can be padded.
NETWORKS = {
    "bert": (lambda: of_transformers("Bert", "Model", **WORDS), {"input_ids": TOKENS}, False),
    "gpt2": (lambda: of_transformers("GPT2", "LMHeadModel", **GPT), {"input_ids": TOKENS}, True),
    "llama": (
        lambda: of_transformers("Llama", "ForCausalLM", **WORDS, num_key_value_heads=2),
        {"input_ids": TOKENS},
        True,
    ),
    "gemma": (
        lambda: of_transformers("Gemma", "ForCausalLM", **WORDS, num_key_value_heads=2, head_dim=8),
        {"input_ids": TOKENS},
        True,
    ),
    "vit": (
        lambda: of_transformers("ViT", "ForImageClassification", **PICTURES),
        {"pixel_values": IMAGE},
        True,
    ),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=5), (PICTURE,), False),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_strangers_become_wider_and_compute_the_same(name):
    torch.manual_seed(0)
    build, inputs, stream = NETWORKS[name]
    model = build().eval()
    plan = trace_channels(model, inputs)
    runs = ModelRuns.of(model, inputs)
    assert runs.double
    assert runs.modes == (False, True)
    model.double()
    exact = runs.outputs()
    padded = [group for group in plan if group.padding is not None and can_widen(group)]
    assert len(padded) == stream
    for count in (2, 4):
        requests = {group.name: count for group in plan if can_widen(group)}
        assert len(requests) >= 4
        plan = widen_channels(model, plan, requests, fill="pair", allow=NORMALISED)
        assert runs.difference(exact) < 1e-12
    again = trace_channels(model.float(), inputs)
    assert [group.width for group in again] == [group.width for group in plan]
