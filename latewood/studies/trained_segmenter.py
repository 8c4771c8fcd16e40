"""A network that learned foreground masks, used on new images of any size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from latewood.errors import invalid
from latewood.kernels.inpainting import evaluate
from latewood.segmentation import (
    Segmentation,
    Settings,
    downsample,
    guided_upsample,
    outline_contrast,
    rgb_features,
)
from latewood.tasks.foreground import foreground_without_images
from latewood.training.opened_run import open_run
from latewood.training.recipe import load_recipe
from latewood.training.run_folder import RunFolder

__all__ = ["trained_segmenter"]


def trained_segmenter(run: RunFolder, *, trust: bool = False) -> Callable[[Tensor], Segmentation]:
    """The network of a finished run on the task "foreground" as something that segments images.

    Of the checkpoints that the run kept, the one whose masks of the held-out images have the
    largest inpainting error is taken: later ones may have learned the mistakes of the labels.
    Images are shrunk to the size that was learned on, and the masks brought back to full size
    along the edges of the image.

    Args:
        run: the run's folder.
        trust: import and call modules that the run's recipe names.

    Returns:
        A function from an image (1 or 3, height, width) in [0, 1] to its segmentation: ``score``
        and ``diversity`` are J and D of the mask, ``margin`` is nan, and the flag "empty" marks
        masks with one region only.

    Raises:
        RequestError: no run, one of another task, or one that is not finished.
    """
    if not run.exists:
        raise invalid("network", str(run.path), "the folder of a run on the task 'foreground'")
    recipe = load_recipe(run.recipe_path, trust=trust)
    if recipe.task["name"] != "foreground":
        raise invalid("network", str(run.path), "the folder of a run on the task 'foreground'")
    if not run.finished:
        raise invalid(
            "network", str(run.path), "a finished run; go on with latewood train --resume"
        )
    size = int(recipe.task.get("size", 64))
    # With methods, checkpoints hold weights that they still transform; the end of the run does not.
    path = run.path if recipe.methods else _best_weights(run)
    model = open_run(path, task=foreground_without_images(size), trust=trust).model

    @torch.no_grad()
    def segmenter(image: Tensor) -> Segmentation:
        small = downsample(image, size)
        features = rgb_features(small.expand(3, -1, -1)[None].contiguous())
        mask = model(features)[0, 0] > 0
        empty = bool(mask.all()) or not bool(mask.any())
        settings = Settings(scaled=True).inpainting(mask.shape[0], mask.shape[1], 3)
        objective = None if empty else evaluate(features, mask[None], settings)
        return Segmentation(
            mask=guided_upsample(mask, image),
            score=0.0 if objective is None else objective.inpainting.item(),
            diversity=0.0 if objective is None else objective.diversity.item(),
            contrast=outline_contrast(features, mask[None]).item(),
            iterations=0,
            period=0,
            margin=float("nan"),
            flags=("empty",) if empty else (),
        )

    return segmenter


def _best_weights(run: RunFolder) -> Path:
    """The checkpoint with the best label-free score, or the end of the run if none was kept."""
    scores = {
        row["step"]: row["inpainting"]
        for row in run.read_metrics()
        if row["kind"] == "validation" and "inpainting" in row
    }
    weights = {
        step: path
        for step in scores
        if (path := run.checkpoints / f"step-{step:08d}" / "model.safetensors").exists()
    }
    return weights[max(weights, key=lambda step: scores[step])] if weights else run.model_path
