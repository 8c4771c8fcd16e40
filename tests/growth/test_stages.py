from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from latewood.core import slice_channels, trace_channels, widen_channels
from latewood.errors import RequestError
from latewood.growth import Stages
from latewood.growth.stage_blocks import block_norms, blocks, stages_present


class Joined(nn.Module):
    """A concatenation and a gated recurrence: new positions lie between old ones."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)
        self.cell = nn.LSTM(4, 2, batch_first=True)
        self.head = nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.cell(torch.cat([self.left(x), self.right(x)], -1))[0])


@pytest.fixture
def joined():
    model, inputs = Joined(), torch.randn(2, 3, 3)
    return model, trace_channels(model, inputs)


def grown(model, plan, copies, stages):
    wider = widen_channels(model, plan, copies)
    stages.widen(plan, wider)
    return wider


def test_new_positions_are_found_inside_a_concatenation_and_in_every_gate(joined):
    model, plan = joined
    stages = Stages()
    plan = grown(model, plan, {"left": [0, 1]}, stages)
    plan = grown(model, plan, {"left": [0, 1], "cell": [0]}, stages)
    assert stages.latest == 2
    assert stages.of("left.weight")[0].tolist() == [0, 0, 1, 1, 2, 2]
    assert stages.of("cell.weight_ih_l0")[1].tolist() == [0, 0, 1, 1, 2, 2, 0, 0]
    assert stages.of("cell.weight_ih_l0")[0].tolist() == [0, 0, 2] * 4
    assert stages.of("head.weight")[1].tolist() == [0, 0, 2]
    assert stages.of("right.weight") == {}
    assert "left.bias" in stages.tensors and "right.bias" not in stages.tensors


def test_stages_follow_removed_channels(joined):
    model, plan = joined
    stages = Stages()
    plan = grown(model, plan, {"left": [0, 1]}, stages)
    plan = grown(model, plan, {"left": [0, 1], "right": [1]}, stages)
    keep = {"left": [0, 2, 5], "right": [2]}
    stages.slice(plan, keep)
    plan = slice_channels(model, plan, keep)
    assert stages.of("left.weight")[0].tolist() == [0, 1, 2]
    assert stages.of("cell.weight_ih_l0")[1].tolist() == [0, 1, 2, 2]
    plan = grown(model, plan, {"right": [0]}, stages)
    assert stages.of("cell.weight_ih_l0")[1].tolist() == [0, 1, 2, 2, 3]


def test_nothing_grown_is_no_event(joined):
    model, plan = joined
    stages = Stages()
    assert stages.widen(plan, widen_channels(model, plan, {})) == 0


def test_a_plan_from_before_another_event_is_refused(joined):
    model, plan = joined
    stages = Stages()
    wider = grown(model, plan, {"left": [0]}, stages)
    grown(model, wider, {"left": [0]}, stages)
    with pytest.raises(RequestError, match=r"left\.weight has 3 positions on axis 0"):
        stages.widen(wider, widen_channels(model, wider, {"left": [0]}))


def test_state_is_restored(joined):
    model, plan = joined
    stages = Stages()
    grown(model, plan, {"left": [0, 1]}, stages)
    restored = Stages()
    restored.load_state_dict(stages.state_dict())
    assert restored.latest == 1
    assert restored.of("left.weight")[0].equal(stages.of("left.weight")[0])
    with pytest.raises(RequestError, match=r"Stages\.state_dict"):
        restored.load_state_dict({"late": 1})


vectors = st.lists(st.integers(0, 4), min_size=1, max_size=9)


@settings(max_examples=60)
@given(rows=vectors, columns=vectors, one_label=st.booleans())
def test_blocks_cover_every_entry_once_with_the_label_of_its_stage(rows, columns, one_label):
    born = {0: torch.tensor(rows), 1: torch.tensor(columns)}
    stage = torch.maximum(born[0][:, None], born[1][None, :])
    labels = {k: (k > 2) if one_label else k for k in range(5)}
    seen = torch.full((len(rows), len(columns), 3), -1)
    for block in blocks(seen.shape, born, labels):
        assert (seen[block.index] == -1).all()
        seen[block.index] = int(block.label)
    expected = torch.tensor([int(labels[k]) for k in range(5)])[stage]
    assert torch.equal(seen, expected[..., None].expand_as(seen))


@given(rows=vectors, columns=vectors)
@settings(max_examples=60)
def test_block_norms_are_those_of_the_entries(rows, columns):
    born = {1: torch.tensor(rows), 2: torch.tensor(columns)}
    weight = torch.randn(2, len(rows), len(columns), generator=torch.Generator().manual_seed(0))
    stage = torch.maximum(born[1][:, None], born[2][None, :])
    norms = block_norms(weight, born)
    assert sorted(norms) == sorted(stage.unique().tolist()) == stages_present(born)
    for k, norm in norms.items():
        exact = weight.double()[:, stage == k].square().sum().sqrt()
        assert math.isclose(norm, float(exact), rel_tol=1e-5)


def test_stages_in_order_need_few_blocks():
    born = torch.arange(9).repeat_interleave(3)
    found = blocks((27, 27), {0: born, 1: born}, {k: k for k in range(9)})
    assert len(found) == 2 * 9 - 1
    assert len(blocks((27, 5), {0: born}, {k: k for k in range(9)})) == 9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_norms_of_any_dtype(dtype):
    weight = torch.tensor([[300.0, 400.0], [0.0, 5.0]]).to(dtype)
    norms = block_norms(weight, {0: torch.tensor([0, 1])})
    assert norms[0] == pytest.approx(500.0, rel=1e-2) and norms[1] == pytest.approx(5.0)
