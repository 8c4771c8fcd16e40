"""Masks: exact counts in both roundings, ties, random controls, and refusals in words."""

import numpy as np
import pytest
import torch

from latewood.core.masks import (
    bernoulli_masks,
    keep_largest,
    kept_count,
    require_masks,
    shuffled_masks,
)
from latewood.errors import RequestError


@pytest.mark.parametrize(
    ("total", "fraction", "nearest", "down", "up"),
    [(100, 0.07, 7, 7, 7), (100, 0.29, 29, 29, 29), (10, 0.25, 2, 2, 3), (7, 1.0, 7, 7, 7)],
)
def test_both_countings_read_a_fraction_as_it_prints(total, fraction, nearest, down, up):
    assert kept_count(total, fraction, rounding="nearest") == nearest
    assert kept_count(total, fraction, rounding="down") == down
    assert kept_count(total, fraction, rounding="up") == up


def sorted_choice(weights, count, present):
    """The rule in its plainest form: a stable sort by magnitude, names in alphabetical order."""
    places = [(name, i) for name in sorted(weights) for i in range(weights[name].numel())]
    places = [place for place in places if present[place[0]].flatten()[place[1]]]
    size = {p: abs(weights[p[0]].flatten()[p[1]].item()) for p in places}
    size = {p: float("inf") if v != v else v for p, v in size.items()}
    order = sorted(places, key=size.__getitem__)
    return set(order[len(order) - count :])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("seed", range(4))
def test_the_largest_stay_as_a_stable_sort_says(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    # Few values, so that there are many ties; some are not finite.
    weights = {
        name: torch.randint(-3, 4, shape, generator=generator).to(dtype)
        for name, shape in (("b", (3, 4)), ("a", (2, 5)))
    }
    weights["b"][0, 0], weights["b"][1, 1] = float("nan"), float("inf")
    present = {n: torch.rand(w.shape, generator=generator) < 0.7 for n, w in weights.items()}
    total = sum(int(mask.sum()) for mask in present.values())
    for count in range(total + 1):
        masks = keep_largest(weights, count, present=present)
        assert list(masks) == ["b", "a"]
        chosen = {
            (n, i) for n, m in masks.items() for i in m.flatten().nonzero().flatten().tolist()
        }
        assert chosen == sorted_choice(weights, count, present)


def test_random_controls_count_exactly_or_in_the_mean():
    masks = {"a": torch.arange(10_000).view(100, 100) < 3000, "b": torch.arange(20) < 19}
    exact = shuffled_masks(masks, seed=0)
    assert {name: int(mask.sum()) for name, mask in exact.items()} == {"a": 3000, "b": 19}
    drawn = bernoulli_masks(masks, seed=0)
    assert drawn["a"].shape == (100, 100)
    assert abs(int(drawn["a"].sum()) - 3000) < 5 * (10_000 * 0.3 * 0.7) ** 0.5
    counts = {int(bernoulli_masks(masks, seed=seed)["a"].sum()) for seed in range(5)}
    assert len(counts) > 1
    for control in (shuffled_masks, bernoulli_masks):
        assert torch.equal(control(masks, seed=3)["a"], control(masks, seed=3)["a"])
        assert not torch.equal(control(masks, seed=3)["a"], control(masks, seed=4)["a"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: keep_largest(w, 5), "count: got 5; expected a whole number, 0 to 4"),
        (lambda w: keep_largest(w, 2.0), "count: got 2.0"),
        (lambda w: keep_largest({}, 0), "weights: got 'none'"),
        (lambda w: keep_largest({"w": np.ones(3)}, 1), r"weights\['w'\]: got 'ndarray'"),
        (lambda w: keep_largest(w, 1, present=np.ones(2)), "masks: got 'ndarray'"),
        (lambda w: keep_largest(w, 1, present={"w": np.ones((2, 2))}), r"masks\['w'\]: got 'nd"),
        (lambda w: keep_largest(w, 1, present={"w": w["w"]}), "expected torch.bool of shape"),
        (lambda w: keep_largest(w, 1, present={"x": w["w"] > 0}), "masks: got 'x'"),
        (lambda w: shuffled_masks({"w": [True]}, seed=0), r"masks\['w'\]: got 'list'"),
        (lambda w: bernoulli_masks(w, seed=0), r"masks\['w'\]: got 'torch.float32 of"),
        (lambda w: require_masks([w["w"]], w), "masks: got 'list'"),
        (lambda w: kept_count(3, "a", rounding="up"), "fraction: got 'a'"),
        (lambda w: kept_count(3, 0.5, rounding="away"), "rounding: got 'away'"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(RequestError, match=message):
        call({"w": torch.ones(2, 2)})
