"""Learned precision against its worked numbers, closed forms and the promises of its docstring."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from latewood.core import finalize, parameter_groups
from latewood.errors import RequestError
from latewood.precision import (
    LearnedPrecision,
    NoiseSettings,
    bits_of,
    input_format,
    quantize,
    quantized_layers,
    remove_formats,
    weight_format,
)
from latewood.precision.noise_training import curvatures, move_s
from latewood.precision.quantizable_weights import Axes
from latewood.precision.weight_precision import WeightPrecision, straight_through
from latewood.sparsity import ContinuousSparsification

LINEAR = Axes(inputs=1, outputs=0)


def made(weight, **arguments):
    defaults = {"per": "weight", "levels": (1, 2, 4), "initial_bits": 8.0, "scale": "max"}
    return WeightPrecision(weight, LINEAR, **{**defaults, **arguments})


def test_gradients_of_the_worked_example(monkeypatch):
    weight = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    precision = made(weight)
    precision.scale.fill_(1.0)
    noise = torch.tensor([[0.5, -0.25]], dtype=torch.float64)
    monkeypatch.setattr("latewood.kernels.noise.uniform_noise", lambda *_: noise)
    with torch.no_grad():
        precision.s.copy_(torch.tensor([[0.0, -1.0]]))
    noisy = precision(weight)
    expected = torch.tensor([[0.55, -1.2672353553]], dtype=torch.float64)
    torch.testing.assert_close(noisy, expected, atol=1e-9, rtol=0)
    loss = noisy.square().sum() / 2
    assert loss.item() == pytest.approx(0.9541927229, abs=1e-9)
    (gradient,) = torch.autograd.grad(loss, precision.s)
    assert gradient.flatten().tolist() == pytest.approx([0.06875, 0.0622883983], abs=1e-9)
    penalty = (bits_of(precision.s) - 1).sum()
    assert penalty.item() == pytest.approx(2.8946361240, abs=1e-9)
    (gradient,) = torch.autograd.grad(penalty, precision.s)
    assert gradient.flatten().tolist() == pytest.approx([-0.7213475204, -1.0546945860], abs=1e-9)
    bounds = [1.5, 1.7310585786]
    assert precision.bound().flatten().tolist() == pytest.approx(bounds, abs=1e-9)


def test_straight_through_has_no_gradient_outside_of_the_range():
    weight = torch.tensor([-2.5, -1.9, 0.1, 2.0, 2.1], requires_grad=True)
    out = straight_through(weight, torch.tensor(1.0), torch.tensor(4))
    assert torch.equal(out, quantize(weight.detach(), 4))
    out.sum().backward()
    assert weight.grad.tolist() == [0, 1, 1, 1, 0]
    gone = straight_through(weight, torch.tensor(1.0), torch.tensor(0))
    assert gone.count_nonzero() == 0


def test_noise_finds_the_bits_and_the_curvature_of_a_quadratic():
    """h = 0.01 to 100 at a price of 0.05 a bit: the closed form gives 1, 1, 2.104, 3.765, 5.426."""
    curvature = torch.tensor([0.01, 0.1, 1.0, 10.0, 100.0], dtype=torch.float64)
    replicas, price, optimum = 64, 0.05, 0.3
    weight = torch.full((replicas, 5), optimum, dtype=torch.float64)
    precision = made(weight, per="input_channel", initial_bits=5.0)
    precision.scale.fill_(1.0)
    for step in range(600):
        precision.key.fill_(step * 7919 + 1)
        precision.s.grad = None
        noisy = precision(weight)
        loss = (curvature * (noisy - optimum).square()).sum() / 2
        loss = loss + price * replicas * (bits_of(precision.s) - 1).sum()
        loss.backward()
        move_s(precision, lr=2e-2, taken=step, price=price)
    learned = bits_of(precision.s.detach()).flatten()
    assert learned[:2].max() < 1.15
    assert learned[2:].tolist() == pytest.approx([2.104100, 3.765065, 5.426028], abs=0.2)
    found = curvatures(precision).flatten()
    assert found.tolist() == pytest.approx(curvature.tolist(), rel=0.5)


def teacher(seed=0):
    generator = torch.Generator().manual_seed(seed)
    deviations = torch.logspace(
        torch.log10(torch.tensor(0.05)).item(), torch.log10(torch.tensor(5.0)).item(), 64
    )
    weights = torch.rand(16, 64, generator=generator) * 3.6 - 1.8
    return deviations, weights


def excess(weights, rounded, deviations):
    return float(((weights - rounded) * deviations).square().sum())


def test_bits_follow_the_size_of_the_inputs():
    """64 channels with deviations from 0.05 to 5: bits go where an error would show."""
    deviations, weights = teacher()
    layer = nn.Linear(64, 16, bias=False)
    with torch.no_grad():
        layer.weight.copy_(weights)
    model = nn.Sequential(layer)
    method = LearnedPrecision(model, total_steps=300, target_bits=2.0, exclude=(), snap_at=0.99)
    optimizer = torch.optim.SGD(parameter_groups(model, [method]), lr=0.0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        inputs = torch.randn(64, 64, generator=generator) * deviations
        loss = (model(inputs) - inputs @ weights.t()).square().mean() + method.penalty()
        optimizer.zero_grad(), loss.backward(), optimizer.step(), method.step()
    finalize(model, [method])
    kind = weight_format(layer)
    assert 1.9 <= kind.bits.float().mean() <= 2.0
    assert kind.bits[0, :16].float().mean() < 1.2 and kind.bits[0, -8:].float().mean() > 3.5
    scale = weights.abs().amax(1, keepdim=True) / 1.875
    uniform = quantize(weights / scale, 2) * scale
    assert (
        excess(weights, layer.weight.detach(), deviations)
        < excess(weights, uniform, deviations) / 5
    )


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(),
            nn.Linear(12, 10), nn.BatchNorm1d(10), nn.ReLU(),
            nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3),
        )  # fmt: skip


def trained(model, method, steps, *, others=(), seed=0, lr=0.05, loss=None):
    methods = [*others, method]
    optimizer = torch.optim.SGD(parameter_groups(model, methods), lr=lr, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        inputs = torch.randn(16, model[0].in_features, generator=generator)
        labels = (inputs.sum(1) > 0).long() + (inputs[:, 0] > 1).long()
        value = F.cross_entropy(model(inputs), labels)
        for each in methods:
            value = value + each.penalty()
        optimizer.zero_grad(), value.backward(), optimizer.step()
        for each in methods:
            each.step()
    return model


@pytest.mark.parametrize("activations", [False, True])
def test_the_plain_network_computes_what_was_evaluated(activations):
    model = network()
    method = LearnedPrecision(model, total_steps=40, target_bits=2.0, activations=activations)
    trained(model, method, 40)
    inputs = torch.randn(9, 6, generator=torch.Generator().manual_seed(5))
    before = model.eval()(inputs)
    finalize(model, [method])
    torch.testing.assert_close(model(inputs), before, atol=1e-6, rtol=1e-6)
    assert [name for name, _, _ in quantized_layers(model)] == ["0", "3", "6", "8"]
    assert int(weight_format(model[0]).bits.min()) == int(weight_format(model[8]).bits.max()) == 8
    for _, layer, _ in quantized_layers(model):
        kind = weight_format(layer)
        rounded = quantize(layer.weight / kind.scale, kind.bits.expand(layer.weight.shape))
        torch.testing.assert_close(rounded * kind.scale, layer.weight.detach())
        assert (input_format(layer) is not None) == activations
    if activations:
        assert bool(input_format(model[0]).signed) and not bool(input_format(model[3]).signed)
        assert torch.equal(input_format(model[3]).bits, weight_format(model[3]).bits.flatten())


def test_fifty_steps_of_learning_go_to_the_target_whatever_the_optimizer():
    model = network()
    method = LearnedPrecision(model, total_steps=60, target_bits=1.5, snap_at=0.9)
    trained(model, method, 60)
    assert 1.3 <= method.metrics()["bits"] <= 1.5
    assert method.metrics()["snapped"] == 1.0


def test_a_penalty_of_zero_never_costs_bits_and_a_large_one_does():
    averages = []
    for penalty in (0.0, 0.1, 10.0):
        model = network()
        method = LearnedPrecision(model, total_steps=60, penalty=penalty, snap_at=0.9)
        trained(model, method, 50)
        averages.append(method.metrics()["bits"])
    assert averages == sorted(averages, reverse=True)
    assert averages[0] > 6 and averages[2] < 1.5


def test_masks_stay_outside_and_their_factor_joins_the_scale():
    model = network()
    sparse = ContinuousSparsification(
        model, total_steps=60, initial_logit=-0.1, harden_at=0.3, final_temperature=500.0,
        density=0.4,
    )  # fmt: skip
    method = LearnedPrecision(model, total_steps=60, target_bits=2.0, snap_at=0.6)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*are undecided")
        trained(model, method, 60, others=[sparse])
    inputs = torch.randn(9, 6, generator=torch.Generator().manual_seed(5))
    before = model.eval()(inputs)
    finalize(model, [sparse, method])
    torch.testing.assert_close(model(inputs), before, atol=1e-6, rtol=1e-5)
    layer = model[3]
    kind = weight_format(layer)
    kept = kind.kept(layer.weight)
    assert 0 < kept.sum() < kept.numel()
    rounded = quantize(layer.weight / kind.scale, kind.bits.expand(layer.weight.shape))
    torch.testing.assert_close((rounded * kind.scale)[kept], layer.weight.detach()[kept])
    assert (sparse.scales["3.weight"] - 1.0) > 0.5


def test_masks_that_harden_too_late_are_refused_before_training():
    model = network()
    sparse = ContinuousSparsification(model, total_steps=60)
    method = LearnedPrecision(model, total_steps=60, target_bits=2.0)
    with pytest.raises(RequestError, match=r"SoftMask on .*after step 60.*after step 33"):
        trained(model, method, 1, others=[sparse])


def test_a_channel_of_no_bits_leaves_its_layer():
    model = network()
    with torch.no_grad():
        model[3].weight[:, :4] *= 1e-4
    method = LearnedPrecision(model, total_steps=80, penalty=0.5, palette=(0, 1, 2, 4))
    trained(model, method, 80, lr=0.01)
    finalize(model, [method])
    kind = weight_format(model[3])
    assert (kind.bits[0, :4] == 0).all() and (kind.bits > 0).any()
    assert model[3].weight[:, :4].count_nonzero() == 0


def test_two_levels_are_one_pair_for_the_network():
    model = network()
    method = LearnedPrecision(model, total_steps=60, target_bits=3.5, palette="two_levels")
    trained(model, method, 60)
    levels = {
        int(level) for name in ("3.weight", "6.weight") for level in method.bits()[name].unique()
    }
    assert len(levels) <= 2
    assert min(levels) <= 4 <= max(levels)


def test_patterns_promote_and_never_demote():
    plain, fitted = network(), network()
    outcomes = []
    for model, patterns in ((plain, None), (fitted, [(8, 0, 0), (0, 0, 8)])):
        method = LearnedPrecision(model, total_steps=60, target_bits=2.0, patterns=patterns)
        trained(model, method, 33)
        outcomes.append(method.bits()["3.weight"])
    assert (outcomes[1] >= outcomes[0]).all()
    assert set(outcomes[1].unique().tolist()) <= {1, 4}


def test_nested_bits_are_drawn_anew_and_evaluated_whole():
    model = network()
    method = LearnedPrecision(model, total_steps=60, target_bits=3.0, nested=True)
    trained(model, method, 40)
    precision = model[3].parametrizations.weight[0]
    draws = []
    for _ in range(8):
        draws.append(precision.current_bits().clone())
        trained(model, method, 1)
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) > 1
    model.eval()
    assert torch.equal(precision.current_bits(), precision.bits)


def test_a_teacher_is_learned_from_and_left_alone():
    model, torn = network(), network()
    float_network = copy.deepcopy(model)
    state = copy.deepcopy(float_network.state_dict())
    method = LearnedPrecision(model, total_steps=40, target_bits=2.0, distill_from=float_network)
    assert method.penalty().detach() == 0  # 8 bits are free before the first step, and no call yet
    trained(model, method, 40)
    assert method.penalty().detach() > 0
    assert all(
        torch.equal(state[name], value) for name, value in float_network.state_dict().items()
    )
    finalize(model, [method])
    assert not model._forward_hooks
    with pytest.raises(RequestError, match="distill_from"):
        LearnedPrecision(torn, total_steps=40, target_bits=2.0, distill_from=torn)


def test_evaluation_before_snapping_is_of_the_rounded_network():
    model = network()
    method = LearnedPrecision(model, total_steps=60, target_bits=2.0)
    trained(model, method, 10)
    layer = model.eval()[3]
    bits, scale = method.bits()["3.weight"], layer.parametrizations.weight[0].scale
    stored = layer.parametrizations.weight.original
    assert torch.equal(layer.weight, quantize(stored / scale, bits.expand_as(stored)) * scale)


def test_what_is_asked_for_twice_is_refused_and_what_was_taken_off_is_not():
    model = network()
    method = LearnedPrecision(model, total_steps=40, target_bits=2.0)
    with pytest.raises(RequestError, match=r"0\.weight has a format already"):
        LearnedPrecision(model, total_steps=40, target_bits=2.0)
    finalize(model, [method])
    with pytest.raises(RequestError, match=r"format of an earlier run.*remove_formats"):
        LearnedPrecision(model, total_steps=40, target_bits=2.0)
    LearnedPrecision(remove_formats(model), total_steps=40, target_bits=2.0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "neither"),
        ({"target_bits": 2.0, "penalty": 0.1}, "both"),
        ({"target_bits": 0.5}, r"target_bits: got 0\.5; expected an average from 1 to 4"),
        ({"target_bits": 6.0}, "target_bits"),
        ({"target_bits": float("inf")}, "target_bits"),
        ({"penalty": -1.0}, "penalty"),
        ({"penalty": 0.1, "palette": (3, 9)}, "palette"),
        ({"penalty": 0.1, "per": "output"}, "per"),
        ({"penalty": 0.1, "per": "weight", "activations": True}, "activations"),
        ({"penalty": 0.1, "palette": (2, 8), "patterns": 4}, "patterns"),
        ({"penalty": 0.1, "patterns": 5}, "patterns"),
        ({"penalty": 0.1, "snap_at": 1.0}, "snap_at"),
        ({"penalty": 0.1, "exclude": ("*",)}, "exclude"),
        ({"penalty": 0.1, "exclude": ("nothing",)}, "nothing"),
        ({"penalty": 0.1, "total_steps": 0}, "total_steps"),
        ({"target_bits": True}, "target_bits: got True"),
        ({"target_bits": "2"}, "target_bits: got '2'"),
        ({"penalty": True}, "penalty: got True"),
        ({"penalty": "0.1"}, "penalty: got '0.1'"),
        ({"penalty": 0.1, "snap_at": "half"}, "snap_at: got 'half'"),
        ({"penalty": 0.1, "snap_at": None}, "snap_at: got None"),
        ({"penalty": 0.1, "noise": {}}, "noise: got {}; expected NoiseSettings"),
        ({"penalty": 0.1, "noise": 0.1}, "noise: got 0.1"),
        ({"penalty": 0.1, "seed": 0.5}, "seed: got 0.5"),
        ({"penalty": 0.1, "seed": True}, "seed: got True"),
        ({"penalty": 0.1, "seed": -1}, "seed: got -1"),
        ({"penalty": 0.1, "seed": "0"}, "seed: got '0'"),
    ],
)
def test_bad_arguments(arguments, named):
    model = network()
    with pytest.raises(RequestError, match=named):
        LearnedPrecision(model, **{"total_steps": 40, **arguments})
    assert not any(hasattr(module, "parametrizations") for module in model.modules())


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lr": 0.0}, "lr"),
        ({"lr": "fast"}, "lr: got 'fast'"),
        ({"lr": True}, "lr: got True"),
        ({"initial_bits": 1.0}, "initial_bits"),
        ({"initial_bits": None}, "initial_bits: got None"),
        ({"scale": "mean"}, "scale"),
        ({"scale": []}, "scale"),
    ],
)
def test_bad_settings(settings, named):
    with pytest.raises(RequestError, match=named):
        NoiseSettings(**settings)


def test_traps_are_said_aloud():
    with pytest.warns(UserWarning, match=r"noise\.lr: 0\.001 times the 22 steps"):
        LearnedPrecision(network(), total_steps=40, penalty=0.1, noise=NoiseSettings(lr=1e-3))
    model = network()
    with torch.no_grad():
        model[3].weight *= 50
    with pytest.warns(UserWarning, match=r"'fan_in' clips many weights of 3\.weight"):
        LearnedPrecision(model, total_steps=40, penalty=0.1, noise=NoiseSettings(scale="fan_in"))
    model = network()
    method = LearnedPrecision(model, total_steps=40, target_bits=2.0)
    trained(model, method, 5)
    with pytest.warns(UserWarning, match="after 5 steps the bits were not fixed"):
        method.finalize()


def test_gradients_that_are_gone_are_named():
    model = network()
    method = LearnedPrecision(model, total_steps=40, target_bits=2.0)
    with pytest.raises(RequestError, match=r"before zero_grad"):
        method.step()


def test_shapes_that_change_after_snapping_are_named():
    model = network()
    method = LearnedPrecision(model, total_steps=40, target_bits=2.0)
    trained(model, method, 30)
    stored = model[3].parametrizations.weight.original
    stored.data = stored.data[:5]
    with pytest.raises(RequestError, match=r"3\.weight went from 120 to 60 weights"):
        method.step()


def test_noise_of_half_precision_keeps_its_s_in_float32():
    model = network().bfloat16()
    method = LearnedPrecision(model, total_steps=20, target_bits=2.0)
    assert {p.dtype for group in method.parameter_groups() for p in group["params"]} == {
        torch.float32
    }
