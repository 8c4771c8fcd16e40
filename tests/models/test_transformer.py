"""Transformers: causality, agreement with torch's attention, initialisation, norms."""

import math

import pytest
import torch
from torch import nn

from latewood.errors import RequestError
from latewood.models import grokking_transformer, transformer
from latewood.models.transformer import CausalSelfAttention

SMALL = {"vocabulary": 11, "context": 8, "width": 16, "layers": 2}


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_future_token_does_not_change_the_past(norm, positions) -> None:
    model = transformer(**SMALL, norm=norm, positions=positions, init="uniform").eval()
    tokens = torch.randint(11, (1, 8))
    changed = tokens.clone()
    changed[0, 5] = (tokens[0, 5] + 1) % 11
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 6], after[:, 6])


def test_attention_is_torchs_with_a_causal_mask() -> None:
    ours = CausalSelfAttention(12, 3, 0.0)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.in_proj.weight,
            "in_proj_bias": ours.in_proj.bias,
            "out_proj.weight": ours.out_proj.weight,
            "out_proj.bias": ours.out_proj.bias,
        }
    )
    inputs = torch.randn(2, 5, 12)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    expected = theirs(inputs, inputs, inputs, attn_mask=mask, need_weights=False)[0]
    torch.testing.assert_close(ours(inputs), expected)


def test_grokking_block_is_the_last_position_of_the_full_causal_layer() -> None:
    model = grokking_transformer(vocabulary=11, width=16, hidden=24).eval()
    tokens = torch.randint(11, (4, 3))
    stream = model.embedding(tokens)
    block = model.block
    mask = nn.Transformer.generate_square_subsequent_mask(3)
    stream = stream + block.attention(stream, stream, stream, attn_mask=mask)[0]
    stream = stream + block.linear2(block.linear1(stream).relu())
    torch.testing.assert_close(model(tokens), model.head(stream)[:, -1])


@pytest.mark.parametrize("build", [transformer, grokking_transformer])
def test_norms_are_there_only_on_request(build) -> None:
    def norms(**arguments) -> int:
        model = build(vocabulary=11, width=16, **arguments)
        return sum(isinstance(module, nn.LayerNorm) for module in model.modules())

    assert norms(norm=False) == 0
    assert norms(norm=True) == (9 if build is transformer else 3)


def test_embeddings_are_scaled_and_positions_added() -> None:
    model = grokking_transformer(vocabulary=11, width=16)
    same = model.embedding(torch.tensor([[4, 4]]))
    vector = math.sqrt(16) * model.embedding.tokens.weight[4]
    torch.testing.assert_close(same[0, 0], vector + torch.tensor([0.0, 1.0] * 8))
    assert not torch.allclose(same[0, 1], same[0, 0])


def test_grokking_initialisation() -> None:
    model = grokking_transformer()
    for table in (model.embedding.tokens.weight, model.head.weight):
        assert 0.099 < table.abs().max() <= 0.1
    xavier = math.sqrt(6 / (384 + 128))
    assert 0.99 * xavier < model.block.attention.in_proj_weight.abs().max() <= xavier
    assert model.head.bias.count_nonzero() == 0
    assert "embedding.positions" not in model.state_dict()


def test_normal_initialisation_shrinks_what_writes_to_the_stream() -> None:
    model = transformer(vocabulary=500, width=64, layers=8)
    assert model.blocks[0].linear1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.embedding.tokens.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.blocks[0].linear2.weight.std().item() == pytest.approx(0.005, rel=0.05)
    assert model.blocks[7].attention.out_proj.weight.std().item() == pytest.approx(0.005, rel=0.05)


def test_uniform_initialisation_is_xavier_on_the_attention() -> None:
    model = transformer(vocabulary=500, width=64, init="uniform")
    xavier = math.sqrt(6 / (4 * 64))
    assert 0.99 * xavier < model.blocks[0].attention.in_proj.weight.abs().max() <= xavier
    assert 0.099 < model.head.weight.abs().max() <= 0.1


def test_sequence_longer_than_the_context_is_refused() -> None:
    with pytest.raises(RequestError, match="at most 8 positions"):
        transformer(**SMALL)(torch.zeros(1, 9, dtype=torch.long))


def test_dropout_acts_in_training_only() -> None:
    model = transformer(**SMALL, dropout=0.5)
    tokens = torch.randint(11, (2, 8))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))
