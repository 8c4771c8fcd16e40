"""Magnitude pruning: exact counts, nesting, ties, and no dependence on the order of layers."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latewood.errors import RequestError
from latewood.sparsity import keep_largest, prune_smallest

shapes = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 7)), min_size=1, max_size=4)


def drawn(sizes, seed, ties=False):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layer{i}.weight": torch.randint(-3, 4, size, generator=generator).float()
        if ties
        else torch.randn(size, generator=generator)
        for i, size in enumerate(sizes)
    }


def count(masks):
    return sum(int(mask.sum()) for mask in masks.values())


def test_worked_example():
    weights = {"w": torch.tensor([0.5, -0.1, 0.3, 0.2, -0.05])}
    masks = prune_smallest(weights, fraction=0.4)
    assert masks["w"].tolist() == [True, False, True, True, False]


@pytest.mark.parametrize(
    ("n", "fraction", "removed"), [(100, 0.07, 7), (100, 0.55, 55), (7, 0.2, 2)]
)
def test_a_fraction_means_its_decimal_number(n, fraction, removed):
    masks = prune_smallest({"w": torch.arange(n).float()}, fraction=fraction)
    assert masks["w"].tolist() == [False] * removed + [True] * (n - removed)


@given(sizes=shapes, percent=st.integers(0, 100), seed=st.integers(0, 999), ties=st.booleans())
@settings(max_examples=80, deadline=None)
def test_rounds_are_nested_and_exact(sizes, percent, seed, ties):
    fraction = Fraction(percent, 100)
    for layerwise in (False, True):
        present = {name: torch.ones_like(w) > 0 for name, w in drawn(sizes, 0).items()}
        for step in range(3):
            weights = drawn(sizes, seed + step, ties)
            masks = prune_smallest(
                weights, fraction=float(fraction), present=present, layerwise=layerwise
            )
            groups = [[name] for name in weights] if layerwise else [list(weights)]
            for names in groups:
                n = sum(int(present[name].sum()) for name in names)
                kept = sum(int(masks[name].sum()) for name in names)
                assert n - kept == math.ceil(fraction * n)
                largest_gone = max(
                    (
                        weights[m][present[m] & ~masks[m]].abs().max().item()
                        for m in names
                        if (present[m] & ~masks[m]).any()
                    ),
                    default=-1.0,
                )
                smallest_kept = min(
                    (weights[m][masks[m]].abs().min().item() for m in names if masks[m].any()),
                    default=math.inf,
                )
                assert largest_gone <= smallest_kept
            assert all(not (masks[name] & ~present[name]).any() for name in masks)
            present = masks


@given(sizes=shapes, seed=st.integers(0, 999), ties=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_order_of_layers_does_not_matter(sizes, seed, ties):
    weights = drawn(sizes, seed, ties)
    one = prune_smallest(weights, fraction=0.37)
    other = prune_smallest(dict(reversed(weights.items())), fraction=0.37)
    assert list(one) == list(weights)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_of_equal_weights_the_first_goes():
    weights = {"b": torch.ones(2, 2), "a": -torch.ones(3)}
    masks = keep_largest(weights, 3)
    assert masks["a"].tolist() == [False] * 3
    assert masks["b"].flatten().tolist() == [False, True, True, True]


def test_what_is_gone_never_comes_back_for_a_weight_of_zero():
    weights = {"w": torch.tensor([0.0, 0.0, 1.0])}
    present = {"w": torch.tensor([True, False, True])}
    assert keep_largest(weights, 2, present=present)["w"].tolist() == [True, False, True]


def test_global_pruning_may_empty_a_layer_and_layerwise_does_not():
    weights = {"small": torch.full((4,), 0.01), "large": torch.arange(1.0, 5.0)}
    assert not prune_smallest(weights, fraction=0.5)["small"].any()
    layerwise = prune_smallest(weights, fraction=0.5, layerwise=True)
    assert [int(mask.sum()) for mask in layerwise.values()] == [2, 2]


def test_twenty_rounds_of_a_fifth():
    weights = {"w": torch.randn(9999, generator=torch.Generator().manual_seed(0))}
    masks, left = None, 9999
    for _ in range(20):
        masks = prune_smallest(weights, fraction=0.2, present=masks)
        left -= math.ceil(left / 5)
    assert count(masks) == left
    assert left / 9999 == pytest.approx(0.8**20, rel=0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: prune_smallest(w, fraction=1.1), r"fraction: got 1.1; expected .* \[0, 1\]"),
        (lambda w: keep_largest(w, 5), "count: got 5; expected .* 0 to 4"),
        (lambda w: keep_largest({}, 0), "weights: got 'none'"),
        (lambda w: prune_smallest(w, fraction=0.5, present={}), "present: got"),
        (lambda w: prune_smallest(w, fraction=0.5, present=w), "expected torch.bool of shape"),
    ],
)
def test_impossible_requests_are_refused(call, message):
    with pytest.raises(RequestError, match=message):
        call({"w": torch.ones(4)})
