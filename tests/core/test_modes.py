"""Modes that hold for a while and are put back afterwards."""

import pytest
import torch
from torch import nn

from latewood.core.modes import evaluated, undisturbed, unfused


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
