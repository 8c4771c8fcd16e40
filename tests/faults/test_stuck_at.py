"""Rates, names, nested maps, and faults that lie together."""

import math
import warnings

import pytest
import torch

from latewood.errors import RequestError
from latewood.faults import ArrayBeta, Crossbar, Gaussian, LineFaults, StuckAt, read_back
from latewood.faults.fault_maps import _fields, cell_states
from latewood.faults.placement import WeightAxes, cell_positions
from latewood.kernels.faults import HRS, LRS, Stream, draw_states, limits_of

ONE_CELL = Crossbar(2, 2, "offset")
"""A cell a weight: its states can be counted."""


def test_names_need_a_convention():
    assert StuckAt.from_sa(sa0=0.1, sa1=0.2, convention="paper") == StuckAt(hrs=0.2, lrs=0.1)
    assert StuckAt.from_sa(sa0=0.1, sa1=0.2, convention="sa1_lrs") == StuckAt(hrs=0.1, lrs=0.2)
    with pytest.raises(RequestError, match="convention: got None"):
        StuckAt.from_sa(sa1=0.1)
    assert StuckAt.total(0.4, hrs_share=0.25) == StuckAt(hrs=0.1, lrs=0.30000000000000004)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"hrs": -0.1}, "hrs: got -0.1"),
        ({"lrs": 1.1}, "lrs: got 1.1"),
        ({"hrs": float("nan")}, "hrs: got nan"),
        ({"hrs": "0.1"}, "hrs: got '0.1'"),
        ({"hrs": 0.6, "lrs": 0.5}, "add up to at most 1"),
        ({"level": "bit"}, "level: got 'bit'"),
        ({"mode": "poisson"}, "mode: got 'poisson'"),
        ({"precision": 8}, "precision: got 8"),
        ({"clusters": 0.1}, "clusters: got 0.1"),
        ({"lines": 0.1}, "lines: got 0.1"),
        ({"level": "weight", "clusters": ArrayBeta(0.1)}, "level: got 'weight'"),
        ({"mode": "exact", "clusters": Gaussian(2)}, "mode: got 'exact'"),
    ],
)
def test_what_is_no_rate_is_refused(arguments, says):
    with pytest.raises(RequestError) as error:
        StuckAt(**arguments)
    assert says in str(error.value)


@pytest.mark.parametrize(("kind", "value"), [(ArrayBeta, 0), (ArrayBeta, 1), (Gaussian, 0.1)])
def test_what_is_no_cluster_is_refused(kind, value):
    with pytest.raises(RequestError):
        kind(value)
    with pytest.raises(RequestError, match="at: got 'open'"):
        LineFaults(row=0.1, at="open")


def test_the_stream_is_the_specified_one():
    # The name's crc32 is 2887079646; worked numbers of an independent implementation.
    lanes = [63796, 5814, 12151, 62415, 44774, 8452, 38937, 3145]
    assert Stream(0, 0, "fc1").lanes(8).tolist() == lanes
    assert Stream(0, 0, "fc1").lanes(3).tolist() == lanes[:3]
    lanes = [64762, 49091, 64541, 44341, 14027, 53625, 54729, 59088]
    assert Stream(0, 0, "layer1.0.conv1").lanes(8).tolist() == lanes
    lanes = [41134, 3951, 61575, 42360, 15428, 56316, 48036, 9893]
    assert Stream(0, 1, "fc1").lanes(8).tolist() == lanes
    wide = Stream(0, 0, "fc1").lanes(2, 32).tolist()
    assert wide == [63796 + (5814 << 16), 12151 + (62415 << 16)]
    assert limits_of(0.0904, 0.0175) == (5924, 64389, 16)
    assert (limits_of(0.3, 0).low, limits_of(0.1, 0).low) == (19661, 6554)


def test_rates_of_zero_and_one_are_exact():
    stream = Stream(0, 0, "a")
    for precision in (16, 32):
        assert not draw_states(10_000, stream, limits_of(0.0, 0.0, precision)).any()
        assert bool((draw_states(10_000, stream, limits_of(1.0, 0.0, precision)) == HRS).all())
        assert bool((draw_states(10_000, stream, limits_of(0.0, 1.0, precision)) == LRS).all())
        assert bool((draw_states(10_000, stream, limits_of(0.7, 0.3, precision)) > 0).all())


@pytest.mark.parametrize(
    "options",
    [{}, {"mode": "exact"}, {"clusters": ArrayBeta(0.02)}, {"clusters": Gaussian(2.0)}],
    ids=["independent", "exact", "beta", "gaussian"],
)
def test_maps_are_nested(options):
    stream = Stream(2, 5, "layer")
    before = None
    for rate in (0.02, 0.05, 0.1, 0.3, 0.6):
        faults = StuckAt(rate * 0.7, rate * 0.3, **options)
        states = cell_states((40, 50), Crossbar(), faults, stream)
        if before is not None:
            stuck = before > 0
            assert torch.equal(states[stuck], before[stuck])
            assert (states > 0).sum() > stuck.sum()
        before = states


def test_rates_that_are_lost_are_warned_of():
    with pytest.warns(UserWarning, match="precision=32 or mode='exact'"):
        faults = StuckAt(hrs=2.0**-17)
    assert faults.limits.low == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert StuckAt(hrs=1.1 * 2.0**-17).limits.low == 1
        assert StuckAt(hrs=2.0**-17, precision=32).limits.low == 2**15
        StuckAt(hrs=1e-6, mode="exact")
        StuckAt(hrs=0.3, lrs=1e-17)


def test_exact_counts():
    states = cell_states((33, 7), Crossbar(), StuckAt(0.1, 0.05, mode="exact"), Stream(0, 0, "a"))
    cells = 6 * 33 * 7
    assert (states == HRS).sum() == round(0.1 * cells)
    assert (states == LRS).sum() == round(0.05 * cells)
    read = read_back(
        torch.ones(10, 10), Crossbar(), StuckAt(0.25, level="weight", mode="exact"), name="a"
    )
    assert (read == 0).sum() == 25 and (read == 63).sum() == 75


@pytest.mark.parametrize(("rho", "deviation"), [(0.001, 160.100832), (0.05, 1099.709227)])
def test_counts_of_arrays_with_rates_of_their_own(rho, deviation):
    faults = StuckAt(0.1, clusters=ArrayBeta(rho))
    # 64 arrays a map, one cell a weight.
    counts = []
    for number in range(4):
        states = cell_states((512, 2048), ONE_CELL, faults, Stream(0, number, "a"))
        counts.append((states > 0).view(4, 128, 16, 128).sum((1, 3)).flatten())
    counts = torch.cat(counts).double()
    assert abs(counts.mean().item() - 1638.4) < 5 * deviation / math.sqrt(len(counts))
    assert counts.std().item() == pytest.approx(deviation, rel=5 / math.sqrt(2 * len(counts)) + 0.1)


def test_patches_have_their_correlation():
    field = torch.from_numpy(_fields(200, (64, 64), 2.0, Stream(0, 0, "a")))
    assert field.std().item() == pytest.approx(1.0, abs=0.02)
    for distance, expected in ((1, 0.939413), (2, 0.778801), (4, 0.367878)):
        for axis in (1, 2):
            found = (field * field.roll(distance, axis)).mean().item()
            assert found == pytest.approx(expected, abs=0.02)
    states = cell_states(
        (128, 2048), ONE_CELL, StuckAt(0.1, 0.05, clusters=Gaussian(2.0)), Stream(0, 0, "a")
    )
    assert (states == HRS).double().mean().item() == pytest.approx(0.1, abs=0.01)
    assert (states == LRS).double().mean().item() == pytest.approx(0.05, abs=0.01)


def test_a_conv_weight_on_its_arrays():
    """Rows are channels, then the kernel; columns are outputs with the slices beside each other."""
    crossbar = Crossbar(7, 2, tile=(8, 4))
    at = cell_positions((3, 2, 2, 2), WeightAxes(), crossbar)
    assert at.arrays == 2 * 1 * 3 and at.array.shape == (6, 24)
    weight = 1 * 8 + 1 * 4 + 1 * 2 + 0  # output 1, channel 1, kernel (1, 0)
    # Slice 2 of output 1 is column 5: the second array, its column 1.
    assert (at.array[2, weight], at.row[2, weight], at.column[2, weight]) == (1, 6, 1)
    assert (at.array[5, weight], at.row[5, weight], at.column[5, weight]) == (4, 6, 1)
    every = {tuple(cell) for cell in zip(at.array.flat, at.row.flat, at.column.flat, strict=True)}
    assert len(every) == 6 * 24
    transposed = cell_positions((2, 3, 2, 2), WeightAxes(outputs=1), crossbar)
    weight = 1 * 12 + 1 * 4 + 2
    assert (transposed.array[2, weight], transposed.row[2, weight]) == (1, 6)


def test_groups_lie_on_the_diagonal():
    at = cell_positions((4, 1, 3, 3), WeightAxes(groups=4), Crossbar(2, 2, "offset"))
    assert at.row[0].tolist() == list(range(36))
    assert at.column[0].tolist() == [place // 9 for place in range(36)]


def test_lines_are_stuck_as_a_whole():
    faults = StuckAt(lines=LineFaults(row=0.2))
    states = cell_states((256, 128), ONE_CELL, faults, Stream(0, 0, "a"))[0]
    # 256 outputs are two arrays side by side; each of them has rows of its own.
    for half in states.split(128):
        broken = (half == HRS).all(0)
        assert torch.equal((half == HRS).any(0), broken) and 5 < broken.sum() < 50
    shorts = StuckAt(0.05, lines=LineFaults(column=0.2, at="lrs"))
    states = cell_states((256, 128), ONE_CELL, shorts, Stream(0, 0, "a"))[0]
    columns = (states == LRS).all(1)
    assert 20 < columns.sum() < 90 and not (states[~columns] == LRS).any()
    assert (states[~columns] == HRS).double().mean().item() == pytest.approx(0.05, abs=0.01)


def test_a_misaligned_top_slice_is_warned_of():
    weight = torch.ones(2, 2)
    with pytest.warns(UserWarning, match="weight_bits=7 or weight_bits=9, or top_slice='clamped'"):
        read_back(weight, Crossbar(8, 2), StuckAt(0.1, 0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_back(weight, Crossbar(8, 2), StuckAt(0.1))
        read_back(weight, Crossbar(7, 2), StuckAt(0.1, 0.1))
        read_back(weight, Crossbar(8, 2, top_slice="clamped"), StuckAt(0.1, 0.1))
        read_back(weight, Crossbar(8, 2), StuckAt(0.1, 0.1, level="weight"))


@pytest.mark.parametrize("map_and_seed", [(-1, 0), (0, -1), (0.5, 0), (True, 0)])
def test_what_starts_no_stream_is_refused(map_and_seed):
    with pytest.raises(RequestError, match="expected a whole number"):
        read_back(torch.ones(2), Crossbar(), StuckAt(), map=map_and_seed[0], seed=map_and_seed[1])
    with pytest.raises(RequestError, match="crossbar: got StuckAt"):
        read_back(torch.ones(2), StuckAt(), Crossbar())


def test_odd_tensors_are_read():
    faults = StuckAt(0.2, 0.1)
    assert read_back(torch.ones(0, 3), Crossbar(), faults).shape == (0, 3)
    assert read_back(torch.tensor(1.0), Crossbar(), faults).shape == ()
    weight = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    turned = weight.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert torch.equal(read_back(turned, Crossbar(), faults), read_back(weight, Crossbar(), faults))
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert read_back(weight.to(dtype), Crossbar(), faults).dtype == torch.int32
