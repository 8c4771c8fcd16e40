"""The compiled search against its reference: same masks, on any threads and instruction sets."""

from __future__ import annotations

import hashlib
import os

import pytest
import torch
from torch import Tensor
from warm_python import run

from latewood.errors import RequestError
from latewood.kernels.dispatch import native
from latewood.kernels.inpainting import Inpainting, SearchResult, ascend, ascend_reference

pytestmark = pytest.mark.skipif(native() is None, reason="the compiled kernels are not built")

SEARCH = """
import hashlib, torch
from latewood.kernels.inpainting import Inpainting, ascend
i = torch.arange(40.0)
grid = torch.stack([(i[:, None] * (0.2 + 0.05 * c)).sin() * (i * 0.13).cos() for c in range(3)])
noise = torch.randn(4, 3, 40, 40, generator=torch.Generator().manual_seed(0))
start = torch.zeros(4, 40, 40, dtype=torch.bool)
start[:, 8:32, 8:32] = True
found = ascend(0.5 * grid + 0.1 * noise, start, Inpainting(iterations=60))
digest = hashlib.sha256(found.masks.numpy().tobytes() + found.inpainting.numpy().tobytes())
"""


def images(seed: int, n: int, channels: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, channels, height // 6 + 2, width // 6 + 2, generator=generator)
    large = torch.nn.functional.interpolate(noise, size=(height, width), mode="bicubic")
    fine = torch.randn(n, channels, height, width, generator=generator)
    return (0.4 * large + 0.05 * fine).clamp(-1, 1)


def starts(n: int, height: int, width: int) -> Tensor:
    masks = torch.zeros(n, height, width, dtype=torch.bool)
    masks[:, height // 5 : height - height // 5, width // 5 : width - width // 5] = True
    return masks


@pytest.mark.parametrize(
    ("channels", "height", "width", "chosen"),
    [
        (3, 64, 64, Inpainting()),
        (1, 37, 61, Inpainting(diversity=3e-3)),
        (2, 61, 17, Inpainting(sigma=2.5, taps=7)),
        (3, 33, 40, Inpainting(sigma=8, taps=21, repetitions=1)),
        (3, 40, 33, Inpainting(sigma=1, taps=3, repetitions=3)),
        (3, 40, 40, Inpainting(neighbours=5, diversity=0)),
        (3, 40, 40, Inpainting(neighbours=None, iterations=7)),
        (3, 40, 40, Inpainting(iterations=0)),
        (3, 48, 48, Inpainting(taps=1)),
        (3, 6, 7, Inpainting()),
    ],
    ids=str,
)
def test_same_masks_as_the_reference(
    channels: int, height: int, width: int, chosen: Inpainting
) -> None:
    some, start = images(1, 6, channels, height, width), starts(6, height, width)
    found = ascend(some, start, chosen)
    expected = ascend_reference(some, start, chosen)
    for name in ("masks", "iterations", "period", "degenerate"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    torch.testing.assert_close(found.inpainting, expected.inpainting, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.diversity, expected.diversity, rtol=1e-5, atol=1e-4)


def test_the_compiled_form_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    import latewood.kernels.inpainting as module

    def refuse(*arguments: object) -> None:
        raise AssertionError("the reference ran")

    monkeypatch.setattr(module, "ascend_reference", refuse)
    some = images(0, 1, 3, 16, 16)
    ascend(some, starts(1, 16, 16), Inpainting(iterations=1))
    ascend(some.to(memory_format=torch.channels_last), starts(1, 16, 16), Inpainting(iterations=1))
    for other, chosen in ((some.double(), Inpainting()), (some, Inpainting(downscale=2))):
        with pytest.raises(AssertionError, match="the reference ran"):
            ascend(other, starts(1, 16, 16), chosen)


def test_degenerate_and_cyclic_searches() -> None:
    some, start = images(3, 120, 3, 24, 24), starts(120, 24, 24)
    start[7], start[8] = True, False
    found, expected = ascend(some, start, Inpainting()), ascend_reference(some, start, Inpainting())
    assert bool(found.degenerate[[7, 8]].all()) and int(found.degenerate.sum()) > 5
    assert len(found.period.unique()) >= 4
    for name in ("masks", "iterations", "period", "degenerate"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("threads", [2, 5])
def test_neither_threads_nor_the_batch_change_a_bit(threads: int) -> None:
    some, start = images(5, 9, 3, 32, 44), starts(9, 32, 44)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [ascend(some[i : i + 1], start[:1], Inpainting()) for i in range(9)]
        torch.set_num_threads(threads)
        together = ascend(some, start, Inpainting())
    finally:
        torch.set_num_threads(before)
    for name in SearchResult.__dataclass_fields__:
        one = torch.cat([getattr(outcome, name) for outcome in alone])
        assert torch.equal(one, getattr(together, name)), name


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2"])
def test_instruction_sets_give_the_same_bits(instruction_set: str) -> None:
    namespace: dict[str, hashlib._Hash] = {}
    exec(SEARCH, namespace)
    done = run(
        ["-c", SEARCH + "print(digest.hexdigest())"],
        env={**os.environ, "LATEWOOD_INSTRUCTION_SET": instruction_set},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == namespace["digest"].hexdigest()


def test_images_and_masks_that_are_not_there_are_refused() -> None:
    some, start = images(0, 2, 3, 16, 16), starts(2, 16, 16)
    freed = some.clone()
    freed.untyped_storage().resize_(0)
    with pytest.raises(RequestError, match="images, bytes in its storage: got 0"):
        ascend(freed, start, Inpainting())
    freed = start.clone()
    freed.untyped_storage().resize_(100)
    with pytest.raises(RequestError, match="masks, bytes in its storage: got 100"):
        ascend(some, freed, Inpainting())
    with pytest.raises(RequestError, match="masks: got 'meta'"):
        ascend(some, start.to("meta"), Inpainting())
    for shape in ((2, 0, 16, 16), (2, 3, 0, 16), (2, 3, 16, 0)):
        with pytest.raises(RequestError, match="images: got"):
            ascend(torch.zeros(shape), torch.zeros(2, *shape[2:], dtype=torch.bool), Inpainting())


def test_masks_in_other_memory_give_the_same_result() -> None:
    some, start = images(0, 2, 3, 16, 20), starts(2, 16, 20)
    expected = ascend(some, start, Inpainting())
    gaps = torch.stack([start, ~start], -1)[..., 0]
    for other in (gaps, start.float(), start.mT.contiguous().mT):
        assert torch.equal(ascend(some, other, Inpainting()).masks, expected.masks)


def test_the_binding_refuses_sizes_that_do_not_go_together() -> None:
    result = [torch.empty(2, 16, 16, dtype=torch.bool)]
    result += [torch.empty(2, dtype=torch.int64) for _ in range(2)]
    result += [torch.empty(2, dtype=torch.bool)]
    result += [torch.empty(2, dtype=torch.float64) for _ in range(2)]
    some, start = images(0, 2, 3, 16, 16), starts(2, 16, 16)
    tail = (2, 3, 16, 16, [0.6, 0.2], 2, 4, 1e-3, 3, 1)
    compiled = native()
    assert compiled is not None
    compiled.inpainting_ascend(some, start, *result, *tail)
    for wrong in (some[:1], some.double(), some.mT, some[:, :2].contiguous()):
        with pytest.raises(ValueError, match="tensor"):
            compiled.inpainting_ascend(wrong, start, *result, *tail)
    with pytest.raises(ValueError, match="tensor"):
        compiled.inpainting_ascend(some, start.float(), *result, *tail)
    for place in range(6):
        wrong_result = [t[:1] if k == place else t for k, t in enumerate(result)]
        with pytest.raises(ValueError, match="tensor"):
            compiled.inpainting_ascend(some, start, *wrong_result, *tail)
    with pytest.raises(ValueError, match="settings"):
        compiled.inpainting_ascend(some, start, *result, 2, 3, 16, 16, [], 2, 4, 1e-3, 3, 1)


def test_bytes_seen_as_bool_count_as_true() -> None:
    start = starts(2, 9, 11)
    seen = (start.to(torch.uint8) * 255).view(torch.bool)
    for picture in (images(3, 2, 3, 9, 11), images(3, 2, 3, 9, 11).double()):
        result, expected = (ascend(picture, masks, Inpainting()) for masks in (seen, start))
        assert torch.equal(result.masks, expected.masks)
        assert torch.equal(result.inpainting, expected.inpainting)


def test_no_images_without_pixels_are_refused() -> None:
    with pytest.raises(RequestError, match=r"images: got .*; expected one channel, row and"):
        ascend(torch.zeros(0, 0, 5, 5), torch.zeros(0, 5, 5, dtype=torch.bool), Inpainting())
