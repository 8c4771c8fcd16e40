"""Decoders that generate with a cache after their first block went."""

import pytest
import torch
from torch import nn

from latewood.slim import slim
from latewood.slim.cache_places import cached_layers
from latewood.slim.idle_blocks import Skip, replace_modules, skip_modules

transformers = pytest.importorskip("transformers")


def gpt2():
    config = transformers.GPT2Config(vocab_size=32, n_positions=24, n_embd=16, n_layer=2, n_head=2)
    return transformers.GPT2LMHeadModel(config), "transformer.h.0", ("attn.c_proj", "mlp.c_proj")


def llama():
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=24,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    return model, "model.layers.0", ("self_attn.o_proj", "mlp.down_proj")


def mamba():
    config = transformers.MambaConfig(
        vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=2
    )
    return transformers.MambaForCausalLM(config), "backbone.layers.0", ("mixer.out_proj",)


def without_first_block(make):
    torch.manual_seed(0)
    model, block, _ = make()
    skip_modules(model, {block: "identity"})
    return model.double().eval()


@pytest.mark.parametrize("make", [gpt2, llama])
def test_step_by_step_is_as_all_at_once_without_the_first_block(make):
    model = without_first_block(make)
    tokens = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = model(tokens, use_cache=False).logits
        cache, steps = None, []
        for part in tokens.split([4, 1, 1, 3], 1):
            output = model(part, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            steps.append(output.logits)
    assert cache.get_seq_length() == 9
    torch.testing.assert_close(torch.cat(steps, 1), exact, atol=1e-12, rtol=0)


@pytest.mark.parametrize("make", [gpt2, llama, mamba])
def test_generation_is_the_same_with_and_without_a_cache(make):
    model = without_first_block(make)
    tokens = torch.tensor([[3, 7, 11, 2]])
    drawn = [
        model.generate(
            tokens, use_cache=cached, max_new_tokens=6, min_new_tokens=6, do_sample=False,
            output_scores=True, return_dict_in_generate=True, pad_token_id=0,
        ).scores
        for cached in (True, False)
    ]  # fmt: skip
    torch.testing.assert_close(*(torch.stack(scores) for scores in drawn), atol=1e-10, rtol=0)


def test_slim_takes_the_first_block_out_and_generates_on():
    torch.manual_seed(0)
    model, block, last = llama()
    model = model.double().eval()
    with torch.no_grad():
        for name in last:
            model.get_submodule(f"{block}.{name}").weight.zero_()
    inputs = {"input_ids": torch.tensor([[3, 7, 11, 2]])}
    smaller = slim(model, inputs)
    assert isinstance(smaller.get_submodule(block), Skip)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(smaller.generate(**inputs, **settings), model.generate(**inputs, **settings))


def test_a_stand_in_knows_the_layers_that_were_inside():
    attention, block = nn.Linear(2, 2), nn.Module()
    attention.layer_idx = 3
    block.attention, block.layer_idx, block.width = attention, 5, 7
    model = nn.Sequential(block)
    replace_modules(model, {"0": "identity"})
    assert model[0]._cached_layers == (3, 5)
    # One that stands for a stand-in still knows.
    replace_modules(model, {"0": "identity"})
    assert model[0]._cached_layers == (3, 5)
    assert cached_layers({"layer_idx": None, "other": 4}) == ()
