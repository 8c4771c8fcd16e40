"""Unmodified models of transformers: keyword inputs, outputs in dataclasses, caches on."""

import copy

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RegNetConfig,
    RegNetForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from latewood.core import macs, parameter_groups
from latewood.core.coupling.trace import layer_tensors
from latewood.sparsity.structured import StructuredSparsification
from latewood.sparsity.structured.live_structure import LiveStructure

NOISE = torch.Generator().manual_seed(0)
TOKENS = torch.randint(0, 40, (3, 7), generator=NOISE)
IMAGES = torch.randn(3, 3, 32, 32, generator=NOISE, dtype=torch.float64)
LABELS = torch.tensor([0, 2, 1])

CASES = {
    "bert": (
        lambda: BertForSequenceClassification(BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=32, num_labels=3, max_position_embeddings=16,
        )),
        {"input_ids": TOKENS, "attention_mask": (TOKENS > 3).long(), "labels": LABELS},
    ),
    "gpt2": (
        lambda: GPT2LMHeadModel(GPT2Config(
            vocab_size=40, n_positions=16, n_embd=16, n_layer=3, n_head=4
        )),
        {"input_ids": TOKENS, "labels": TOKENS},
    ),
    "llama": (
        lambda: LlamaForCausalLM(LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2,
        )),
        {"input_ids": TOKENS, "labels": TOKENS},
    ),
    "vit": (
        lambda: ViTForImageClassification(ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
            image_size=32, patch_size=8, num_labels=3,
        )),
        {"pixel_values": IMAGES, "labels": LABELS},
    ),
    "resnet": (
        lambda: ResNetForImageClassification(ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[2, 3], layer_type="basic",
            num_labels=3,
        )),
        {"pixel_values": IMAGES, "labels": LABELS},
    ),
    "regnet": (
        lambda: RegNetForImageClassification(RegNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[2, 3], groups_width=4, num_labels=3
        )),
        {"pixel_values": IMAGES, "labels": LABELS},
    ),
}  # fmt: skip


def full_with_zeros(full, structure, absent):
    """The full model with the values of the slim one, where absent channels are read as zero."""
    places = dict(layer_tensors(full))
    with torch.no_grad():
        for name, tensor in structure.spec.tensors.items():
            if tensor.block is not None and not structure.blocks[tensor.block]:
                continue
            values = getattr(*places[name])
            if any(axis.reads for axis in tensor.axes):
                values.zero_()
            where = tensor.positions(structure.present)
            values[torch.meshgrid(*where, indexing="ij") if where else ...] = tensor.stored
    for name in absent:
        full.get_submodule(name).forward = lambda hidden, *_, **__: hidden
    return full


@pytest.mark.parametrize("name", CASES)
def test_a_model_is_trained_to_half_its_parameters(name, monkeypatch):
    torch.manual_seed(0)
    make, inputs = CASES[name]
    model = make().double().train()
    assert getattr(model.config, "use_cache", True)
    full = copy.deepcopy(model).eval()
    example = {key: value[:1] for key, value in inputs.items() if key != "labels"}
    method = StructuredSparsification(
        model, example, budget={"parameters": 0.5}, total_steps=20, steps_per_epoch=2, freeze=1.0
    )
    optimizer = torch.optim.SGD(parameter_groups(model, [method]), lr=0.01, momentum=0.9)
    for _ in range(10):
        method.restructure(optimizer)
        for _ in range(2):
            loss = model(**inputs).loss + method.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.step()
    structure = method._structure
    if structure.spec.blocks:
        with torch.no_grad():
            structure.layer_gate.logits.fill_(1.0)[0] = -1.0

    gated = {}
    fold = LiveStructure.fold

    def folded(self, optimizer):
        with torch.no_grad():
            gated["logits"] = model.eval()(**inputs).logits
        fold(self, optimizer)

    monkeypatch.setattr(LiveStructure, "fold", folded)
    slim = method.finalize()
    assert slim is model and "parametrizations" not in str(slim)
    with torch.no_grad():
        logits = slim(**inputs).logits
    torch.testing.assert_close(logits, gated["logits"], rtol=0, atol=1e-12)
    pairs = zip(structure.spec.blocks, structure.blocks.tolist(), strict=True)
    absent = [block.name for block, there in pairs if not there]
    with torch.no_grad():
        exact = full_with_zeros(full, structure, absent)(**inputs).logits
    torch.testing.assert_close(logits, exact, rtol=0, atol=1e-12)
    count = sum(parameter.numel() for parameter in slim.parameters())
    everything = sum(parameter.numel() for parameter in full.parameters())
    assert count == method.metrics()["parameters"] <= 0.5 * everything
    assert macs(slim, example) == method.metrics()["macs"]


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("resnet", ["0.layers.0", "0.layers.1", "1.layers.1", "1.layers.2"]),
        ("regnet", ["0.layers.1", "1.layers.1", "1.layers.2"]),
        ("llama", ["0", "1", "2"]),
        ("vit", ["0", "1"]),
    ],
)
def test_whole_residual_blocks_can_go_and_nothing_else(name, blocks):
    torch.manual_seed(0)
    make, inputs = CASES[name]
    example = {key: value[:1] for key, value in inputs.items() if key != "labels"}
    method = StructuredSparsification(
        make().double(), example, budget={"parameters": 0.9}, total_steps=4, steps_per_epoch=2
    )
    names = [block.name for block in method._structure.spec.blocks]
    assert [name.partition("s.")[2] for name in names] == blocks
