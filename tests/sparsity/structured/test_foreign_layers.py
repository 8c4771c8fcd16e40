"""Layers that keep their shape while the network around them comes and goes."""

import pytest
import torch
from torch import nn

from latewood.core import parameter_groups
from latewood.errors import RequestError
from latewood.sparsity.structured import StructuredSparsification


class FrozenNorm(nn.Module):
    """A batch norm of buffers alone, as detection networks have."""

    def __init__(self, width):
        super().__init__()
        for name in ("weight", "bias", "mean", "variance"):
            self.register_buffer(name, torch.rand(width) + 0.5)

    def forward(self, x):
        scale = self.weight * (self.variance + 1e-5).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.mean * scale)[:, None, None]


class FrozenBlock(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.first = nn.Conv2d(width, 8, 3, padding=1, bias=False)
        self.norm1, self.norm2 = FrozenNorm(8), FrozenNorm(width)
        self.last = nn.Conv2d(8, width, 1, bias=False)

    def forward(self, x):
        return x + self.norm2(self.last(torch.relu(self.norm1(self.first(x)))))


class Speech(nn.Module):
    """Positions from a convolution under weight norm, as wav2vec 2.0 has."""

    def __init__(self, form):
        super().__init__()
        self.positions = form(nn.Conv1d(8, 8, 3, padding=1))
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.norm(x + self.positions(x.transpose(1, 2)).transpose(1, 2))
        return self.head(x + self.mlp(x))


def trained(model, x, *, budget=0.6):
    torch.manual_seed(0)
    full = sum(parameter.numel() for parameter in model.parameters())
    method = StructuredSparsification(
        model, x, budget={"parameters": budget}, total_steps=12, steps_per_epoch=3
    )
    assert method.budget.full == full
    optimizer = torch.optim.SGD(parameter_groups(model, [method], weight_decay=0.0), lr=0.01)
    for step in range(12):
        if step % 3 == 0:
            method.restructure(optimizer)
        optimizer.zero_grad()
        (model(x).square().mean() + method.penalty()).backward()
        optimizer.step()
        method.step()
    smaller = method.finalize()
    assert sum(parameter.numel() for parameter in smaller.parameters()) <= budget * full
    return smaller


def test_a_norm_of_buffers_follows_but_ends_no_block():
    x = torch.randn(2, 3, 6, 6)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), FrozenBlock(), nn.Conv2d(6, 2, 1))
    smaller = trained(model, x)
    assert isinstance(smaller[1], FrozenBlock)
    assert smaller[1].norm1.weight.shape == smaller[1].first.weight.shape[:1]
    assert smaller(x).shape == (2, 2, 4, 4)


@pytest.mark.parametrize(
    "form",
    [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm],
)
def test_a_weight_that_keeps_its_shape_may_stay_under_its_norm(form):
    x = torch.randn(3, 5, 8)
    smaller = trained(Speech(form), x)
    assert hasattr(smaller.positions, "parametrizations")
    assert smaller.mlp[0].weight.shape[0] < 32


def test_a_weight_of_changing_channels_may_not():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    nn.utils.parametrizations.spectral_norm(model[2])
    with pytest.raises(RequestError, match=r"2\.weight is computed by _SpectralNorm"):
        StructuredSparsification(
            model, torch.randn(2, 4), budget={"parameters": 0.5}, total_steps=4, steps_per_epoch=2
        )


def test_a_refusal_says_what_holds_the_channels():
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    with pytest.raises(RequestError, match="0: layer_norm in 1 averages over the channels"):
        StructuredSparsification(
            model, torch.randn(2, 4), budget={"parameters": 0.5}, total_steps=4, steps_per_epoch=2
        )
