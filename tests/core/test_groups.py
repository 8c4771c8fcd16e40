"""Parameter groups: each trainable parameter once, decayed or not, the methods' own apart."""

import pytest
import torch
from torch import nn

from latewood.core.groups import parameter_groups
from latewood.core.selection import select_parameters
from latewood.core.transforms import attach
from latewood.errors import RequestError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.conv = nn.Conv1d(4, 4, 3)
        self.bn = nn.BatchNorm1d(4)
        self.ln = nn.LayerNorm((4, 5))
        self.rms = nn.RMSNorm(5)
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.lstm = nn.LSTM(4, 3)
        self.scale = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight


class Masks:
    """The least of a method that registers parameters inside the model."""

    def __init__(self, model, mask, **group) -> None:
        self.group = group
        self.logits = []
        for selected in select_parameters(model):
            transformation = mask(selected.tensor.shape)
            attach(selected.module, selected.parameter_name, transformation)
            self.logits.append(transformation.logits)

    def parameter_groups(self):
        return [{"params": iter(self.logits), **self.group}] if self.logits else []


DECAYED = {
    "embed.weight",
    "conv.weight",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "lstm.weight_ih_l0",
    "lstm.weight_hh_l0",
}


def named(model, group):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [names[id(parameter)] for parameter in group["params"]]
    return {name.replace("parametrizations.", "").removesuffix(".original") for name in found}


def flat(groups):
    return [id(parameter) for group in groups for parameter in group["params"]]


def test_weights_decay_and_norms_biases_and_vectors_do_not():
    model = Net()
    decayed, undecayed = parameter_groups(model)
    assert named(model, decayed) == DECAYED
    assert named(model, undecayed) == {name for name, _ in model.named_parameters()} - DECAYED
    assert "weight_decay" not in decayed
    assert undecayed["weight_decay"] == 0.0


def test_everything_decays_when_asked():
    model = Net()
    (group,) = parameter_groups(model, weight_decay=1.0, decay_all=True)
    assert group["weight_decay"] == 1.0
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters()}


def test_weight_decay_and_rate_reach_the_base_groups_only(mask):
    model = Net()
    method = Masks(model, mask, lr=0.3)
    decayed, undecayed, own = parameter_groups(model, [method], weight_decay=1e-4, lr=0.1)
    assert (decayed["weight_decay"], decayed["lr"]) == (1e-4, 0.1)
    assert (undecayed["weight_decay"], undecayed["lr"]) == (0.0, 0.1)
    assert (own["weight_decay"], own["lr"]) == (0.0, 0.3)


def test_every_parameter_is_in_exactly_one_group(mask):
    model = Net()
    method = Masks(model, mask)
    groups = parameter_groups(model, [method])
    assert sorted(flat(groups)) == sorted(id(parameter) for parameter in model.parameters())
    assert named(model, groups[0]) == DECAYED
    assert [id(p) for p in groups[2]["params"]] == [id(p) for p in method.logits]
    torch.optim.SGD(groups, lr=0.1)  # refuses a parameter that is in two groups


def test_a_transformed_bias_does_not_decay(precision):
    model = nn.Linear(3, 4)
    model.bias = nn.Parameter(torch.zeros(1, 4))

    class Method:
        def parameter_groups(self):
            return []

    attach(model, "bias", precision())
    decayed, undecayed = parameter_groups(model, [Method()])
    assert named(model, decayed) == {"weight"}
    assert named(model, undecayed) == {"bias"}


def test_a_method_may_ask_for_decay_and_claim_weights_of_the_model():
    model = Net()

    class Method:
        def parameter_groups(self):
            return [{"params": model.conv.weight, "weight_decay": 0.5, "lr": 2.0}]

    groups = parameter_groups(model, [Method()])
    assert groups[2] == {"params": [model.conv.weight], "weight_decay": 0.5, "lr": 2.0}
    assert named(model, groups[0]) == DECAYED - {"conv.weight"}


def test_frozen_parameters_and_empty_groups_are_left_out(mask):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2, bias=False))
    method = Masks(model, mask)
    model[0].requires_grad_(False)
    groups = parameter_groups(model, [method])
    assert [len(group["params"]) for group in groups] == [1, 1]
    assert groups[1]["params"] == [method.logits[1]]


def test_transformations_that_no_method_claims_stay_out(mask):
    model = nn.Sequential(nn.Linear(2, 3))
    Masks(model, mask)

    class Idle:
        def parameter_groups(self):
            return []

    assert sum(len(group["params"]) for group in parameter_groups(model, [Idle()])) == 2
    with pytest.raises(RequestError, match=r"parameter_groups\(model, \[method\]\)"):
        parameter_groups(model)


def test_refuses_a_parameter_claimed_twice(mask):
    model = nn.Linear(2, 3)
    method = Masks(model, mask)
    with pytest.raises(RequestError, match=r"shape \(3, 2\) is in two groups"):
        parameter_groups(model, [method, method])
