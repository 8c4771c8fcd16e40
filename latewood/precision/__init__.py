"""Networks whose weights and inputs learn how many bits they need, and the kernels that use it."""

from __future__ import annotations

from latewood.kernels.mixed_products import mixed_conv2d, mixed_matmul
from latewood.precision.allocation import Allocation, allocate, curvature_of
from latewood.precision.exports import CHeader, OnnxFile, export_c, export_onnx
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
from latewood.precision.packed_groups import PackedConv1d, PackedGroupedConv2d
from latewood.precision.packed_layers import PackedConv2d, PackedLinear
from latewood.precision.packed_model import LeftLayer, PackedModel, load_packed, pack
from latewood.precision.packed_recurrent import PackedGRU, PackedLSTM, RecurrentFormat
from latewood.precision.patterns import (
    PATTERN_SETS,
    PATTERNS,
    PatternFit,
    fit_channels,
    fit_counts,
    pattern_index,
    pattern_set,
    vectors_needed,
)

__all__ = [
    "Allocation",
    "CHeader",
    "InputFormat",
    "LearnedPrecision",
    "LeftLayer",
    "NoiseSettings",
    "OnnxFile",
    "PATTERNS",
    "PATTERN_SETS",
    "PackedConv1d",
    "PackedConv2d",
    "PackedGRU",
    "PackedGroupedConv2d",
    "PackedLSTM",
    "PackedLinear",
    "PackedModel",
    "PatternFit",
    "RecurrentFormat",
    "WeightFormat",
    "allocate",
    "bits_of",
    "code",
    "curvature_of",
    "export_c",
    "export_onnx",
    "fit_channels",
    "fit_counts",
    "input_format",
    "load_packed",
    "mixed_conv2d",
    "mixed_matmul",
    "pack",
    "pattern_index",
    "pattern_set",
    "quantize",
    "quantized_layers",
    "remove_formats",
    "restore_formats",
    "s_of",
    "value",
    "vectors_needed",
    "weight_format",
]
