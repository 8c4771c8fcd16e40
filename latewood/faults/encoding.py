"""Weights as integers: the numbers that the cells of a crossbar hold."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from latewood.errors import RequestError, invalid
from latewood.faults.crossbar import Crossbar
from latewood.kernels.faults import digits_of

__all__ = ["Encoded", "digits", "encode", "encode_held", "require_weight"]


class Encoded(NamedTuple):
    """A weight as it is held: ``weight = scale * codes``, up to rounding.

    Args:
        codes: (q) int32 of the weight's shape; of analog pairs w / max |W|, floating.
        scale: (s) floating, broadcasts to the weight.
    """

    codes: Tensor
    scale: Tensor

    def decoded(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight that other codes stand for.

        Args:
            codes: (q') of the shape of these.
            dtype: of the result.
        """
        # Exact in float32 for what cells hold; analog codes have that dtype already, and stay.
        wide = codes.to(self.scale.dtype)
        return (wide * self.scale if wide is codes else wide.mul_(self.scale)).to(dtype)


def encode(weight: Tensor, crossbar: Crossbar, *, channel_axis: int = 0) -> Encoded:
    r"""The integers that a crossbar holds for a weight, and their unit.

    :math:`q = \mathrm{clip}(\mathrm{round}(w / s), -q_{\max}, q_{\max})`, halves to even, with
    :math:`s = \max |W| / q_{\max}`, or 1 where all weights are 0 (a layer computes with 0 there).
    Computed in float32 at least.

    Args:
        weight: floating, finite, any shape.
        crossbar: how weights are held.
        channel_axis: of the output channels, for ``granularity="channel"``.

    Raises:
        RequestError: a weight that is not floating or not finite.
    """
    return _encoded(weight, crossbar, channel_axis, of_zeros=1.0)


def encode_held(weight: Tensor, crossbar: Crossbar, *, channel_axis: int = 0) -> Encoded:
    """``encode`` with the unit that a layer computes with: max |W| / q_max, also where that is 0.

    With a unit of 1 a cell that is stuck under a weight, or a channel, of zeros would read as
    weights that have nothing to do with those of the network.

    Args:
        weight: as for ``encode``.
        crossbar: how weights are held.
        channel_axis: of the output channels.

    Raises:
        RequestError: as ``encode``.
    """
    return _encoded(weight, crossbar, channel_axis, of_zeros=0.0)


def _encoded(weight: Tensor, crossbar: Crossbar, channel_axis: int, *, of_zeros: float) -> Encoded:
    if not isinstance(crossbar, Crossbar):
        raise RequestError(f"crossbar: got {type(crossbar).__name__}; expected a faults.Crossbar")
    _require_stored(weight, "weight")
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    if wide.numel() == 0:
        peak = wide.new_zeros(())
    elif crossbar.granularity == "channel" and wide.dim() > 0:
        others = [axis for axis in range(wide.dim()) if axis != channel_axis % wide.dim()]
        peak = wide.abs().amax(others, keepdim=True)
    else:
        least, most = torch.aminmax(wide)
        peak = torch.maximum(-least, most)
    # NaN and infinity are the largest, so that one look at the peaks finds them.
    if not bool(peak.isfinite().all()):
        raise _not_finite("weight")
    largest = crossbar.largest
    unit = peak / largest
    # Peaks near the smallest float have no quotient; they are as good as 0.
    there = unit > torch.finfo(wide.dtype).tiny
    scale = torch.where(there, unit, 1.0)
    codes = (wide / scale).clamp_(-largest, largest)
    codes = codes if crossbar.is_analog else codes.round_().to(torch.int32)
    return Encoded(codes, torch.where(there, unit, of_zeros))


def digits(codes: Tensor, crossbar: Crossbar) -> Tensor:
    """The level of every cell of a crossbar that holds some integers.

    Args:
        codes: (q) int32, any shape, as ``encode`` gives them.
        crossbar: how weights are held; not of analog pairs.

    Returns:
        int32, (arrays, slices, \\*shape of codes); the least significant slice first, the array of
        positive weights first.

    Raises:
        RequestError: analog pairs, another dtype, or integers beyond what the cells hold.
    """
    require_codes(codes, crossbar)
    if crossbar.is_analog:
        raise invalid("scheme", "pair", "a scheme of digits: analog pairs have none")
    return digits_of(codes, crossbar.layout).view(crossbar.arrays, crossbar.slices, *codes.shape)


def require_codes(codes: Tensor, crossbar: Crossbar) -> None:
    """Refuses what the cells of a crossbar do not hold.

    Raises:
        RequestError: another dtype, or integers out of range.
    """
    _require_kinds(codes, crossbar)
    if crossbar.is_analog:
        if not codes.is_floating_point():
            raise invalid("codes", codes.dtype, "floating numbers in [-1, 1] for analog pairs")
    elif codes.dtype != torch.int32:
        raise invalid("codes", codes.dtype, "torch.int32")
    least = -crossbar.largest - (crossbar.scheme in ("offset", "twos"))
    if codes.numel() and not bool(((codes >= least) & (codes <= crossbar.largest)).all()):
        span = f"{codes.min().item()} to {codes.max().item()}"
        raise invalid("codes", span, f"{least} to {crossbar.largest}, what the cells hold")


def _require_kinds(codes: object, crossbar: object) -> None:
    if not isinstance(codes, Tensor) or not isinstance(crossbar, Crossbar):
        given = f"{type(codes).__name__} and {type(crossbar).__name__}"
        raise RequestError(f"codes, crossbar: got {given}; expected a tensor and a faults.Crossbar")


def require_weight(weight: Tensor, name: str = "weight") -> None:
    """Refuses what cannot be written to a crossbar.

    Raises:
        RequestError: no tensor, another than a floating dtype, no data, or NaN and infinity.
    """
    _require_stored(weight, name)
    if not bool(weight.isfinite().all()):
        raise _not_finite(name)


def _require_stored(weight: Tensor, name: str) -> None:
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        kind = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise invalid(name, str(kind), "a tensor of floating numbers")
    if weight.layout is not torch.strided:
        raise invalid(name, str(weight.layout), "a dense tensor")
    if weight.element_size() == 1:  # torch computes with no floating numbers so small
        raise invalid(name, str(weight.dtype), "floating numbers of 16 bits or more")
    if weight.is_meta:
        raise invalid(name, "a tensor on the meta device", "a weight that holds data")


def _not_finite(name: str) -> RequestError:
    return invalid(name, "NaN or infinity among the numbers", "finite weights")
