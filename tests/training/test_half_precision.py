"""What a processor cannot compute in bfloat16 is named before training."""

import pytest
import torch
from torch import nn

from latewood.errors import RequestError
from latewood.training.processes import processes


def refuse(*_, **__):
    raise RuntimeError("could not create a primitive descriptor")


def test_lstms_in_bfloat16_are_named_where_the_processor_has_none(monkeypatch, tmp_path):
    monkeypatch.setattr(nn.LSTM, "forward", refuse)
    model = nn.ModuleDict({"reader": nn.LSTM(2, 3), "head": nn.Linear(3, 2)})
    before = torch.get_rng_state()
    with processes(device="cpu", precision="bf16", trackers=(), folder=tmp_path) as group:
        message = "precision: got 'bf16'; expected 'no', as .* no bfloat16 for reader"
        with pytest.raises(RequestError, match=message):
            group.distribute(model)
        assert group.distribute(model["head"]) is model["head"]
    with processes(device="cpu", precision="no", trackers=(), folder=tmp_path) as group:
        assert group.distribute(model) is model
    assert torch.equal(torch.get_rng_state(), before)


def test_lstms_that_the_processor_computes_are_not_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(nn.LSTM, "forward", lambda self, inputs: (inputs, None))
    model = nn.ModuleDict({"reader": nn.LSTM(2, 3)})
    with processes(device="cpu", precision="bf16", trackers=(), folder=tmp_path) as group:
        assert group.distribute(model) is model
