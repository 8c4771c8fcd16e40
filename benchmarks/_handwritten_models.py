"""Small networks as people write them by hand, for the benchmark of architectures."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "AlibiDecoder",
    "ChannelShuffle",
    "ExpertDecoder",
    "FeaturePyramid",
    "Mixer",
    "SmallUNet",
    "SpeechGru",
    "SubPixel",
    "TorchTransformer",
    "ViewGpt",
    "WaveNet",
]

WIDTH = 32
HEADS = 4
VOCABULARY = 64


class _ViewAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.size()
        q, k, v = (
            part.view(batch, length, HEADS, width // HEADS).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=2)
        )
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(k.size(-1))
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        joined = mixed.transpose(1, 2).contiguous().view(batch, length, width)
        out: Tensor = self.out(joined)
        return out


class _ViewBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = _ViewAttention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class ViewGpt(nn.Module):
    """A decoder with fused queries, keys and values, split and joined by views."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(40, WIDTH)
        self.blocks = nn.ModuleList([_ViewBlock(), _ViewBlock()])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x))
        return out


class _RmsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class _AlibiBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = _RmsNorm(), _RmsNorm()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate_up = nn.Linear(WIDTH, 96, bias=False)
        self.down = nn.Linear(48, WIDTH, bias=False)
        self.register_buffer("slopes", 0.5 ** torch.arange(1, HEADS + 1))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        q, k, v = (
            layer(normed).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        places = torch.arange(x.shape[1])
        distances = (places[None] - places[:, None]).clamp(max=0)
        bias = self.slopes[:, None, None] * distances
        bias = bias.masked_fill(places[None] > places[:, None], float("-inf"))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        out: Tensor = x + self.down(F.silu(gate) * up)
        return out


class AlibiDecoder(nn.Module):
    """A decoder with RMS norms by hand, linear biases of attention and a fused gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.Sequential(_AlibiBlock(), _AlibiBlock())
        self.norm = _RmsNorm()
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.blocks(self.tokens(tokens))))
        return out


class _Experts(nn.Module):
    def __init__(self, count: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, count)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH))
            for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        weights, chosen = self.router(rows).softmax(-1).max(-1)
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            mine = (chosen == number).nonzero().flatten()
            out[mine] = expert(rows[mine]) * weights[mine, None]
        return out.view_as(x)


class ExpertDecoder(nn.Module):
    """A mixture of experts, each of which sees the tokens that chose it, perhaps none."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.attention = _ViewAttention()
        self.experts = _Experts()
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        x = x + self.attention(self.norms[0](x))
        out: Tensor = self.head(x + self.experts(self.norms[1](x)))
        return out


class TorchTransformer(nn.Module):
    """torch's own encoder and decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.transformer = nn.Transformer(
            WIDTH, HEADS, 2, 2, 48, dropout=0.0, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        out: Tensor = self.head(self.transformer(x, x))
        return out


class SpeechGru(nn.Module):
    """Convolutions over time and two directions of a GRU, then a mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv1d(16, 24, 3, padding=1)
        self.norm = nn.BatchNorm1d(24)
        self.gru = nn.GRU(24, 20, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(40, 10)

    def forward(self, spectrogram: Tensor) -> Tensor:
        x = F.relu(self.norm(self.front(spectrogram.transpose(1, 2)))).transpose(1, 2)
        out: Tensor = self.head(self.gru(x)[0].mean(1))
        return out


class WaveNet(nn.Module):
    """Gated dilated convolutions with skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv1d(1, 16, 1)
        self.gated = nn.ModuleList(nn.Conv1d(16, 32, 2, dilation=2**k) for k in range(4))
        self.residual = nn.ModuleList(nn.Conv1d(16, 16, 1) for _ in range(4))
        self.skip = nn.ModuleList(nn.Conv1d(16, 24, 1) for _ in range(4))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(24, 24, 1), nn.ReLU(), nn.Conv1d(24, 8, 1))

    def forward(self, sound: Tensor) -> Tensor:
        x = self.front(sound)
        total = torch.zeros(())
        for gated, residual, skip in zip(self.gated, self.residual, self.skip, strict=True):
            padded = F.pad(x, (gated.dilation[0], 0))
            content, gate = gated(padded).chunk(2, dim=1)
            hidden = torch.tanh(content) * torch.sigmoid(gate)
            total = total + skip(hidden)
            x = x + residual(hidden)
        out: Tensor = self.head(total)
        return out


class _MixerBlock(nn.Module):
    def __init__(self, places: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.over_places = nn.Sequential(nn.Linear(places, 24), nn.GELU(), nn.Linear(24, places))
        self.over_channels = nn.Sequential(nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.over_places(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = x + self.over_channels(self.norm2(x))
        return out


class Mixer(nn.Module):
    """MLPs over places and over channels in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 8, stride=8)
        self.blocks = nn.Sequential(_MixerBlock(16), _MixerBlock(16))
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        out: Tensor = self.head(self.blocks(x).mean(1))
        return out


class _ShuffleBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(24, 24, 1, groups=3, bias=False)
        self.norm1, self.norm2, self.norm3 = (nn.BatchNorm2d(24) for _ in range(3))
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False)
        self.last = nn.Conv2d(24, 24, 1, groups=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.first(x)))
        batch, channels, height, width = y.shape
        y = y.view(batch, 3, channels // 3, height, width).transpose(1, 2)
        y = y.contiguous().view(batch, channels, height, width)
        y = self.norm3(self.last(self.norm2(self.depthwise(y))))
        y += x
        return F.relu(y)


class ChannelShuffle(nn.Module):
    """Grouped convolutions whose groups exchange channels; the residual is added in place."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv2d(3, 24, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(_ShuffleBlock(), _ShuffleBlock())
        self.head = nn.Linear(24, 10)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.front(images)).mean((2, 3)))
        return out


class SubPixel(nn.Module):
    """Super-resolution by a pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 24, 5, padding=2),
            nn.PReLU(24),
            nn.Conv2d(24, 64, 3, padding=1),
            nn.PixelShuffle(2),
            nn.Conv2d(16, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.layers(images)
        return out


def _convolutions(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.GroupNorm(4, outputs),
        nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class SmallUNet(nn.Module):
    """Down and up again, with group norms and concatenated skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = _convolutions(3, 16), _convolutions(16, 32)
        self.bottom = _convolutions(32, 48)
        self.grow2, self.grow1 = (
            nn.ConvTranspose2d(48, 32, 2, stride=2),
            nn.ConvTranspose2d(32, 16, 2, stride=2),
        )
        self.up2, self.up1 = _convolutions(64, 32), _convolutions(32, 16)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        one = self.down1(images)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.bottom(F.max_pool2d(two, 2))
        x = self.up2(torch.cat([two, self.grow2(x)], dim=1))
        x = self.up1(torch.cat([one, self.grow1(x)], dim=1))
        out: Tensor = self.head(x)
        return out


class FeaturePyramid(nn.Module):
    """A backbone of three stages, lateral and top-down connections, and heads shared by all."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1), nn.BatchNorm2d(o), nn.ReLU())
            for i, o in ((3, 16), (16, 24), (24, 32))
        )
        self.lateral = nn.ModuleList(nn.Conv2d(width, 20, 1) for width in (16, 24, 32))
        self.classes = nn.Sequential(
            nn.Conv2d(20, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 6, 1)
        )
        self.boxes = nn.Sequential(nn.Conv2d(20, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 4, 1))

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        maps: list[Tensor] = []
        x = images
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            maps.append(lateral(x))
        for level in (1, 0):
            above = F.interpolate(maps[level + 1], scale_factor=2.0, mode="nearest")
            maps[level] = maps[level] + above
        return {
            "classes": [self.classes(level) for level in maps],
            "boxes": [self.boxes(level).exp() for level in maps],
        }
