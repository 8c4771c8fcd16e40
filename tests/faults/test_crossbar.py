"""Encodings against worked digits, and every integer of every scheme read back without faults."""

import pytest
import torch

from latewood.errors import RequestError
from latewood.faults import Crossbar, StuckAt, digits, encode, read_back
from latewood.faults.simulation import read_codes
from latewood.kernels.faults import Stream, read_states_reference


def codes(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


@pytest.mark.parametrize(
    ("crossbar", "q", "levels"),
    [
        (Crossbar(8, 2), 37, [[1, 1, 2, 0], [0, 0, 0, 0]]),
        (Crossbar(8, 2), -37, [[0, 0, 0, 0], [1, 1, 2, 0]]),
        (Crossbar(8, 2), 100, [[0, 1, 2, 1], [0, 0, 0, 0]]),
        (Crossbar(8, 2), 127, [[3, 3, 3, 1], [0, 0, 0, 0]]),
        (Crossbar(8, 2, "offset"), 0, [[0, 0, 0, 2]]),
        (Crossbar(8, 2, "offset"), 37, [[1, 1, 2, 2]]),
        (Crossbar(8, 2, "offset"), -37, [[3, 2, 1, 1]]),
        (Crossbar(8, 2, "offset"), 127, [[3, 3, 3, 3]]),
        (Crossbar(8, 2, "offset"), -127, [[1, 0, 0, 0]]),
        (Crossbar(8, 1, "twos"), -37, [[1, 1, 0, 1, 1, 0, 1, 1]]),
        (Crossbar(4, 1), 5, [[1, 0, 1], [0, 0, 0]]),
        (Crossbar(4, 1), -6, [[0, 0, 0], [0, 1, 1]]),
    ],
)
def test_digits_of_worked_numbers(crossbar, q, levels):
    assert digits(codes(q), crossbar)[..., 0].tolist() == levels


@pytest.mark.parametrize("scheme", ["differential", "offset", "twos"])
@pytest.mark.parametrize("weight_bits", range(2, 11))
def test_without_faults_every_integer_comes_back(scheme, weight_bits):
    for bits_per_cell in (1,) if scheme == "twos" else (1, 2, 3, 4):
        if bits_per_cell > weight_bits - (scheme == "differential"):
            continue
        for top_slice in ("physical", "clamped"):
            crossbar = Crossbar(weight_bits, bits_per_cell, scheme, top_slice=top_slice)
            q = torch.arange(-crossbar.largest, crossbar.largest + 1, dtype=torch.int32)
            read = read_codes(q, crossbar, StuckAt(), Stream(0, 0, "a"))
            assert torch.equal(read, q)
            states = torch.zeros(crossbar.cells_per_weight, len(q), dtype=torch.uint8)
            assert torch.equal(read_states_reference(q, crossbar.layout, states), q)
            assert digits(q, crossbar).max() < crossbar.levels


def test_the_scripted_tensor():
    weight = torch.tensor([[0.7, -0.38, 0.0], [0.1, 0.52, -0.7]], dtype=torch.float64)
    crossbar = Crossbar(4, 1)
    q, scale = encode(weight, crossbar)
    assert abs(scale.item() - 0.1) < 1e-15
    assert q.tolist() == [[7, -4, 0], [1, 5, -7]]
    states = torch.zeros(2, 3, 2, 3, dtype=torch.uint8)
    states[0, 2, 0, 0] = 1
    states[1, 1, 1, 0] = 2
    states[0, 0, 0, 2] = 1
    read = read_states_reference(q, crossbar.layout, states.flatten(0, 1))
    assert read.tolist() == [[3, -4, 0], [-1, 5, -7]]
    outputs = (scale * read) @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(outputs, torch.tensor([1.1, -1.45], dtype=torch.float64))
    # The conductances of all cells, and the currents of output 0, give the same numbers.
    low, high = 1e-6, 1e-4
    level = digits(q, crossbar).double()
    level[states == 1], level[states == 2] = 0, 1
    conductance = low + level * (high - low)
    assert conductance.sum().item() == pytest.approx(1.026e-3)
    currents = conductance[:, :, 0] @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    assert currents[0].tolist() == pytest.approx([9.85e-5, 9.85e-5, -5e-7])
    assert currents[1].tolist() == pytest.approx([-5e-7, -5e-7, -1.985e-4])
    decoded = ((currents[0] - currents[1]) / (high - low)) @ torch.tensor([1.0, 2.0, 4.0]).double()
    assert (scale * decoded).item() == pytest.approx(1.1)


def test_rounding_is_half_to_even_and_zero_has_a_scale():
    q, scale = encode(torch.tensor([3.0, 0.5, 1.5, 2.5, -2.5]), Crossbar(3, 1))
    assert scale.item() == 1.0 and q.tolist() == [3, 0, 2, 2, -2]
    q, scale = encode(torch.zeros(2, 3), Crossbar())
    assert scale.item() == 1.0 and not q.any()
    assert encode(torch.zeros(0, 3), Crossbar()).codes.shape == (0, 3)
    assert encode(torch.tensor(2.0), Crossbar()).codes.item() == 63


def test_scales_by_channel_and_in_half_precision():
    weight = torch.tensor([[1.0, -2.0], [0.25, 0.125]])
    crossbar = Crossbar(3, 1, granularity="channel")
    q, scale = encode(weight, crossbar)
    assert q.tolist() == [[2, -3], [3, 2]] and scale.shape == (2, 1)
    q, scale = encode(weight, crossbar, channel_axis=1)
    assert q.tolist() == [[3, -3], [1, 0]] and scale.shape == (1, 2)
    q, scale = encode(weight.bfloat16(), crossbar)
    assert scale.dtype == torch.float32 and q.tolist() == [[2, -3], [3, 2]]


def test_scaling_keeps_the_integers_and_the_faults():
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    faults = StuckAt(0.1, 0.02)
    read = read_back(weight, Crossbar(), faults, map=3, name="fc")
    assert torch.equal(read_back(4 * weight, Crossbar(), faults, map=3, name="fc"), read)
    assert not torch.equal(read_back(weight, Crossbar(), faults, map=4, name="fc"), read)
    assert not torch.equal(read_back(weight, Crossbar(), faults, map=3, name="other"), read)
    assert not torch.equal(read_back(weight, Crossbar(), faults, map=3, seed=1, name="fc"), read)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"weight_bits": 1}, "weight_bits: got 1"),
        ({"weight_bits": True}, "weight_bits: got True"),
        ({"bits_per_cell": 0}, "bits_per_cell: got 0"),
        ({"weight_bits": 4, "bits_per_cell": 4}, "at most 3"),
        ({"scheme": "twos"}, "bits_per_cell: got 2; expected 1 with scheme='twos'"),
        ({"scheme": "isaac"}, "scheme: got 'isaac'"),
        ({"tile": (128, 0)}, "tile: got 0"),
        ({"tile": 128}, "tile: got 128; expected two numbers"),
        ({"top_slice": "cut"}, "top_slice: got 'cut'"),
        ({"granularity": "row"}, "granularity: got 'row'"),
    ],
)
def test_cells_that_hold_no_weight_are_refused(arguments, says):
    with pytest.raises(RequestError) as error:
        Crossbar(**arguments)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (torch.ones(3, dtype=torch.int64), "torch.int64"),
        (torch.tensor([1.0, float("nan")]), "NaN"),
        (torch.tensor([1.0, float("inf")]), "infinity"),
        (torch.ones(2, device="meta"), "meta"),
        ([1.0, 2.0], "list"),
        (torch.ones(2).to(torch.float8_e5m2), "16 bits or more"),
        (torch.ones(2, 2).to_sparse(), "dense tensor"),
    ],
)
def test_what_cannot_be_written_is_refused(weight, says):
    with pytest.raises(RequestError, match=says):
        encode(weight, Crossbar())


def test_no_crossbar_is_refused():
    with pytest.raises(RequestError, match="crossbar: got int"):
        encode(torch.ones(2), 7)
    with pytest.raises(RequestError, match="got Tensor and NoneType"):
        digits(codes(1), None)


def test_integers_beyond_the_cells_are_refused():
    with pytest.raises(RequestError, match="codes: got '-128 to 0'; expected -127 to 127"):
        digits(codes(-128, 0), Crossbar(8, 2))
    assert digits(codes(-128), Crossbar(8, 2, "offset")).flatten().tolist() == [0, 0, 0, 0]
    with pytest.raises(RequestError, match="int64"):
        digits(torch.tensor([1]), Crossbar(8, 2))
    with pytest.raises(RequestError, match="pair"):
        digits(torch.tensor([0.5]), Crossbar(scheme="pair"))
