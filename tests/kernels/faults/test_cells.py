"""Compiled and reference form give the same integers; bad tensors never reach compiled code."""

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latewood.errors import RequestError
from latewood.faults import Crossbar
from latewood.kernels import dispatch
from latewood.kernels.faults import (
    Stream,
    draw_states,
    draw_states_reference,
    limits_of,
    read_drawn,
    read_drawn_reference,
)
from latewood.kernels.faults.native_cells import compiled_for

LAYOUTS = [
    Crossbar(),
    Crossbar(8, 2),
    Crossbar(8, 2, top_slice="clamped"),
    Crossbar(8, 3, "offset"),
    Crossbar(6, 1, "twos"),
    Crossbar(16, 1, "twos"),
    Crossbar(16, 1),
    Crossbar(2, 1),
]

compiled_only = pytest.mark.skipif(dispatch.native() is None, reason="no compiled kernels")


def codes_of(crossbar, shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(-crossbar.largest, crossbar.largest + 1, shape, generator=draw).int()


@compiled_only
@pytest.mark.parametrize("size", [0, 1, 3, 1023, 1024, 1025, 4099, 600_000])
def test_states_are_the_same(size):
    for limits in (limits_of(0.1, 0.02), limits_of(0, 0), limits_of(1, 0), limits_of(0, 1)):
        stream = Stream(3, 7, "layer")
        drawn = draw_states(size, stream, limits)
        assert torch.equal(drawn, draw_states_reference(size, stream, limits))


@compiled_only
@pytest.mark.parametrize("crossbar", LAYOUTS, ids=str)
def test_what_is_read_is_the_same(crossbar):
    for size in (0, 1, 2, 5, 1023, 1024, 2051):
        codes = codes_of(crossbar, (size,))
        for limits in (limits_of(0.3, 0.1), limits_of(0.0904, 0.0175), limits_of(0, 0)):
            stream = Stream(1, 2, "a")
            read = read_drawn(codes, crossbar.layout, stream, limits)
            expected = read_drawn_reference(codes, crossbar.layout, stream, limits)
            assert torch.equal(read, expected)


@compiled_only
def test_the_number_of_threads_does_not_matter():
    codes = codes_of(Crossbar(), (700, 1001))
    threads = torch.get_num_threads()
    limits, stream = limits_of(0.1, 0.05), Stream(0, 0, "a")
    expected = read_drawn_reference(codes, Crossbar().layout, stream, limits)
    states = draw_states_reference(codes.numel(), stream, limits)
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(read_drawn(codes, Crossbar().layout, stream, limits), expected)
            assert torch.equal(draw_states(codes.numel(), stream, limits), states)
    finally:
        torch.set_num_threads(threads)


@compiled_only
@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 16), st.integers(1, 8), st.sampled_from(["differential", "offset"]),
    st.integers(0, 3000), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**63 - 1),
)  # fmt: skip
def test_any_layout_and_rate(weight_bits, bits_per_cell, scheme, size, rate, share, seed):
    try:
        crossbar = Crossbar(weight_bits, bits_per_cell, scheme)
    except RequestError:
        return
    limits, stream = limits_of(rate * share, rate * (1 - share)), Stream(seed, 0, "x")
    codes = codes_of(crossbar, (size,), seed % 1000)
    read = read_drawn(codes, crossbar.layout, stream, limits)
    assert torch.equal(read, read_drawn_reference(codes, crossbar.layout, stream, limits))


def test_any_strides_are_read_in_order():
    codes = codes_of(Crossbar(), (6, 7, 5))
    turned = codes.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    arguments = Crossbar().layout, Stream(0, 0, "a"), limits_of(0.2, 0.1)
    expected = read_drawn(codes, *arguments)
    assert not turned.is_contiguous() and torch.equal(read_drawn(turned, *arguments), expected)
    part = torch.stack([codes, codes], -1)[..., 0]
    assert torch.equal(read_drawn(part, *arguments), expected)


def test_what_no_kernel_takes_is_refused():
    arguments = Crossbar().layout, Stream(0, 0, "a"), limits_of(0.2, 0.1)
    with pytest.raises(RequestError, match=r"codes: got torch\.int64"):
        read_drawn(torch.ones(3, dtype=torch.int64), *arguments)
    shrunk = torch.ones(100, dtype=torch.int32)
    shrunk.untyped_storage().resize_(8)
    with pytest.raises(RequestError, match="storage"):
        read_drawn(shrunk, *arguments)
    wide = limits_of(0.2, 0.1, 32)
    assert compiled_for(wide) is None
    read = read_drawn(codes_of(Crossbar(), (50,)), Crossbar().layout, Stream(0, 0, "a"), wide)
    assert read.dtype == torch.int32


@compiled_only
@pytest.mark.parametrize(
    "change",
    [
        {"codes": torch.ones(4)},
        {"codes": torch.ones(5, dtype=torch.int32)},
        {"codes": torch.ones(4, 2, dtype=torch.int32)[:, 0]},
        {"codes": None},
        {"read": torch.ones(3, dtype=torch.int32)},
        {"read": torch.ones(4, dtype=torch.int64)},
        {"cells": []},
        {"cells": [[0, 0, 1, 3]] * 33},
        {"cells": [[3, 0, 1, 3]]},
        {"cells": [[0, 40, 1, 3]]},
        {"cells": [[0, 0, 2, 3]]},
        {"cells": [[0, 0, 1, 4]]},
        {"cells": [[0, 0, 1]]},
        {"digit_bits": 0},
        {"width": 40},
        {"offset": -1},
        {"stream": [1, 2, 3]},
        {"low": -1},
        {"high": 65537},
        {"low": 5, "high": 4},
    ],
)
def test_compiled_code_looks_at_everything(change):
    arguments = {
        "codes": torch.ones(4, dtype=torch.int32),
        "read": torch.zeros(4, dtype=torch.int32),
        "n": 4,
        "cells": [[0, 0, 1, 3]],
        "digit_bits": 2,
        "offset": 0,
        "width": 7,
        "stream": [1, 2, 3, 5],
        "low": 0,
        "high": 65536,
        "threads": 1,
    }
    compiled = dispatch.native()
    compiled.faults_read_drawn(*arguments.values())
    with pytest.raises((ValueError, TypeError)):
        compiled.faults_read_drawn(*(arguments | change).values())


@compiled_only
def test_states_need_memory_of_their_own():
    compiled = dispatch.native()
    codes = torch.ones(4, dtype=torch.int32)
    with pytest.raises(ValueError, match="memory of its own"):
        compiled.faults_read_drawn(
            codes, codes, 4, [[0, 0, 1, 3]], 2, 0, 7, [1, 2, 3, 5], 0, 65536, 1
        )
    with pytest.raises(ValueError, match="type or size"):
        compiled.faults_draw_states(torch.ones(4), 4, [1, 2, 3, 5], 0, 1, 1)


def test_the_reference_can_be_asked_for(monkeypatch):
    codes = codes_of(Crossbar(), (500,))
    arguments = Crossbar().layout, Stream(0, 0, "a"), limits_of(0.2, 0.1)
    before = read_drawn(codes, *arguments)
    monkeypatch.setenv("LATEWOOD_KERNELS", "reference")
    assert compiled_for(limits_of(0.2, 0.1)) is None
    assert torch.equal(read_drawn(codes, *arguments), before)


def test_a_stream_is_numpys_generator():
    stream = Stream(5, 6, "x")
    state, increment = stream.state()
    other = numpy.random.PCG64DXSM()
    other.state = {
        "bit_generator": "PCG64DXSM",
        "state": {"state": state, "inc": increment},
        "has_uint32": 0,
        "uinteger": 0,
    }
    assert other.random_raw(3).tolist() == stream.words(3).tolist()
