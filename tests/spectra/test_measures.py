"""Effective rank and its companions against closed forms, invariances and bad matrices."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from latewood.errors import RequestError
from latewood.spectra import count90, effective_rank, gini, singular_values, stable_rank


def worked_matrix(m, n, a, b, c):
    i = torch.arange(1, m + 1, dtype=torch.float64)[:, None]
    j = torch.arange(1, n + 1, dtype=torch.float64)[None]
    return torch.sin(a * i * j + b * i**2 + c * j)


def gaussian(m, n, seed=0, dtype=torch.float64):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def orthogonal(n, seed):
    return torch.linalg.qr(gaussian(n, n, seed)).Q


shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))
seeds = st.integers(0, 2**31)


def test_worked_matrices():
    first = singular_values(worked_matrix(6, 5, 1, 0.7, 0))
    expected = [2.28412897, 2.02051769, 1.49292067, 1.13354872, 0.72669767]
    assert first.tolist() == pytest.approx(expected, abs=1e-8)
    assert effective_rank(first).item() == pytest.approx(0.93048749, abs=1e-8)
    second = singular_values(worked_matrix(7, 6, 1.3, 0.4, 0.2))
    expected = [2.34902406, 2.18519185, 2.11828462, 1.30160987, 1.25980772, 0.61872926]
    assert second.tolist() == pytest.approx(expected, abs=1e-8)
    assert effective_rank(second).item() == pytest.approx(0.92332025, abs=1e-8)


def test_four_three_two_one():
    values = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    assert effective_rank(values, kind="entropy", normalize=False).item() == pytest.approx(
        1.2798542258, abs=1e-10
    )
    assert effective_rank(values, normalize=False).item() == pytest.approx(3.5961154667, abs=1e-10)
    assert effective_rank(values).item() == pytest.approx(0.8990288667, abs=1e-10)
    assert effective_rank(values, kind="entropy").item() == pytest.approx(0.3199635565, abs=1e-10)
    assert stable_rank(values, normalize=False).item() == pytest.approx(1.875)
    assert stable_rank(values).item() == pytest.approx(1.875 / 4)
    assert gini(values).item() == pytest.approx(0.25)


def test_count90_counts_the_values_needed():
    assert count90(torch.tensor([8.0, 1.5, 0.3, 0.2])).item() == 0.5
    assert count90(torch.tensor([1.0, 0.0])).item() == 0.5
    assert count90(torch.ones(16)).item() == 15 / 16


@pytest.mark.parametrize(("nonzero", "size"), [(1, 1), (1, 7), (3, 7), (7, 7)])
def test_equal_values_count(nonzero, size):
    values = torch.cat([torch.full((nonzero,), 0.3), torch.zeros(size - nonzero)])
    assert effective_rank(values, normalize=False).item() == pytest.approx(nonzero)
    assert effective_rank(values).item() == pytest.approx(nonzero / size)
    assert effective_rank(values, kind="entropy").item() == pytest.approx(math.log(nonzero) / size)


def test_geometric_spectrum():
    powers = torch.arange(1, 200, dtype=torch.float64)
    assert effective_rank(0.5**powers, normalize=False).item() == pytest.approx(4, abs=1e-12)
    eight = effective_rank(0.5 ** powers[:8], normalize=False)
    # The published figure has 1e-10 added to every value, as the paper's code does.
    assert eight.item() == pytest.approx(3.8986668781, abs=1e-8)
    floored = effective_rank(0.5 ** (powers[:8] - 1) + 1e-10, normalize=False)
    assert floored.item() == pytest.approx(3.8986668781, abs=2e-10)


def test_orthogonal_matrix_has_full_rank():
    values = singular_values(3 * orthogonal(16, seed=1))
    assert values.tolist() == pytest.approx([3.0] * 16)
    assert effective_rank(values).item() == pytest.approx(1)


@settings(deadline=None, max_examples=40)
@given(shape=shapes, seed=seeds, scale=st.floats(-30, 30))
def test_invariances(shape, seed, scale):
    m, n = shape
    matrix = gaussian(m, n, seed)
    rank = effective_rank(singular_values(matrix)).item()

    def same(other):
        return effective_rank(singular_values(other)).item() == pytest.approx(rank, abs=1e-9)

    assert same(10**scale * matrix)
    assert same(matrix.T)
    assert same(orthogonal(m, seed) @ matrix @ orthogonal(n, seed + 1))
    permutation = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert same(matrix[:, permutation])
    if m >= n:
        assert same(torch.cat([matrix, torch.zeros(3, n, dtype=torch.float64)]))


@settings(deadline=None, max_examples=40)
@given(shape=shapes, seed=seeds, inner=st.integers(1, 12))
def test_bounded_by_the_algebraic_rank(shape, seed, inner):
    m, n = shape
    matrix = gaussian(m, inner, seed) @ gaussian(inner, n, seed + 1)
    rank = effective_rank(singular_values(matrix), normalize=False).item()
    assert rank + 1e-12 >= 1
    assert rank <= min(m, n, inner) + 1e-6


@settings(deadline=None, max_examples=40)
@given(values=st.lists(st.floats(0, 1e30), min_size=1, max_size=20))
def test_measures_agree_with_their_definitions(values):
    descending = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    # The plain formulas below square their values; the measures must not underflow, these would.
    assume(descending[0] > 1e-100)
    pairs = (descending[:, None] - descending[None]).abs().sum()
    count = len(values)
    expected = pairs / (2 * count**2 * descending.mean())
    assert gini(descending).item() == pytest.approx(expected.item(), abs=1e-9)
    energy = descending.square().sum() / descending[0] ** 2
    assert stable_rank(descending, normalize=False).item() == pytest.approx(energy.item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precisions_are_raised_to_float32(dtype):
    matrix = gaussian(20, 30).to(dtype)
    values = singular_values(matrix)
    assert values.dtype == torch.float32
    assert values.tolist() == pytest.approx(
        torch.linalg.svdvals(matrix.double()).tolist(), rel=1e-5
    )


@pytest.mark.parametrize("shape", [(310, 270), (120, 103), (103, 120), (40, 32)])
def test_large_matrices_keep_the_small_values(shape):
    # The Gram route must not put the floor of float32 under a rank-one matrix.
    m, n = shape
    for inner in (1, 5):
        low = gaussian(m, inner, dtype=torch.float32) @ gaussian(inner, n, 1, dtype=torch.float32)
        exact = effective_rank(torch.linalg.svdvals(low.double())).item()
        assert effective_rank(singular_values(low)).item() == pytest.approx(exact, rel=1e-6)
    matrix = gaussian(m, n, dtype=torch.float32)
    exact = torch.linalg.svdvals(matrix.double())
    assert singular_values(matrix).tolist() == pytest.approx(exact.tolist(), rel=1e-5)


def test_batches_are_independent():
    batch = torch.stack([gaussian(4, 6, seed) for seed in range(3)])
    batch[1, 2, 3] = torch.nan
    values = singular_values(batch)
    assert values.shape == (3, 4)
    assert values[1].isnan().all()
    for index in (0, 2):
        assert values[index].tolist() == pytest.approx(singular_values(batch[index]).tolist())
    ranks = effective_rank(values)
    assert ranks.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_not_finite_gives_nan(value):
    matrix = gaussian(5, 4, dtype=torch.float32)
    matrix[0, 0] = value
    values = singular_values(matrix)
    assert values.isnan().all()
    for measure in (effective_rank, count90, stable_rank, gini):
        assert math.isnan(measure(values).item())


def test_zero_matrix_has_rank_zero():
    values = singular_values(torch.zeros(4, 3))
    assert values.tolist() == [0, 0, 0]
    assert effective_rank(values).item() == 0
    assert effective_rank(values, kind="entropy", normalize=False).item() == 0
    for measure in (count90, stable_rank, gini):
        assert measure(values).item() == 0


def test_tiny_values_have_no_floor():
    tiny = torch.tensor([1e-300, 1e-310, 0.0], dtype=torch.float64)
    assert effective_rank(tiny, normalize=False).item() == pytest.approx(1, abs=1e-6)


def refuse(*_, **__):
    raise torch.linalg.LinAlgError("did not converge")


def test_a_solver_that_fails_gives_nan(monkeypatch):
    monkeypatch.setattr(torch.linalg, "svdvals", refuse)
    assert singular_values(torch.ones(3, 2)).isnan().all()


def test_a_solver_that_fails_is_followed_by_another(monkeypatch):
    monkeypatch.setattr(torch.linalg, "eigvalsh", refuse)
    values = singular_values(2 * torch.eye(40))
    assert values.dtype == torch.float32
    assert values.tolist() == [2] * 40


def test_empty_matrix():
    assert singular_values(torch.zeros(0, 3)).shape == (0,)
    assert effective_rank(torch.zeros(0)).item() == 0


@pytest.mark.parametrize("matrix", [torch.ones(3), torch.ones(2, 2, dtype=torch.complex64)])
def test_what_is_no_real_matrix_is_refused(matrix):
    with pytest.raises(RequestError, match="matrix"):
        singular_values(matrix)


def test_unknown_kind_is_refused():
    with pytest.raises(RequestError, match="kind"):
        effective_rank(torch.ones(3), kind="printed")


def test_a_scalar_is_no_spectrum():
    with pytest.raises(RequestError, match="singular_values"):
        effective_rank(torch.tensor(1.0))
