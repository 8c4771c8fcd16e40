"""Masks on weights: in every use of a tied one, read by layer, folded once, scales and all."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from latewood.core import MASK, Follows, attach, bake, select_parameters, transformations
from latewood.core.attached_masks import AttachedMasks
from latewood.errors import RequestError


class Fifth(nn.Module):
    """Keeps every fifth entry, three times as large: applied twice it is another mask."""

    order = MASK
    follows: ClassVar = {"kept": Follows()}
    kept: Tensor

    def __init__(self, weight):
        super().__init__()
        self.register_buffer("kept", (torch.arange(weight.numel()) % 5 == 0).view(weight.shape))

    def forward(self, weight):
        return 3 * weight * self.kept


def tied():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6), nn.Linear(6, 3))
    model[1].weight = model[0].weight
    return model


def masked(model):
    chosen = select_parameters(model)
    return AttachedMasks(model, chosen, lambda weight: Fifth(weight.stored))


def test_a_tied_weight_is_masked_in_every_use_and_folded_once():
    model = tied()
    weight, last = model[0].weight, model[2].weight
    expected = [
        3 * w.detach() * (torch.arange(w.numel()) % 5 == 0).view(w.shape) for w in (weight, last)
    ]
    attached = masked(model)
    assert list(attached.masks) == ["1.weight", "2.weight"]
    assert attached.weights()["1.weight"].data_ptr() == weight.data_ptr()
    for uses in (model[0], model[1]):
        assert torch.equal(uses.weight, expected[0])
    attached.fold()
    assert model[0].weight is model[1].weight is weight
    assert torch.equal(weight, expected[0]) and torch.equal(model[2].weight, expected[1])
    assert [type(layer) for layer in model] == [nn.Embedding, nn.Linear, nn.Linear]


def test_what_masks_hold_is_read_by_parameter_and_counted_by_layer():
    attached = masked(tied())
    kept = attached.read(lambda mask: mask.kept)
    assert {name: int(mask.sum()) for name, mask in kept.items()} == {"1.weight": 5, "2.weight": 4}
    assert attached.fractions(lambda mask: mask.kept) == (9 / 42, {"1": 5 / 24, "2": 4 / 18})


def test_no_mask_is_folded_if_one_cannot_be(precision):
    model = tied()
    form = precision()
    attach(model[2], "weight", form)
    attached = masked(model)
    before = model[0].weight.detach().clone()
    with pytest.raises(RequestError, match="Fifth on weight does not commute with Precision"):
        attached.fold()
    assert len(transformations(model[0], "weight")) == len(transformations(model[1], "weight")) == 1
    assert torch.equal(model[0].weight, before)
    bake(model[2], "weight", form)
    attached.fold()
    assert torch.equal(model[0].weight, before)
