from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from latewood.errors import RequestError
from latewood.kernels.inpainting import Inpainting, ascend
from latewood.segmentation import (
    PRESETS,
    Segmentation,
    Settings,
    centred_rectangle,
    evaluate_masks,
    mask_scores,
    segment,
)
from latewood.segmentation.upsampling import _enlarged_rows, downsample, guided_upsample

Blob = Callable[..., tuple[Tensor, Tensor]]


def same(first: Segmentation, second: Segmentation) -> bool:
    return torch.equal(first.mask, second.mask) and first.score == second.score


def test_the_papers_preset_is_the_published_algorithm(blob: Blob) -> None:
    image, _ = blob(50, 40)
    found = segment(image)
    expected = ascend(2 * image[None] - 1, centred_rectangle(50, 40)[None], Inpainting())
    assert torch.equal(found.mask, expected.masks[0])
    assert found.score == expected.inpainting.item()
    assert found.diversity == expected.diversity.item()
    assert found.iterations == expected.iterations.item()
    assert (found.margin, found.flags) == (0.2, ())


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_finds_a_disc(blob: Blob, preset: str) -> None:
    image, truth = blob(70, 90)
    found = segment(image, preset=preset)
    assert mask_scores(found.mask[None], truth[None])["iou_fixed"].item() > 0.93


def test_polish_takes_the_bias_of_the_smoothing_away() -> None:
    y, x = torch.arange(64)[:, None], torch.arange(64)
    truth = (y - 31.5) ** 2 + (x - 31.5) ** 2 <= 14**2
    inside = torch.tensor([0.8, 0.4, 0.55])[:, None, None]
    outside = torch.tensor([0.25, 0.65, 0.6])[:, None, None]
    image = torch.where(truth, inside, outside)
    plain, polished = segment(image), segment(image, polish=20)
    assert int(plain.mask.sum()) == 632
    assert torch.equal(polished.mask, truth)
    assert torch.equal(segment(image, preset="robust").mask, truth)


def test_every_form_of_an_image_gives_the_same_mask(blob: Blob, tmp_path: Path) -> None:
    values = (blob(30, 36)[0] * 255).round().to(torch.uint8)
    array = values.permute(1, 2, 0).numpy()
    Image.fromarray(array).save(tmp_path / "image.png")
    expected = segment(values)
    forms: list[Any] = [
        array,
        np.asfortranarray(array),
        array[::-1][::-1],
        array / 255,
        array.astype(np.float32) / 255,
        array.astype(np.uint16) * 257,
        values.to(torch.float64) / 255,
        Image.fromarray(array),
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        np.concatenate([array, np.full_like(array[..., :1], 255)], axis=2),
    ]
    assert all(same(segment(form), expected) for form in forms)
    batches: list[Any] = [values.expand(2, -1, -1, -1), np.stack([array, array]), forms]
    for batch in batches:
        assert all(same(found, expected) for found in segment(batch))


def test_a_list_may_mix_sizes_channels_and_kinds(blob: Blob) -> None:
    colour, other = blob(40, 30)[0], blob(36, 44, seed=1)[0]
    grey = other[:1]
    batch = torch.stack([blob(24, 24, seed=2)[0], blob(24, 24, seed=3)[0]])
    together = segment([colour, grey, batch, other.permute(1, 2, 0).numpy(), grey[0]])
    alone = [segment(one) for one in (colour, grey, batch[0], batch[1], other, grey)]
    assert len(together) == 6
    assert all(same(a, b) for a, b in zip(together, alone, strict=True))


def test_grey_is_three_equal_channels(blob: Blob) -> None:
    grey = blob(40, 40)[0][:1]
    for preset in PRESETS:
        assert same(segment(grey, preset=preset), segment(grey.expand(3, -1, -1), preset=preset))


def test_what_is_transparent_lies_on_white(blob: Blob) -> None:
    image, mask = blob(40, 40)
    hidden = torch.cat((image, mask[None].float()))
    assert same(segment(hidden), segment(torch.where(mask, image, 1.0)))
    grey = torch.cat((image[:1], mask[None].float()))
    assert same(segment(grey), segment(torch.where(mask, image[:1], 1.0)))


@pytest.mark.parametrize("threads", [1, 3])
def test_neither_batch_nor_threads_matter(blob: Blob, threads: int) -> None:
    images = [blob(32, 32, seed=seed)[0] for seed in range(5)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        together = segment(images, preset="robust")
    finally:
        torch.set_num_threads(before)
    assert all(same(a, segment(b, preset="robust")) for a, b in zip(together, images, strict=True))


def test_single_and_double_precision_agree(blob: Blob) -> None:
    image, _ = blob(40, 40)
    double = segment(image, dtype=torch.float64)
    assert torch.equal(segment(image).mask, double.mask)


def test_large_images_are_searched_small_and_returned_large(blob: Blob) -> None:
    image, truth = blob(300, 400)
    found = segment(image, size=40)
    assert found.mask.shape == truth.shape
    assert mask_scores(found.mask[None], truth[None])["iou_fixed"].item() > 0.97


def test_windows_and_weights_follow_the_size() -> None:
    scaled = Settings(scaled=True)
    assert scaled.inpainting(128, 128, 3) == Inpainting()
    half = scaled.inpainting(64, 64, 3)
    assert (half.sigma, half.taps, half.diversity) == (2.5, 7, 4e-3)
    assert scaled.inpainting(256, 512, 3).diversity == 1e-3 / 8
    assert scaled.inpainting(256, 512, 3).taps == 21
    assert scaled.inpainting(8, 8, 3).taps == 1
    assert Settings().inpainting(999, 20, 1) == Inpainting(diversity=3e-3)


def test_of_several_starts_the_outline_with_most_contrast_is_taken(blob: Blob) -> None:
    image, _ = blob(48, 48)
    image[:, 10:14, 10:14] = 0.9
    single = {m: segment(image, margins=(m,)) for m in (0.05, 0.2, 0.4)}
    found = segment(image, margins=tuple(single))
    assert found.contrast == max(one.contrast for one in single.values())
    assert same(found, single[found.margin])


def test_contrast_and_not_the_score_decides_unless_a_search_failed() -> None:
    differing = failed = 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(1, 3, 6, 6, generator=generator)
        image = torch.nn.functional.interpolate(noise, size=(24, 24), mode="bicubic")[0]
        image = (0.5 + 0.2 * image).clamp(0, 1)
        runs = [segment(image, margins=(margin,)) for margin in (0.1, 0.3)]
        found = segment(image, margins=(0.1, 0.3))
        good = [run for run in runs if "degenerate" not in run.flags] or runs
        assert same(found, max(good, key=lambda run: run.contrast))
        differing += max(runs, key=lambda run: run.score) is not max(
            runs, key=lambda run: run.contrast
        )
        failed += len(good) == 1 and good[0].contrast < max(run.contrast for run in runs)
    assert differing > 3 and failed > 0


def test_a_start_of_ones_own(blob: Blob) -> None:
    image, _ = blob(48, 48)
    start = torch.zeros(48, 48)
    start[5:20, 5:40] = 1
    found = segment(image, start=start, iterations=1)
    expected = ascend(2 * image[None] - 1, start[None].bool(), Inpainting(iterations=1))
    assert torch.equal(found.mask, expected.masks[0]) and math.isnan(found.margin)
    with pytest.raises(RequestError, match="start"):
        segment(image, start=start[:40])


def test_the_frame_can_decide_what_is_background(blob: Blob) -> None:
    image, _ = blob(48, 48)
    start = ~centred_rectangle(48, 48, 0.15)
    found = segment(image, start=start)
    turned = segment(image, start=start, background_at_frame=True)
    assert bool(found.mask[0, 24]) and not bool(turned.mask[0, 24])
    assert torch.equal(turned.mask, ~found.mask)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_constant_image_keeps_its_start(preset: str, value: float) -> None:
    found = segment(torch.full((3, 40, 30), value), preset=preset)
    margin = PRESETS[preset].margins[0]
    assert torch.equal(found.mask, centred_rectangle(40, 30, margin))
    assert found.flags == ("constant",)
    assert (found.score, found.diversity, found.iterations) == (0, 0, 0)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (3, 3), (4, 5), (7, 100)])
def test_tiny_images_have_a_defined_result(preset: str, shape: tuple[int, int]) -> None:
    image = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    found = segment(image, preset=preset)
    assert found.mask.shape == shape and found.mask.dtype is torch.bool
    assert math.isfinite(found.score) and math.isfinite(found.diversity)
    if min(shape) < 3:
        assert found.flags in {("degenerate",), ("constant",)}


def test_a_search_that_was_cut_short_says_so(blob: Blob) -> None:
    assert segment(blob()[0], iterations=2).flags == ("unsettled",)
    assert segment(blob()[0], iterations=2).iterations == 2


def test_no_images() -> None:
    assert segment([]) == []
    assert segment(torch.zeros(0, 3, 8, 8).tolist()) == []


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((3, 8, 8), float("nan")), "nan"),
        (torch.full((3, 8, 8), float("inf")), "inf"),
        (torch.full((3, 8, 8), 1.5), "1.5"),
        (-torch.ones(3, 8, 8), "-1"),
        (torch.zeros(3, 8, 8, dtype=torch.int32), "int32"),
        (np.zeros((8, 8), dtype=complex), "complex"),
        (np.array([["a"]]), "U1"),
        (torch.zeros(5, 8, 8), r"\(5, 8, 8\)"),
        (torch.zeros(3, 0, 8), r"\(3, 0, 8\)"),
        (torch.zeros(1, 1, 3, 8, 8), "batch"),
        (17, "int"),
    ],
)
def test_what_is_no_image_is_refused(images: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        segment(images)


def test_unknown_presets_and_settings() -> None:
    image = torch.rand(3, 8, 8)
    with pytest.raises(RequestError, match="paper, robust, fast"):
        segment(image, preset="best")
    with pytest.raises(RequestError, match="diversity"):
        segment(image, lamda=1)
    with pytest.raises(RequestError, match="float32"):
        segment(image, dtype=torch.float16)
    for name, value in (
        ("features", "hsv"),
        ("margins", (0.5,)),
        ("margins", 0.2),
        ("size", 3),
        ("size", "64"),
        ("size", 20.5),
        ("polish", -1),
        ("sigma", 0),
    ):
        with pytest.raises(RequestError, match=name):
            segment(image, **{name: value})


@pytest.mark.data
def test_reference_scores_on_the_shared_set() -> None:
    root = os.environ.get("LATEWOOD_DATA")
    if not root:
        pytest.skip("LATEWOOD_DATA is not set")

    def load(path: Path) -> np.ndarray[Any, Any]:
        return np.asarray(Image.open(path).resize((128, 128), Image.Resampling.NEAREST))

    expected = {"real": (0.881, 0.876, 31.9), "composite": (0.689, 0.689, 56.7)}
    for kind, (iou, fixed, iterations) in expected.items():
        masks = sorted((Path(root) / "segmentation" / kind).glob("*_mask.png"))
        images = [load(path.with_name(path.name.replace("_mask", ""))) for path in masks]
        truth = [torch.from_numpy(load(path) > 127) for path in masks]
        found = segment(images)
        scores = evaluate_masks([one.mask for one in found], truth)
        assert scores["iou"] == pytest.approx(iou, abs=5e-4)
        assert scores["iou_fixed"] == pytest.approx(fixed, abs=5e-4)
        assert sum(one.iterations for one in found) / len(found) == pytest.approx(iterations, abs=1)
        robust = evaluate_masks([one.mask for one in segment(images, preset="robust")], truth)
        assert robust["iou_fixed"] > fixed


@pytest.mark.parametrize("strip", [1, 100, 10_000])
def test_large_images_are_worked_on_in_strips(
    blob: Blob, monkeypatch: pytest.MonkeyPatch, strip: int
) -> None:
    image, mask = blob(150, 131)
    small = downsample(mask[None].float(), 40)[0] > 0.5
    whole = guided_upsample(small, image)
    monkeypatch.setattr("latewood.segmentation.upsampling.STRIP", strip)
    assert torch.equal(guided_upsample(small, image), whole)


def test_enlarged_rows_are_those_of_the_whole() -> None:
    planes = torch.randn(3, 9, 7, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.interpolate(
        planes[None], size=(50, 31), mode="bilinear", align_corners=False
    )[0]
    for top, rows in ((0, 50), (0, 3), (20, 17), (49, 1)):
        some = _enlarged_rows(planes, top, (rows, 31), 50)
        torch.testing.assert_close(some, whole[:, top : top + rows], atol=1e-5, rtol=0)
