"""The cost model against the worked layer and the constants it was published with."""

import dataclasses

import numpy as np
import pytest

from latewood.errors import RequestError
from latewood.precision import PATTERNS, fit_counts
from latewood.precision.simd import (
    LayerCounts,
    Machine,
    MachineConstants,
    area,
    baseline_cost,
    energy,
    lay_out,
    layer_cost,
    run_layer,
)
from latewood.precision.simd.machine_costs import cycles, loads

UNIFORM = {4: (8, 0, 0), 2: (0, 8, 0), 1: (0, 0, 8)}


def worked_layer(bits):
    """A convolution of 64 channels to 64, 3x3, on 32x32."""
    counts = tuple(576 if p == bits else 0 for p in (4, 2, 1))
    return LayerCounts("conv", counts, outputs=64, positions=1024)


@pytest.mark.parametrize(("bits", "expected"), [(4, 0.0948), (2, 0.0441), (1, 0.0264)])
def test_energy_of_a_mac(bits, expected):
    assert energy(UNIFORM[bits]) == pytest.approx(expected, abs=5e-5)
    whole = energy(UNIFORM[bits], per="instruction")
    assert whole == pytest.approx(energy(UNIFORM[bits]) * 128 / bits)


def test_energy_is_linear_in_the_granules():
    """Eight granules and one addition of 32 bits."""
    uniform = [energy(UNIFORM[p], per="instruction") - 0.1 for p in (4, 2, 1)]
    for index, pattern in enumerate(PATTERNS):
        expected = 0.1 + sum(g / 8 * e for g, e in zip(pattern, uniform, strict=True))
        assert energy(index, per="instruction") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("bits", "compute", "weights"), [(4, 3.578, 4.49), (2, 1.663, 2.25), (1, 1.108, 1.12)]
)
def test_worked_layer(bits, compute, weights):
    layer = worked_layer(bits)
    assert layer.macs == 37_748_736
    cost = layer_cost(layer, fit_counts(layer.counts, 4))
    assert cost.compute_pj / 1e6 == pytest.approx(compute, abs=6e-4)
    assert cost.weight_pj / 1e6 == pytest.approx(weights, abs=6e-3)


@pytest.mark.parametrize(
    ("kind", "compute", "weights"), [("float32", 173.6, 35.9), ("int8", 11.32, 8.99)]
)
def test_worked_baselines(kind, compute, weights):
    cost = baseline_cost(worked_layer(4), kind)
    assert cost.compute_pj / 1e6 == pytest.approx(compute, abs=0.06)
    assert cost.weight_pj / 1e6 == pytest.approx(weights, abs=0.06)


def test_ideal_ratios():
    counts = {4: (1024, 0, 0), 2: (0, 1024, 0), 1: (0, 0, 1024)}
    for bits, elements in counts.items():
        layer = LayerCounts("linear", elements, outputs=64, positions=64)
        ours = layer_cost(layer, fit_counts(elements, 4)).instructions
        assert baseline_cost(layer, "float32").instructions / ours == 32 / bits
        assert baseline_cost(layer, "int8").instructions / ours == 8 / bits


def test_cycles():
    # Full tiles of 4 x 4: 16 dot products hide 8 loads; two tiles.
    assert cycles(10, 8, 4) == 2 * (160 + 4)
    # A single row of four outputs is bound by its loads.
    assert cycles(10, 4, 1) == 10 * 5 + 4
    assert cycles(np.array([1, 2]), 4, 4).tolist() == [20, 36]
    assert cycles(10, 0, 5) == cycles(10, 5, 0) == 0
    slow = dataclasses.replace(MachineConstants(), bandwidth=4.0)
    assert cycles(10, 4, 4, slow) == 10 * 16 * 8 / 4 + 4


def test_the_model_counts_what_the_machine_executes():
    generator = np.random.default_rng(0)
    bits = np.array([4] * 3 + [2] * 20 + [1] * 90)
    layer = lay_out(generator.integers(0, 1 << bits, size=(7, len(bits))), bits, 4)
    inputs = generator.integers(0, 1 << bits, size=(5, len(bits)))
    done = run_layer(Machine(4), layer, inputs)
    counts = LayerCounts("layer", (3, 20, 90), outputs=7, positions=5)
    cost = layer_cost(counts, layer.fit)
    assert done.instructions["mp.vmac"] == cost.instructions
    assert done.instructions["mp.ld"] == layer.vectors * loads(7, 5)


def test_area():
    assert [area([UNIFORM[p]]) for p in (4, 2, 1)] == [8 * 67, 8 * 39, 8 * 31]
    assert area(45) == area([UNIFORM[4], UNIFORM[1]]) == 8 * (64 + 15)
    assert area([(2, 2, 4)]) == 2 * 67 + 2 * 39 + 4 * 31


def test_constants_are_replaceable():
    other = dataclasses.replace(MachineConstants(), add32=1.0)
    assert energy((8, 0, 0), other) > energy((8, 0, 0))
    free = MachineConstants(add8=0.0, add32=0.0, multiply8=0.0)
    assert energy((2, 2, 4), free) == 0.0


def test_nothing_to_do():
    layer = LayerCounts("empty", (0, 0, 0), outputs=0, positions=0)
    cost = layer_cost(layer, fit_counts(layer.counts, 4))
    assert (cost.instructions, cost.cycles, cost.compute_pj, cost.weight_bits) == (0, 0, 0, 0)


def test_numbers_of_numpy_and_very_large_ones():
    layer = LayerCounts("big", np.array([4, 8, 16]), np.int64(2), np.int32(3))
    assert layer.counts == (4, 8, 16) and type(layer.outputs) is int
    huge = LayerCounts("huge", (0, 0, 128), outputs=10**12, positions=10**12)
    assert layer_cost(huge, fit_counts(huge.counts, 4)).instructions == 10**24


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: energy((8, 8, 8)), "pattern: got"),
        (lambda: energy(45), "patterns: got 45"),
        (lambda: energy(0, per="bit"), "per: got 'bit'"),
        (lambda: MachineConstants(mac_rate=0), "mac_rate: got 0"),
        (lambda: MachineConstants(add8="x"), "add8: got 'x'"),
        (lambda: MachineConstants(add8=-1.0), "add8: got -1.0"),
        (lambda: MachineConstants(dram=float("nan")), "dram: got nan"),
        (lambda: LayerCounts("conv", (1, 2), 3), "conv: got"),
        (lambda: LayerCounts("conv", (1, 2, -3), 3), "conv: got"),
        (lambda: LayerCounts("conv", (1, 2, 3), 1.5), "conv: got"),
        (lambda: baseline_cost(worked_layer(4), "int16"), "kind: got 'int16'"),
    ],
)
def test_bad_input(call, named):
    with pytest.raises(RequestError, match=named):
        call()
