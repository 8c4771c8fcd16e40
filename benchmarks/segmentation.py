"""Segmentation over the autograd form of its algorithm, and over OpenCV's GrabCut: CPU time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor

from benchmarks import _autograd_segmentation as autograd
from benchmarks._timing import print_table
from latewood.kernels.dispatch import native
from latewood.segmentation import centred_rectangle, segment

__all__ = ["main"]

SIDE = 128


def main(arguments: list[str]) -> None:
    """Prints milliseconds of CPU time an image, and ratios, at batch 1 and batch 32.

    Args:
        arguments: rounds of the quick candidates, 5 if left out. The autograd form takes seconds
            an image and is timed over a tenth of its iterations.
    """
    rounds = int(arguments[0]) if arguments else 5
    torch.set_num_threads(1)
    if native() is None:
        print("the compiled kernels are not built: 'native' below is the reference")
    images = _photographs()
    rows = []
    for batch in (1, 32):
        some = images[:4] if batch == 1 else images[torch.arange(batch) % len(images)]
        rows += _compare(some, batch, rounds)
    print_table(
        "Segmentation of 128 x 128 photographs, 150 iterations, preset paper",
        ["batch", "form", "CPU ms an image", "autograd over it", "masks equal to autograd's"],
        rows,
    )
    _against_grabcut(images, rounds)


def _compare(images: Tensor, batch: int, rounds: int) -> list[list[str]]:
    features = 2 * images - 1
    start = centred_rectangle(SIDE, SIDE).expand(len(images), -1, -1)
    parts = features.split(batch), start.split(batch)

    def peer(iterations: int) -> Tensor:
        return torch.cat(
            [autograd.search(x, m, iterations=iterations) for x, m in zip(*parts, strict=True)]
        )

    # All its iterations cost the same; a tenth of them, ten times, is the whole.
    slow = 10 * _least(lambda: peer(15), 2) / len(images)
    expected = torch.cat(
        [autograd.search(x[None], m[None]) for x, m in zip(features[:4], start, strict=False)]
    )
    rows = [[str(batch), "autograd", f"{1e3 * slow:.0f}", "1", ""]]
    for form in ("reference", "native"):
        os.environ["LATEWOOD_KERNELS"] = form

        def ours() -> list[Tensor]:
            return [one.mask for part in images.split(batch) for one in segment(part)]

        seconds = _least(ours, rounds if form == "native" else 2) / len(images)
        same = sum(torch.equal(a, b) for a, b in zip(ours(), expected, strict=False))
        rows.append(
            [
                str(batch),
                form,
                f"{1e3 * seconds:.1f}",
                f"{slow / seconds:.0f}",
                f"{same} of {len(expected)}",
            ]
        )
    return rows


def _against_grabcut(images: Tensor, rounds: int) -> None:
    try:
        import cv2
    except ImportError:
        print("\nOpenCV is not installed: no comparison with GrabCut")
        return
    cv2.setNumThreads(1)
    bytes_ = [(image.movedim(0, -1).numpy() * 255).astype(np.uint8) for image in images]
    margin = SIDE // 5
    rectangles = {
        "centre square": (margin, margin, SIDE - 2 * margin, SIDE - 2 * margin),
        "one pixel inside the frame": (1, 1, SIDE - 2, SIDE - 2),
    }

    def cut(rectangle: tuple[int, ...]) -> Callable[[], None]:
        def run() -> None:
            for image in bytes_:
                models = np.zeros((1, 65)), np.zeros((1, 65))
                mask = np.zeros(image.shape[:2], np.uint8)
                cv2.grabCut(image, mask, rectangle, *models, 5, cv2.GC_INIT_WITH_RECT)

        return run

    candidates: dict[str, Callable[[], object]] = {
        f"GrabCut, {name}": cut(rectangle) for name, rectangle in rectangles.items()
    }
    for preset in ("paper", "robust", "fast"):
        candidates[f"latewood, {preset}"] = lambda preset=preset: segment(bytes_, preset=preset)
    seconds = {name: _least(run, rounds) / len(images) for name, run in candidates.items()}
    peer = seconds["GrabCut, one pixel inside the frame"]
    print_table(
        f"Segmentation against GrabCut (OpenCV {cv2.__version__}, 5 iterations), 128 x 128",
        ["candidate", "CPU ms an image", "over GrabCut with the large rectangle"],
        [[name, f"{1e3 * s:.1f}", f"{s / peer:.2f}"] for name, s in seconds.items()],
    )


def _least(run: Callable[[], object], rounds: int) -> float:
    """The least CPU time: what else the machine does then matters little."""
    best = float("inf")
    for _ in range(rounds):
        begun = time.process_time()
        run()
        best = min(best, time.process_time() - begun)
    return best


def _photographs() -> Tensor:
    """Eight square cuts of scikit-image's photographs, shrunk to 128 pixels."""
    cuts = []
    for image in (data.astronaut(), data.coffee(), data.chelsea(), data.rocket()):
        side = min(image.shape[:2])
        for left in (0, image.shape[1] - side):
            square = torch.from_numpy(image[:side, left : left + side].copy()).movedim(-1, 0)
            cuts.append(F.interpolate(square[None] / 255, size=(SIDE, SIDE), mode="area")[0])
    return torch.stack(cuts)
