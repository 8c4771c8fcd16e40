"""Networks whose weights and inputs learn how many bits they need, and the kernels that use it."""

from __future__ import annotations

from latewood.precision.formats import (
    InputFormat,
    WeightFormat,
    input_format,
    quantized_layers,
    remove_formats,
    restore_formats,
    weight_format,
)
from latewood.precision.learned_precision import LearnedPrecision
from latewood.precision.noise_training import NoiseSettings
from latewood.precision.number_format import bits_of, code, quantize, s_of, value

__all__ = [
    "InputFormat",
    "LearnedPrecision",
    "NoiseSettings",
    "WeightFormat",
    "bits_of",
    "code",
    "input_format",
    "quantize",
    "quantized_layers",
    "remove_formats",
    "restore_formats",
    "s_of",
    "value",
    "weight_format",
]
