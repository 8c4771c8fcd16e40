"""The device code of the update rules; importing it needs Triton.

Tables lie in device memory. A row of ``addresses`` holds parameter, gradient, the three moments,
which row of ``numbers`` belongs to the tensor (that row is a `Scalars`), and the key of the noise
with which it is rounded, or -1.
"""

import triton
import triton.language as tl

__all__ = ["rates_kernel", "step_kernel", "total_kernel"]


@triton.jit
def step_kernel(  # type: ignore[no-untyped-def]
    addresses,
    sizes,
    tensors,
    offsets,
    numbers,
    sums,
    RULE: tl.constexpr,
    RATES: tl.constexpr,
    HAS_MOMENT: tl.constexpr,
    HAS_PEAK: tl.constexpr,
    AT_RANDOM: tl.constexpr,
    STORED: tl.constexpr,
    WORKING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    tensor = tl.load(tensors + program)
    element = tl.load(offsets + program) + tl.arange(0, BLOCK)
    inside = element < tl.load(sizes + tensor)
    address = addresses + tensor * 7
    row = numbers + tl.load(address + 5) * 11

    size = tl.load(row).to(WORKING)
    beta1 = tl.load(row + 1)
    beta2 = tl.load(row + 2)
    rest1, rest2 = (1.0 - beta1).to(WORKING), (1.0 - beta2).to(WORKING)
    eps = tl.load(row + 3).to(WORKING)
    keep = tl.load(row + 4).to(WORKING)

    p_address = tl.load(address).to(tl.pointer_type(STORED)) + element
    g_address = tl.load(address + 1).to(tl.pointer_type(STORED)) + element
    p = tl.load(p_address, mask=inside, other=0.0).to(WORKING)
    g = tl.load(g_address, mask=inside, other=0.0).to(WORKING)
    g = tl.load(row + 6).to(WORKING) * g + tl.load(row + 5).to(WORKING) * p
    update = size * g
    if HAS_MOMENT:
        m_address = tl.load(address + 2).to(tl.pointer_type(WORKING)) + element
        m = tl.load(m_address, mask=inside, other=0.0)
        m = beta1.to(WORKING) * m + rest1 * g
        tl.store(m_address, m, mask=inside)
        update = size * m
    if RULE != 0:
        v_address = tl.load(address + 3).to(tl.pointer_type(WORKING)) + element
        v = tl.load(v_address, mask=inside, other=0.0)
        v_new = beta2.to(WORKING) * v + rest2 * g * g
        tl.store(v_address, v_new, mask=inside)
    if RULE == 1:
        update = update / (tl.sqrt(v) * tl.load(row + 7).to(WORKING) + eps)
    if RULE == 2:
        scale = v_new
        if HAS_PEAK:
            peak_address = tl.load(address + 4).to(tl.pointer_type(WORKING)) + element
            scale = tl.maximum(tl.load(peak_address, mask=inside, other=0.0), scale)
            tl.store(peak_address, scale, mask=inside)
        step = size / (tl.sqrt(scale) + eps)
        step = tl.maximum(step, tl.load(row + 9).to(WORKING))
        step = tl.minimum(step, tl.load(row + 10).to(WORKING))
        update = step * m
    moved = keep * p - update
    if RULE == 1:
        moved = tl.where(size != 0, moved, p)
    narrowed = moved.to(STORED)
    if AT_RANDOM:
        key = tl.load(address + 6)
        x = element.to(tl.uint32) ^ key.to(tl.uint32)
        x = (x ^ (x >> 16)) * 0x21F0AAAD
        x = (x ^ (x >> 15)) * 0x735A2D97
        x = (x ^ (x >> 15)) & 0xFFFF
        rounded = (moved.to(tl.uint32, bitcast=True) + x) >> 16
        rounded = rounded.to(tl.uint16).to(STORED, bitcast=True)
        narrowed = tl.where((key >= 0) & (moved == moved), rounded, narrowed)
    tl.store(p_address, narrowed, mask=inside)
    if RATES != 0:
        counted = v_new
        if RATES == 1:
            counted = v
        rate = 1.0 / (tl.sqrt(counted) * tl.load(row + 8).to(WORKING) + eps)
        total = tl.sum(tl.where(inside, rate * rate, 0.0), axis=0)
        tl.store(sums + program, total.to(tl.float64))


@triton.jit
def rates_kernel(  # type: ignore[no-untyped-def]
    addresses,
    sizes,
    tensors,
    offsets,
    numbers,
    sums,
    WORKING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    tensor = tl.load(tensors + program)
    element = tl.load(offsets + program) + tl.arange(0, BLOCK)
    inside = element < tl.load(sizes + tensor)
    correction = tl.load(numbers + tensor * 2).to(WORKING)
    eps = tl.load(numbers + tensor * 2 + 1).to(WORKING)
    v_address = tl.load(addresses + tensor).to(tl.pointer_type(WORKING)) + element
    v = tl.load(v_address, mask=inside, other=0.0)
    rate = 1.0 / (tl.sqrt(v) * correction + eps)
    total = tl.sum(tl.where(inside, rate * rate, 0.0), axis=0)
    tl.store(sums + program, total.to(tl.float64))


@triton.jit
def total_kernel(  # type: ignore[no-untyped-def]
    sums, starts, counts, totals, LONGEST: tl.constexpr, BLOCK: tl.constexpr
):
    tensor = tl.program_id(0)
    start, count = tl.load(starts + tensor), tl.load(counts + tensor)
    total = tl.zeros((), dtype=tl.float64)
    for block in range(LONGEST):
        index = block * BLOCK + tl.arange(0, BLOCK)
        total += tl.sum(tl.load(sums + start + index, mask=index < count, other=0.0), axis=0)
    tl.store(totals + tensor, total)
