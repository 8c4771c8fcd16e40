"""Masks on models of transformers: what is masked, exact zeros, ties, and files that load again."""

import warnings

import pytest
import torch
from torch.nn.utils import parametrize

from latewood.core.groups import parameter_groups
from latewood.sparsity import (
    ContinuousSparsification,
    FixedMasks,
    GradualMagnitudePruning,
    Ticket,
    maskable,
    prune_smallest,
    random_masks,
    snapshot,
)

STEPS = 10
NAMES = ("gpt2", "bert", "t5", "llama", "mixtral", "whisper", "vit", "mamba")
TIED = {
    "gpt2": ("lm_head.weight", "transformer.wte.weight"),
    "bert": ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    "t5": ("lm_head.weight", "shared.weight"),
    "whisper": ("proj_out.weight", "model.decoder.embed_tokens.weight"),
    "mamba": ("lm_head.weight", "backbone.embeddings.weight"),
}


def weights_of(model):
    return {weight.name: weight.stored.detach() for weight in maskable(model)}


def random(model):
    return random_masks(weights_of(model), density=0.4, seed=0)


METHODS = {
    "continuous sparsification": lambda model: ContinuousSparsification(
        model, total_steps=STEPS, density=0.4
    ),
    "gradual magnitude pruning": lambda model: GradualMagnitudePruning(
        model, total_steps=STEPS, density=0.4
    ),
    "smallest": lambda model: FixedMasks(model, prune_smallest(weights_of(model), fraction=0.6)),
    "random": lambda model: FixedMasks(model, random(model), scale=1.5),
    "ticket": lambda model: Ticket(random(model), snapshot(model), {}).rewind(model),
}


def train(model, inputs, method):
    optimizer = torch.optim.AdamW(parameter_groups(model, [method]), lr=1e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (model(**inputs).logits.square().mean() + method.penalty()).backward()
        optimizer.step()
        method.step()


@pytest.mark.filterwarnings("ignore:.*undecided:UserWarning")
@pytest.mark.parametrize("method_name", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_masks_train_end_as_zeros_and_load_again(name, method_name, transformers_kit, tmp_path):
    model, inputs = transformers_kit.build(name)
    plain_names = list(model.state_dict())
    classes = [type(module) for module in model.modules()]
    method = METHODS[method_name](model)
    train(model, inputs, method)
    if isinstance(method, ContinuousSparsification):
        method.harden()
    masks = method.masks()
    with torch.no_grad():
        before = model(**inputs).logits
    method.finalize()

    weights = dict(model.named_parameters(remove_duplicate=False))
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert kept == pytest.approx(0.4 * sum(mask.numel() for mask in masks.values()), abs=len(masks))
    for weight_name, mask in masks.items():
        assert not weights[weight_name][~mask].any()
        assert weights[weight_name][mask].any()
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    assert [type(module) for module in model.modules()] == classes
    assert list(model.state_dict()) == plain_names
    if name in TIED:
        head, table = (model.get_parameter(tied) for tied in TIED[name])
        assert head is table
        assert head[1:].ne(0).all()  # the first row pads

    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    for weight_name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[weight_name], value), weight_name
    with torch.no_grad():
        for final in (model, loaded):
            torch.testing.assert_close(final(**inputs).logits, before, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*undecided:UserWarning")
@pytest.mark.parametrize("name", TIED)
def test_what_an_embedding_shares_is_masked_if_asked_for_in_all_its_uses(name, transformers_kit):
    head, table = TIED[name]
    model, _ = transformers_kit.build(name)
    assert head not in {weight.name for weight in maskable(model)}
    assert head in {weight.name for weight in maskable(model, exclude=())}
    method = ContinuousSparsification(model, total_steps=STEPS, density=0.5, include=[head])
    method.harden()
    (mask,) = method.masks().values()
    method.finalize()
    assert model.get_parameter(head) is model.get_parameter(table)
    assert torch.equal(model.get_parameter(table).ne(0)[1:], mask[1:])  # the first row pads


@pytest.mark.parametrize("name", NAMES)
def test_most_of_each_model_is_masked_without_a_warning(name, transformers_kit):
    model, _ = transformers_kit.build(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ContinuousSparsification(model, total_steps=STEPS)
