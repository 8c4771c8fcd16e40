"""Layers on the machine, instruction by instruction, against sums that skip taps outside."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latewood.errors import RequestError, WorkError
from latewood.precision import PackedConv2d, mixed_conv2d
from latewood.precision.simd import (
    Machine,
    TraceWriter,
    lay_out,
    read_trace,
    reference_accumulators,
    replay,
    run_layer,
)
from latewood.precision.simd.module_layer import lay_out_packed

PATTERNS = [(8, 0, 0), (0, 8, 0), (0, 0, 8), (2, 2, 4), (0, 4, 4)]


def random_layer(seed, outputs, bits, kernel=(), *, masked=False, **settings):
    generator = np.random.default_rng(seed)
    bits = np.asarray(bits, dtype=int)
    shape = (outputs, len(bits), *kernel)
    width = bits.reshape(-1, *(1,) * len(kernel))
    codes = generator.integers(0, 1 << width, size=shape)
    mask = generator.random(shape) < 0.6 if masked else None
    return lay_out(codes, bits, PATTERNS, mask=mask, **settings)


def random_inputs(layer, seed, samples, size=()):
    width = layer.bits.astype(int).reshape(-1, *(1,) * len(size))
    shape = (samples, len(layer.bits), *size)
    return np.random.default_rng(seed).integers(0, 1 << width, size=shape)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 2, 4]), max_size=40),
    st.integers(0, 5),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_linear(bits, outputs, samples, masked, signed, seed):
    layer = random_layer(seed, outputs, bits, masked=masked, signed=signed)
    inputs = random_inputs(layer, seed, samples)
    done = run_layer(Machine(PATTERNS), layer, inputs, tile=(2, 3))
    assert np.array_equal(done.accumulators, reference_accumulators(layer, inputs))
    assert done.accumulators.shape == (samples, outputs)
    name = "mp.vmacm" if masked else "mp.vmac"
    assert done.instructions.get(name, 0) == samples * outputs * layer.vectors


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 2, 4]), min_size=1, max_size=10),
    st.sampled_from([(1, 1), (3, 3), (1, 3), (2, 2)]),
    st.integers(1, 2),
    st.integers(0, 2),
    st.integers(1, 2),
    st.booleans(),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_convolution(bits, kernel, stride, padding, dilation, masked, signed, seed):
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    layer = random_layer(seed, 3, bits, kernel, masked=masked, signed=signed, **geometry)
    inputs = random_inputs(layer, seed, 1, (5, 6))
    done = run_layer(Machine(PATTERNS), layer, inputs)
    assert np.array_equal(done.accumulators, reference_accumulators(layer, inputs))


@pytest.mark.parametrize("signed", [True, False])
def test_the_reference_is_the_convolution_of_the_values(signed):
    layer = random_layer(1, 4, [4, 1, 2, 0, 2, 4], (3, 3), masked=True, padding=1, signed=signed)
    inputs = random_inputs(layer, 2, 2, (6, 5))
    wide = layer.bits.astype(int)[:, None, None]
    steps = np.where(wide > 0, 2.0 ** (1 - wide), 0)
    weights = (2 * layer.weight_codes.astype(int) - (2**wide - 1)) * steps * layer.mask
    values = (2 * inputs - (2**wide - 1)) * steps if signed else (2 * inputs + 1) * steps
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(values), torch.from_numpy(weights), padding=1
    )
    assert np.array_equal(reference_accumulators(layer, inputs) / 64, expected.numpy())


@pytest.mark.parametrize("bits", [[4, 2, 1, 2, 1, 1, 4], [2, 1, 2], [1] * 5])
def test_the_kernels_give_the_same_numbers(bits):
    layer = random_layer(10, 6, bits, (3, 3), padding=1, stride=2)
    inputs = random_inputs(layer, 11, 2, (7, 6))
    weights, codes = (torch.from_numpy(a.astype(np.uint8)) for a in (layer.weight_codes, inputs))
    products = mixed_conv2d(weights, codes, torch.tensor(bits), padding=1, stride=2)
    # Their unit is that of the widest channel, the machine's that of 4 bits.
    expected = products.numpy() * 4 ** (4 - max(bits))
    assert np.array_equal(run_layer(Machine(PATTERNS), layer, inputs).accumulators, expected)


@pytest.mark.parametrize("masked", [False, True])
def test_packed_layers(masked):
    generator = torch.Generator().manual_seed(1)
    bits = torch.tensor([4, 2, 0, 1, 1], dtype=torch.uint8)
    codes = torch.randint(0, 16, (3, 5, 3, 3), generator=generator)
    codes = (codes % (1 << bits.long().reshape(-1, 1, 1))).to(torch.uint8)
    mask = torch.rand(codes.shape, generator=generator) < 0.7 if masked else None
    packed = PackedConv2d(
        codes, bits, torch.ones(3), input_bits=bits, mask=mask, never_negative=True, padding=1
    )
    layer = lay_out_packed(packed, PATTERNS)
    inputs = random_inputs(layer, 2, 1, (5, 4))
    width = layer.bits.astype(int)[:, None, None]
    values = torch.from_numpy((2 * inputs + 1) * 2.0 ** (1 - width)).float()
    sums = run_layer(Machine(PATTERNS), layer, inputs).accumulators / 64
    assert np.array_equal(packed(values).numpy(), sums.astype(np.float32))


def test_permuted_channels_change_nothing():
    bits = np.array([4, 1, 2, 2, 1, 4, 1, 1])
    layer = random_layer(3, 5, bits)
    inputs = random_inputs(layer, 4, 3)
    order = np.random.default_rng(5).permutation(len(bits))
    permuted = lay_out(layer.weight_codes[:, order], bits[order], PATTERNS)
    first = run_layer(Machine(PATTERNS), layer, inputs).accumulators
    second = run_layer(Machine(PATTERNS), permuted, inputs[:, order]).accumulators
    assert np.array_equal(first, second)


def test_tiles_and_loads():
    layer = random_layer(6, 6, [1] * 128 + [4] * 32)
    inputs = random_inputs(layer, 7, 5)
    done = run_layer(Machine(PATTERNS), layer, inputs, tile=(4, 4))
    # Tiles of 4 x 4, 4 x 2, 1 x 4 and 1 x 2, two registers deep.
    assert (done.tiles, layer.vectors) == (4, 2)
    assert done.instructions["mp.ld"] == 2 * (8 + 6 + 5 + 3)
    assert done.instructions["mp.vmac"] == 2 * 30


def test_trace_round_trip(tmp_path):
    layer = random_layer(8, 2, [1, 2, 4], (3, 3), masked=True, padding=1)
    inputs = random_inputs(layer, 9, 1, (3, 3))
    path = tmp_path / "trace.txt"
    with TraceWriter(path) as trace:
        machine = Machine(PATTERNS, record=trace)
        run_layer(machine, layer, inputs)
        machine.vmul(4, 0, 1, 0, 0)
        machine.st(4, 0)
        machine.pack(5, np.zeros(128), 0)
        machine.vmac(0, 4, 5, 0)
        assert not path.exists()
    assert replay(path) == trace.lines == sum(machine.executed.values())
    assert [path.name for path in tmp_path.iterdir()] == ["trace.txt"]
    names = {name for name, _ in read_trace(path)}
    assert names == set(machine.executed)
    text = path.read_text()
    vmac = next(line for line in text.splitlines() if line.startswith("mp.vmacm"))
    assert [word.partition("=")[0] for word in vmac.split()[1:]] == [
        *("acc", "va", "vb", "slot", "vm", "pattern", "a", "b", "mask", "before", "after")
    ]
    # A trace that says something else is caught.
    before, after = vmac.rsplit("=", 1)
    path.write_text(text.replace(vmac, f"{before}={int(after) + 1}", 1))
    with pytest.raises(WorkError, match="another after"):
        replay(path)


def test_traces_that_are_none(tmp_path):
    path = tmp_path / "trace.txt"
    with pytest.raises(WorkError, match="cannot be read"):
        replay(path)
    path.write_text("# latewood machine trace 2\n")
    with pytest.raises(WorkError, match="expected '# latewood machine trace 1'"):
        replay(path)
    path.write_text("# latewood machine trace 1\nmp.vmac acc\n")
    with pytest.raises(WorkError, match="line 2: not a line"):
        replay(path)
    path.write_text("# latewood machine trace 1\nmp.vmac acc=99\n")
    with pytest.raises(WorkError, match="cannot be executed"):
        replay(path)
    with pytest.raises(WorkError, match="cannot be written"), TraceWriter(tmp_path / "no" / "x"):
        pass
    with pytest.raises(ZeroDivisionError), TraceWriter(tmp_path / "failed.txt"):
        1 / 0
    assert not (tmp_path / "failed.txt").exists()


CODES = np.zeros((2, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: lay_out(CODES, [1, 2, 3]), "bits: got"),
        (lambda: lay_out(CODES, [1, 2]), "bits: got"),
        (lambda: lay_out(CODES + 2, [1, 2, 4]), "weight_codes: got '2 to 2'"),
        (lambda: lay_out(CODES * 1.0, [1, 2, 4]), "weight_codes: got"),
        (lambda: lay_out(CODES[0], [1, 2, 4]), "weight_codes: got"),
        (lambda: lay_out(CODES, [1, 2, 4], [(8, 0, 0)]), "slots for 1 times 2 bits"),
        (lambda: lay_out(CODES, [1, 2, 4], mask=CODES), "mask: got"),
        (lambda: lay_out(CODES, [1, 2, 4], padding=1), "padding: got 1"),
        (lambda: lay_out(CODES[..., None, None], [1, 2, 4], stride=0), "stride: got 0"),
        (lambda: lay_out(CODES[..., None, None], [1, 2, 4], stride=1.5), "stride: got 1.5"),
        (lambda: lay_out(np.zeros((2, 3, 0, 1), int), [1, 2, 4]), "at least one tap"),
        (lambda: run_layer(Machine(4), lay_out(CODES, [1, 2, 4]), [[0, 4, 0]]), "inputs: got"),
        (lambda: run_layer(Machine(4), lay_out(CODES, [1, 2, 4]), [[0, 1]]), "inputs: got"),
        (lambda: run_layer(Machine(4), lay_out(CODES, [1, 2, 4]), [[0.0, 1, 2]]), "inputs: got"),
        (
            lambda: run_layer(Machine([0]), lay_out(CODES, [1, 2, 4]), [[0, 1, 2]]),
            "pattern: got",
        ),
        (
            lambda: run_layer(Machine(4), lay_out(CODES, [1, 2, 4]), [[0, 1, 2]], tile=(6, 6)),
            "tile: got",
        ),
        (
            lambda: run_layer(
                Machine(4),
                lay_out(np.zeros((2, 3, 3, 3), int), [1, 2, 4]),
                np.zeros((1, 3, 2, 2), int),
            ),
            "a kernel of",
        ),
    ],
)
def test_bad_input(call, named):
    with pytest.raises(RequestError, match=named):
        call()
