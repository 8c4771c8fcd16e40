"""The residual U-Net that predicts the noise of a diffusion step."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latewood.errors import invalid
from latewood.models.parts import require_positive

__all__ = ["UNet", "unet"]


class FourierFeatures(nn.Module):
    """Sines and cosines of a time at fixed Gaussian frequencies.

    [sin(2 pi f t / steps), cos(2 pi f t / steps)] with f ~ N(0, scale^2), drawn once and kept
    with the weights.
    """

    frequencies: Tensor

    def __init__(self, features: int, scale: float, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.register_buffer("frequencies", torch.randn(features // 2) * scale)

    def forward(self, times: Tensor) -> Tensor:
        fraction = times.to(self.frequencies.dtype) / self.steps
        angles = 2 * math.pi * fraction[:, None] * self.frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=1)


class UNet(nn.Module):
    """Four convolutions down, four transposed ones up; skips and the time are added.

    ``dense1`` to ``dense4`` feed the convolutions' outputs, ``dense5`` to ``dense7`` those of
    ``tconv4`` to ``tconv2``.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: tuple[int, ...],
        time_features: int,
        time_scale: float,
        time_steps: int,
    ) -> None:
        super().__init__()
        one, two, three, four = channels
        self.fourier = FourierFeatures(time_features, time_scale, time_steps)
        self.time = nn.Linear(time_features, time_features)

        self.conv1 = nn.Conv2d(in_channels, one, 3, bias=False)
        self.dense1 = nn.Linear(time_features, one)
        self.norm1 = nn.GroupNorm(4, one)
        self.conv2 = nn.Conv2d(one, two, 3, stride=2, bias=False)
        self.dense2 = nn.Linear(time_features, two)
        self.norm2 = nn.GroupNorm(32, two)
        self.conv3 = nn.Conv2d(two, three, 3, stride=2, bias=False)
        self.dense3 = nn.Linear(time_features, three)
        self.norm3 = nn.GroupNorm(32, three)
        self.conv4 = nn.Conv2d(three, four, 3, stride=2, bias=False)
        self.dense4 = nn.Linear(time_features, four)
        self.norm4 = nn.GroupNorm(32, four)

        self.tconv4 = nn.ConvTranspose2d(four, three, 3, stride=2, bias=False)
        self.dense5 = nn.Linear(time_features, three)
        self.tnorm4 = nn.GroupNorm(32, three)
        self.tconv3 = nn.ConvTranspose2d(three, two, 3, stride=2, output_padding=1, bias=False)
        self.dense6 = nn.Linear(time_features, two)
        self.tnorm3 = nn.GroupNorm(32, two)
        self.tconv2 = nn.ConvTranspose2d(two, one, 3, stride=2, output_padding=1, bias=False)
        self.dense7 = nn.Linear(time_features, one)
        self.tnorm2 = nn.GroupNorm(32, one)
        self.tconv1 = nn.ConvTranspose2d(one, in_channels, 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if min(height, width) < 20 or height % 8 != 4 or width % 8 != 4:
            raise invalid("x", tuple(x.shape), "sides of 20, 28, 36, ... so that the skips fit")
        time = F.silu(self.time(self.fourier(t)))
        down1 = F.silu(self.norm1(self.conv1(x) + self.dense1(time)[:, :, None, None]))
        down2 = F.silu(self.norm2(self.conv2(down1) + self.dense2(time)[:, :, None, None]))
        down3 = F.silu(self.norm3(self.conv3(down2) + self.dense3(time)[:, :, None, None]))
        down4 = F.silu(self.norm4(self.conv4(down3) + self.dense4(time)[:, :, None, None]))
        up = F.silu(self.tnorm4(self.tconv4(down4) + self.dense5(time)[:, :, None, None]))
        up = self.tconv3(up + down3) + self.dense6(time)[:, :, None, None]
        up = F.silu(self.tnorm3(up))
        up = self.tconv2(up + down2) + self.dense7(time)[:, :, None, None]
        up = F.silu(self.tnorm2(up))
        outputs: Tensor = self.tconv1(up + down1)
        return outputs


def unet(
    *,
    in_channels: int = 1,
    channels: list[int] | tuple[int, ...] = (64, 128, 256, 512),
    time_features: int = 512,
    time_scale: float = 30.0,
    time_steps: int = 1000,
) -> UNet:
    """Residual U-Net for denoising diffusion on 28x28 images.

    Args:
        in_channels: channels of the image.
        channels: of the four levels, multiples of 32.
        time_features: width of the time embedding, even.
        time_scale: standard deviation of its fixed Gaussian frequencies, in periods per
            ``time_steps``.
        time_steps: number of diffusion steps.

    Returns:
        A model from images x (batch, in_channels, side, side) and steps t (batch,) in
        [0, time_steps] to (batch, in_channels, side, side). Sides are 20, 28, 36, ...: then the
        way up gives the sizes of the way down.

    Raises:
        RequestError: a size is not allowed; from the model, an image's side is not.

    Source: the diffusion model of arXiv 2408.11804.
    """
    require_positive(in_channels=in_channels, time_features=time_features)
    require_positive(time_scale=time_scale, time_steps=time_steps)
    if len(channels) != 4 or any(width <= 0 or width % 32 for width in channels):
        raise invalid("channels", [*channels], "four multiples of 32")
    if time_features % 2:
        raise invalid("time_features", time_features, "an even number")
    return UNet(
        in_channels=in_channels,
        channels=tuple(channels),
        time_features=time_features,
        time_scale=time_scale,
        time_steps=time_steps,
    )
