"""The objective of inpainting-error maximisation, its gradient and its search: worked numbers."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latewood.errors import RequestError
from latewood.kernels.inpainting import (
    Inpainting,
    SearchResult,
    ascend,
    ascend_reference,
    evaluate,
    filter_matrix,
    gaussian_taps,
)
from latewood.kernels.inpainting.reference_search import boundary, majority

GREY = [[0, 0.1, 0.2, 0.3], [0.1, 0.9, 0.8, 0.2], [0, 0.7, 1, 0.1], [-0.1, 0, 0.1, 0.2]]
SMALL = Inpainting(sigma=1, taps=3, repetitions=1)


@pytest.fixture(scope="module")
def autograd() -> ModuleType:
    """The same algorithm written with convolutions and autograd."""
    path = Path(__file__).parents[3] / "benchmarks" / "_autograd_segmentation.py"
    spec = importlib.util.spec_from_file_location("autograd_segmentation", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def square(height: int, width: int) -> Tensor:
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, height // 5 : height - height // 5, width // 5 : width - width // 5] = True
    return mask


def waves() -> Tensor:
    i = torch.arange(16, dtype=torch.float64)[:, None]
    j = torch.arange(16, dtype=torch.float64)
    planes = [torch.sin(0.7 * i + 0.3 * c) * torch.cos(0.5 * j - 0.2 * c) for c in range(3)]
    return torch.stack(planes)[None]


def disc_mask() -> Tensor:
    i = torch.arange(64, dtype=torch.float64)
    return ((i[:, None] - 31.5) ** 2 + (i - 31.5) ** 2 <= 14**2)[None]


def disc_image(dtype: torch.dtype = torch.float64) -> Tensor:
    inside = torch.tensor([0.6, -0.2, 0.1], dtype=dtype).view(1, 3, 1, 1)
    outside = torch.tensor([-0.5, 0.3, 0.2], dtype=dtype).view(1, 3, 1, 1)
    return torch.where(disc_mask()[:, None], inside, outside)


def smooth_noise(seed: int, height: int, width: int, n: int = 1) -> Tensor:
    """Blobs with colours of their own, as float32 in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, 3, height // 6 + 2, width // 6 + 2, generator=generator)
    large = torch.nn.functional.interpolate(noise, size=(height, width), mode="bicubic")
    fine = torch.randn(n, 3, height, width, generator=generator)
    return (0.4 * large + 0.05 * fine).clamp(-1, 1)


@pytest.mark.parametrize(
    ("sigma", "taps", "expected"),
    [
        (
            5,
            11,
            [0.0663416657, 0.0794253941, 0.0913609498, 0.1009694648, 0.1072130678, 0.1093789154],
        ),
        (2.5, 7, [0.0923272001, 0.1377359973, 0.1750967696, 0.1896800661]),
        (1, 3, [0.2740686191, 0.4518627619]),
    ],
)
def test_taps(sigma: float, taps: int, expected: list[float]) -> None:
    window = gaussian_taps(sigma, taps)
    torch.testing.assert_close(window[: taps // 2 + 1].tolist(), expected, rtol=0, atol=1e-10)
    assert torch.equal(window, window.flip(0))


def test_the_filter_is_repeated_zero_padded_convolution() -> None:
    chosen = Inpainting()
    image = torch.randn(1, 1, 24, 31, dtype=torch.float64, generator=torch.manual_seed(0))
    window = gaussian_taps(5, 11)
    expected = image
    for _ in range(2):
        expected = torch.nn.functional.conv2d(expected, window.view(1, 1, -1, 1), padding=(5, 0))
        expected = torch.nn.functional.conv2d(expected, window.view(1, 1, 1, -1), padding=(0, 5))
    rows, columns = filter_matrix(24, chosen), filter_matrix(31, chosen)
    torch.testing.assert_close(rows @ image @ columns, expected)
    assert torch.equal(rows, rows.T)
    assert torch.equal(filter_matrix(9, Inpainting(taps=1)), torch.eye(9, dtype=torch.float64))


def test_the_filter_on_averaged_pixels() -> None:
    chosen = Inpainting(sigma=2.5, taps=7, downscale=2)
    image = torch.randn(1, 1, 12, 20, dtype=torch.float64, generator=torch.manual_seed(0))
    window = gaussian_taps(2.5, 7)
    small = torch.nn.functional.avg_pool2d(image, 2)
    for _ in range(2):
        small = torch.nn.functional.conv2d(small, window.view(1, 1, -1, 1), padding=(3, 0))
        small = torch.nn.functional.conv2d(small, window.view(1, 1, 1, -1), padding=(0, 3))
    expected = torch.nn.functional.interpolate(small, scale_factor=2, mode="nearest")
    torch.testing.assert_close(
        filter_matrix(12, chosen) @ image @ filter_matrix(20, chosen), expected
    )


def test_four_by_four_by_hand() -> None:
    image = torch.tensor(GREY, dtype=torch.float64).expand(1, 3, 4, 4)
    mask = torch.zeros(1, 4, 4)
    mask[:, 1:3, 1:3] = 1
    found = evaluate(image, mask, SMALL)
    assert found.foreground_error.item() == pytest.approx(3, abs=1e-6)
    assert found.background_error.item() == pytest.approx(9, abs=1e-6)
    assert found.inpainting.item() == pytest.approx(1.5, abs=1e-7)
    assert found.diversity.item() == pytest.approx(0.57, abs=1e-12)
    inner = found.from_background[0, 0, 1:3, 1:3].flatten().tolist()
    assert inner == pytest.approx([0.0841205420, 0.1841205166, 0.0158794834, 0.1158794581])
    corners = found.from_foreground[0, 0, [0, 0, 3, 3], [0, 3, 0, 3]].tolist()
    assert corners == pytest.approx([0.8999999734, 0.8000000266, 0.7000000799, 0.9999999201])
    slope = found.inpainting_gradient[0]
    assert slope[1:3, 1:3].flatten().tolist() == pytest.approx(
        [0.3099277797, 0.2017545870, 0.1883138570, 0.3542142673]
    )
    assert slope[0, 0].item() == pytest.approx(-0.4810009156)
    spread = found.diversity_gradient[0]
    assert spread[0].tolist() == pytest.approx([2.1375, 1.6875, 1.2375, 0.7875])
    assert spread[1:3, 1:3].flatten().tolist() == pytest.approx(
        [-1.9125, -1.4625, -1.0125, -2.3625]
    )


def test_sixteen_by_sixteen() -> None:
    found = evaluate(waves(), square(16, 16), Inpainting())
    assert found.inpainting.item() == pytest.approx(0.8584242255371557, rel=1e-8)
    assert found.foreground_error.item() == pytest.approx(38.27617065, rel=1e-8)
    assert found.background_error.item() == pytest.approx(74.20335297, rel=1e-8)
    assert found.diversity.item() == pytest.approx(209.62754992617116, rel=1e-8)
    table = {
        (3, 3): (0.001109497825, 0.033665680945),
        (3, 8): (-0.000503624504, -0.137677804219),
        (2, 5): (-0.000824095239, -0.178725865159),
        (12, 12): (0.000336001417, 0.162007485549),
        (8, 13): (0.001154475509, -0.109209796044),
        (0, 0): (0.000921080411, 0.057882039943),
    }
    slope, spread = found.inpainting_gradient[0], found.diversity_gradient[0]
    for pixel, (first, second) in table.items():
        assert slope[pixel].item() == pytest.approx(first, abs=1e-11)
        assert spread[pixel].item() == pytest.approx(second, abs=1e-11)
    assert slope.sum().item() == pytest.approx(0.2032285354, rel=1e-8)
    assert slope.abs().sum().item() == pytest.approx(0.3539529896, rel=1e-8)
    assert int(boundary(square(16, 16)).sum()) == 136


def test_sixteen_by_sixteen_iteration_by_iteration() -> None:
    outcomes = [ascend(waves(), square(16, 16), Inpainting(iterations=k)) for k in range(11)]
    counts = [int(outcome.masks.sum()) for outcome in outcomes]
    assert counts == [100, 137, 189, 221, 243, 249, 252, 246, 243, 247, 251]
    values = [outcome.inpainting.item() for outcome in outcomes]
    expected = [0.8584242255, 0.9422944517, 1.1687151651, 1.3755964260]
    assert values[:4] == pytest.approx(expected, rel=1e-8)
    assert values[6:8] == pytest.approx([1.5341985, 1.0025509], rel=1e-6)
    unsmoothed = ascend(waves(), square(16, 16), Inpainting(iterations=1, neighbours=None))
    assert int(unsmoothed.masks.sum()) == 136


@given(st.integers(0, 10**6), st.sampled_from([0.0, 1e-3, 1.0]))
@settings(max_examples=20, deadline=None)
def test_the_closed_form_is_the_gradient_at_soft_masks(seed: int, diversity: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 2, 13, 9, dtype=torch.float64, generator=generator) * 2 - 1
    mask = torch.rand(1, 13, 9, dtype=torch.float64, generator=generator) * 0.8 + 0.1
    direction = torch.randn(1, 13, 9, dtype=torch.float64, generator=generator)
    chosen = Inpainting(diversity=diversity, sigma=2, taps=5)

    def value(step: float) -> float:
        found = evaluate(image, mask + step * direction, chosen)
        return (found.inpainting - diversity * found.diversity).item()

    found = evaluate(image, mask, chosen)
    slope = found.inpainting_gradient - diversity * found.diversity_gradient
    # Where an error changes its sign within the step, the difference quotient is off by a little.
    h = 1e-6
    numeric = (value(h) - value(-h)) / (2 * h)
    assert (slope * direction).sum().item() == pytest.approx(numeric, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_closed_form_is_autograds_gradient(autograd: ModuleType, dtype: torch.dtype) -> None:
    images = smooth_noise(3, 40, 32, n=2).to(dtype)
    masks = square(40, 32).expand(2, -1, -1)
    soft = masks[:, None].to(dtype).requires_grad_()
    errors, spread = autograd.objective(images, soft)
    (slope,) = torch.autograd.grad(errors.sum(), soft, retain_graph=True)
    (widening,) = torch.autograd.grad(spread.sum(), soft)
    found = evaluate(images, masks, Inpainting())
    tolerance = 1e-10 if dtype is torch.float64 else 1e-5
    for ours, theirs in [
        (found.inpainting, errors),
        (found.diversity, spread),
        (found.inpainting_gradient, slope[:, 0]),
        (found.diversity_gradient, widening[:, 0]),
    ]:
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours.to(dtype), theirs.detach(), rtol=0, atol=tolerance * scale)


def test_far_from_everything_visible_the_prediction_is_the_mean() -> None:
    image = smooth_noise(0, 64, 64).double()
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, 4:60, 4:60] = True
    found = evaluate(image, mask, Inpainting())
    outside = image[0][:, ~mask[0]]
    far = found.from_background[0, :, 14:50, 14:50].flatten(1)
    torch.testing.assert_close(far, outside.mean(1)[:, None].expand_as(far), rtol=0, atol=1e-12)
    for predicted, visible in (
        (found.from_background, outside),
        (found.from_foreground, image[0][:, mask[0]]),
    ):
        low, high = visible.min(1).values - 1e-12, visible.max(1).values + 1e-12
        values = predicted[0].flatten(1)
        assert bool(((values >= low[:, None]) & (values <= high[:, None])).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_far_field_survives_single_precision(dtype: torch.dtype) -> None:
    image = smooth_noise(0, 64, 64).to(dtype)
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, 4:60, 4:60] = True
    found = evaluate(image, mask, Inpainting())
    means = image[0][:, ~mask[0]].double().mean(1)
    far = found.from_background[0, :, 14:50, 14:50].double().flatten(1)
    torch.testing.assert_close(far, means[:, None].expand_as(far), rtol=0, atol=1e-6)


def test_nothing_but_dust_is_visible_far_away() -> None:
    # Half the image is one bright colour: its sums leave dust that would tint the far field.
    image = torch.full((1, 3, 200, 24), -1.0)
    image[:, :, 4:] = 0.999
    mask = torch.zeros(1, 200, 24, dtype=torch.bool)
    mask[:, 4:] = True
    found = evaluate(image, mask, Inpainting())
    assert bool((found.from_background[0, :, 20:] == -1).all())


def test_pixels_without_a_gradient_stay() -> None:
    # Errors and diversity weigh nothing where all is of one colour and lambda is 0.
    image = torch.zeros(1, 1, 12, 12)
    for value in (ascend, ascend_reference):
        found = value(image, square(12, 12), Inpainting(iterations=1, diversity=0, neighbours=None))
        assert torch.equal(found.masks, square(12, 12))


def test_two_coloured_disc() -> None:
    image, truth = disc_image(), disc_mask()
    assert int(truth.sum()) == 616
    for diversity in (0.0, 1e-3):
        start = ascend(image, square(64, 64), Inpainting(iterations=0, diversity=diversity))
        assert start.inpainting.item() == pytest.approx(0.2650422625, rel=1e-8)
        assert start.diversity.item() == pytest.approx(556.8948, rel=1e-6)
        end = ascend(image, square(64, 64), Inpainting(diversity=diversity))
        assert (end.iterations.item(), end.period.item()) == (11, 1)
        assert int(end.masks.sum()) == 632 and bool((truth <= end.masks).all())
        assert end.inpainting.item() == pytest.approx(1.0767243656, rel=1e-8)
        assert end.diversity.item() == pytest.approx(22.9245570, rel=1e-7)
    one = ascend(image, square(64, 64), Inpainting(iterations=1))
    assert one.inpainting.item() == pytest.approx(0.3148436631, rel=1e-8)
    assert one.diversity.item() == pytest.approx(519.2316898, rel=1e-8)


def test_one_step_without_smoothing_takes_the_bias_away() -> None:
    stopped = ascend(disc_image(), square(64, 64), Inpainting()).masks
    polished = ascend(disc_image(), stopped, Inpainting(iterations=1, neighbours=None)).masks
    assert torch.equal(polished, disc_mask())


def test_the_objective_falls_with_every_pixel_of_erosion_and_dilation() -> None:
    def value(mask: Tensor) -> float:
        return evaluate(disc_image(), mask, Inpainting()).inpainting.item()

    def grown(mask: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(mask, (1, 1, 1, 1))
        return (
            mask | padded[:, :-2, 1:-1] | padded[:, 2:, 1:-1] | padded[:, 1:-1, :-2]
            | padded[:, 1:-1, 2:]
        )  # fmt: skip

    assert value(disc_mask()) == pytest.approx(1.1333333333)
    assert evaluate(disc_image(), disc_mask(), Inpainting()).diversity.item() < 1e-9
    wide, narrow = disc_mask(), disc_mask()
    dilated = [0.905106, 0.755262, 0.642238, 0.552286, 0.478493]
    eroded = [0.943963, 0.817140, 0.725523, 0.656383, 0.603311]
    for outer, inner in zip(dilated, eroded, strict=True):
        wide, narrow = grown(wide), ~grown(~narrow)
        assert value(wide) == pytest.approx(outer, abs=1e-6)
        assert value(narrow) == pytest.approx(inner, abs=1e-6)


def test_boundary() -> None:
    mask = torch.zeros(1, 7, 7, dtype=torch.bool)
    mask[:, 3, 3] = True
    edges = boundary(mask)[0]
    frame = 24
    assert int(edges.sum()) == frame + 5
    assert bool(edges[3, 3] and edges[2, 3] and edges[3, 4] and not edges[2, 2])


def test_smoothing() -> None:
    def smoothed(*rows: str) -> list[str]:
        mask = torch.tensor([[letter == "#" for letter in row] for row in rows])
        return [
            "".join(".#"[value] for value in row) for row in majority(mask[None], 4)[0].tolist()
        ]

    empty = ["....."] * 5
    assert smoothed(".....", ".....", "..#..", ".....", ".....") == empty
    assert smoothed(".....", "..#..", "..#..", "..#..", ".....") == empty
    block = [".....", ".##..", ".##..", ".....", "....."]
    assert smoothed(*block) == block
    cornered = ["......", ".####.", ".####.", ".##...", ".##...", "......"]
    filled = ["......", ".####.", ".####.", ".###..", ".##...", "......"]
    assert smoothed(*cornered) == filled
    kept = square(16, 16)
    assert torch.equal(majority(kept, 4), kept)


@pytest.mark.parametrize("seed", range(4))
def test_masks_are_those_of_autograd(autograd: ModuleType, seed: int) -> None:
    images = smooth_noise(seed, 48, 40).double()
    expected = autograd.search(images, square(48, 40), iterations=25)
    found = ascend(images, square(48, 40), Inpainting(iterations=25))
    assert torch.equal(found.masks, expected)


def _plain(image: Tensor, mask: Tensor, chosen: Inpainting) -> Tensor:
    """Every iteration done, nothing stopped early."""
    for _ in range(chosen.iterations):
        found = evaluate(image, mask, chosen)
        slope = found.inpainting_gradient - chosen.diversity * found.diversity_gradient
        mask = torch.where(boundary(mask) & (slope != 0), slope > 0, mask)
        mask = majority(mask, 4)
    return mask


def test_stopping_at_a_cycle_changes_no_mask() -> None:
    periods = set()
    for seed in range(60):
        image = smooth_noise(seed, 20, 20).double()
        found = ascend_reference(image, square(20, 20), Inpainting(iterations=150))
        if found.degenerate.item():
            continue
        period, steps = found.period.item(), found.iterations.item()
        if period not in periods:
            periods.add(period)
            for iterations in (steps, steps + 1, steps + 2, 150):
                chosen = Inpainting(iterations=iterations)
                stopped = ascend_reference(image, square(20, 20), chosen).masks
                assert torch.equal(stopped, _plain(image, square(20, 20), chosen))
    assert {1, 2} <= periods and len(periods) >= 3


@pytest.mark.parametrize("case", ["negated", "permuted", "flipped", "transposed", "shifted"])
def test_invariances(case: str) -> None:
    image = smooth_noise(1, 48, 48)
    start = square(48, 48)
    expected = ascend(image, start, Inpainting()).masks
    if case == "negated":
        found = ascend(-image, start, Inpainting()).masks
    elif case == "permuted":
        found = ascend(image[:, [2, 0, 1]], start, Inpainting()).masks
    elif case == "flipped":
        found = ascend(image.flip(-1), start, Inpainting()).masks.flip(-1)
    elif case == "transposed":
        found = ascend(image.mT.contiguous(), start, Inpainting()).masks.mT
    else:
        found = ascend(image + 0.25, start, Inpainting()).masks
    assert torch.equal(found, expected)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_contrast_is_equivalent_to_diversity(factor: float) -> None:
    image = smooth_noise(2, 48, 48).double()
    expected = ascend(image, square(48, 48), Inpainting()).masks
    chosen = Inpainting(diversity=1e-3 / factor)
    assert torch.equal(ascend(factor * image, square(48, 48), chosen).masks, expected)


def test_the_objective_is_symmetric_in_the_two_regions() -> None:
    image, mask = smooth_noise(5, 30, 30).double(), square(30, 30)
    one, other = (evaluate(image, m, Inpainting()) for m in (mask, ~mask))
    torch.testing.assert_close(one.inpainting, other.inpainting)
    torch.testing.assert_close(one.diversity, other.diversity)
    torch.testing.assert_close(one.inpainting_gradient, -other.inpainting_gradient)


def test_grey_is_colour_with_a_third_of_the_diversity() -> None:
    grey = smooth_noise(4, 40, 40)[:, :1].double()
    for iterations in range(1, 30, 4):
        one = ascend(grey, square(40, 40), Inpainting(iterations=iterations, diversity=3e-3))
        three = ascend(
            grey.expand(-1, 3, -1, -1), square(40, 40), Inpainting(iterations=iterations)
        )
        assert torch.equal(one.masks, three.masks)


def test_an_image_does_not_depend_on_its_batch() -> None:
    images = smooth_noise(6, 36, 44, n=5)
    start = square(36, 44).expand(5, -1, -1)
    together = ascend(images, start, Inpainting(iterations=60))
    for i in range(5):
        alone = ascend(images[i : i + 1], start[:1], Inpainting(iterations=60))
        for name in SearchResult.__dataclass_fields__:
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[i])


def test_batches_give_the_masks_of_single_images() -> None:
    from latewood.kernels.inpainting.reference_search import _search

    images = smooth_noise(7, 24, 24, n=6).double()
    start = square(24, 24).repeat(6, 1, 1)
    start[3] = True
    batch = _search(images, start, Inpainting(iterations=80))
    for i in range(6):
        alone = _search(images[i : i + 1], start[i : i + 1], Inpainting(iterations=80))
        assert all(
            torch.equal(one[0], all_[i]) for one, all_ in zip(alone[:4], batch[:4], strict=True)
        )


def test_a_region_that_becomes_empty_ends_the_search_with_the_best_mask_before() -> None:
    degenerate = 0
    for seed in range(20):
        image = smooth_noise(seed, 24, 24).double()
        found = ascend(image, square(24, 24), Inpainting())
        assert 0 < int(found.masks.sum()) < 576
        assert math.isfinite(found.inpainting.item())
        if found.degenerate.item():
            degenerate += 1
            steps = found.iterations.item()
            before = [ascend(image, square(24, 24), Inpainting(iterations=k)) for k in range(steps)]
            values = [(b.inpainting - 1e-3 * b.diversity).item() for b in before]
            best = before[values.index(max(values))]
            assert torch.equal(found.masks, best.masks)
            assert torch.equal(found.inpainting, best.inpainting)
    assert degenerate >= 3


def test_a_start_with_one_region_is_returned_as_it_is() -> None:
    for value in (False, True):
        mask = torch.full((1, 9, 9), value)
        found = ascend(smooth_noise(0, 9, 9), mask, Inpainting())
        assert torch.equal(found.masks, mask) and bool(found.degenerate)
        assert (found.inpainting.item(), found.diversity.item()) == (0, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sigma", 0.0),
        ("taps", 4),
        ("taps", -1),
        ("repetitions", 0),
        ("downscale", 0),
        ("diversity", -1.0),
        ("iterations", -1),
        ("neighbours", 10),
    ],
)
def test_settings_out_of_range(name: str, value: float) -> None:
    with pytest.raises(RequestError, match=name):
        Inpainting(**{name: value})  # type: ignore[arg-type]


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(RequestError, match="masks"):
        ascend(torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 9), Inpainting())
    with pytest.raises(RequestError, match="images"):
        ascend(torch.zeros(3, 8, 8), torch.zeros(1, 8, 8), Inpainting())
    with pytest.raises(RequestError, match="downscale"):
        ascend(torch.zeros(1, 3, 9, 9), square(9, 9), Inpainting(downscale=2))
