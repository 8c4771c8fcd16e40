"""Random masks: counts, seeds and uniformity."""

import pytest
import torch

from latewood.errors import RequestError
from latewood.sparsity import random_masks, shuffled_masks

WEIGHTS = {"a": torch.zeros(5, 10), "b": torch.zeros(4, 5)}


def test_each_layer_keeps_its_share():
    masks = random_masks(WEIGHTS, density=0.3, seed=0)
    assert {name: (tuple(m.shape), int(m.sum())) for name, m in masks.items()} == {
        "a": ((5, 10), 15),
        "b": ((4, 5), 6),
    }
    again = random_masks(WEIGHTS, density=0.3, seed=0)
    other = random_masks(WEIGHTS, density=0.3, seed=1)
    assert all(torch.equal(masks[name], again[name]) for name in masks)
    assert not torch.equal(masks["a"], other["a"])


def test_shuffling_keeps_counts_and_moves_places():
    masks = {"a": torch.arange(50).view(5, 10) < 7, "b": torch.arange(20).view(4, 5) < 19}
    shuffled = shuffled_masks(masks, seed=0)
    assert {name: int(mask.sum()) for name, mask in shuffled.items()} == {"a": 7, "b": 19}
    assert not torch.equal(shuffled["a"], masks["a"])


def test_every_place_is_as_likely():
    draws = 2000
    total = sum(random_masks(WEIGHTS, density=0.3, seed=s)["b"].int() for s in range(draws))
    error = (0.3 * 0.7 / draws) ** 0.5
    assert ((total / draws - 0.3).abs() < 4.5 * error).all()


def test_a_density_out_of_range_is_refused():
    with pytest.raises(RequestError, match="density: got"):
        random_masks(WEIGHTS, density=1.5, seed=0)
