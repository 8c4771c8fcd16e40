"""Selection: which tensors, in which order, under which names, and what a bad pattern says."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from latewood.core.selection import (
    matrix_parameters,
    select_parameters,
    shared_with_embeddings,
    stored_tensor,
)
from latewood.errors import RequestError


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.conv = nn.Conv1d(6, 6, 3)
        self.norm = nn.LayerNorm((4, 6))
        self.lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True)
        self.gru = nn.GRU(10, 6)
        self.cell = nn.LSTMCell(6, 4)
        self.attention = nn.MultiheadAttention(6, 2)
        self.cross = nn.MultiheadAttention(6, 2, kdim=3, vdim=3, add_bias_kv=True)
        self.head = nn.Linear(6, 11)
        self.up = nn.ConvTranspose2d(2, 3, 2)


class Half(nn.Module):
    def forward(self, weight):
        return weight / 2


EXPECTED = [
    "conv.weight",
    *[
        f"lstm.weight_{kind}_l{layer}{suffix}"
        for layer in (0, 1)
        for suffix in ("", "_reverse")
        for kind in ("ih", "hh")
    ],
    "gru.weight_ih_l0",
    "gru.weight_hh_l0",
    "cell.weight_ih",
    "cell.weight_hh",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "cross.q_proj_weight",
    "cross.k_proj_weight",
    "cross.v_proj_weight",
    "cross.out_proj.weight",
    "head.weight",
    "up.weight",
]


def names(selection):
    return [selected.name for selected in selection]


def test_selects_weight_matrices_in_registration_order():
    assert names(select_parameters(Everything())) == EXPECTED


def test_names_and_order_do_not_change_under_parametrizations():
    model = Everything()
    plain = select_parameters(model)
    # Odd ones only: torch moves these out of the parameter list, which must not show.
    for selected in plain[1::2]:
        parametrize.register_parametrization(selected.module, selected.parameter_name, Half())
    again = select_parameters(model)
    assert names(again) == EXPECTED
    for before, after in zip(plain, again, strict=True):
        assert after.stored is before.stored
    assert torch.equal(again[1].tensor, again[1].stored / 2)


def test_selected_reaches_the_tensor_by_its_parts():
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 4)))
    last = select_parameters(model)[-1]
    assert (last.layer, last.parameter_name, last.name) == ("1.0", "weight", "1.0.weight")
    assert last.stored is model[1][0].weight


def test_a_layer_that_is_the_model_itself():
    assert names(select_parameters(nn.Linear(2, 3))) == ["weight"]


def test_globs_match_layer_or_parameter_names():
    model = Everything()
    assert names(select_parameters(model, include=["conv", "lstm.weight_hh_*"])) == [
        "conv.weight",
        "lstm.weight_hh_l0",
        "lstm.weight_hh_l0_reverse",
        "lstm.weight_hh_l1",
        "lstm.weight_hh_l1_reverse",
    ]
    assert names(select_parameters(model, exclude=("lstm", "gru", "cell", "*attention*"))) == [
        "conv.weight",
        "cross.q_proj_weight",
        "cross.k_proj_weight",
        "cross.v_proj_weight",
        "cross.out_proj.weight",
        "head.weight",
        "up.weight",
    ]
    assert names(select_parameters(model, include="head")) == ["head.weight"]


def test_types_widen_the_choice():
    chosen = select_parameters(Everything(), types=[nn.Embedding, nn.Conv1d])
    assert names(chosen) == ["embed.weight", "conv.weight"]


def test_tied_tensors_are_listed_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Embedding(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[3].weight = model[2].weight
    assert names(select_parameters(model)) == ["0.weight", "3.weight"]


def test_layers_inside_a_transformation_are_not_selected():
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, weight):
            return self.inner(weight)

    model = nn.Sequential(nn.Linear(2, 3))
    parametrize.register_parametrization(model[0], "weight", Learned())
    assert names(select_parameters(model)) == ["0.weight"]


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_pattern_without_a_match_lists_the_names(argument):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 4))
    with pytest.raises(RequestError, match=rf"{argument}: got 'layer9'.*0\.weight, 2\.weight"):
        select_parameters(model, **{argument: ["*", "layer9"][1:]})


def test_long_lists_of_names_are_cut():
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(100)])
    with pytest.raises(RequestError, match="and 40 more"):
        select_parameters(model, include=["nothing"])


def test_refuses_models_and_patterns_that_leave_nothing():
    with pytest.raises(RequestError, match="a model with weight layers"):
        select_parameters(nn.BatchNorm1d(3))
    with pytest.raises(RequestError, match="exclude"):
        select_parameters(nn.Linear(2, 2), exclude=["*"])


def test_refuses_lazy_layers():
    with pytest.raises(RequestError, match=r"0\.weight: a lazy layer"):
        select_parameters(nn.Sequential(nn.LazyLinear(3)))


def test_split_tensors_are_seen_but_not_handed_out():
    layer = weight_norm(nn.Linear(2, 3))
    (selected,) = select_parameters(layer)
    assert selected.tensor.shape == (3, 2)
    with pytest.raises(RequestError, match="one piece"):
        stored_tensor(layer, "weight")


def test_layers_of_other_libraries_are_known_by_what_they_hold():
    class Conv1D(nn.Module):  # as in GPT-2 of transformers
        def __init__(self) -> None:
            super().__init__()
            self.nf, self.nx = 6, 4
            self.weight = nn.Parameter(torch.zeros(4, 6))
            self.bias = nn.Parameter(torch.zeros(6))

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up = nn.Parameter(torch.zeros(3, 8, 4))
            self.gate_up_bias = nn.Parameter(torch.zeros(3, 8))
            self.down = nn.Parameter(torch.zeros(3, 4, 4))
            self.activation = nn.GELU()

    class Attention(nn.Module):  # as XLNet's and Mamba's mixers: matrices beside layers
        def __init__(self) -> None:
            super().__init__()
            self.query_weight = nn.Parameter(torch.zeros(4, 4))
            self.key = nn.Parameter(torch.zeros(4, 2, 2))
            self.out_proj = nn.Parameter(torch.zeros(4, 4))
            self.decay_log = nn.Parameter(torch.zeros(4, 2))
            self.norm = nn.LayerNorm(4)

    class ResponseNorm(nn.Module):
        def __init__(self, *shape: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(shape))

    class Unembed(nn.Module):  # as TransformerLens calls its head
        def __init__(self) -> None:
            super().__init__()
            self.W_U = nn.Parameter(torch.zeros(4, 7))

    class LearnedPositions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(7, 4))

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 1, 4))
            self.token_table = nn.Parameter(torch.zeros(5, 4))
            self.codes = nn.Parameter(torch.zeros(5, 4, dtype=torch.int8), requires_grad=False)

    model = nn.ModuleDict(
        {
            "positions": nn.ModuleList([LearnedPositions(), nn.EmbeddingBag(5, 4)]),
            "linear": Conv1D(),
            "attention": Attention(),
            "experts": Experts(),
            "norms": nn.ModuleList([ResponseNorm(4, 6), nn.LayerNorm((4, 6)), Scale()]),
            "head": Unembed(),
            "list": nn.ParameterList([torch.zeros(3, 3)]),
        }
    )
    expected = [
        "linear.weight",
        "attention.key",
        "attention.out_proj",
        "attention.query_weight",
        "experts.down",
        "experts.gate_up",
        "head.W_U",
    ]
    assert names(select_parameters(model)) == expected
    reasons = {weight.name: reason for weight, reason in matrix_parameters(model) if reason}
    assert reasons == {
        "positions.0.weight": "an embedding",
        "positions.1.weight": "an embedding",
        "attention.decay_log": "beside layers in one module, which does not say what it is for",
        "norms.0.weight": "of a norm",
        "norms.1.weight": "of a norm",
        "norms.2.codes": "of torch.int8",
        "norms.2.token_table": "an embedding",
        "norms.2.weight": "a vector",
        "list.0": "in a list, which does not say what it is for",
    }
    for module, name in ((model["linear"], "weight"), (model["experts"], "down")):
        parametrize.register_parametrization(module, name, Half())
    assert names(select_parameters(model)) == expected


def test_a_norm_without_a_shape_yet_is_none_of_the_weights():
    model = nn.Sequential(nn.Linear(2, 3), nn.LazyBatchNorm1d())
    assert names(select_parameters(model)) == ["0.weight"]


def test_what_embeddings_share_is_told_by_the_layer_that_multiplies_with_it():
    model = nn.Sequential(nn.Embedding(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    assert shared_with_embeddings(model) == set()
    model[2].weight = model[0].weight
    assert shared_with_embeddings(model) == {"2.weight"}
    assert names(select_parameters(model)) == ["1.weight", "2.weight"]


EVERY_WEIGHT = {
    "gpt2": {"c_attn", "c_proj", "c_fc", "lm_head"},
    "bert": {"query", "key", "value", "dense", "decoder"},
    "t5": {"q", "k", "v", "o", "wi", "wo", "lm_head"},
    "llama": {*(f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")), "lm_head"},
    "mixtral": {*(f"{part}_proj" for part in "qkvo"), "gate", "experts", "lm_head"},
    "whisper": {
        "conv1",
        "conv2",
        "fc1",
        "fc2",
        "out_proj",
        "proj_out",
        "q_proj",
        "k_proj",
        "v_proj",
    },
    "vit": {"projection", "q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "classifier"},
    "mamba": {"conv1d", "in_proj", "x_proj", "dt_proj", "out_proj", "lm_head"},
}


@pytest.mark.parametrize("name", EVERY_WEIGHT)
def test_the_weights_of_models_of_transformers(name, transformers_kit):
    model, _ = transformers_kit.build(name)
    chosen = select_parameters(model)
    assert {weight.layer.rpartition(".")[2] for weight in chosen} == EVERY_WEIGHT[name]
    reasons = {weight.name: reason for weight, reason in matrix_parameters(model) if reason}
    lookups = re.compile("embed|wte|wpe|shared|relative_attention_bias")
    for weight_name, reason in reasons.items():
        if "A_log" in weight_name:
            assert "does not say" in reason
        else:
            assert lookups.search(weight_name) and reason in ("an embedding", "a vector")
