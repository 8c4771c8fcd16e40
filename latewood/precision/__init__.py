"""Networks whose weights and inputs learn how many bits they need, and the kernels that use it."""

from __future__ import annotations

from latewood.precision.number_format import bits_of, code, quantize, s_of, value
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
    "PATTERNS",
    "PATTERN_SETS",
    "PatternFit",
    "bits_of",
    "code",
    "fit_channels",
    "fit_counts",
    "pattern_index",
    "pattern_set",
    "quantize",
    "s_of",
    "value",
    "vectors_needed",
]
