"""Image files of any common format, read without surprises."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from latewood.errors import RequestError, WorkError, listed

__all__ = ["LARGEST", "find_images", "image_array", "read_image", "read_mask"]

LARGEST = 100_000_000
"""Pixels in the largest image that is decoded."""

ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".jp2", ".webp", ".avif", ".tif", ".tiff", ".bmp"),
    *(".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico"),
)


def find_images(
    paths: Sequence[Path], *, recursive: bool = False, passed_over: list[Path] | None = None
) -> list[Path]:
    """The files that are named, and the images in the folders that are, in order of their names.

    In folders, files are images by their ending, or without an ending by their first bytes.

    Args:
        paths: files and folders.
        recursive: folders inside folders too.
        passed_over: gets what lies in the folders and is not taken: other files, and folders
            unless ``recursive``.

    Raises:
        RequestError: a path that does not exist, or no image at all.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside, others = _images_in(path, recursive)
            if not inside:
                there = f" beside {listed(p.name for p in others)}" if others else ""
                raise RequestError(
                    f"'{path}': holds no images{there}; expected files like NAME.png"
                    + ("" if recursive else ", or folders of them with --recursive")
                )
            found += inside
            if passed_over is not None:
                passed_over += others
        elif path.exists():
            found.append(path)
        else:
            raise RequestError(f"'{path}': does not exist; expected image files or folders")
    if not found:
        raise RequestError("IMAGES: none given; expected image files or folders")
    return list(dict.fromkeys(found))


def _images_in(folder: Path, recursive: bool) -> tuple[list[Path], list[Path]]:
    """The images in a folder and what else lies there, by name; hidden files are neither."""
    images: list[Path] = []
    others: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            inner = _images_in(path, recursive) if recursive else ([], [path])
            images, others = images + inner[0], others + inner[1]
        elif path.suffix.lower() in ENDINGS or (not path.suffix and _is_image(path)):
            images.append(path)
        else:
            others.append(path)
    return images, others


def _is_image(path: Path) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(path).close()
    except Exception:  # whatever the decoders raise, it is none
        return False
    return True


def read_image(path: Path) -> np.ndarray[Any, Any]:
    """One image as (height, width) or (height, width, channels), uint8 or uint16.

    The first frame of an animation; turned as its EXIF orientation says; CMYK and palettes as RGB.

    Raises:
        WorkError: it cannot be read as an image, or has more than ``LARGEST`` pixels.
    """
    try:
        # Pillow warns of sizes that are refused here with a clear error.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as opened:
                return image_array(opened)
    except WorkError as error:
        raise WorkError(f"{path}: {error}") from error
    except Exception as error:  # decoders raise anything on damaged bytes
        reason = str(error).replace(str(path), path.name) or type(error).__name__
        raise WorkError(f"{path}: cannot be read as an image: {reason}") from error


def read_mask(path: Path) -> np.ndarray[Any, Any]:
    """A mask as bool (height, width): true where an image file is brighter than half.

    Raises:
        WorkError: it cannot be read as an image.
    """
    values = read_image(path)
    if values.ndim == 3:
        values = values[..., : 3 if values.shape[2] > 2 else 1].max(axis=2)
    mask: np.ndarray[Any, Any] = values > np.iinfo(values.dtype).max // 2
    return mask


def image_array(image: Any) -> np.ndarray[Any, Any]:
    """A Pillow image as an array, uint8 or uint16.

    Raises:
        RequestError: something else than a Pillow image.
        WorkError: more than ``LARGEST`` pixels, or values without a known range.
    """
    if not isinstance(image, Image.Image):
        raise RequestError(
            f"images: got {type(image).__name__}; expected tensors, arrays, Pillow images, paths, "
            "or a list of these"
        )
    if image.width * image.height > LARGEST:
        raise WorkError(
            f"{image.width} x {image.height} pixels are too many; at most {LARGEST:,} are read"
        )
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise WorkError("has 32 bits a pixel; expected 8 or 16")
        return values.astype(np.uint16)
    if image.mode == "F":
        raise WorkError("has floating-point pixels; expected 8 or 16 bits")
    if image.mode in ("PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return np.asarray(image)
