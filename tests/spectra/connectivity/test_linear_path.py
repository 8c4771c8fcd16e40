"""Barriers against closed forms, interpolation of every entry, and networks on a line."""

import copy
import math

import pytest
import torch
from torch import nn

from latewood.errors import RequestError
from latewood.spectra import (
    agreement,
    barrier,
    barrier_interior,
    connect,
    endpoint_agreement,
    factors,
    interpolate,
    truncated,
)


def network(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


@pytest.fixture
def ends():
    states = []
    for seed in (0, 1):
        net = network(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for _ in range(seed + 2):
                net(torch.randn(16, 4) + seed)
        states.append(copy.deepcopy(net.state_dict()))
    return states


def test_barrier_of_worked_curves():
    curve = (1.0, 1.2, 1.5, 1.9, 1.4, 1.2)
    assert barrier(curve) == barrier_interior(curve) == pytest.approx(0.78)
    assert barrier(curve[::-1]) == pytest.approx(0.78)
    sagging = (1, 0.5, 0.2, 0.5, 1)
    assert barrier_interior(sagging) == pytest.approx(-0.5)
    assert barrier(sagging) == 0
    assert barrier((3.0, 7.0)) == 0


def test_barrier_of_curves_that_are_not_finite():
    assert barrier((1.0, math.inf, 1.0)) == math.inf
    assert barrier((math.inf, 1.0, 1.0)) == 0
    assert math.isnan(barrier((1.0, math.nan, 1.0)))
    assert math.isnan(barrier((math.nan, 1.0, 1.0)))
    with pytest.raises(RequestError, match="values"):
        barrier((1.0,))
    with pytest.raises(RequestError, match="values"):
        barrier_interior((1.0, 2.0))


def test_barrier_of_a_quadratic_loss(gaussian):
    # Its curve lies k |d|^2 a (1 - a) / 2 below the chord, least so next to the ends.
    model = nn.Linear(5, 4, dtype=torch.float64)
    first = {name: gaussian(*p.shape, seed=1) for name, p in model.state_dict().items()}
    second = {name: gaussian(*p.shape, seed=2) for name, p in model.state_dict().items()}
    centre = {name: gaussian(*p.shape, seed=3) for name, p in model.state_dict().items()}

    def loss(net):
        pairs = [(p - centre[name]).square().sum() for name, p in net.state_dict().items()]
        return {"loss": 0.5 * 3.0 * sum(pairs).item()}

    found = connect(model, first, second, loss)
    distance = sum((first[n] - second[n]).square().sum() for n in first).item()
    assert found.barrier_interior() == pytest.approx(-0.045 * 3.0 * distance)
    assert found.barrier() == 0
    swapped = connect(model, second, first, loss)
    assert swapped.scores["loss"][::-1] == pytest.approx(found.scores["loss"])
    assert len(found.alphas) == 11
    assert found.alphas[0] == 0 and found.alphas[-1] == 1


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_every_entry_is_interpolated(ends, alpha):
    first, second = ends
    for state, flag, number in ((first, True, 7), (second, False, 2**40)):
        state["flag"] = torch.tensor([flag])
        state["number"] = torch.tensor(number)
        state["half"] = state["0.weight"].to(torch.bfloat16)
    mixed = interpolate(first, second, alpha)
    assert list(mixed) == list(first)
    for name, value in mixed.items():
        assert value.dtype == first[name].dtype
        if value.dtype == torch.bool:
            assert torch.equal(value, first[name] if alpha <= 0.5 else second[name])
        elif not value.is_floating_point():
            exact = (1 - alpha) * first[name].double() + alpha * second[name].double()
            assert torch.equal(value, exact.round().long())
        else:
            exact = (1 - alpha) * first[name].double() + alpha * second[name].double()
            precision = 1e-6 if value.dtype == torch.float32 else 1e-2
            assert torch.allclose(value.double(), exact, atol=precision)
        if alpha in (0, 1):
            end = second if alpha else first
            assert torch.equal(value, end[name])
            assert value.data_ptr() != end[name].data_ptr()


def test_running_statistics_are_measured_at_every_position(ends, gaussian):
    batches = [(gaussian(32, 4, seed=seed, dtype=torch.float32),) for seed in range(2)]
    means, modes = [], []

    def look(net):
        means.append(net[1].running_mean.clone())
        modes.append(net.training)
        with torch.no_grad():
            seen = torch.stack([net[0](x).mean(0) for (x,) in batches]).mean(0)
        return {"off": (seen - net[1].running_mean).abs().max().item()}

    model = network(0)
    state = copy.deepcopy(model.state_dict())
    measured = connect(model, *ends, look, points=5, batches=batches)
    assert max(measured.scores["off"]) < 1e-5
    assert max(connect(model, *ends, look, points=5).scores["off"]) > 0.1
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(modes)
    assert means[0].data_ptr() != means[4].data_ptr()


@pytest.mark.parametrize("keep", ["top", "bottom"])
def test_networks_are_truncated_where_they_are_with_statistics_measured_anew(ends, gaussian, keep):
    batches = [(gaussian(32, 4, seed=seed, dtype=torch.float32),) for seed in range(2)]
    walked, model = [], network(0)

    def look(net):
        walked.append(copy.deepcopy(net.state_dict()))
        return {"loss": 0.0}

    connect(model, *ends, look, points=3, batches=batches, truncate=0.5, keep=keep)
    for state, alpha in zip(walked, (0, 0.5, 1), strict=True):
        mixed = interpolate(*ends, alpha)
        cut = truncated(mixed["0.weight"], keep=keep)
        assert torch.allclose(state["0.weight"], cut, atol=1e-6)
        assert not torch.allclose(cut, mixed["0.weight"], atol=1e-2)
        assert torch.equal(state["3.weight"], mixed["3.weight"])  # the head stays whole
        layer = nn.Linear(4, 6)
        layer.load_state_dict({"weight": state["0.weight"], "bias": state["0.bias"]})
        with torch.no_grad():
            means = torch.stack([layer(x).mean(0) for (x,) in batches]).mean(0)
        assert torch.allclose(state["1.running_mean"], means, atol=1e-5)
    # The mean of truncated ends would have up to twice their rank.
    assert torch.linalg.matrix_rank(walked[1]["0.weight"], atol=1e-5) == 2
    with pytest.raises(RequestError, match="fraction"):
        connect(model, *ends, look, truncate=1.5)


def test_scores_by_name(ends):
    found = connect(network(0), *ends, lambda _: {"loss": 1, "error": 0.5}, points=3)
    assert found.scores == {"loss": (1.0, 1.0, 1.0), "error": (0.5, 0.5, 0.5)}
    assert found.barrier("error") == found.barrier() == 0
    with pytest.raises(RequestError, match="loss, error"):
        found.barrier("accuracy")


def test_agreement_of_the_ends(ends):
    model = network(0)
    found = endpoint_agreement(model, *ends, k=2)
    assert list(found) == ["0.weight", "3.weight"]
    expected = agreement(factors(ends[0]["0.weight"], 2), factors(ends[1]["0.weight"], 2))
    assert torch.equal(found["0.weight"].matrix, expected.matrix)
    own = endpoint_agreement(model, ends[0], ends[0], include=("3",))
    assert own["3.weight"].score.item() == pytest.approx(1, abs=1e-6)
    assert list(own) == ["3.weight"]


def test_bad_arguments_are_refused(ends):
    first, second = ends
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(RequestError, match="alpha"):
            interpolate(first, second, alpha)
    with pytest.raises(RequestError, match="extra"):
        interpolate(first, second | {"extra": torch.ones(1)}, 0.5)
    with pytest.raises(RequestError, match=r"0\.bias.*shape"):
        interpolate(first, second | {"0.bias": torch.ones(1)}, 0.5)
    with pytest.raises(RequestError, match="points"):
        connect(network(0), first, second, lambda _: {}, points=1)
    with pytest.raises(RequestError, match="batches"):
        connect(network(0), first, second, lambda _: {}, batches=iter([]))


def test_states_of_another_network_are_refused():
    model = torch.nn.Linear(3, 3)
    strange = {"other": torch.ones(3)}
    with pytest.raises(RequestError, match="the model"):
        connect(model, strange, strange, lambda network: {"loss": 0.0})
    with pytest.raises(RequestError, match="second"):
        endpoint_agreement(model, model.state_dict(), {})
