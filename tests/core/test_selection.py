"""Selection: which tensors, in which order, under which names, and what a bad pattern says."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from latewood.core.selection import select_parameters, stored_tensor
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


def test_the_linear_layer_of_hugging_face_is_one():
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nf = 4
            self.weight = nn.Parameter(torch.ones(3, 4))
            self.bias = nn.Parameter(torch.zeros(4))

    model = nn.Sequential(Conv1D(), nn.Linear(4, 2))
    parametrize.register_parametrization(model[0], "weight", Half())
    assert [chosen.name for chosen in select_parameters(model)] == ["0.weight", "1.weight"]
    (conv,) = select_parameters(nn.Sequential(nn.Conv1d(1, 1, 1), Conv1D()), types=(nn.Conv1d,))
    assert conv.name == "0.weight"
