"""Alignment of consecutive layers: worked numbers for every kind of layer, and its invariants."""

import math

import pytest
import torch

from latewood.errors import RequestError
from latewood.spectra import (
    alignment,
    attention_projections,
    factors,
    gate_directions,
    query_key_alignment,
    random_cosine,
    tap_directions,
    value_output_alignment,
)


def linear(first, second, **options):
    return alignment(factors(first).left, factors(second).right, **options)


def test_worked_linear_layers(worked_matrix):
    found = linear(worked_matrix(6, 5, 1, 0.7, 0), worked_matrix(7, 6, 1.3, 0.4, 0.2))
    expected = [0.33260917, 0.62178763, 0.18103778, 0.23101394, 0.74357801]
    assert found.matrix.shape == (5, 6)
    assert found.diagonal.tolist() == pytest.approx(expected, abs=1e-8)
    assert found.score.item() == pytest.approx(0.42200531, abs=1e-8)
    assert found.baseline == random_cosine(6)


def test_worked_convolutions(worked_matrix):
    first = factors(worked_matrix(4, 27, 0.9, 0.31, 0.17)).left
    second = factors(worked_matrix(5, 36, 1.1, 0.23, 0.11)).right
    centre = alignment(first, tap_directions(second, (3, 3))).diagonal.tolist()
    assert centre == pytest.approx([0.18632359, 0.01104982, 0.15810118, 0.07363075], abs=1e-8)
    corner = alignment(first, tap_directions(second, (3, 3), tap=(0, 0))).diagonal.tolist()
    assert corner == pytest.approx([0.18670295, 0.07064952, 0.08194856, 0.09267341], abs=1e-8)


def test_worked_recurrent_layers(worked_matrix):
    first = factors(worked_matrix(8, 3, 0.8, 0.37, 0.21)).left
    second = factors(worked_matrix(8, 2, 1.2, 0.29, 0.13)).right
    found = alignment(gate_directions(first), second).diagonal.tolist()
    assert found == pytest.approx([0.26500475, 0.11470503], abs=1e-8)


def test_worked_attention(worked_matrix):
    fused = worked_matrix(12, 4, 1.05, 0.41, 0.19)
    mean = query_key_alignment(fused, 2).mean().matrix
    expected = [0.24012380, 0.95748343, 0.95748343, 0.24012380]
    assert mean.flatten().tolist() == pytest.approx(expected, abs=1e-8)
    value = value_output_alignment(fused, worked_matrix(4, 4, 0.95, 0.33, 0.27))
    expected = [0.46625299, 0.06306204, 0.46663502, 0.33695661]
    assert value.diagonal.tolist() == pytest.approx(expected, abs=1e-8)


def test_values_and_outputs_by_head(gaussian):
    fused, output = gaussian(24, 8), gaussian(8, 8, seed=1)
    found = value_output_alignment(fused, output, heads=2)
    for head, rows in enumerate((slice(0, 4), slice(4, 8))):
        own = linear(fused[16:][rows], output[:, rows])
        assert torch.allclose(found.matrix[head], own.matrix)
    assert found.score.shape == (2,)
    assert found.mean().score.item() == pytest.approx(found.score.mean().item())


def test_query_and_key_of_a_head_are_compared_on_their_outputs(gaussian):
    fused = gaussian(24, 8)
    query, key, value = attention_projections(fused, 4)
    assert torch.equal(query[1], fused[2:4])
    assert torch.equal(key[1], fused[10:12])
    assert torch.equal(value[3], fused[22:])
    one = linear(query[2], key[2].T).matrix
    assert torch.allclose(query_key_alignment(fused, 4).matrix[2], one)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [1, 0, 2, 3], [3, 0, 1, 2]])
def test_constructed_pairs_align_as_built(orthogonal, order):
    shared, values = orthogonal(4, 1), torch.tensor([4.0, 3, 2, 1], dtype=torch.float64)
    first = shared * values @ orthogonal(4, 2)
    second = orthogonal(4, 3) * (values + 1) @ shared[:, order].T
    permutation = torch.eye(4, dtype=torch.float64)[:, order]
    assert torch.allclose(linear(first, second).matrix, permutation, atol=1e-12)


def test_balanced_layers_are_aligned(gaussian, orthogonal):
    first = gaussian(5, 7)
    values, vectors = torch.linalg.eigh(first @ first.T)
    second = orthogonal(5, 1) * values.sqrt() @ vectors.T
    assert torch.allclose(second.T @ second, first @ first.T)
    found = linear(first, second)
    assert torch.allclose(found.matrix, torch.eye(5, dtype=torch.float64), atol=1e-10)
    assert found.score.item() == pytest.approx(1)


def test_energy_is_bounded_and_complete_where_the_reader_is(gaussian):
    first, second = gaussian(6, 5), gaussian(7, 6, seed=1)
    energy = linear(first, second).matrix.square().sum(1)
    assert energy.tolist() == pytest.approx([1] * 5)
    narrow = linear(first, gaussian(3, 6, seed=2)).matrix.square().sum(1)
    assert narrow.max() < 1


def test_taps_share_the_energy(gaussian):
    first = factors(gaussian(4, 9)).left
    second = factors(gaussian(7, 36, seed=1)).right
    energy = sum(
        alignment(first, tap_directions(second, (3, 3), tap=(i, j))).matrix.square().sum(0)
        for i in range(3)
        for j in range(3)
    )
    assert energy.tolist() == pytest.approx([1] * 7)


def test_gates_share_the_energy(gaussian):
    left, right = factors(gaussian(8, 5)).left, factors(gaussian(9, 2, seed=1)).right
    parts = [alignment(gate_directions(left, gate=g), right).matrix for g in range(4)]
    energy = sum(part.square().sum(1) for part in parts)
    assert energy.tolist() == pytest.approx([1] * 5)


def test_a_centre_tap_alone_reads_like_a_linear_layer(gaussian):
    first, second = gaussian(4, 9), gaussian(6, 4, seed=1)
    kernel = torch.zeros(6, 4, 3, 3, dtype=torch.float64)
    kernel[:, :, 1, 1] = second
    reading = tap_directions(factors(kernel.flatten(1)).right[:, :4], (3, 3))
    found = alignment(factors(first).left, reading).matrix
    assert torch.allclose(found, linear(first, second).matrix)


def test_energy_spread_over_nine_taps_reaches_a_third(orthogonal):
    shared = orthogonal(4, 1)
    values = torch.tensor([4.0, 3, 2, 1], dtype=torch.float64)
    second = orthogonal(4, 2) * values @ shared.T
    kernel = second[:, :, None, None].expand(4, 4, 3, 3)
    reading = tap_directions(factors(kernel.flatten(1)).right, (3, 3))
    found = alignment(factors(shared * values).left, reading)
    assert found.diagonal.tolist() == pytest.approx([1 / 3] * 4)


def test_taps_of_one_and_three_dimensional_kernels(gaussian):
    kernel = gaussian(5, 2, 3)
    right = kernel.flatten(1).T
    assert torch.equal(tap_directions(right, (3,), tap=(2,)), kernel[:, :, 2].T)
    kernel = gaussian(5, 2, 3, 4, 5)
    right = kernel.flatten(1).T
    assert torch.equal(tap_directions(right, (3, 4, 5)), kernel[:, :, 1, 2, 2].T)


@pytest.mark.parametrize(
    ("dimension", "expected"),
    [(2, 0.63662), (16, 0.20261), (128, 0.070662), (256, 0.049917), (512, 0.035279)],
)
def test_random_baseline(dimension, expected):
    assert random_cosine(dimension) == pytest.approx(expected, rel=1e-4)
    assert random_cosine(dimension) == pytest.approx(
        math.sqrt(2 / (math.pi * dimension)), rel=0.6 / dimension
    )


def test_random_baseline_of_one_dimension_and_wide_models():
    assert random_cosine(1) == pytest.approx(1)
    assert random_cosine(768) == pytest.approx(0.028801, rel=1e-4)
    with pytest.raises(RequestError, match="dimension"):
        random_cosine(0)


def test_random_layers_are_at_the_baseline(gaussian):
    found = linear(gaussian(60, 60), gaussian(60, 60, seed=1))
    assert found.matrix.mean().item() == pytest.approx(found.baseline, rel=0.05)


def test_bad_arguments_are_refused(gaussian):
    with pytest.raises(RequestError, match="inputs: got directions of 5"):
        alignment(gaussian(6, 3), gaussian(5, 3))
    with pytest.raises(RequestError, match="top"):
        alignment(gaussian(6, 3), gaussian(6, 3), top=0)
    with pytest.raises(RequestError, match="kernel"):
        tap_directions(gaussian(10, 3), (3,))
    for tap in ((3,), (-1,), (1, 1)):
        with pytest.raises(RequestError, match="tap"):
            tap_directions(gaussian(9, 3), (3,), tap=tap)
    with pytest.raises(RequestError, match="gates"):
        gate_directions(gaussian(9, 3))
    with pytest.raises(RequestError, match="gate:"):
        gate_directions(gaussian(8, 3), gate=4)
    for heads in (0, 3):
        with pytest.raises(RequestError, match=r"heads|in_proj"):
            attention_projections(gaussian(12, 4), heads)
    with pytest.raises(RequestError, match="out_proj"):
        value_output_alignment(gaussian(12, 4), gaussian(4, 5))
