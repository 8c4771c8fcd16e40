"""Verdicts, predictions and measurements against closed forms; models beside a model; the probe."""

import copy
import math

import pytest
import torch
from torch import nn

from latewood.errors import RequestError
from latewood.regimes import (
    KernelProbe,
    Scaled,
    diagonal_kernel,
    kernel_distance,
    limit,
    linearize,
    regime,
    tangent_kernel,
    target_alignment,
    verdict,
)
from latewood.regimes.kernels.tangent_kernel import layer_kernels


class Diagonal(nn.Module):
    """The diagonal network itself, as a model that anybody could write."""

    def __init__(self, plus, minus, depth):
        super().__init__()
        self.plus, self.minus, self.depth = nn.Parameter(plus), nn.Parameter(minus), depth

    def forward(self, x):
        return (x @ (self.plus**self.depth - self.minus**self.depth))[:, None]


@pytest.fixture
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()


def data(count=40):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


@pytest.mark.parametrize("depth", [2, 3])
def test_the_exact_laboratory_measured_as_a_model(depth, twenty_features):
    """Closed forms through the kernel of any model: alpha 10 is kernel, 0.1 rich."""
    inputs, targets = twenty_features
    for alpha, expected in ((10.0, "kernel"), (0.1, "rich")):
        found = limit(inputs, targets, depth=depth, alpha=alpha)
        start = torch.full((20,), alpha, dtype=torch.float64)
        before, after = (
            Diagonal(start, start.clone(), depth),
            Diagonal(found.plus, found.minus, depth),
        )
        exact = kernel_distance(
            diagonal_kernel(inputs, start, start, depth=depth),
            diagonal_kernel(inputs, found.plus, found.minus, depth=depth),
        )
        placed = regime(before, inputs, targets, trained=after)
        assert placed.measured and placed.here.verdict == expected
        assert placed.here.relative == pytest.approx(float(exact.relative), rel=1e-6)
        assert placed.here.cosine == pytest.approx(float(exact.cosine), rel=1e-6, abs=1e-15)
        assert placed.warnings


def test_the_prediction_is_the_kernel_after_the_smallest_step(network):
    x, y = data()
    wanted = nn.functional.one_hot(y, 3).double()
    alpha = 4.0
    kernel = tangent_kernel(network, x).permute(0, 2, 1, 3).reshape(120, 120)
    weights = torch.linalg.lstsq(
        kernel, (wanted - network(x)).detach().flatten()[:, None], driver="gelsd"
    ).solution
    grads = torch.autograd.grad(
        (network(x) * weights.reshape(40, 3)).sum(), list(network.parameters())
    )
    moved = copy.deepcopy(network)
    with torch.no_grad():
        for p, g in zip(moved.parameters(), grads, strict=True):
            p += g / alpha
    # Few weights fit the targets only in part, so the ridge has to be that of the pseudo-inverse.
    found = regime(network, x, y, alphas=[alpha], ridge=1e-12)
    exact = kernel_distance(*(tangent_kernel(m, x, mode="trace") for m in (network, moved)))
    assert found.sweep[0].relative == pytest.approx(float(exact.relative), rel=0.05)
    assert found.sweep[0].cosine == pytest.approx(float(exact.cosine), rel=0.1)


def test_layers_alignment_and_spectrum_add_up(network):
    x, y = data()
    found = regime(network, x, y, alphas=[1.0, 10.0, 1e4, 1e5])
    assert [layer.layer for layer in found.layers] == ["0", "2"]
    assert sum(layer.share for layer in found.layers) == pytest.approx(1)
    assert sum(layer.change for layer in found.layers) == pytest.approx(1)
    trace = tangent_kernel(network, x, mode="trace")
    assert float(found.eigenvalues.sum()) == pytest.approx(float(trace.trace()))
    wanted = nn.functional.one_hot(y, 3).double()
    assert found.alignment == pytest.approx(float(target_alignment(trace, wanted)))
    # A smooth network in the kernel regime: relK falls as 1 / alpha, cosd as its square.
    last, before = found.sweep[3], found.sweep[2]
    assert math.log10(before.relative / last.relative) == pytest.approx(1, abs=0.05)
    assert math.log10(before.cosine / last.cosine) == pytest.approx(2, abs=0.1)
    crossing = found.crossing()
    assert crossing is None or 1 < crossing < 1e5
    assert not found.measured and "predicted" in found.sentence()


def test_layers_come_in_the_order_of_the_model(network):
    """Not in one that strings' hashes decide, which changes from run to run."""
    names = [name for name, _ in network.named_parameters()]
    assert list(layer_kernels(network, data(4)[0])) == names


def test_nothing_of_the_model_changes(network):
    x, y = data()
    network.train()
    before = copy.deepcopy(network.state_dict())
    regime(network, x, y, alphas=[3.0])
    assert network.training and all(p.grad is None for p in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_verdicts():
    assert verdict(0.05, 0.001) == "kernel" and verdict(0.5, 0.001) == "edge"
    assert (
        verdict(0.05, 0.05) == "edge"
        and verdict(2.0, 0.0) == "rich"
        and verdict(0.0, 0.2) == "rich"
    )
    with pytest.raises(RequestError, match="two distances"):
        verdict(math.nan, 0.1)


def test_kernel_distances():
    kernel = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    same = kernel_distance(kernel, 3 * kernel)
    assert float(same.relative) == pytest.approx(2) and float(same.cosine) == pytest.approx(
        0, abs=1e-15
    )
    across = kernel_distance(torch.eye(2), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert float(across.cosine) == pytest.approx(1)
    # The change of direction by 1e-9 has a cosine that float64 cannot tell from 1.
    tiny = torch.eye(2, dtype=torch.float64)
    tilted = tiny + torch.tensor([[0, 1e-9], [1e-9, 0]], dtype=torch.float64)
    assert float(kernel_distance(tiny, tilted).cosine) == pytest.approx(5e-19, rel=1e-6)
    with pytest.raises(RequestError, match=r"^end: got"):
        kernel_distance(torch.eye(2), torch.eye(3))


def test_the_tangent_model_trains_as_a_linear_one(network):
    x, y = data(10)
    tangent = linearize(network)
    torch.testing.assert_close(tangent(x), network(x))
    kernel = tangent_kernel(network, x)
    torch.testing.assert_close(tangent_kernel(tangent, x), kernel, rtol=1e-10, atol=1e-12)
    optimizer = torch.optim.SGD(tangent.parameters(), lr=0.01)
    residual = (network(x) - nn.functional.one_hot(y, 3)).detach().flatten()
    matrix = kernel.permute(0, 2, 1, 3).reshape(30, 30)
    for _ in range(5):
        optimizer.zero_grad()
        (0.5 * (tangent(x) - nn.functional.one_hot(y, 3)).square().sum()).backward()
        optimizer.step()
        residual = residual - 0.01 * matrix @ residual
    expected = nn.functional.one_hot(y, 3) + residual.reshape(10, 3)
    torch.testing.assert_close(tangent(x).detach(), expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(tangent_kernel(tangent, x), kernel, rtol=1e-9, atol=1e-11)


def test_scaled_outputs_start_at_zero_and_scale_the_kernel(network):
    x, _ = data(6)
    kernel = tangent_kernel(network, x)
    for center, factor in (("frozen", 9), ("replicated", 18), ("none", 9)):
        scaled = Scaled(network, 3.0, center=center)
        if center != "none":
            assert float(scaled(x).abs().max()) == 0
        torch.testing.assert_close(
            tangent_kernel(scaled, x), factor * kernel, rtol=1e-10, atol=1e-12
        )
    for wrong in (0.0, -1.0, math.nan, True):
        with pytest.raises(RequestError, match=r"^alpha: got"):
            Scaled(network, wrong)
    with pytest.raises(RequestError, match=r"^center: got"):
        Scaled(network, 1.0, center="mean")


def test_the_probe_sees_what_the_kernels_say(network, tmp_path):
    x, y = data()
    probe = KernelProbe(network, x, y, every=2, examples=33, folder=tmp_path)
    start = tangent_kernel(network, x[:33], mode="trace")
    (first,) = probe.observe(0)
    assert first.values["kernel_relative"] == 0 and probe.observe(1) == []
    with torch.no_grad():
        network[0].weight *= 1.5
    (second,) = probe.observe(2)
    end = tangent_kernel(network, x[:33], mode="trace")
    exact = kernel_distance(start, end)
    assert second.values["kernel_relative"] == pytest.approx(float(exact.relative))
    assert second.values["kernel_cosine"] == pytest.approx(float(exact.cosine))
    wanted = nn.functional.one_hot(y[:33], 3).double()
    assert second.values["kernel_alignment"] == pytest.approx(float(target_alignment(end, wanted)))
    resumed = KernelProbe(network, x, y, every=2, examples=33, folder=tmp_path)
    assert resumed.observe(2)[0].values == second.values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.ones(3)}, "^targets: got"),
        ({"targets": torch.full((40,), 7)}, "^targets: got 7"),
        ({"targets": torch.full((40, 3), math.nan)}, "^targets: got"),
        ({"alphas": [0.0]}, "^alphas: got"),
        ({"ridge": -1.0}, "^ridge: got"),
        ({"trained": nn.Linear(6, 3)}, "^trained: its parameters differ"),
    ],
)
def test_what_does_not_fit_is_named(network, change, message):
    x, y = data()
    arguments = {"inputs": x, "targets": y} | change
    with pytest.raises(RequestError, match=message):
        regime(network, **arguments)
