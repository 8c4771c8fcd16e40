"""The machine's instructions against worked registers, identities and plain sums."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latewood.errors import RequestError
from latewood.precision import PATTERNS, code, pattern_index
from latewood.precision.simd import Machine, pack_registers, unpack_registers
from latewood.precision.simd.product_identities import (
    bit_serial_sum,
    common_grid,
    mixed_sum,
    signed_bytes_sum,
    unsigned_signed_sum,
)
from latewood.precision.simd.register_format import (
    element_layout,
    register_bytes,
    register_number,
)

A = 0x4BD07A6B3816DBC672EEF813B1D67AC1
B = 0x6FB60DAF332877DF4AC7A9357A273C71

X = [0.9, -0.3, 1.7, 0.2, -1.6, 0.44, -0.44, 1.25]
ROWS = [
    [0.37, -1.42, 1.93, -0.08, 0.61, -0.55, 1.11, -1.99],
    [1.5, 0, -0.5, 0.125, -0.126, 2.5, -2.5, 0.999],
]
BITS = [4, 4, 2, 2, 1, 1, 4, 2]


def loaded(patterns, *registers):
    machine = Machine(patterns)
    for vector, content in enumerate(registers):
        machine.write_register(vector, content)
    return machine


def random_codes(pattern, seed, shape=()):
    bits = element_layout(pattern).bits
    return np.random.default_rng(seed).integers(0, 1 << bits, size=(*shape, len(bits)))


def test_worked_registers():
    machine = loaded([(3, 3, 2)], register_bytes(A), register_bytes(B))
    machine.vmac(0, 0, 1, 0)
    assert machine.accumulators[0] == 712
    sums = []
    for granule in range(8):
        machine.vmul(2, 0, 1, 0, granule)
        lanes = 16 if granule >= 6 else 8
        sums.append(int(machine.registers[2:4].reshape(-1).view("<i2")[:lanes].sum()))
    assert sums == [214, -190, 240, -64, 224, 160, -128, 256]
    assert machine.executed == {"mp.setpat": 1, "mp.vmac": 1, "mp.vmul": 8}


def test_worked_mixed_dot():
    bits = torch.tensor(BITS)
    x = code(torch.tensor(X), bits).numpy()
    rows = [code(torch.tensor(row, dtype=torch.float32), bits).numpy() for row in ROWS]
    assert [mixed_sum(row, x, BITS) for row in rows] == [-117, 277]
    assert common_grid(x, BITS).tolist() == [7, -3, 12, 4, -8, 8, -3, 12]
    assert common_grid(rows[0], BITS).tolist() == [3, -11, 12, -4, 8, -8, 9, -12]
    assert common_grid(rows[1], BITS).tolist() == [13, 1, -4, 4, -8, 8, -15, 4]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_registers_of_every_pattern(pattern):
    codes = random_codes(pattern, 1, (3,))
    registers = pack_registers(codes, pattern)
    assert registers.shape == (3, 16)
    assert np.array_equal(unpack_registers(registers, pattern), codes)
    # Bit by bit, as the format says it.
    number, shift = 0, 0
    for place, (bits, granules) in enumerate(zip((4, 2, 1), pattern, strict=True)):
        first = sum(16 // p * g for p, g in zip((4, 2, 1)[:place], pattern[:place], strict=True))
        for element in range(first, first + 16 // bits * granules):
            number |= int(codes[0, element]) << shift
            shift += bits
    assert shift == 128 and register_number(registers[0]) == number


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 44), st.integers(0, 10**6))
def test_vmac_is_every_other_form_of_the_sum(index, seed):
    a, b = random_codes(index, seed), random_codes(index, seed + 1)
    machine = loaded([index], pack_registers(a, index), pack_registers(b, index))
    machine.vmac(0, 0, 1, 0)
    machine.vmac(1, 1, 0, 0)
    machine.vmac(2, 0, 0, 0)
    total = int(machine.accumulators[0])
    bits = element_layout(index).bits
    assert total == mixed_sum(a, b, bits) == machine.accumulators[1]
    grid_a, grid_b = (common_grid(codes, bits).astype(int) for codes in (a, b))
    assert total == (grid_a * grid_b).sum()
    assert machine.accumulators[2] == (grid_a**2).sum() > 0
    by_width = {p: (a[bits == p], b[bits == p]) for p in (4, 2, 1)}
    for form in (bit_serial_sum, unsigned_signed_sum, signed_bytes_sum):
        assert total == sum(4 ** (4 - p) * form(*codes, p) for p, codes in by_width.items())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(0, 40), st.integers(0, 10**6))
def test_identities_of_one_width(bits, number, seed):
    generator = np.random.default_rng(seed)
    a, b = generator.integers(0, 1 << bits, size=(2, number))
    expected = int(((2 * a - (2**bits - 1)) * (2 * b - (2**bits - 1))).sum())
    assert bit_serial_sum(a, b, bits) == signed_bytes_sum(a, b, bits) == expected
    if bits <= 7:
        assert unsigned_signed_sum(a, b, bits) == expected
    else:
        with pytest.raises(RequestError, match="bits: got 8"):
            unsigned_signed_sum(a, b, bits)


@pytest.mark.parametrize(
    ("pattern", "largest", "safe"),
    [((8, 0, 0), 7200, 4), ((0, 8, 0), 9216, 3), ((0, 0, 8), 8192, 3)],
)
def test_ranges(pattern, largest, safe):
    bits = element_layout(pattern).bits
    ends = pack_registers((1 << bits) - 1, pattern), pack_registers(0 * bits, pattern)
    machine = loaded([pattern], *ends)
    for count in range(1, safe + 2):
        machine.vmac(0, 0, 0, 0)
        assert machine.accumulators[0] == count * largest
        # Sums of 16 bits are safe for so many instructions and no more.
        assert (machine.accumulators[0] <= 2**15 - 1) == (count <= safe)
    machine.vmac(1, 0, 1, 0)
    assert machine.accumulators[1] == -largest
    # No pattern goes beyond the most of the uniform ones.
    assert 233_016 * 9216 <= 2**31 - 1 < 233_017 * 9216


def test_accumulators_wrap():
    machine = loaded([(0, 8, 0)], np.full(16, 255, dtype=np.uint8))
    machine.add(0, 2**31 - 1)
    machine.vmac(0, 0, 0, 0)
    assert machine.accumulators[0] == -(2**31) + 9215
    assert machine.add(0, -(2**31)) == 9215
    machine.add(1, 2**31 - 1)
    machine.add(2, 1)
    assert machine.red(3, 1, 2) == -(2**31)
    assert machine.red(3, 0, 0) == 0 == machine.accumulators[3]


def test_masked_elements_count_nothing():
    pattern = (2, 2, 4)
    a, b = random_codes(pattern, 3), random_codes(pattern, 4)
    kept = np.random.default_rng(5).integers(0, 2, size=len(a))
    machine = loaded([pattern], *(pack_registers(codes, pattern) for codes in (a, b)))
    mask = np.zeros(128, dtype=np.uint8)
    mask[: len(kept)] = kept
    machine.write_register(2, np.packbits(mask, bitorder="little"))
    machine.vmac(0, 0, 1, 0, vm=2)
    bits = element_layout(pattern).bits
    chosen = kept == 1
    assert machine.accumulators[0] == mixed_sum(a[chosen], b[chosen], bits[chosen])


def test_memory_pattern_table_and_pack():
    machine = Machine(4, memory=64)
    assert [PATTERNS[index] for index in machine.pattern_table] == [
        (0, 0, 8),
        (0, 8, 0),
        (2, 2, 4),
        (8, 0, 0),
    ]
    slot = machine.slot_of(pattern_index((2, 2, 4)))
    values = np.linspace(-9, 9, 88).astype(np.float32)
    machine.pack(7, values, slot, scale=3.0)
    bits = torch.from_numpy(element_layout((2, 2, 4)).bits.copy())
    expected = code(torch.from_numpy(values) / 3.0, bits).numpy()
    assert np.array_equal(unpack_registers(machine.registers[7], (2, 2, 4)), expected)
    machine.st(7, 48)
    machine.ld(9, 48)
    assert machine.register_number(9) == machine.register_number(7)
    machine.vmac(0, 9, 9, slot)
    machine.setpat(slot, pattern_index((3, 3, 2)))
    machine.vmac(1, 9, 9, slot)
    codes = unpack_registers(machine.registers[9], (3, 3, 2))
    assert machine.accumulators[1] == mixed_sum(codes, codes, element_layout((3, 3, 2)).bits)


def test_integers_are_packed_too():
    machine = Machine([(8, 0, 0)])
    machine.pack(0, np.arange(-16, 16, dtype=np.int32), 0, scale=8)
    expected = np.clip(np.floor((np.arange(-16, 16) / 8 + 2) * 4), 0, 15)
    assert unpack_registers(machine.registers[0], (8, 0, 0)).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda m: m.vmac(32, 0, 0, 0), "acc: got 32"),
        (lambda m: m.vmac(0, -1, 0, 0), "va: got -1"),
        (lambda m: m.vmac(0, 0, 0, 4), "slot: got 4"),
        (lambda m: m.vmac(0, 0, 0, 0, vm=99), "vm: got 99"),
        (lambda m: m.vmul(31, 0, 0, 0, 0), "vd: got 31"),
        (lambda m: m.vmul(0, 0, 0, 0, 8), "granule: got 8"),
        (lambda m: m.ld(0, 49), "address: got 49"),
        (lambda m: m.ld(0, 1.5), "address: got 1.5"),
        (lambda m: m.setpat(0, 45), "index: got 45"),
        (lambda m: m.pack(0, [1.0] * 5, 0), r"source: got \(5,\)"),
        (lambda m: m.pack(0, [float("nan")] * 128, 0), "NaN"),
        (lambda m: m.pack(0, [1.0] * 128, 0, scale=0.0), "scale: got 0.0"),
        (lambda m: m.add(0, 2**31), "number: got"),
        (lambda m: m.red(0, 31, 2), "first: got 31"),
        (lambda m: m.slot_of(1), "pattern: got"),
        (lambda m: m.write_register(0, [0] * 16), "content: got"),
        (lambda m: Machine([]), "at least one pattern"),
        (lambda m: Machine(4, memory=8).ld(0, 0), "memory for 16 bytes"),
        (lambda m: Machine(4, memory=-1), "memory: got -1"),
        (lambda m: pack_registers([16] * 32, (8, 0, 0)), "codes: got"),
        (lambda m: pack_registers([0.5] * 32, (8, 0, 0)), "codes: got"),
        (lambda m: pack_registers([0] * 31, (8, 0, 0)), "codes: got"),
        (lambda m: register_bytes(1 << 128), "number: got"),
    ],
)
def test_bad_input(call, named):
    with pytest.raises(RequestError, match=named):
        call(Machine(4, memory=64))
