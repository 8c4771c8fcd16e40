"""Images as tensors: opened from any source, decoded once, split and standardised."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from latewood.errors import RequestError, WorkError, invalid
from latewood.tasks.data.datasets import Normalise, TensorDataset, stratified_prefix
from latewood.tasks.data.decoded import decoded
from latewood.tasks.data.locate import open_splits
from latewood.tasks.data.sources import Encoded, SampleSource, check_label, content_hash
from latewood.terminal.progress import progress

__all__ = ["decode_image", "decode_images", "image_splits", "load_images"]

DEPTH = {1: "L", 3: "RGB"}
BLOCK = 64


def image_splits(
    *,
    task: str,
    names: Sequence[str],
    hub_name: str,
    folder: str | None,
    hub: str | None,
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    validation: int | None,
    stratified: bool,
    split_seed: int,
    limit_train: int | None,
    limit_validation: int | None,
) -> tuple[TensorDataset, TensorDataset]:
    """The training and the validation images of a task, as bytes that are standardised on reading.

    Args:
        task: the task's name.
        names: what its folder may be called.
        hub_name: where the hub has it, for the error that says so.
        folder: folder of the data; None looks in the usual places.
        hub: data set on the hub to use instead.
        classes: number of classes.
        mean: per channel, in units of the full range; as many values as channels are wanted.
        std: likewise.
        validation: number of training images to hold out and score on; None scores on the
            test images.
        stratified: hold out the same share of every class (the first images of a random order),
            else regardless of the class.
        split_seed: seed of the random order.
        limit_train: number of training images to keep, in the proportions of the classes.
        limit_validation: likewise for those scored on.

    Returns:
        data sets of float32 images (n, channels, height, width) and int64 labels (n,).

    Raises:
        RequestError: no data, not the data expected, or a number out of range.
        WorkError: a file or an image is damaged.
    """
    splits = ["train"] if validation is not None else ["train", "test"]
    sources = open_splits(
        task,
        splits,
        folder=folder,
        hub=hub,
        names=names,
        hub_name=hub_name,
        columns=("img", "image"),
        feature="Image",
    )
    normalise = Normalise(torch.tensor(mean), torch.tensor(std))
    data = [
        TensorDataset(
            *load_images(source, channels=len(mean), classes=classes), transform=normalise
        )
        for source in sources
    ]
    if validation is not None:
        data = list(_hold_out(data[0], validation, stratified=stratified, seed=split_seed))
    train, scored = data
    if train.tensors[0].shape[1:] != scored.tensors[0].shape[1:]:
        raise RequestError(
            f"{sources[-1].name}: images of shape {tuple(scored.tensors[0].shape[1:])}; expected "
            f"{tuple(train.tensors[0].shape[1:])}, as the training images have"
        )
    return (
        _limited(train, limit_train, "limit_train"),
        _limited(scored, limit_validation, "limit_validation"),
    )


def load_images(source: SampleSource, *, channels: int, classes: int) -> tuple[Tensor, Tensor]:
    """All images of a source, decoded once and then read from the cache.

    Args:
        source: encoded images.
        channels: 1 for grey, 3 for colour.
        classes: number of classes.

    Returns:
        uint8 images (n, channels, height, width) and int64 labels (n,).
    """
    key = content_hash("images", source.fingerprint(), str(channels), str(classes))
    tensors = decoded(
        source.name,
        key,
        lambda: decode_images(source, channels=channels, classes=classes),
    )
    return tensors["images"], tensors["labels"]


def decode_images(source: SampleSource, *, channels: int, classes: int) -> dict[str, Tensor]:
    """Decodes every image, on as many threads as torch may use.

    Args:
        source: encoded images.
        channels: 1 for grey, 3 for colour.
        classes: number of classes.

    Returns:
        "images" (n, channels, height, width) uint8 and "labels" (n,) int64.

    Raises:
        WorkError: an image is damaged; it names the file and the row.
        RequestError: a label out of range, or an image of another size than the first.
    """
    images: np.ndarray | None = None
    labels = torch.empty(len(source), dtype=torch.int64)
    done = 0
    with (
        ThreadPoolExecutor(torch.get_num_threads()) as pool,
        progress(f"decoding {source.name}", len(source)) as advance,
    ):
        for chunk in source.chunks():
            blocks = [chunk[start : start + BLOCK] for start in range(0, len(chunk), BLOCK)]
            for block, pixels in zip(
                blocks,
                pool.map(lambda block: _block(block, channels, classes), blocks),
                strict=True,
            ):
                if images is None:
                    images = np.empty((len(source), *pixels[0].shape), dtype=np.uint8)
                for encoded, image in zip(block, pixels, strict=True):
                    if image.shape != images.shape[1:]:
                        raise RequestError(
                            f"{encoded.origin}: an image of {_size(image)}; expected "
                            f"{_size(images[0])} (height x width), the size of the first"
                        )
                    images[done] = image
                    labels[done] = encoded.label
                    done += 1
            advance(len(chunk))
    if images is None or done != len(source):
        raise WorkError(f"{source.name}: has {done} samples; it promised {len(source)}")
    return {"images": torch.from_numpy(images), "labels": labels}


def decode_image(encoded: Encoded, *, channels: int) -> np.ndarray:
    """One image as bytes (channels, height, width).

    Colour is weighed to grey, grey and palettes are spread to colour; what is transparent lies
    on black.

    Raises:
        WorkError: the image is damaged, or has more than 8 bits a channel.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded.content)) as opened:
            if opened.mode in ("F", "I") or opened.mode.startswith("I;16"):
                raise WorkError(
                    f"{encoded.origin}: an image of mode {opened.mode!r}; expected 8 bits a channel"
                )
            image: Image.Image = opened
            if opened.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in opened.info:
                image = opened.convert("RGBA")
                black = Image.new("RGBA", image.size, (0, 0, 0, 255))
                image = Image.alpha_composite(black, image)
            pixels = np.asarray(image.convert(DEPTH[channels]))
    except WorkError:
        raise
    except Exception as error:  # decoders raise anything on damaged bytes, struct.error included
        raise WorkError(f"{encoded.origin}: not a readable image: {error}") from error
    return pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1)


def _block(block: list[Encoded], channels: int, classes: int) -> list[np.ndarray]:
    for encoded in block:
        check_label(encoded, classes)
    return [decode_image(encoded, channels=channels) for encoded in block]


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[2]}"


def _hold_out(
    data: TensorDataset, count: int, *, stratified: bool, seed: int
) -> tuple[TensorDataset, TensorDataset]:
    n = len(data)
    if not 1 <= count < n:
        raise invalid("validation", count, f"1 to {n - 1}, fewer than the training images")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    if stratified:
        chosen = torch.zeros(n, dtype=torch.bool)
        chosen[stratified_prefix(data.tensors[1][order], count)] = True
        order = torch.cat((order[~chosen], order[chosen]))
    return data.subset(order[:-count].sort().values), data.subset(order[-count:].sort().values)


def _limited(data: TensorDataset, limit: int | None, name: str) -> TensorDataset:
    if limit is None:
        return data
    if not 1 <= limit <= len(data):
        raise invalid(name, limit, f"1 to {len(data)}, the number of images")
    return data.subset(stratified_prefix(data.tensors[1], limit))
