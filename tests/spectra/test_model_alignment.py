"""Which layers feed which, for every kind of model, and that each pair is measured by its rule."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from latewood.errors import RequestError
from latewood.spectra import (
    LayerPair,
    alignment,
    factors,
    gate_directions,
    infer_pairs,
    model_alignment,
    query_key_alignment,
    tap_directions,
    value_output_alignment,
)


class Fused(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)


class Language(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.positions = nn.Embedding(5, 8)
        self.attention = attention
        self.norm = nn.LayerNorm(8)
        self.linear1 = nn.Linear(8, 16)
        self.linear2 = nn.Linear(16, 8)
        self.head = nn.Linear(8, 11, bias=False)


class Double(nn.Module):
    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.rnn = kind(5, 3, num_layers=2, bidirectional=True)
        self.head = nn.Linear(6, 4)


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def names(model):
    return [pair.name for pair in infer_pairs(model)]


def test_consecutive_layers_that_fit():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(6, 5),
        nn.ReLU(), nn.Linear(7, 2), nn.Linear(2, 2),
    )  # fmt: skip
    assert names(model) == [
        "0.weight->2.weight",
        "2.weight->4.weight",
        "6.weight->7.weight",
    ]
    found = model_alignment(model)
    first = factors(model[0].weight.flatten(1)).left
    second = tap_directions(factors(model[2].weight.flatten(1)).right, (3, 3))
    assert torch.equal(found["0.weight->2.weight"].matrix, alignment(first, second).matrix)
    reading = factors(model[4].weight).right
    writing = factors(model[2].weight.flatten(1)).left
    assert torch.equal(found["2.weight->4.weight"].matrix, alignment(writing, reading).matrix)


def test_a_transposed_convolution_writes_and_reads_channels():
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.ConvTranspose2d(4, 2, 3))
    found = model_alignment(model)["0.weight->1.weight"]
    first, second = (layer.weight.transpose(0, 1).flatten(1) for layer in model)
    reading = tap_directions(factors(second).right, (3, 3))
    assert torch.equal(found.matrix, alignment(factors(first).left, reading).matrix)


def test_grouped_convolutions_break_the_chain():
    model = nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    )
    assert names(model) == ["2.weight->3.weight"]
    with pytest.raises(RequestError, match="without groups"):
        model_alignment(model, [("0.weight", "1.weight")])


@pytest.mark.parametrize("kind", ["multihead", "fused"])
def test_transformers(kind):
    attention = Fused(8, 2) if kind == "fused" else nn.MultiheadAttention(8, 2)
    fused = "attention.in_proj.weight" if kind == "fused" else "attention.in_proj_weight"
    model = Language(attention)
    assert names(model) == [
        f"tokens.weight->{fused}",
        f"positions.weight->{fused}",
        f"{fused}[query->key]",
        f"{fused}[value]->attention.out_proj.weight",
        "attention.out_proj.weight->linear1.weight",
        "linear1.weight->linear2.weight",
        "linear2.weight->head.weight",
    ]
    weight = model.get_parameter(fused)
    found = model_alignment(model)
    first = alignment(factors(model.tokens.weight).right, factors(weight).right)
    assert torch.equal(found[f"tokens.weight->{fused}"].matrix, first.matrix)
    heads = query_key_alignment(weight, 2)
    assert torch.equal(found[f"{fused}[query->key]"].matrix, heads.matrix.mean(0))
    output = model.attention.out_proj.weight
    name = f"{fused}[value]->attention.out_proj.weight"
    whole = value_output_alignment(weight, output)
    assert torch.equal(found[name].matrix, whole.matrix)
    by_head = model_alignment(model, per_head=True)[name]
    expected = value_output_alignment(weight, output, 2)
    assert by_head.score.item() == pytest.approx(expected.score.mean().item())
    assert by_head.diagonal.shape == (4,)


def test_a_tied_head_is_a_layer_of_its_own():
    model = Language(Fused(8, 2))
    model.head.weight = model.tokens.weight
    assert names(model)[-1] == "linear2.weight->head.weight"
    assert model_alignment(model)["linear2.weight->head.weight"].matrix.shape == (8, 8)


def test_attention_with_other_keys_and_values():
    model = nn.Sequential(
        nn.Linear(3, 8), nn.MultiheadAttention(8, 2, kdim=8, vdim=8), nn.Linear(8, 2)
    )
    assert names(model)[:1] == ["0.weight->1.in_proj_weight"]
    model[1] = nn.MultiheadAttention(8, 2, kdim=5, vdim=8)
    assert names(model) == [
        "0.weight->1.q_proj_weight",
        "0.weight->1.v_proj_weight",
        "1.out_proj.weight->2.weight",
    ]


def test_bidirectional_layers_keep_their_directions():
    model = Double()
    half = {"": "forward", "_reverse": "backward"}
    expected = [
        name
        for s in half
        for name in (
            f"rnn.weight_ih_l0{s}->rnn.weight_hh_l0{s}",
            f"rnn.weight_ih_l0{s}->rnn.weight_ih_l1{s}[{half[s]}]",
            f"rnn.weight_hh_l0{s}->rnn.weight_ih_l1{s}[{half[s]}]",
        )
    ]
    expected += [
        f"rnn.weight_{kind}_l1{s}->head.weight[{half[s]}]" for s in half for kind in ("ih", "hh")
    ]
    assert names(model) == expected
    found = model_alignment(model, gate=1)
    writing = gate_directions(factors(model.rnn.weight_hh_l1_reverse).left, gate=1)
    reading = factors(model.head.weight[:, 3:]).right
    assert torch.equal(
        found["rnn.weight_hh_l1_reverse->head.weight[backward]"].matrix,
        alignment(writing, reading).matrix,
    )
    writing = gate_directions(factors(model.rnn.weight_ih_l0).left, gate=1)
    reading = factors(model.rnn.weight_ih_l1[:, :3]).right
    assert torch.equal(
        found["rnn.weight_ih_l0->rnn.weight_ih_l1[forward]"].matrix,
        alignment(writing, reading).matrix,
    )


@pytest.mark.parametrize(("kind", "gates"), [(nn.GRU, 3), (nn.RNN, 1)])
def test_other_recurrences_have_other_gates(kind, gates):
    model = Double(kind)
    found = model_alignment(model)["rnn.weight_ih_l0->rnn.weight_hh_l0"]
    writing = gate_directions(
        factors(model.rnn.weight_ih_l0).left, gate=min(2, gates - 1), gates=gates
    )
    reading = factors(model.rnn.weight_hh_l0).right
    assert torch.equal(found.matrix, alignment(writing, reading).matrix)


def test_an_embedding_feeds_a_recurrent_layer():
    model = nn.Sequential(nn.Embedding(9, 5), nn.LSTM(5, 3), nn.Linear(3, 9))
    assert names(model) == [
        "0.weight->1.weight_ih_l0",
        "1.weight_ih_l0->2.weight",
        "1.weight_hh_l0->2.weight",
    ]


def test_weights_are_seen_as_they_are_used():
    class Zero(nn.Module):
        def forward(self, weight):
            return weight * 0

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert model_alignment(model)["0.weight->1.weight"].score > 0
    parametrize.register_parametrization(model[1], "weight", Zero())
    assert names(model) == ["0.weight->1.weight"]
    assert model_alignment(model)["0.weight->1.weight"].score == 0


def test_the_number_of_vectors_can_be_limited():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    found = model_alignment(model, [LayerPair("0.weight", "1.weight")], k=2, top=1)[
        "0.weight->1.weight"
    ]
    assert found.matrix.shape == (2, 2)
    assert found.score == found.diagonal[0]


@pytest.mark.parametrize("pair", ["0.weight", ("0.weight",), ("0.weight",) * 3])
def test_what_is_no_pair_of_names_is_refused(pair):
    with pytest.raises(RequestError, match="outputs, inputs"):
        model_alignment(nn.Sequential(nn.Linear(3, 3)), [pair])


def test_bad_pairs_are_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 4), nn.Conv2d(4, 4, 1))
    for name in ("7.weight", "0.bias", "0.gain"):
        with pytest.raises(RequestError, match="pairs"):
            model_alignment(model, [(name, "0.weight")])
    with pytest.raises(RequestError, match="inputs"):
        model_alignment(model, [("0.weight", "1.weight")])
    with pytest.raises(RequestError, match="direction"):
        model_alignment(model, [LayerPair("0.weight", "2.weight", "forward")])
    with pytest.raises(RequestError, match="heads"):
        model_alignment(model, [LayerPair("0.weight", "0.weight", "query-key")])
