"""Which weights make the output, and that interventions spare these and no others."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from latewood.spectra import output_heads, perturb_, weight_matrices

transformers = pytest.importorskip("transformers")


def names(model, *example):
    return [head.name for head in output_heads(model, *example)]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(11, 6)
        self.inner = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.tokens.weight
        self.late = nn.Linear(6, 6)

    def forward(self, ids):
        return self.head(self.late(self.inner(self.tokens(ids))))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.boxes = nn.Linear(4, 4)
        self.classes = nn.Linear(4, 3)
        self.trunk = nn.Linear(5, 4)

    def forward(self, x):
        x = self.trunk(x).relu()
        return {"boxes": self.boxes(x), "classes": self.classes(x)}


class Stream(nn.Module):
    """Returns its residual stream: every layer that writes to it is read by another."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        x = self.first(x)
        return x + self.third(self.second(x).relu())


def test_a_tied_head_is_spared_and_the_last_layer_is_not():
    model = Tied()
    ids = torch.zeros(1, 3, dtype=torch.long)
    assert names(model, ids) == ["tokens.weight"]
    assert list(weight_matrices(model, example_inputs=ids)) == ["inner.weight", "late.weight"]
    assert names(model) == ["tokens.weight"]
    before = model.tokens.weight.clone()
    assert perturb_(model, 0.5, seed=0, example_inputs=ids) == ["inner.weight", "late.weight"]
    assert torch.equal(model.head.weight, before)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_heads_of_language_models(kind, tied):
    sizes = {
        "GPT2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8},
        "Llama": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    }
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=20, bos_token_id=1, eos_token_id=2, tie_word_embeddings=tied, **sizes[kind]
    )
    model = getattr(transformers, f"{kind}{'LMHeadModel' if kind == 'GPT2' else 'ForCausalLM'}")(
        config
    )
    table = "transformer.wte.weight" if kind == "GPT2" else "model.embed_tokens.weight"
    expected = [table if tied else "lm_head.weight"]
    assert names(model, {"input_ids": torch.zeros(1, 3, dtype=torch.long)}) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names(model) == expected


def test_all_heads_or_none():
    x = torch.zeros(1, 5)
    assert names(TwoHeads(), x) == ["boxes.weight", "classes.weight"]
    assert list(weight_matrices(TwoHeads(), example_inputs=x)) == ["trunk.weight"]
    assert list(weight_matrices(TwoHeads(), example_inputs=x, skip_head=False)) == [
        "boxes.weight",
        "classes.weight",
        "trunk.weight",
    ]


def test_only_a_guess_warns_and_points_at_the_caller():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))) == ["2.weight"]
        assert names(TwoHeads(), torch.zeros(1, 5))
        assert weight_matrices(TwoHeads(), skip_head=False)
    with pytest.warns(UserWarning, match=r"trunk\.weight.*example_inputs") as caught:
        weight_matrices(TwoHeads())
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"trunk\.weight") as caught:
        perturb_(TwoHeads(), 0.1, seed=0)
    assert caught[0].filename == __file__


def test_a_stream_that_is_returned_has_no_head_but_what_nothing_reads():
    assert "first.weight" not in names(Stream(), torch.zeros(1, 4))
