"""Foreground from one image, without labels or weights: inpainting-error maximisation."""

from __future__ import annotations

from latewood.segmentation.features import lab_features, rgb_features
from latewood.segmentation.initial_masks import centred_rectangle, outline_contrast
from latewood.segmentation.metrics import evaluate_masks, mask_scores
from latewood.segmentation.segment import Segmentation, segment
from latewood.segmentation.settings import PRESETS, Settings
from latewood.segmentation.upsampling import downsample, guided_upsample

__all__ = [
    "PRESETS",
    "Segmentation",
    "Settings",
    "centred_rectangle",
    "downsample",
    "evaluate_masks",
    "guided_upsample",
    "lab_features",
    "mask_scores",
    "outline_contrast",
    "rgb_features",
    "segment",
]
