"""Patterns and their filling against the worked table, brute force and bounds."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latewood.errors import RequestError
from latewood.precision import (
    PATTERN_SETS,
    PATTERNS,
    fit_channels,
    fit_counts,
    pattern_index,
    pattern_set,
    vectors_needed,
)
from latewood.precision.register_filling import _by_integer_program, fill_registers

S4 = [(8, 0, 0), (0, 8, 0), (0, 0, 8), (2, 2, 4)]
UNIFORM = S4[:3]
COUNTS = st.tuples(st.integers(0, 60), st.integers(0, 90), st.integers(0, 150))
SETS = st.sets(st.integers(0, 44), min_size=1, max_size=4)


def test_the_45_patterns():
    assert len(PATTERNS) == 45 and len(set(PATTERNS)) == 45
    assert (PATTERNS[0], PATTERNS[8], PATTERNS[44]) == ((0, 0, 8), (0, 8, 0), (8, 0, 0))
    assert [pattern_index(pattern) for pattern in PATTERNS] == list(range(45))
    sizes = [4 * g4 + 8 * g2 + 16 * g1 for g4, g2, g1 in PATTERNS]
    assert (len(set(sizes)), min(sizes), max(sizes)) == (24, 32, 128)
    widths = [sum(granules > 0 for granules in pattern) for pattern in PATTERNS]
    assert [widths.count(number) for number in (1, 2, 3)] == [3, 21, 21]


def test_named_sets():
    assert [PATTERNS[index] for index in PATTERN_SETS[4]] == sorted(S4)
    assert {size: len(set(members)) for size, members in PATTERN_SETS.items()} == {
        4: 4,
        8: 8,
        45: 45,
    }
    assert set(PATTERN_SETS[4]) < set(PATTERN_SETS[8])


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((12, 24, 32), (1, 2, 2)),
        ((4, 20, 40), (1, 1, 2)),
        ((32, 64, 128), (3, 3, 3)),
        ((64, 0, 0), (2, 2, 2)),
    ],
)
def test_worked_table(counts, expected):
    assert tuple(vectors_needed(counts, s) for s in (PATTERNS, S4, UNIFORM)) == expected


def test_which_patterns_are_used():
    assert fit_counts((12, 24, 32), 45).uses == ((pattern_index((3, 3, 2)), 1),)
    assert fit_counts((4, 20, 40), S4).uses == ((pattern_index((2, 2, 4)), 1),)
    fit = fit_counts((4, 20, 40), S4)
    # 8 4-bit, 16 2-bit and 64 1-bit slots: four 2-bit elements are promoted.
    assert (fit.slots, fit.occupied, fit.promoted) == ((8, 16, 64), (8, 16, 40), 4)
    assert fit.padding == (0, 0, 24)


def brute_force(counts, indices):
    """All multisets of one size after the other, in the order of their sorted indices."""
    n4, n2, n1 = counts
    vectors, best = -1, None
    while best is None:
        vectors += 1
        for chosen in itertools.combinations_with_replacement(indices, vectors):
            s4, s2, s1 = (
                size * sum(PATTERNS[index][place] for index in chosen)
                for place, size in enumerate((4, 8, 16))
            )
            if s4 >= n4 and s4 + s2 >= n4 + n2 and s4 + s2 + s1 >= n4 + n2 + n1:
                promoted = max(0, n2 - s2) + max(0, n1 - s1)
                if best is None or promoted < best[0]:
                    best = promoted, chosen
    return vectors, *best


def uses_list(fit):
    return tuple(index for index, times in fit.uses for _ in range(times))


@settings(max_examples=60, deadline=None)
@given(COUNTS, SETS)
def test_against_brute_force(counts, indices):
    indices = sorted(indices | {44} if counts[0] else indices | {8} if counts[1] else indices)
    fit = fit_counts(counts, indices)
    assert (fit.vectors, fit.promoted, uses_list(fit)) == brute_force(counts, indices)


@settings(max_examples=12, deadline=None)
@given(COUNTS, SETS, st.integers(1, 9))
def test_integer_program_agrees_with_the_search(counts, indices, taps):
    patterns = [PATTERNS[index] for index in sorted(indices | {19})]
    expected = fill_registers(counts, patterns, taps)
    if any(counts):
        assert _by_integer_program(counts, patterns, taps) == expected


@settings(max_examples=60, deadline=None)
@given(COUNTS, SETS, st.integers(0, 44))
def test_bounds_and_larger_sets(counts, indices, more):
    indices = indices | {19}
    vectors = vectors_needed(counts, indices)
    n4, n2, n1 = counts
    assert vectors >= -(-(4 * n4 + 2 * n2 + n1) // 128)
    assert vectors_needed(counts, indices | {more}) <= vectors
    assert vectors_needed(counts, 45) <= vectors


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2, 3, 4]), max_size=60), SETS, st.integers(1, 9))
def test_channels_fit_as_a_whole(bits, indices, taps):
    fit = fit_channels(bits, indices | {19}, taps=taps)
    fitted = fit.bits.tolist()
    bits = [4 if width == 3 else width for width in bits]
    assert all(
        old <= new and (old == 0) == (new == 0) for old, new in zip(bits, fitted, strict=True)
    )
    assert taps * sum(old != new for old, new in zip(bits, fitted, strict=True)) == fit.promoted
    widths = [sum(taps for width in fitted if width in group) for group in ((4,), (2,), (1,))]
    assert tuple(widths) == fit.occupied
    assert all(room >= 0 for room in fit.padding)
    counts = [taps * sum(width in group for width in bits) for group in ((4,), (2,), (1,))]
    assert fit.vectors >= vectors_needed(counts, indices | {19})
    if taps == 1:
        assert fit.vectors == vectors_needed(counts, indices | {19})
    # What was fitted fits: nothing is promoted again.
    again = fit_channels(fitted, indices | {19}, taps=taps)
    assert (again.vectors, again.promoted) == (fit.vectors, 0)


@settings(max_examples=40, deadline=None)
@given(COUNTS, SETS)
def test_without_promotion_every_width_has_its_own_slots(counts, indices):
    fit = fit_counts(counts, indices | {19}, promote=False)
    assert (fit.promoted, fit.occupied) == (0, counts)
    assert all(room >= 0 for room in fit.padding)
    assert fit.vectors >= vectors_needed(counts, indices | {19})
    if fit_counts(counts, indices | {19}).promoted == 0:
        assert fit == fit_counts(counts, indices | {19})
    patterns = [PATTERNS[index] for index in sorted(indices | {19})]
    if sum(counts) % 7 == 0 and any(counts):
        assert sum(_by_integer_program(counts, patterns, 1, False)) == fit.vectors


def test_the_most_important_channels_are_promoted():
    bits = torch.tensor([2] * 20 + [1] * 40 + [4] * 4)
    importance = torch.linspace(0, 1, 64)
    fitted = fit_channels(bits, S4, importance=importance).bits
    assert (fitted != bits).nonzero().flatten().tolist() == [16, 17, 18, 19]
    fitted = fit_channels(bits, S4, importance=-importance).bits
    assert (fitted != bits).nonzero().flatten().tolist() == [0, 1, 2, 3]


def test_numbers_of_numpy_and_doubles():
    counts = np.array([12, 24, 32])
    assert vectors_needed(counts, np.array([19, 19, 44, 8, 0])) == 2
    assert vectors_needed(torch.tensor([12, 24, 32]), [(np.int64(2), 2, 4), (8, 0, 0)]) == 2
    assert pattern_set([(2, 2, 4), 19, 0]) == (0, 19)
    assert fit_channels(np.array([1, 2, 4], dtype=np.uint8), 4).vectors == 1


def test_nothing_and_very_much():
    assert vectors_needed((0, 0, 0), [0]) == 0
    assert fit_channels([], 4).bits.tolist() == []
    assert fit_channels([0, 0], 4).vectors == 0
    assert vectors_needed((3_200_000_000, 0, 0), 4) == 100_000_000
    fit = fit_counts((1_000_000_007, 3_000_000_001, 7_000_000_003), 4)
    assert fit.vectors == 132_812_501
    assert all(room >= 0 for room in fit.padding)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: vectors_needed((1, 0, 0), [(0, 8, 0)]), "1 times 4 bits"),
        (lambda: vectors_needed((0, 3, 0), [0]), "3 times 2 bits"),
        (lambda: fit_channels([2], [(8, 0, 0)], promote=False), "1 times 2 bits"),
        (lambda: vectors_needed((1, -1, 0), 4), r"counts: got \(1, -1, 0\)"),
        (lambda: vectors_needed((1, 2), 4), "counts"),
        (lambda: vectors_needed((1.0, 2, 3), 4), "counts"),
        (lambda: vectors_needed((0, 0, 2**41), 4), "at most"),
        (lambda: vectors_needed((1, 2, 3), []), "at least one pattern"),
        (lambda: vectors_needed((1, 2, 3), 5), "patterns: got 5"),
        (lambda: vectors_needed((1, 2, 3), [45]), "patterns: got 45"),
        (lambda: vectors_needed((1, 2, 3), [True]), "patterns: got True"),
        (lambda: vectors_needed((1, 2, 3), ["8"]), "patterns: got '8'"),
        (lambda: vectors_needed((1, 2, 3), [(8, 1, 0)]), r"pattern: got \(8, 1, 0\)"),
        (lambda: vectors_needed((1, 2, 3), [(9, -1, 0)]), "pattern: got"),
        (lambda: vectors_needed((1, 2, 3), [(4, 4)]), "pattern: got"),
        (lambda: fit_channels([1, 8], 4), r"bits: got \[8\]"),
        (lambda: fit_channels([1.5], 4), "bits: got"),
        (lambda: fit_channels([1], 4, taps=0), "taps: got 0"),
        (lambda: fit_channels([1, 2], 4, importance=[1.0]), "importance: got"),
    ],
)
def test_bad_input(call, named):
    with pytest.raises(RequestError, match=named):
        call()
