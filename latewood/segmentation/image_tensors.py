"""Whatever people call an image, as a float tensor of one or three channels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latewood.errors import invalid
from latewood.segmentation.image_files import image_array, read_image

__all__ = ["pictures"]

_FULL = {torch.uint8: 255.0, torch.uint16: 65535.0, torch.bool: 1.0}


def pictures(images: Any, dtype: torch.dtype) -> tuple[list[Tensor], bool]:
    """The images as tensors, and whether they were a single one.

    Args:
        images: one image, a batch in one tensor or array, or a sequence of any of these. Tensors
            are (height, width), (channels, height, width) or (n, channels, height, width); arrays
            (height, width), (height, width, channels) or (n, height, width, channels). Channels
            are grey, grey and alpha, RGB, or RGB and alpha. uint8 and uint16 mean 0 to full;
            floats 0 to 1. Pillow images and paths of files are taken as well.
        dtype: of the result.

    Returns:
        Tensors (1 or 3, height, width) in [0, 1] and a flag. What is transparent lies on white; an
        image whose three channels are equal has one.

    Raises:
        RequestError: not an image, values out of range or not finite.
        WorkError: a file that cannot be read as an image.
    """
    if isinstance(images, Sequence) and not isinstance(images, str):
        return [one for image in images for one in pictures(image, dtype)[0]], False
    if isinstance(images, str | Path):
        images = read_image(Path(images))
    elif not isinstance(images, Tensor | np.ndarray):
        images = image_array(images)
    given = tuple(images.shape)
    values = images if isinstance(images, Tensor) else _channels_first(images)
    del images  # one copy of a large image is enough
    if values.dim() == 2:
        values = values[None]
    if values.dim() not in (3, 4) or values.shape[-3] not in (1, 2, 3, 4) or values.numel() == 0:
        raise invalid(
            "images",
            given,
            "(height, width), with 1 to 4 channels first in a tensor and last in an array, "
            "and a batch before that",
        )
    single = values.dim() == 3
    return [_picture(value, dtype) for value in (values[None] if single else values)], single


def _channels_first(array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype.kind not in "buf" or array.dtype.itemsize > 8:
        raise invalid("images", str(array.dtype), "bool, uint8, uint16 or floats")
    planes = np.moveaxis(array, -1, -3) if array.ndim > 2 else array
    return torch.from_numpy(planes.astype(array.dtype.newbyteorder("="), order="C", copy=True))


def _picture(values: Tensor, dtype: torch.dtype) -> Tensor:
    if _is_grey(values):
        values = values[:1]
    if values.dtype in _FULL:
        picture = values.contiguous().to(dtype).div_(_FULL[values.dtype])
    elif values.is_floating_point():
        picture = values.detach().to(dtype)
        low, high = (bound.item() for bound in picture.aminmax())
        if not (low >= 0 and high <= 1):
            raise invalid("images", f"values from {low:g} to {high:g}", "finite floats in [0, 1]")
    else:
        raise invalid("images", str(values.dtype), "bool, uint8, uint16 or floats in [0, 1]")
    if len(picture) in (2, 4):
        picture, alpha = picture[:-1], picture[-1:]
        picture = picture * alpha + (1 - alpha)
    if _is_grey(picture):
        picture = picture[:1]
    return picture.contiguous()


def _is_grey(values: Tensor) -> bool:
    """Whether three channels are equal; most images of three show in the first rows that not."""
    if len(values) != 3:
        return False
    return all(bool((rows == rows[:1]).all()) for rows in (values[:, :64], values))
