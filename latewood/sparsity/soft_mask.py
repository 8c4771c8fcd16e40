"""The weight transformation of continuous sparsification: a soft mask that can become hard."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from latewood.core import MASK, Follows
from latewood.kernels.masked_weight import mask_sum, masked_weight

__all__ = ["DECIDED", "MOST_UNDECIDED", "SoftMask", "unit_scale"]

DECIDED: Final = 4.0
"""|temperature * logit| from which an entry counts as decided: sigmoid(4) = 0.982."""

MOST_UNDECIDED: Final = 0.01
"""Fraction of undecided entries above which a hard mask may make another network than the soft."""

_HALF_PRECISION: Final = (torch.float16, torch.bfloat16)


class SoftMask(nn.Module):
    """Multiplies a weight by a mask that starts soft and ends binary.

    ``weight * scale * sigmoid(temperature * mask_logits)`` while soft,
    ``weight * scale * H(mask_logits)`` while ``hard`` is set, with H(z) = 1 if z > 0 else 0, and
    ``weight * scale * hard_mask`` after ``freeze``.

    Args:
        weight: the tensor to mask, any shape.
        initial_logit: (s0) value of every logit.
        scale: (c) factor of the mask.

    Source: Savarese, Silva, Maire, "Winning the Lottery with Continuous Sparsification" (2020);
    the scale is from the authors' code.
    """

    order = MASK
    follows: ClassVar = {"mask_logits": Follows(), "hard_mask": Follows()}
    temperature: Tensor
    hard_mask: Tensor | None

    def __init__(self, weight: Tensor, *, initial_logit: float, scale: float) -> None:
        super().__init__()
        # bfloat16 keeps 8 bits: it would lose every small step of a logit.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.mask_logits = nn.Parameter(
            torch.full_like(weight, initial_logit, dtype=dtype, requires_grad=False)
        )
        # A tensor, because torch.compile would recompile for every new value of a Python number.
        self.register_buffer("temperature", torch.ones((), dtype=dtype, device=weight.device))
        self.register_buffer("hard_mask", None)
        self.scale = scale
        self.hard = False

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight, with the shape and dtype of ``weight``."""
        if self.hard or self.hard_mask is not None:
            # Selecting, where multiplying would keep the NaN of a pruned entry.
            return torch.where(self.binary(), weight * self.scale, 0)
        return masked_weight(weight, self.mask_logits, self.temperature, self.scale)

    def binary(self) -> Tensor:
        """The binary mask, H(mask_logits) or what was frozen: bool, with the weight's shape."""
        return self.mask_logits.detach() > 0 if self.hard_mask is None else self.hard_mask

    def undecided(self) -> Tensor:
        """Which entries are still between kept and pruned: bool, with the weight's shape."""
        if self.hard_mask is not None:
            return torch.zeros_like(self.hard_mask)
        return (self.temperature * self.mask_logits.detach()).abs() < DECIDED

    def total(self) -> Tensor:
        """The sum of the soft mask, a 0-dim tensor differentiable in the logits."""
        return mask_sum(self.mask_logits, self.temperature, self.scale)

    def freeze(self, mask: Tensor) -> None:
        """Fixes the mask; the logits neither train nor decay from here on.

        Args:
            mask: bool, with the weight's shape.
        """
        self.hard_mask = mask.detach().clone()
        self.mask_logits.requires_grad_(False)
        # An optimizer skips a parameter without gradient: no momentum or decay moves it again.
        self.mask_logits.grad = None

    def extra_repr(self) -> str:
        """The state in words."""
        state = "frozen" if self.hard_mask is not None else "hard" if self.hard else "soft"
        return f"{tuple(self.mask_logits.shape)}, scale={self.scale:.6g}, {state}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SoftMask:
        """Moves with the model but stays in float32 when the model goes to half precision."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            half = tensor.is_floating_point() and moved.dtype in _HALF_PRECISION
            return tensor.to(moved.device) if half else moved

        super()._apply(move, recurse)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Becomes frozen or soft as the state is, since a frozen mask has one entry more."""
        if prefix + "hard_mask" in state_dict:
            self.freeze(torch.empty_like(self.mask_logits, dtype=torch.bool))
        elif prefix + "mask_logits" in state_dict and self.hard_mask is not None:
            self.hard_mask = None
            self.mask_logits.requires_grad_(True)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def unit_scale(initial_logit: float, like: Tensor) -> float:
    """The scale with which a mask is 1 at its initial logit and temperature 1.

    ``c = 1 / sigmoid(s0) = 1 + exp(-s0)``, corrected for the rounding of the mask itself, so that
    the mask is exactly 1 where some float makes it so, and within a unit in the last place else.

    Args:
        initial_logit: (s0).
        like: a weight; its dtype (float32 at least) and device are those of the mask.

    Returns:
        The scale, a number of that dtype.

    Source: the authors' code of continuous sparsification.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    logit = torch.full((1,), initial_logit, dtype=dtype, device=like.device)
    one = torch.ones_like(logit)

    def mask(scale: Tensor) -> Tensor:
        return masked_weight(one, logit, one[0], scale.item())

    exact = torch.full_like(one, 1.0 + math.exp(-initial_logit))
    nearest = exact / mask(exact)
    neighbours = (nearest, nearest.nextafter(nearest + 1), nearest.nextafter(nearest - 1))
    return min(neighbours, key=lambda scale: (mask(scale) - 1).abs().item()).item()
