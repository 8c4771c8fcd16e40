"""Numbers of channels that an operation can only compute with in multiples of something."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latewood.core.coupling import slice_channels, trace_channels, verify_plan, widen_channels
from latewood.core.groups import parameter_groups
from latewood.errors import RequestError
from latewood.slim import load_slim, save_slim, slim
from latewood.sparsity import StructuredSparsification

EXPERTS, WIDTH, INNER = 2, 8, 16


class GroupedExperts(nn.Module):
    """Half of the rows to each of two gated experts, by torch's grouped product."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, WIDTH)
        self.gate_up = nn.Parameter(torch.randn(EXPERTS, WIDTH, 2 * INNER) / 4)
        self.down = nn.Parameter(torch.randn(EXPERTS, INNER, WIDTH) / 4)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x):
        rows = self.stem(x)
        ends = torch.tensor([len(rows) // 2, len(rows)], dtype=torch.int32)
        gate, up = F.grouped_mm(rows, self.gate_up, offs=ends).chunk(2, dim=-1)
        return self.head(rows + F.grouped_mm(F.silu(gate) * up, self.down, offs=ends))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GroupedExperts()


@pytest.fixture
def inputs():
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def test_a_grouped_product_wants_rows_of_sixteen_bytes(model, inputs):
    plan = trace_channels(model, inputs)
    # Two positions a channel on the fused axis, one on the other.
    assert (plan["gate_up"].multiple_of, plan["gate_up"].at_least) == (4, 4)
    assert (plan["down"].multiple_of, plan["down"].at_least) == (4, 4)
    assert plan["gate_up"].aligned_by == ("grouped_mm in the model",)
    assert verify_plan(model, plan, inputs) <= 1e-12
    halves = trace_channels(model.bfloat16(), inputs.bfloat16())
    assert halves["gate_up"].multiple_of == 8


def test_other_numbers_are_refused_with_the_nearest(model, inputs):
    plan = trace_channels(model, inputs)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RequestError, match=r"got '10 channels'; expected 8 or 12, multiples of 4"):
        slice_channels(model, plan, {"gate_up": range(10)})
    with pytest.raises(RequestError, match=r"got '3 channels'; expected at least 4"):
        slice_channels(model, plan, {"gate_up": range(3)})
    with pytest.raises(RequestError, match=r"got '18 channels'; expected 16 or 20"):
        widen_channels(model, plan, {"gate_up": [0, 1]})
    with pytest.raises(RequestError, match=r"keep.*got '10 channels'; expected 8 or 12"):
        slim(model, inputs, keep={"gate_up": range(10)})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    plan = slice_channels(model, plan, {"gate_up": range(8), "down": [0, 1, 2, 5]})
    widen_channels(model, plan, {"gate_up": range(4)})
    assert model.gate_up.shape == (EXPERTS, 4, 24)
    model(inputs).sum().backward()


def test_slim_leaves_a_multiple(model, inputs):
    gone = torch.tensor([1, 4, 5, 7, 9, 10, 11, 12, 13])
    with torch.no_grad():
        model.down[:, gone] = 0
    small = slim(model, inputs)
    assert small.down.shape == (EXPERTS, 8, WIDTH)


def test_structured_sparsification_takes_them_together(model, inputs, tmp_path):
    method = StructuredSparsification(
        model, inputs, budget={"parameters": 0.6}, total_steps=20, steps_per_epoch=5, seed=0
    )
    optimizer = torch.optim.SGD(parameter_groups(model, [method], weight_decay=0.0), lr=0.01)
    for step in range(20):
        if step % 5 == 0:
            method.restructure(optimizer)
        optimizer.zero_grad()
        (model(inputs).square().mean() + method.penalty()).backward()
        optimizer.step()
        method.step()
    smaller = method.finalize().eval()
    assert smaller.down.shape[1] % 4 == smaller.down.shape[2] % 4 == 0
    assert smaller.down.numel() < EXPERTS * INNER * WIDTH
    save_slim(smaller, tmp_path / "small.safetensors")
    opened = load_slim(tmp_path / "small.safetensors", GroupedExperts)
    assert torch.equal(opened(inputs), smaller(inputs))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_pixel_shuffle_takes_blocks_of_channels(groups):
    model = nn.Sequential(
        nn.Conv2d(3, 24, 1), nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(6, 4, 1, groups=groups)
    )
    image = torch.randn(1, 3, 4, 4)
    plan = trace_channels(model, image)
    group = plan["0"]
    assert group.width == 6 // (3 if groups == 2 else 1)
    assert group.members[0].indices[0].tolist() == list(range(24 // group.width))
    assert not group.barriers or groups == 2
    assert verify_plan(model, plan, image) <= 1e-12
    if groups == 1:
        widen_channels(model, plan, {"0": [0, 3]})
        assert model[0].out_channels == 32
        assert model(image).shape == (1, 4, 8, 8)


def test_a_pixel_unshuffle_spreads_a_channel():
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.PixelUnshuffle(2), nn.Conv2d(20, 4, 1))
    image = torch.randn(1, 3, 4, 4)
    plan = trace_channels(model, image)
    (reader,) = plan["0"].having("consumer")
    assert reader.indices.tolist() == [list(range(4 * c, 4 * c + 4)) for c in range(5)]
    assert verify_plan(model, plan, image) <= 1e-12


def test_a_channel_shuffle_keeps_places_of_all_groups_together():
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.ChannelShuffle(3), nn.Conv2d(12, 4, 1))
    image = torch.randn(1, 3, 4, 4)
    plan = trace_channels(model, image)
    assert plan["0"].members[0].indices.tolist() == [[c, c + 4, c + 8] for c in range(4)]
    assert verify_plan(model, plan, image) <= 1e-12
    widen_channels(model, plan, {"0": [0]})
    assert model(image).shape == (1, 4, 4, 4)
