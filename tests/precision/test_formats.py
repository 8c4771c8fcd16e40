"""Formats on plain layers: what they say, and that copies, files and fresh models keep them."""

import copy
import io

import pytest
import torch
from torch import nn

from latewood.errors import RequestError
from latewood.precision import quantize
from latewood.precision.formats import (
    input_format,
    leave_input_format,
    leave_weight_format,
    quantize_input,
    quantized_layers,
    remove_formats,
    restore_formats,
    weight_format,
)


def finished(layer, bits, scale):
    with torch.no_grad():
        layer.weight.copy_(quantize(layer.weight / scale, bits) * scale)
    leave_weight_format(layer, bits, scale)
    return layer


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
        )
    finished(
        model[0],
        torch.tensor([1, 2, 4], dtype=torch.uint8).view(1, 3, 1, 1),
        torch.rand(4, 1, 1, 1) + 0.1,
    )
    finished(model[3], torch.tensor([[3]], dtype=torch.uint8), torch.tensor(0.07))
    leave_input_format(model[0], torch.tensor([1, 2, 4]), torch.tensor(0.5), torch.tensor(True))
    leave_input_format(model[3], torch.tensor([8]), torch.tensor(0.3), torch.tensor(False))
    return model


def test_codes_give_the_weight_back(model):
    layer = model[0]
    kind = weight_format(layer)
    codes = kind.codes(layer.weight)
    levels = 2.0 ** kind.bits.float()
    values = (2 * codes - (levels - 1)) * 2 / levels
    assert torch.equal(values * kind.scale, layer.weight)


def test_pruned_weights_are_no_part_of_the_grid(model):
    layer = model[0]
    with torch.no_grad():
        layer.weight[0, 0] = 0
    kind = weight_format(layer)
    assert not kind.kept(layer.weight)[0, 0].any()
    assert kind.kept(layer.weight)[1:].all()


@pytest.mark.parametrize("signed", [True, False])
def test_inputs_go_on_their_grids(signed):
    inputs = torch.linspace(-3, 5, 81, dtype=torch.float64).view(1, 1, 81).repeat(1, 3, 1)
    bits = torch.tensor([1, 3, 0], dtype=torch.uint8)
    out = quantize_input(inputs, bits, torch.tensor(0.5), torch.tensor(signed), -2)
    assert out[0, 2].count_nonzero() == 0
    offset = 0 if signed else 2
    for channel in (0, 1):
        expected = 0.5 * (quantize(inputs[0, channel] / 0.5 - offset, int(bits[channel])) + offset)
        assert torch.equal(out[0, channel], expected)
    if not signed:
        assert out[0, :2].min() > 0


def test_a_fresh_model_takes_the_state(model):
    inputs = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert restore_formats(fresh, state) == 2
    assert restore_formats(fresh, state) == 0
    fresh.load_state_dict(state)
    assert torch.equal(fresh(inputs), model(inputs))
    assert torch.equal(copy.deepcopy(model)(inputs), model(inputs))
    assert [name for name, _, _ in quantized_layers(fresh)] == ["0", "3"]
    assert input_format(fresh[3]).offset == 2.0


def test_formats_come_off(model):
    plain = remove_formats(copy.deepcopy(model))
    assert set(plain.state_dict()) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert not plain[0]._forward_pre_hooks and weight_format(plain[0]) is None
    assert torch.equal(plain[0].weight, model[0].weight)


def test_a_call_by_name_is_quantised_too(model):
    inputs = torch.rand(2, 64)
    assert torch.equal(model[3](input=inputs), model[3](inputs))
    with pytest.raises(RequestError, match="input"):
        model[3]()


def test_a_changed_shape_is_named(model):
    model[0].weight = nn.Parameter(model[0].weight[:, :2])
    with pytest.raises(RequestError, match=r"weight_bits.*change shapes before formats"):
        weight_format(model[0])


def test_a_state_that_does_not_fit_changes_nothing(model):
    other = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(RequestError, match=r"0.weight_bits"):
        restore_formats(other, model.state_dict())
    assert weight_format(other[3]) is None
