from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latewood.errors import RequestError
from latewood.segmentation import evaluate_masks, mask_scores

PLAIN = ("accuracy", "iou", "miou", "dice")


def truth() -> torch.Tensor:
    mask = torch.zeros(1, 10, 10, dtype=torch.bool)
    mask[:, 2:7, 3:8] = True
    return mask


def test_the_truth_scores_one_in_both_polarities() -> None:
    for predicted in (truth(), ~truth()):
        scores = mask_scores(predicted, truth())
        assert all(scores[name].item() == 1 for name in PLAIN)
        assert all(scores[f"{name}_flipped"].item() == 1 for name in PLAIN)
    assert all(scores[f"{name}_fixed"].item() == 0 for name in PLAIN)


def test_an_empty_mask_scores_the_area() -> None:
    scores = mask_scores(torch.zeros_like(truth()), truth())
    area = 0.25
    assert scores["iou"].item() == area
    assert scores["accuracy"].item() == 1 - area
    assert scores["dice"].item() == pytest.approx(2 * area / (1 + area))
    assert scores["iou_fixed"].item() == scores["iou_flipped"].item() == 0
    assert scores["empty"].item() == 1


def test_by_hand() -> None:
    predicted = torch.zeros(1, 10, 10, dtype=torch.bool)
    predicted[:, 2:7, 2:7] = True
    scores = mask_scores(predicted, truth())
    assert scores["iou_fixed"].item() == pytest.approx(20 / 30)
    assert scores["dice_fixed"].item() == pytest.approx(40 / 50)
    assert scores["accuracy_fixed"].item() == pytest.approx(90 / 100)
    assert scores["miou_fixed"].item() == pytest.approx((20 / 30 + 70 / 80) / 2)
    assert scores["iou"].item() == scores["iou_fixed"].item()


def test_polarity_is_chosen_for_each_measure_or_for_the_whole_mask() -> None:
    # Most of the image predicted: turned over it is more accurate, but its overlap is not better.
    true = torch.zeros(1, 10, 10, dtype=torch.bool)
    true[:, :, :4] = True
    predicted = torch.ones_like(true)
    scores = mask_scores(predicted, true)
    assert scores["iou"].item() == 0.4 and scores["accuracy"].item() == 0.6
    assert scores["iou_flipped"].item() == 0 and scores["accuracy_flipped"].item() == 0.6


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_relations(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    predicted, true = (torch.rand(2, 3, 6, 7, generator=generator) < 0.4).unbind()
    scores, turned = mask_scores(predicted, true), mask_scores(~predicted, true)
    for name in PLAIN:
        torch.testing.assert_close(scores[name], turned[name])
        assert bool((scores[name] >= scores[f"{name}_flipped"] - 1e-12).all())
        assert bool((scores[name] >= scores[f"{name}_fixed"] - 1e-12).all())
        assert bool(((scores[name] >= 0) & (scores[name] <= 1)).all())
    iou = scores["iou_fixed"]
    torch.testing.assert_close(scores["dice_fixed"], 2 * iou / (1 + iou))


def test_means_over_images_of_different_sizes() -> None:
    small, large = truth()[0], torch.zeros(20, 30, dtype=torch.bool)
    large[:, :15] = True
    found = evaluate_masks([small, torch.zeros_like(large)], [small, large])
    assert found["iou"] == pytest.approx((1 + 0.5) / 2)
    assert found["empty"] == 0.5 and found["images"] == 2


def test_masks_that_do_not_fit() -> None:
    with pytest.raises(RequestError, match="predicted"):
        mask_scores(truth(), truth()[:, :5])
    with pytest.raises(RequestError, match="1 masks"):
        evaluate_masks([truth()[0]], [])
    with pytest.raises(RequestError, match="0 masks"):
        evaluate_masks([], [])


def test_arrays_are_named_rather_than_failed_on() -> None:
    mask = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(RequestError, match="predicted: got 'ndarray'; expected masks that are"):
        evaluate_masks([mask.numpy()], [mask])  # type: ignore[list-item]
    with pytest.raises(RequestError, match="truth: got 'ndarray'"):
        evaluate_masks([mask], [mask.numpy()])  # type: ignore[list-item]
    with pytest.raises(RequestError, match="truth: got 'list'"):
        mask_scores(mask[None], [mask])  # type: ignore[arg-type]
