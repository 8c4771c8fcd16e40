"""Products and sums with one rounding, which torch's batch norm uses and plain torch has not."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fused_multiply_add"]


def fused_multiply_add(numbers: Tensor, factor: Tensor, addend: Tensor) -> Tensor:
    """``numbers * factor + addend`` with one rounding, float32.

    Products are exact in float64; a sum that lost something there is rounded to an odd last bit,
    so that the second rounding cannot meet a tie that is none.
    """
    product, other = numbers.double() * factor.double(), addend.double()
    total = product + other
    back = total - product
    lost = (product - (total - back)) + (other - back)
    even = (total.view(torch.int64) & 1) == 0
    towards = torch.where(lost > 0, torch.inf, -torch.inf).to(total.dtype)
    odd = torch.where((lost != 0) & even, torch.nextafter(total, towards), total)
    return odd.float()
