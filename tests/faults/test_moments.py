"""Closed forms against worked numbers, and sampled faults against the closed forms."""

import itertools
import math

import pytest
import torch

from latewood.errors import RequestError
from latewood.faults import ArrayBeta, Crossbar, LineFaults, StuckAt, cell_change, moments
from latewood.faults.simulation import read_codes
from latewood.kernels.faults import Stream, read_states_reference

MIXED = StuckAt(hrs=0.0904, lrs=0.0175)


def codes(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


@pytest.mark.parametrize(
    ("crossbar", "q", "mean", "variance", "cell", "value"),
    [
        (Crossbar(8, 2), 0, 0, 1352.150888, 0.1317186509, 0.1306162537),
        (Crossbar(8, 2), 37, 33.0077, 1402.803344, 0.3500148818, 0.3497852384),
        (Crossbar(8, 2), -127, -113.2967, 1522.536367, 0.3744023184, 0.3744023184),
        (Crossbar(8, 2, "offset"), 0, -9.3487, 1485.811062, 0.1539204142, 0.1539204142),
        (Crossbar(8, 2, "offset"), 37, 23.659, 1536.463519, 0.3666348584, 0.3666348584),
        (Crossbar(8, 2, "offset"), -37, -42.3564, 691.082796, 0.3542103657, 0.3542103657),
        (Crossbar(4, 1), 5, 4.4605, 1.82771703, 0.229041254, 0.2287723535),
        (Crossbar(4, 1), 0, 0, 0.7221375, 0.1005120405, 0.09965566276),
        (Crossbar(8, 1, "twos"), 37, 32.9902, 443.2979564, 0.311008046, 0.311008046),
        (Crossbar(8, 1, "twos"), -37, -33.0252, 1728.631711, 0.4532763912, 0.4532763912),
        (Crossbar(4, 1, "twos"), 0, -0.0175, 1.46146875, 0.06818384371, 0.06818384371),
    ],
)
def test_worked_moments(crossbar, q, mean, variance, cell, value):
    found = moments(codes(q), crossbar, MIXED)
    assert [part.item() for part in found] == pytest.approx([mean, variance, value], rel=1e-9)
    assert cell_change(codes(q), crossbar, MIXED).item() == pytest.approx(cell, rel=1e-9)


@pytest.mark.parametrize(
    ("hrs", "lrs", "errors"),
    [
        (0.1, 0, (325.561725, 1599.658667, 1035.284078)),
        (0.0904, 0.0175, (1474.382681, 1687.978205, 1147.626085)),
        (0.3, 0, (1120.888471, 5186.048, 2776.907294)),
    ],
)
def test_mean_squared_errors(hrs, lrs, errors):
    q = torch.arange(-127, 128, dtype=torch.int32)
    schemes = (Crossbar(8, 2), Crossbar(8, 2, "offset"), Crossbar(8, 1, "twos"))
    for crossbar, expected in zip(schemes, errors, strict=True):
        mean, variance, _ = moments(q, crossbar, StuckAt(hrs, lrs))
        assert (variance + (mean - q) ** 2).mean().item() == pytest.approx(expected, rel=1e-8)


def test_mean_probability_that_a_cell_changes():
    q = torch.arange(-127, 128, dtype=torch.int32)
    for rate, pair, offset in ((0.1, 0.249092549, 0.268956471), (0.3, 0.606708235, 0.641756471)):
        for crossbar, expected in ((Crossbar(8, 2), pair), (Crossbar(8, 2, "offset"), offset)):
            found = cell_change(q, crossbar, StuckAt(rate)).mean().item()
            assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("hrs", "lrs", "pair", "offset"),
    [
        (0.1, 0, (-89.55, 2090.0925), (-121.55, 4071.5325)),
        (0.0904, 0.0175, (-88.76395, 8789.178234), (-112.1357, 6575.005396)),
        (0.05, 0.05, (-89.55, 19968.42375), (-89.675, 9965.401875)),
        (0, 0.1, (-89.55, 35389.1925), (-57.8, 14630.49)),
    ],
)
def test_moments_of_a_dot_product(hrs, lrs, pair, offset):
    x = torch.tensor([1, 2, -1, 0.5], dtype=torch.float64)
    for crossbar, expected in ((Crossbar(8, 2), pair), (Crossbar(8, 2, "offset"), offset)):
        mean, variance, _ = moments(codes(37, -100, 0, 127), crossbar, StuckAt(hrs, lrs))
        found = (mean @ x).item(), (variance @ x**2).item()
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("crossbar", "q"),
    [(Crossbar(3, 1), 2), (Crossbar(4, 2), -3), (Crossbar(4, 2, top_slice="clamped"), 5)],
)
def test_all_states_of_all_cells_enumerated(crossbar, q):
    p0, p1 = 0.2, 0.15
    cells = crossbar.cells_per_weight
    states = torch.tensor(list(itertools.product(range(3), repeat=cells)), dtype=torch.uint8).T
    chances = torch.tensor([1 - p0 - p1, p0, p1], dtype=torch.float64)[states.long()].prod(0)
    read = read_states_reference(codes(q).expand(states.shape[1]), crossbar.layout, states).double()
    mean = (chances @ read).item()
    variance = (chances @ (read - mean) ** 2).item()
    changed = chances[read != q].sum().item()
    found = [part.item() for part in moments(codes(q), crossbar, StuckAt(p0, p1))]
    assert found == pytest.approx([mean, variance, changed], rel=1e-12)


def test_the_pair_law():
    read = read_codes(
        torch.full((400_000,), 0.25), Crossbar(scheme="pair"), MIXED, Stream(0, 0, "a")
    )
    law = {0.25: 0.87648825, 0.0: 0.08912425, 1.0: 0.01719375, -0.75: 0.01561175, -1.0: 0.001582}
    assert sum(law.values()) == pytest.approx(1)
    for value, chance in law.items():
        count = (read == value).sum().item()
        assert abs(count / 4e5 - chance) < 5 * math.sqrt(chance * (1 - chance) / 4e5) + 2**-16
    mean, _, changed = moments(torch.tensor([0.25]), Crossbar(scheme="pair"), MIXED)
    assert mean.item() == pytest.approx((1 - 0.1079) * 0.25)
    assert changed.item() == pytest.approx(1 - 0.87648825)


@pytest.mark.parametrize(
    "crossbar",
    [Crossbar(), Crossbar(8, 2, top_slice="clamped"), Crossbar(8, 2, "offset")],
    ids=["aligned", "clamped", "offset"],
)
@pytest.mark.parametrize("level", ["cell", "weight"])
def test_sampled_faults_have_these_moments(crossbar, level):
    faults = StuckAt(0.0904, 0.0175, level=level, precision=32)
    draw = torch.Generator().manual_seed(1)
    shape = (50, 100)
    q = torch.randint(-crossbar.largest, crossbar.largest + 1, shape, generator=draw).int()
    mean, variance, changed = moments(q, crossbar, faults)
    maps = 40
    reads = [read_codes(q, crossbar, faults, Stream(0, number, "a")) for number in range(maps)]
    stacked = torch.stack(reads).double()
    z = (stacked.mean(0) - mean) / (variance / maps).sqrt()
    n = q.numel()
    assert abs(z.mean().item()) < 5 / math.sqrt(n)
    assert abs(z.std().item() - 1) < 5 / math.sqrt(2 * n) + 0.02
    share = (stacked != q).double().mean().item()
    assert abs(share - changed.mean().item()) < 5 * 0.5 / math.sqrt(n * maps)


def test_high_resistance_only_ever_shrinks_a_pair():
    q = torch.arange(-127, 128, dtype=torch.int32)
    for number in range(20):
        read = read_codes(q, Crossbar(8, 2), StuckAt(0.4), Stream(0, number, "a"))
        assert bool((read.abs() <= q.abs()).all()) and bool((read * q >= 0).all())
    assert not read_codes(q, Crossbar(8, 2), StuckAt(1.0), Stream(0, 0, "a")).any()
    assert not read_codes(q, Crossbar(8, 2), StuckAt(0, 1.0), Stream(0, 0, "a")).any()
    full = read_codes(q, Crossbar(8, 2, "offset"), StuckAt(0, 1.0), Stream(0, 0, "a"))
    assert bool((full == 127).all())


def test_clusters_have_no_closed_form():
    dependent = (
        StuckAt(0.1, clusters=ArrayBeta(0.01)),
        StuckAt(lines=LineFaults(row=0.1)),
        StuckAt(0.1, mode="exact"),
    )
    for faults in dependent:
        with pytest.raises(RequestError, match="closed form"):
            moments(codes(1), Crossbar(), faults)
