"""The network that groks: its table forward is its literal one, in value and in gradient."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latewood.errors import RequestError
from latewood.models import grokking_transformer
from latewood.tasks.modular_addition import modular_addition


def literal(model: nn.Module, tokens: Tensor) -> Tensor:
    """The whole causal layer at every position, as the paper's network computes it."""
    stream = model.embedding(tokens)
    block = model.block
    mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], dtype=stream.dtype)
    normed = block.norm1(stream)
    stream = stream + block.attention(normed, normed, normed, attn_mask=mask)[0]
    stream = stream + block.linear2(block.linear1(block.norm2(stream)).relu())
    return model.head(model.norm(stream))[:, -1]


def gradients(model: nn.Module, logits: Tensor, labels: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(F.cross_entropy(logits, labels), list(model.parameters())))


def pair(**arguments) -> tuple[nn.Module, nn.Module]:
    model = grokking_transformer(**arguments)
    # Biases start at zero, where a forgotten one would not show.
    for name, parameter in model.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter, std=0.1)
    fast = copy.deepcopy(model)
    fast.tabulated = True
    return model, fast


@pytest.mark.parametrize("norm", [False, True])
def test_tables_give_the_papers_network_its_logits_and_gradients(norm: bool) -> None:
    torch.manual_seed(0)
    _, fast = pair(norm=norm)
    tokens, labels = modular_addition().train.gather(torch.arange(1000))
    expected, found = literal(fast, tokens), fast(tokens)
    assert (found - expected).abs().max() < 1e-5
    wanted = gradients(fast, expected, labels)
    for one, other in zip(gradients(fast, found, labels), wanted, strict=True):
        assert (one - other).abs().max() < 1e-5 * max(1.0, other.abs().max().item())


def test_tables_in_double_precision_with_any_last_token() -> None:
    torch.manual_seed(1)
    slow, fast = (m.double() for m in pair(vocabulary=7, context=4, width=12, heads=3, hidden=20))
    tokens = torch.randint(7, (50, 4))
    labels = torch.randint(7, (50,))
    expected = literal(slow, tokens)
    for model in (slow, fast):
        found = model(tokens)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        wanted = gradients(slow, literal(slow, tokens), labels)
        for one, other in zip(gradients(model, found, labels), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tabulated", [False, True])
def test_shorter_sequences_and_too_long_ones(tabulated: bool) -> None:
    model = grokking_transformer(vocabulary=7, width=8, heads=2, hidden=8, tabulated=tabulated)
    tokens = torch.randint(7, (5, 2))
    torch.testing.assert_close(model(tokens), literal(model, tokens))
    with pytest.raises(RequestError, match="at most 3 positions"):
        model(torch.zeros(1, 4, dtype=torch.int64))


def test_both_forms_have_the_same_parameters() -> None:
    torch.manual_seed(2)
    slow = grokking_transformer(vocabulary=7, width=8)
    torch.manual_seed(2)
    fast = grokking_transformer(vocabulary=7, width=8, tabulated=True)
    fast.load_state_dict(slow.state_dict())
    assert all(map(torch.equal, slow.state_dict().values(), fast.state_dict().values()))
