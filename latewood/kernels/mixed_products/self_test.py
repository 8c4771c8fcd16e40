"""A look at what the compiled products compute on this processor, before any result is used."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from latewood.kernels.dispatch import native
from latewood.kernels.mixed_products.code_products import CodeWeights, Taps
from latewood.kernels.mixed_products.native_products import Affine, lay_out, multiply
from latewood.kernels.mixed_products.reference_products import reference_products

__all__ = ["form_in_use", "sound_native"]

_LOCK = threading.Lock()
_TESTED: dict[int, str | None] = {}
"""By module, the form that passed; None if none did."""


def sound_native() -> Any:
    """The compiled kernels with a form that passed its test, or None.

    The best form for this processor is compared with the reference once a process, on a few small
    products, in milliseconds. One that computes something else is not used: a warning names it, and
    the next one takes its turn.
    """
    module = native()
    if module is None:
        return None
    if id(module) not in _TESTED:
        with _LOCK:
            if id(module) not in _TESTED:
                _TESTED[id(module)] = _first_sound_form(module)
    return None if _TESTED[id(module)] is None else module


def form_in_use(module: Any) -> str:
    """The name of the form that passed; "" if none was tested or none passed."""
    return _TESTED.get(id(module)) or ""


def _first_sound_form(module: Any) -> str | None:
    for form in module.mixed_forms():
        module.mixed_use(form)
        try:
            wrong = next((what for what, fine in _results(module) if not fine), None)
        except (RuntimeError, ValueError) as error:
            wrong = str(error)
        if wrong is None:
            return str(form)
        warnings.warn(
            f"the {form} form of the kernels for products of codes computes {wrong} wrongly on "
            "this processor and is not used: the results stay right, but come more slowly",
            RuntimeWarning,
            stacklevel=5,
        )
    return None


def _results(module: Any) -> Iterator[tuple[str, bool]]:
    """What was computed, and whether it is what the reference computes."""
    for widths, masked, never_negative in (
        ([1], False, False),
        ([1], True, False),
        ([2], False, True),
        ([4, 2, 1], False, False),
        ([4, 2, 1], True, False),
        ([8, 3], False, True),
    ):
        mixed = len(widths) > 1
        for size, taps in ((1, Taps()), (3, Taps((2, 1), (1, 1), (1, 1), (1, 2)))):
            if size > 1 and not ((mixed and masked) or (never_negative and not mixed)):
                continue
            weights, codes = _case(widths, masked, never_negative, size)
            expected = reference_products(weights, codes, taps)
            what = f"products of {'/'.join(map(str, widths))} bits"
            for tables in ([], [1, 2]):
                prepared = lay_out(module, weights, tables)
                yield what, _same(module, prepared, weights, codes, taps, expected)


def _same(
    module: Any, prepared: Any, weights: CodeWeights, codes: Tensor, taps: Taps, expected: Tensor
) -> bool:
    kernel = (weights.codes.shape[2], weights.codes.shape[3])
    sums = torch.full_like(expected, -1)
    fine = multiply(module, prepared, codes, sums, kernel, taps, None, threads=1)
    outputs = len(weights.codes)
    scale, bias = torch.linspace(-1, 1, outputs), torch.linspace(0.5, -2, outputs)
    affine = Affine(0.5, 2.0 if weights.never_negative else 0.0, scale, bias)
    # In the middle of their cells, halved.
    levels = (2.0 ** weights.input_bits.float()).reshape(-1, 1, 1)
    numbers = ((2 * codes.float() + 1 - levels) * (2 / levels) + affine.shift) * 0.5
    target = torch.full(expected.shape, torch.nan)
    fine &= multiply(module, prepared, numbers, target, kernel, taps, affine, threads=1)
    scaled = expected.float() * scale.reshape(-1, 1, 1) + bias.reshape(-1, 1, 1)
    return fine and torch.equal(sums, expected) and torch.equal(target, scaled)


def _case(
    widths: list[int], masked: bool, never_negative: bool, size: int
) -> tuple[CodeWeights, Tensor]:
    """Codes of 21 channels for 37 outputs, the same at every call."""
    channels, outputs = 21, 37
    bits = torch.tensor(widths, dtype=torch.uint8).repeat(channels)[:channels]
    levels = 1 << bits.long()
    shape = (outputs, channels, size, size)
    places = torch.arange(outputs * channels * size * size).reshape(shape) * 7919 % 1009
    codes = (places % levels.reshape(-1, 1, 1)).to(torch.uint8)
    mask = places % 3 > 0 if masked else None
    across = torch.arange(2 * channels * 5 * 6).reshape(2, channels, 5, 6) * 6101 % 997
    inputs = (across % levels.reshape(-1, 1, 1)).to(torch.uint8)
    return CodeWeights(codes, bits, bits, mask, never_negative), inputs
