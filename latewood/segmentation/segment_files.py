"""Segments image files: masks, overlays and scores on disk, and no file passed over in silence."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latewood.errors import LatewoodError, RequestError, WorkError
from latewood.segmentation.image_files import ENDINGS, find_images, read_image, read_mask
from latewood.segmentation.image_tensors import pictures
from latewood.segmentation.metrics import mask_scores
from latewood.segmentation.segment import Segmentation
from latewood.segmentation.upsampling import downsample
from latewood.terminal.progress import Track

__all__ = ["Done", "means", "overlay", "segment_files"]

PREVIEW = 256
"""Pixels of the longer side of a preview."""

_NO_MEMORY = re.compile("allocate memory|out of memory")

Segmenter = Callable[[Tensor], Segmentation]


@dataclass
class Done:
    """What became of one file.

    Args:
        path: the image.
        name: what its results are called.
        record: what was found, as segmentation.json says it; {} if it failed.
        scores: agreement with the true mask, if there is one.
        error: why it failed, or "".
        preview: small overlay as JPEG.
    """

    path: Path
    name: str
    record: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    error: str = ""
    preview: bytes = b""


def segment_files(
    paths: Sequence[Path],
    out: Path,
    segmenter: Segmenter,
    *,
    overlays: bool = False,
    truth: Path | None = None,
    recursive: bool = False,
    passed_over: list[Path] | None = None,
    track: Track | None = None,
) -> list[Done]:
    """Segments files and folders of images.

    Writes ``OUT/NAME.png`` (0 background, 255 foreground) at the size of the image, with
    ``overlays`` also ``OUT/NAME-overlay.jpg``, and ``OUT/segmentation.json``. A file called
    ``NAME_mask`` beside an image ``NAME`` is taken for its mask, not for an image.

    Args:
        paths: image files and folders of images.
        out: folder of the results; made if need be.
        segmenter: from an image (1 or 3, height, width) in [0, 1] to its segmentation.
        overlays: also write images with the background darkened and the outline drawn.
        truth: folder of true masks, called NAME or NAME_mask, brighter than half in foreground.
        recursive: folders inside folders too; ``out`` itself is left out.
        passed_over: gets the files and folders that are not treated, see ``find_images``.
        track: ``track(items, title, total)`` yields the items and shows progress.

    Returns:
        One entry for each file, failed ones included.

    Raises:
        RequestError: a path that does not exist, no images, or results that would replace images
            or true masks.
        WorkError: the results cannot be written.
    """
    others: list[Path] = []
    files = find_images(paths, recursive=recursive, passed_over=others)
    results = out.resolve()
    if recursive:
        files = [path for path in files if results not in path.resolve().parents]
    if passed_over is not None:
        foreign = ((path, path.resolve()) for path in others)
        passed_over += [p for p, place in foreign if results not in (place, *place.parents)]
    stems = {path.with_suffix("") for path in files}
    files = [path for path in files if not _is_mask(path, stems)]
    if truth is not None and not truth.is_dir():
        raise RequestError(f"--evaluate: '{truth}' is no folder; expected a folder of masks")
    if any(path.parent.resolve() == out.resolve() for path in files):
        raise RequestError(f"--out: '{out}' holds the images; expected another folder")
    if truth is not None and truth.resolve() == out.resolve():
        raise RequestError(f"--out: '{out}' holds the true masks; expected another folder")
    done = [Done(path, name) for path, name in zip(files, _names(files), strict=True)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for one in track(done, "segmenting", len(done)) if track else done:
            _segment_file(one, out, segmenter, overlays, truth)
        records = [{"image": str(one.path), **(one.record or {"error": one.error})} for one in done]
        (out / "segmentation.json").write_text(json.dumps(records, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise WorkError(f"{out}: cannot be written: {error.strerror or error}") from error
    return done


def means(done: Sequence[Done]) -> dict[str, float]:
    """Mean scores over the files that have a true mask; {} if none has."""
    scored = [one.scores for one in done if one.scores]
    return {name: sum(s[name] for s in scored) / len(scored) for name in (scored or [{}])[0]}


def overlay(image: Tensor, mask: Tensor) -> np.ndarray[Any, Any]:
    """An image with the background darkened and the outline drawn.

    Args:
        image: (1 or 3, height, width) in [0, 1].
        mask: bool, (height, width).

    Returns:
        uint8 (height, width, 3).
    """
    shown = image.expand(3, -1, -1) * torch.where(mask, 1.0, 0.35)
    # As thick as people see it at any size.
    width = max(1, round(min(mask.shape) / 200))
    outline = mask & _grown(~mask, width)
    yellow = torch.tensor([1.0, 0.85, 0.1]).view(3, 1, 1).to(image)
    shown = torch.where(outline, yellow, shown)
    pixels: np.ndarray[Any, Any] = (shown * 255).round().to(torch.uint8).movedim(0, -1).numpy()
    return pixels


def _grown(mask: Tensor, width: int) -> Tensor:
    """A mask with all pixels added that are at most so many rows and columns away."""
    planes = mask[None, None].to(torch.float32)
    # Along the columns and then along the rows: as a square, for far less work.
    for kernel, padding in (((2 * width + 1, 1), (width, 0)), ((1, 2 * width + 1), (0, width))):
        planes = torch.nn.functional.max_pool2d(planes, kernel, 1, padding)
    return planes[0, 0] > 0


def _small(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """An image and its mask with at most ``PREVIEW`` pixels a side."""
    factor = max(mask.shape) / PREVIEW
    if factor <= 1:
        return image, mask
    shorter = max(1, round(min(mask.shape) / factor))
    small = downsample(image, shorter)
    size = tuple(small.shape[-2:])
    inside = torch.nn.functional.interpolate(mask[None, None].to(torch.uint8), size=size)
    return small, inside[0, 0] > 0


def _segment_file(
    one: Done, out: Path, segmenter: Segmenter, overlays: bool, truth: Path | None
) -> None:
    try:
        (image,), _ = pictures(read_image(one.path), torch.float32)
        found = segmenter(image)
        expected = None if truth is None else _truth(one.path, truth)
    except LatewoodError as error:
        one.error = str(error)
        return
    except (MemoryError, RuntimeError) as error:
        # torch has no class of its own for an allocation that fails on the CPU.
        if isinstance(error, RuntimeError) and not _NO_MEMORY.search(str(error)):
            raise
        one.error = f"{one.path}: not enough memory"
        return
    if expected is not None:
        if expected.shape != found.mask.shape:
            one.error = (
                f"{one.path}: its true mask has {expected.shape[1]} x {expected.shape[0]} pixels, "
                f"the image {found.mask.shape[1]} x {found.mask.shape[0]}"
            )
            return
        scores = mask_scores(found.mask[None], expected[None])
        one.scores = {name: value.item() for name, value in scores.items()}
    one.record = _record(one, found)
    Image.fromarray(found.mask.to(torch.uint8).numpy() * 255).save(out / f"{one.name}.png")
    if overlays:
        shown = overlay(image, found.mask)
        Image.fromarray(shown).save(out / f"{one.name}-overlay.jpg", quality=92)
    buffer = io.BytesIO()
    Image.fromarray(overlay(*_small(image, found.mask))).save(buffer, "JPEG", quality=82)
    one.preview = buffer.getvalue()


def _truth(path: Path, folder: Path) -> Tensor:
    for stem in (f"{path.stem}_mask", path.stem):
        for ending in ENDINGS:
            candidate = folder / (stem + ending)
            if candidate.is_file() and candidate.resolve() != path.resolve():
                return torch.from_numpy(read_mask(candidate))
    raise WorkError(f"{path}: has no true mask {path.stem}_mask.png or {path.stem}.png in {folder}")


def _is_mask(path: Path, stems: set[Path]) -> bool:
    stem = path.with_suffix("")
    return stem.name.endswith("_mask") and stem.with_name(stem.name.removesuffix("_mask")) in stems


def _names(files: Sequence[Path]) -> list[str]:
    """Names of results: the files' own, told apart by numbers where they are the same."""
    taken: set[str] = set()
    names = []
    for path in files:
        name, number = path.stem, 2
        while name.lower() in taken or f"{name.lower()}-overlay" in taken:
            name, number = f"{path.stem}-{number}", number + 1
        taken.add(name.lower())
        names.append(name)
    return names


def _record(one: Done, found: Segmentation) -> dict[str, Any]:
    return {
        "mask": f"{one.name}.png",
        "foreground": int(found.mask.count_nonzero()) / found.mask.numel(),
        "score": found.score,
        "diversity": found.diversity,
        "contrast": found.contrast,
        "iterations": found.iterations,
        "period": found.period,
        # A given start, or a network, has no margin, and JSON no word for nan.
        "margin": None if math.isnan(found.margin) else found.margin,
        "flags": list(found.flags),
        **({"agreement": one.scores} if one.scores else {}),
    }
