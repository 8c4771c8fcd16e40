"""Networks whose weights and inputs learn how many bits they need, and the kernels that use it."""

from __future__ import annotations

from latewood.precision.number_format import bits_of, code, quantize, s_of, value

__all__ = ["bits_of", "code", "quantize", "s_of", "value"]
