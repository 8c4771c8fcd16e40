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
    ``weight * scale * H(mask_logits)`` while ``hard`` is set and after ``freeze``, with H(z) = 1 if
    z > 0 else 0. A copy made while soft stays soft, and takes in what is averaged into it later.

    Args:
        weight: the tensor to mask, any shape.
        initial_logit: (s0) value of every logit.
        scale: (c) factor of the mask.

    Source: Savarese, Silva, Maire, "Winning the Lottery with Continuous Sparsification" (2020);
    the scale is from the authors' code.
    """

    order = MASK
    follows: ClassVar = {"mask_logits": Follows()}
    temperature: Tensor

    def __init__(self, weight: Tensor, *, initial_logit: float, scale: float) -> None:
        super().__init__()
        # bfloat16 keeps 8 bits: it would lose every small step of a logit.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.mask_logits = nn.Parameter(
            torch.full_like(weight, initial_logit, dtype=dtype, requires_grad=False)
        )
        # A tensor, because torch.compile would recompile for every new value of a Python number.
        self.register_buffer("temperature", torch.ones((), dtype=dtype, device=weight.device))
        self.scale = scale
        # Steps after which it is frozen, for a number format under it (core.transforms).
        self.fixed_from: int | None = None
        self.hard = False
        self.frozen = False

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight, with the shape and dtype of ``weight``."""
        if self.hard or self.frozen:
            # Selecting, where multiplying would keep the NaN of a pruned entry.
            return torch.where(self.binary(), weight * self.scale, 0)
        return masked_weight(weight, self.mask_logits, self.temperature, self.scale)

    def binary(self) -> Tensor:
        """The binary mask, H(mask_logits): bool, with the weight's shape."""
        return self.mask_logits.detach() > 0

    def undecided(self) -> Tensor:
        """Which entries are still between kept and pruned: bool, with the weight's shape."""
        if self.frozen:
            return torch.zeros_like(self.mask_logits, dtype=torch.bool)
        return (self.temperature * self.mask_logits.detach()).abs() < DECIDED

    def total(self) -> Tensor:
        """The sum of the soft mask, a 0-dim tensor differentiable in the logits."""
        return mask_sum(self.mask_logits, self.temperature, self.scale)

    @torch.no_grad()
    def freeze(self, mask: Tensor) -> None:
        """Fixes the mask; the logits neither train nor decay from here on.

        Args:
            mask: bool, with the weight's shape.
        """
        self.frozen = True
        # The logits say the mask, not one buffer more: an average of the weights that began before,
        # or another process, would find itself with fewer buffers than the model.
        logits = self.mask_logits.requires_grad_(False)
        size = logits.detach().abs().clamp_min_(torch.finfo(logits.dtype).tiny)
        differs = mask != self.binary()
        logits.copy_(torch.where(differs, torch.where(mask, size, -size), logits))
        # An optimizer skips a parameter without gradient: no momentum or decay moves it again.
        logits.grad = None

    def extra_repr(self) -> str:
        """The state in words."""
        state = "frozen" if self.frozen else "hard" if self.hard else "soft"
        return f"{tuple(self.mask_logits.shape)}, scale={self.scale:.6g}, {state}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SoftMask:
        """Moves with the model but stays in float32 when the model goes to half precision."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            half = tensor.is_floating_point() and moved.dtype in _HALF_PRECISION
            return tensor.to(moved.device) if half else moved

        super()._apply(move, recurse)
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """Writes the mask too once it is frozen, as its readers expect."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.frozen:
            destination[prefix + "hard_mask"] = self.binary()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Becomes frozen or soft as the state is, since a frozen mask has one entry more."""
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        mask = state_dict.get(prefix + "hard_mask")
        if mask is not None:
            if prefix + "hard_mask" in unexpected_keys:
                unexpected_keys.remove(prefix + "hard_mask")
            if mask.shape == self.mask_logits.shape:
                self.freeze(mask.to(self.mask_logits.device))
            else:
                shapes = f"{tuple(mask.shape)}, expected {tuple(self.mask_logits.shape)}"
                error_msgs.append(f"{prefix}hard_mask: shape {shapes}")
        elif prefix + "mask_logits" in state_dict and self.frozen:
            self.frozen = False
            self.mask_logits.requires_grad_(True)


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
