"""What AvaGrad's sums of squared rates were made of, to know whether the next step can use them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from latewood.kernels.misfits import is_plain
from latewood.kernels.optimizers import Number

__all__ = ["RateOrigin", "places"]


@dataclass(frozen=True)
class RateOrigin:
    """What sums of squared rates are made of; equal where they need not be made again.

    Args:
        moments: second moments; kept, so that no other can take the place of one.
        places: which they are, their versions and where they lie: data that was replaced under a
            tensor, as growth does, has no version.
        corrections, eps: of each.
    """

    moments: list[Tensor] = field(compare=False)
    places: tuple[object, ...]
    corrections: list[Number]
    eps: list[float]


def places(moments: list[Tensor]) -> tuple[object, ...]:
    """Which tensors these are, their versions and where they lie."""
    plain = is_plain(*moments)
    tensors = plain or all(isinstance(moment, Tensor) for moment in moments)
    if not tensors or any(map(Tensor.is_inference, moments)):
        return (object(),)  # like no other: such tensors have no versions
    versions = [moment._version for moment in moments]
    try:
        addresses = list(map(Tensor.data_ptr, moments)) if plain else []
    except RuntimeError:
        return (object(),)  # a sparse one, which the step refuses
    return list(map(id, moments)), versions, addresses
