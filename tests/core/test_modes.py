"""Modes that hold for a while and are put back afterwards."""

import pytest
import torch
from torch import nn

from latewood.core.modes import buffers_restored, evaluated, undisturbed, unfused


def test_every_module_gets_its_own_mode_back_also_after_a_failure():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[1].eval()
    with pytest.raises(ZeroDivisionError), evaluated(model):
        assert not any(module.training for module in model.modules())
        model[0].train()
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == [True, True, False]


def test_what_is_undisturbed_keeps_modes_gradients_and_random_numbers():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), undisturbed(model):
        assert not model.training and not torch.is_grad_enabled()
        torch.rand(3)
        raise ZeroDivisionError
    assert model.training and torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)


class Counting(nn.Module):
    """Writes its buffers in evaluation mode: in place, by another tensor, behind torch's back."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("data", torch.zeros(3))
        self.register_buffer("last", None)

    def forward(self, x):
        h = self.layer(x)
        self.calls = self.calls + 1
        self.mean.lerp_(h.detach().mean(0), 0.5)
        self.data.data.add_(1)
        self.last = h
        self.register_buffer("extra", h)
        return h


@pytest.mark.parametrize("mode", [buffers_restored, undisturbed])
def test_buffers_that_a_run_writes_are_put_back(mode):
    model = Counting()
    before = dict(model._buffers)
    values = {name: value.clone() for name, value in model.named_buffers()}
    with pytest.raises(ZeroDivisionError), mode(model):
        model(torch.randn(2, 3))
        raise ZeroDivisionError
    assert list(model._buffers) == list(before)
    assert all(model._buffers[name] is before[name] for name in before)
    assert all(torch.equal(value, values[name]) for name, value in model.named_buffers())


def test_a_buffer_that_no_run_writes_can_still_be_differentiated_through():
    model = nn.BatchNorm1d(3)
    scaled = model.running_var * torch.ones(3, requires_grad=True)
    with undisturbed(model):
        model(torch.randn(2, 3))
    scaled.sum().backward()


@pytest.mark.parametrize("before", [True, False])
def test_the_switch_of_attention_is_put_back(before):
    own = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(before)
        with pytest.raises(ZeroDivisionError), unfused():
            assert not torch.backends.mha.get_fastpath_enabled()
            raise ZeroDivisionError
        assert torch.backends.mha.get_fastpath_enabled() == before
    finally:
        torch.backends.mha.set_fastpath_enabled(own)
