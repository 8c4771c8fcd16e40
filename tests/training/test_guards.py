"""Where a step first goes wrong: inputs, parameters, outputs, gradients."""

import pytest
import torch
from torch import nn

from latewood.training.guards import first_break


class Explode(nn.Module):
    def forward(self, x):
        return x * torch.inf


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan


class SpoilGradient(nn.Module):
    def forward(self, x):
        return BadGradient.apply(x)


def network(*middle):
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("first", nn.Linear(3, 4))
    model.add_module("norm", nn.BatchNorm1d(4))
    for index, module in enumerate(middle):
        model.add_module(f"middle{index}", module)
    model.add_module("last", nn.Linear(4, 1))
    return model


def found(model, x=None):
    x = torch.randn(5, 3) if x is None else x
    return first_break(model, lambda: model(x).mean(), (x,))


def test_the_first_layer_with_a_bad_output_is_named_not_those_after_it():
    assert found(network(nn.Identity(), Explode(), nn.ReLU())) == "the output of layer 'middle1'"


def test_the_first_bad_gradient_is_named_in_the_order_of_the_backward_pass():
    broken = found(network(SpoilGradient(), nn.Tanh()))
    # Its own output's gradient is sound, so what it hands to the layer before is the first.
    assert broken == "the gradient at the output of layer 'norm'"


def test_a_gradient_of_a_parameter_alone_is_named():
    model = network()
    x = torch.randn(5, 3)

    def loss():
        return model(x).mean() + (model.last.bias - model.last.bias.detach()).abs().sqrt().sum()

    assert first_break(model, loss, (x,)) == "the gradient of 'last.bias'"


def test_a_bad_batch_is_blamed_before_any_layer():
    x = torch.randn(5, 3)
    x[2, 1] = torch.nan
    assert found(network(), x) == "tensor 0 of the batch"


def test_a_bad_parameter_is_blamed_before_any_output():
    model = network()
    with torch.no_grad():
        model.last.weight[0, 0] = torch.inf
    assert found(model).startswith("the parameter 'last.weight'")


def test_a_loss_that_breaks_by_itself_is_named():
    model = network()
    x = torch.randn(5, 3)
    what = first_break(model, lambda: (model(x).mean() * 0).log(), (x,))
    assert what.startswith("the loss, from finite outputs")


def test_a_sound_step_shows_nothing():
    assert found(network()) is None


def test_a_parametrized_layer_is_named_by_its_own_name():
    model = network()
    torch.nn.utils.parametrize.register_parametrization(model.first, "weight", Explode())
    assert "'first" in found(model)


@pytest.mark.parametrize("middle", [(), (Explode(),), (SpoilGradient(),)])
def test_parameters_gradients_buffers_and_hooks_are_left_alone(middle):
    model = network(*middle)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert all(not p._backward_hooks for p in model.parameters())
    assert all(not m._forward_hooks for m in model.modules())
