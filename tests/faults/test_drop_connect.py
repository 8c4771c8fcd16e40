"""Drop-connect: what is out and when, gradients, and what it shares with stuck cells."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from latewood.core import finalize, transformations
from latewood.errors import RequestError
from latewood.faults import Crossbar, DropConnect, RateRamp, StuckAt, injected
from latewood.faults.simulation import read_codes
from latewood.kernels.faults import Stream
from latewood.precision import LearnedPrecision
from latewood.sparsity import FixedMasks


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).train()


def samples(step=0):
    draw = torch.Generator().manual_seed(100 + step)
    return torch.randn(16, 6, generator=draw), torch.randint(0, 4, (16,), generator=draw)


def train(model, methods, steps=6):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-3)
    for step in range(steps):
        x, labels = samples(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
        for method in methods:
            method.step()
    finalize(model, methods)
    return model.state_dict()


@pytest.mark.parametrize("emulate", ["zero", "zero+max"])
def test_a_rate_of_zero_changes_no_bit(emulate):
    plain = train(network(), [])
    model = network()
    dropped = train(model, [DropConnect(model, rate=0.0, emulate=emulate)])
    assert list(plain) == list(dropped)
    assert all(torch.equal(plain[name], dropped[name]) for name in plain)


def test_what_is_out_is_zero_and_has_no_gradient():
    model = network()
    stored = model[0].weight.detach().clone()
    method = DropConnect(model, rate=0.4, seed=3, include=["0"])
    weight = model[0].weight
    out = weight == 0
    assert 0.2 < out.float().mean() < 0.6
    assert torch.equal(weight[~out], stored[~out])  # not rescaled
    x, labels = samples()
    F.cross_entropy(model(x), labels).backward()
    gradient = model[0].parametrizations.weight.original.grad
    assert not gradient[out].any() and gradient[~out].all()
    assert method.metrics()["rate"] == 0.4
    assert method.metrics()["dropped"] == pytest.approx(out.float().mean().item())
    model.eval()
    assert torch.equal(model[0].weight, stored)


def test_masks_are_of_the_step_alone():
    def masks(model, method, steps):
        seen = []
        for _ in range(steps):
            seen.append((model[0].weight == 0).clone())
            assert torch.equal(seen[-1], model[0].weight == 0)
            method.step()
        return seen

    model, other = network(), network(1)
    first = masks(model, DropConnect(model, rate=0.3, seed=1), 4)
    second = masks(other, DropConnect(other, rate=0.3, seed=1), 4)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(first))
    model = network()
    assert not torch.equal(masks(model, DropConnect(model, rate=0.3, seed=2), 1)[0], first[0])
    assert not [key for key in other.state_dict() if "kept" in key or "signs" in key]


def test_by_epoch_fixed_and_from_a_step_on():
    model = network()
    method = DropConnect(model, rate=0.3, resample="epoch", steps_per_epoch=2, total_steps=6)
    seen = []
    for _ in range(6):
        seen.append(model[0].weight == 0)
        method.step()
    assert [torch.equal(a, b) for a, b in itertools.pairwise(seen)] == [1, 0, 1, 0, 1]
    model = network()
    method = DropConnect(model, rate=0.3, resample="fixed")
    before = model[0].weight == 0
    method.step()
    assert torch.equal(model[0].weight == 0, before)
    model = network()
    method = DropConnect(model, rate=0.3, start_step=1)
    assert (model[0].weight != 0).all() and method.metrics() == {"rate": 0.0, "dropped": 0.0}
    method.step()
    assert (model[0].weight == 0).any() and method.metrics()["rate"] == 0.3


@pytest.mark.parametrize("level", ["weight", "cell"])
def test_a_fixed_map_is_that_device(level):
    """What is trained under one map is what the simulator gives the network on that device."""
    model = network()
    device = copy.deepcopy(model).eval()
    crossbar = Crossbar(9, 2)
    if level == "cell":
        DropConnect(
            model, rate=0.2, hrs_share=0.7, emulate="cells", crossbar=crossbar,
            resample="fixed", map=5, seed=9,
        )  # fmt: skip
    else:
        DropConnect(model, rate=0.2, resample="fixed", map=5, seed=9)
    x, _ = samples()
    hrs = 1.0 if level == "weight" else 0.7
    faults = StuckAt(0.2 * hrs, 0.2 * (1 - hrs), level=level)
    with injected(device, crossbar, faults, map=5, seed=9), torch.no_grad():
        if level == "cell":
            assert torch.equal(model(x), device(x))
        else:
            assert torch.equal(model[0].weight == 0, device[0].weight == 0)


def test_faults_of_a_pair_are_drop_connect():
    """Stuck in the high resistance, one pair a weight: the same law, here by exact counts."""
    weight = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    pair = Crossbar(scheme="pair")
    codes = weight / weight.abs().max()
    maps = 40
    stuck = sum(
        (read_codes(codes, pair, StuckAt(0.3), Stream(0, t, "a")) == 0).sum() for t in range(maps)
    ).item()
    out = 0
    model = nn.Linear(100, 100)
    method = DropConnect(model, rate=0.3)
    for _ in range(maps):
        out += (model.weight == 0).sum().item()
        method.step()
    n = maps * weight.numel()
    for count in (stuck, out):
        assert abs(count - 0.3 * n) < 5 * (0.21 * n) ** 0.5 + n * 2**-17
    read = read_codes(codes, pair, StuckAt(0.3), Stream(0, 0, "a"))
    assert bool(((read == 0) | (read == codes)).all())


def test_weights_stuck_at_the_largest():
    model = network()
    stored = model[0].weight.detach().clone()
    DropConnect(model, rate=0.5, hrs_share=0.4, emulate="zero+max")
    weight, largest = model[0].weight, stored.abs().max()
    stuck = weight.abs() == largest
    assert 0.1 < stuck.float().mean() < 0.5 and weight[stuck].min() < 0 < weight[stuck].max()
    other = ~stuck & (weight != 0)
    assert torch.equal(weight[other], stored[other])
    weight.sum().backward()
    gradient = model[0].parametrizations.weight.original.grad
    assert torch.equal(gradient, other.float())


def test_what_is_stuck_at_the_largest_is_not_rescaled():
    model = network()
    stored = model[0].weight.detach().clone()
    DropConnect(model, rate=0.5, hrs_share=0.4, emulate="zero+max", scale="inverted")
    weight, largest = model[0].weight.detach(), stored.abs().max()
    good = (weight - 2 * stored).abs() < 1e-6
    assert 0.3 < good.float().mean() < 0.7
    assert bool((good | (weight == 0) | (weight.abs() == largest)).all())


def test_queries_keys_and_values_have_a_largest_of_their_own():
    attention = nn.MultiheadAttention(8, 2)
    with torch.no_grad():
        attention.in_proj_weight[8:16] *= 10.0
    device = copy.deepcopy(attention)
    DropConnect(attention, rate=0.4, hrs_share=0.5, emulate="zero+max", resample="fixed", map=3)
    stuck = attention.in_proj_weight.detach()
    with injected(device, Crossbar(), StuckAt(0.2, 0.2, level="weight"), map=3):
        read = device.in_proj_weight.detach()
    for rows in (slice(0, 8), slice(8, 16), slice(16, 24)):
        # The same weights are stuck, at the same numbers; the others differ by their rounding.
        step = read[rows].abs().max() / 63
        torch.testing.assert_close(stuck[rows], read[rows], atol=0.51 * step.item(), rtol=0)


@pytest.mark.parametrize("rate", [lambda _: 2.0, lambda _: "a", lambda _: 1 / 0])
def test_a_first_draw_that_fails_leaves_the_model_alone(rate):
    model = network()
    before = list(model.state_dict())
    with pytest.raises((RequestError, ZeroDivisionError)):
        DropConnect(model, rate=rate, total_steps=4)
    assert list(model.state_dict()) == before


def test_rates_change_as_they_are_told_to():
    def rates(rate, steps=6, **arguments):
        model = network()
        method = DropConnect(model, rate=rate, total_steps=steps, **arguments)
        seen = []
        for _ in range(steps):
            seen.append(method.metrics()["rate"])
            method.step()
        return seen

    assert rates(RateRamp(0.0, 0.3, until=0.5)) == pytest.approx([0, 0.1, 0.2, 0.3, 0.3, 0.3])
    assert rates(lambda progress: progress / 2) == pytest.approx(
        [0, 1 / 12, 1 / 6, 0.25, 1 / 3, 5 / 12]
    )
    between = rates((0.1, 0.2), steps=50)
    assert 0.1 <= min(between) < 0.12 and 0.18 < max(between) <= 0.2 and len(set(between)) == 50
    assert rates(RateRamp(0.0, 0.3), resample="fixed")[1] > 0
    scaled = network()
    DropConnect(scaled, rate=0.5, scale="inverted")
    weight, stored = scaled[0].weight, scaled[0].parametrizations.weight.original
    assert torch.equal(weight[weight != 0], 2 * stored[weight != 0])


def test_a_tied_weight_has_one_mask_and_a_bias_none():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.one(x))

    model = Tied()
    method = DropConnect(model, rate=0.5)
    assert torch.equal(model.one.weight, model.two.weight) and (model.one.weight == 0).any()
    assert (model.one.bias != 0).all()
    finalize(model, [method])
    assert model.two.weight is model.one.weight


def test_masks_and_formats_are_inside():
    model = network()
    mask = torch.rand(12, 6, generator=torch.Generator().manual_seed(0)) > 0.5
    methods = [
        DropConnect(model, rate=0.3, emulate="cells"),
        LearnedPrecision(model, total_steps=6, target_bits=2.0, exclude=("last",), snap_at=0.5),
        FixedMasks(model, {"0.weight": mask}),
    ]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(6):
        x, labels = samples(step)
        optimizer.zero_grad()
        (F.cross_entropy(model(x), labels) + sum(m.penalty() for m in methods)).backward()
        optimizer.step()
        for method in methods:
            method.step()
    assert not model[0].weight[~mask].any()  # high resistance repairs nothing
    finalize(model, methods)
    assert not model[0].weight[~mask].any() and model[0].weight[mask].all()


def test_on_a_fixed_grid_cells_hold_its_integers():
    model = network()
    format = LearnedPrecision(model, total_steps=6, target_bits=2.0, exclude=("last",))
    method = DropConnect(model, rate=0.3, emulate="cells")
    format.snap()
    model.train()
    bits, scale = transformations(model[0], "weight")[0].grid()
    unit = scale * torch.exp2(1.0 - bits.float())
    steps = model[0].weight.detach() / unit
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
    assert (steps.round() == 0).any() and bool((steps.abs() < 2.0**bits).all())
    finalize(model, [format, method])


def test_training_for_faults_minimises_the_marginal_risk():
    """Linear least squares with drop-connect: the closed form of its expected risk."""
    x = torch.tensor(
        [[1, 2, 0], [0, 1, -1], [2, 0, 1], [1, -1, 1], [0.5, 0.5, 2]], dtype=torch.float64
    )
    y = torch.tensor([1, -2, 3, 0.5, 2], dtype=torch.float64)
    best = torch.tensor([0.901278014447, 0.066185096005, 1.003250160965], dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(best)
    method = DropConnect(model, rate=0.3)
    total, risk, steps = torch.zeros(3, dtype=torch.float64), 0.0, 1000
    square = torch.zeros(3, dtype=torch.float64)
    for _ in range(steps):
        model.zero_grad()
        loss = (y - model(x)[:, 0]).square().sum()
        loss.backward()
        gradient = model.parametrizations.weight.original.grad[0]
        total, square, risk = total + gradient, square + gradient**2, risk + loss.item()
        method.step()
    error = (square / steps).sqrt() / steps**0.5
    assert bool((total / steps).abs().le(5 * error).all())
    assert risk / steps == pytest.approx(6.192617460023, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"rate": 1.5}, "rate: got 1.5"),
        ({"rate": (0.3, 0.1)}, "the lower rate first"),
        ({"rate": (0.3,)}, "two rates"),
        ({"rate": RateRamp()}, "total_steps: got None"),
        ({"rate": "high"}, "rate: got 'high'"),
        ({"emulate": "ones"}, "emulate: got 'ones'"),
        ({"resample": "sample"}, "resample: got 'sample'"),
        ({"resample": "epoch"}, "steps_per_epoch: got None"),
        ({"scale": "half"}, "scale: got 'half'"),
        ({"hrs_share": 0.5}, "hrs_share: got 0.5; expected 1 for emulate='zero'"),
        ({"hrs_share": 2, "emulate": "cells"}, "hrs_share: got 2"),
        ({"emulate": "cells", "scale": "inverted"}, "scale: got 'inverted'"),
        ({"crossbar": Crossbar()}, "crossbar: got"),
        ({"emulate": "cells", "crossbar": Crossbar(scheme="pair")}, "scheme of digits"),
        ({"emulate": "cells", "crossbar": 5}, "crossbar: got 5"),
        ({"map": -1}, "map: got -1"),
        ({"seed": 2**63, "emulate": "cells"}, "seed: got"),
        ({"start_step": -1}, "start_step: got -1"),
        ({"include": ["none"]}, "include: got 'none'"),
    ],
)
def test_bad_arguments_leave_the_model_alone(arguments, says):
    model = network()
    with pytest.raises(RequestError, match=says):
        DropConnect(model, **arguments)
    assert not hasattr(model[0], "parametrizations")


def test_rates_that_leave_their_range_and_second_faults_are_refused():
    model = network()
    method = DropConnect(model, rate=lambda progress: 2 * progress, total_steps=3)
    method.step()
    with pytest.raises(RequestError, match=r"rate at step 2: got 1\.33"):
        method.step()
    with pytest.raises(RequestError, match=r"0\.weight has faults already \(DroppedWeight\)"):
        DropConnect(model)
    with pytest.warns(UserWarning, match="more robust"):
        DropConnect(network(), emulate="cells", hrs_share=0.5, crossbar=Crossbar(8, 2))
    for bad in ({"end": 2.0}, {"start": -1}, {"until": 0.0}):
        with pytest.raises(RequestError, match="rate\\."):
            RateRamp(**bad)
