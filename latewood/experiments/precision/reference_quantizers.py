"""Two relatives of learned precision in small: bits by noise of a step (DiffQ), steps by gradient
(LSQ).

They follow the published ideas and not their code: enough to compare at equal bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["LearnedStep", "NoisyStep", "average_bits", "settle"]


class LearnedStep(nn.Module):
    r"""Uniform bits with a learned step, on the grid that has no 0.

    .. math:: \hat w = a \, Q_p(w / a)

    with the gradient of a straight through the rounding, scaled by :math:`1 / \sqrt{n (2^p - 1)}`.

    Args:
        weight: the tensor, whose first values set the step.
        bits: of all its entries.

    Source: Esser et al., "Learned Step Size Quantization", 2020, with this package's grid [I].
    """

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.shrink = 1.0 / math.sqrt(weight.numel() * (2**bits - 1))
        levels = 2.0**bits
        # Twice the mean size over the root of the largest code, as LSQ starts, in units of a.
        self.scale = nn.Parameter(weight.detach().abs().mean() * 2 / math.sqrt(levels) * levels / 4)

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weight."""
        scale = self.scale * self.shrink + (self.scale * (1 - self.shrink)).detach()
        levels = 2.0**self.bits
        normal = (weight / scale).clamp(-2, 2)
        cells = torch.floor(normal * (levels / 4) + levels / 2).clamp(0, levels - 1)
        grid = (2 * cells - (levels - 1)) * (2 / levels)
        return (normal + (grid - normal).detach()) * scale


class NoisyStep(nn.Module):
    r"""Bits by training noise of one step of a uniform quantiser, one number a row of inputs.

    In training :math:`w + \tfrac{d}{2} \epsilon` with :math:`d = (\max w - \min w) / (2^b - 1)` and
    b between 1 and 15; afterwards w rounded to b bits.

    Args:
        weight: the tensor, (outputs, inputs, ...).
        seed: of the noise.

    Source: Defossez, Adi, Synnaeve, "Differentiable Model Compression via Pseudo Quantization
    Noise", 2022; uniform noise and 1 bit at least, to compare at few bits [I].
    """

    def __init__(self, weight: Tensor, *, seed: int) -> None:
        super().__init__()
        start = math.log((8 - _LEAST) / (_MOST - 8))
        self.logits = nn.Parameter(
            torch.full((1, weight.shape[1], *(1,) * (weight.dim() - 2)), start)
        )
        self.weights = weight.numel()
        self.fixed: Tensor | None = None
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def bits(self) -> Tensor:
        """Of every input, differentiable."""
        return _LEAST + (_MOST - _LEAST) * torch.sigmoid(self.logits)

    def forward(self, weight: Tensor) -> Tensor:
        """The noisy or the rounded weight."""
        low, high = weight.detach().min(), weight.detach().max()
        bits = self.bits if self.fixed is None else self.fixed
        step = (high - low) / (torch.exp2(bits) - 1)
        if self.fixed is None:
            noise = torch.rand(weight.shape, generator=self._generator) * 2 - 1
            return weight + step / 2 * noise
        rounded = torch.round((weight - low) / step) * step + low
        return weight + (rounded - weight).detach()


_LEAST, _MOST = 1.0, 15.0


def average_bits(quantizers: Sequence[NoisyStep]) -> Tensor:
    """The average of the learned bits over all weights, differentiable."""
    return _average([quantizer.bits for quantizer in quantizers], quantizers)


def settle(quantizers: Sequence[NoisyStep], average: float) -> float:
    """Rounds the bits so that their average is as near below an asked one as one shift of all gets.

    Returns:
        The average.
    """
    low, high = -_MOST, _MOST
    settled = [torch.full_like(quantizer.bits.detach(), _LEAST) for quantizer in quantizers]
    for _ in range(50):
        shift = (low + high) / 2
        rounded = [torch.round(q.bits.detach() + shift).clamp(_LEAST, _MOST) for q in quantizers]
        if float(_average(rounded, quantizers)) <= average:
            low, settled = shift, rounded
        else:
            high = shift
    for quantizer, bits in zip(quantizers, settled, strict=True):
        quantizer.fixed = bits
        quantizer.logits.requires_grad_(False)
    return float(_average(settled, quantizers))


def _average(bits: Sequence[Tensor], quantizers: Sequence[NoisyStep]) -> Tensor:
    weights = [quantizer.weights for quantizer in quantizers]
    parts = [width.mean() * count for width, count in zip(bits, weights, strict=True)]
    return torch.stack(parts).sum() / sum(weights)
