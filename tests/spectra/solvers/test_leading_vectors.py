"""Leading singular vectors against the full decomposition, and the directions that are none."""

import pytest
import torch

from latewood.errors import RequestError
from latewood.spectra import factors, singular_values
from latewood.spectra.solvers.leading_vectors import factors_together


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (60, 40), (40, 60), (3, 40, 60), (1, 9), (9, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("k", [1, 3, None])
def test_vectors_are_those_of_the_matrix(gaussian, shape, dtype, k):
    matrix = gaussian(*shape, dtype=dtype)
    found = factors(matrix, k)
    rank = min(shape[-2:])
    count = rank if k is None else min(k, rank)
    assert found.count == count
    assert found.values.dtype == found.left.dtype == found.right.dtype == dtype
    assert found.left.shape == (*shape[:-1], count)
    assert found.right.shape == (*shape[:-2], shape[-1], count)
    precision = 1e-12 if dtype == torch.float64 else 2e-6
    assert torch.allclose(found.values, singular_values(matrix), rtol=1e-5, atol=precision)
    scaled = found.left * found.values[..., None, :count]
    assert torch.allclose(matrix @ found.right, scaled, rtol=0, atol=10 * precision)
    back = found.right * found.values[..., None, :count]
    assert torch.allclose(matrix.mT @ found.left, back, rtol=0, atol=10 * precision)
    unit = torch.eye(count, dtype=dtype).expand(*shape[:-2], count, count)
    assert torch.allclose(found.left.mT @ found.left, unit, atol=precision)
    assert torch.allclose(found.right.mT @ found.right, unit, atol=precision)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(6, 4), (80, 50)])
def test_directions_without_a_value_are_zeros(gaussian, dtype, shape):
    m, n = shape
    matrix = torch.zeros(m, n, dtype=dtype)
    matrix[:2] = gaussian(2, n, dtype=dtype)
    found = factors(matrix, 4)
    assert found.left[:, 2:].count_nonzero() == found.right[:, 2:].count_nonzero() == 0
    assert torch.allclose(found.left[:, :2].norm(dim=0), torch.ones(2, dtype=dtype))
    zero = factors(torch.zeros(m, n, dtype=dtype))
    assert zero.values.count_nonzero() == zero.left.count_nonzero() == 0


def test_small_values_keep_their_vectors(gaussian, orthogonal):
    values = torch.logspace(0, -6, 40, dtype=torch.float64)
    matrix = orthogonal(40, 1) * values @ orthogonal(40, 2).T
    found = factors(matrix.float(), 30)
    exact = factors(matrix, 30)
    cosines = (found.left.double() * exact.left).sum(0).abs()
    # The rounding to float32 itself turns the last of them by about 1e-7 / 1e-4.6.
    assert cosines.min() > 1 - 1e-3
    whole = factors(matrix.float())
    unit = torch.eye(40)
    assert torch.allclose(whole.left.T @ whole.left, unit, atol=1e-5)
    assert torch.allclose(whole.right.T @ whole.right, unit, atol=1e-5)


def test_not_finite_gives_nan_for_that_matrix_only(gaussian):
    batch = gaussian(3, 5, 4)
    batch[1, 0, 0] = torch.inf
    found = factors(batch, 2)
    for tensor in (found.values, found.left, found.right):
        assert tensor.flatten(1).isnan().any(1).tolist() == [False, True, False]
        assert tensor[1].isnan().all()
    assert torch.equal(found.values[2], factors(batch[2], 2).values)


def test_a_solver_that_fails_gives_nan(monkeypatch):
    def refuse(*_, **__):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "svd", refuse)
    found = factors(torch.ones(3, 2))
    assert found.left.shape == (3, 2)
    assert found.right.shape == (2, 2)
    assert all(t.isnan().all() for t in (found.values, found.left, found.right))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_matrix(shape):
    found = factors(torch.zeros(shape), 2)
    assert found.values.shape == (0,)
    assert found.left.shape == (shape[0], 0)
    assert found.right.shape == (shape[1], 0)


def test_bad_arguments_are_refused():
    with pytest.raises(RequestError, match="matrix"):
        factors(torch.ones(3))
    with pytest.raises(RequestError, match="matrix"):
        factors(torch.ones(3, 3, dtype=torch.complex64))
    with pytest.raises(RequestError, match="k: got -1"):
        factors(torch.ones(3, 3), -1)


@pytest.mark.parametrize("shape", [(40, 130), (130, 40), (2, 40, 130)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_panels_change_nothing(gaussian, monkeypatch, shape, dtype):
    matrix = gaussian(*shape).to(dtype)
    whole = factors(matrix, 4)
    monkeypatch.setattr("latewood.spectra.solvers.gram_spectrum._PANEL", 700)  # 17 rows of 130
    found = factors(matrix, 4)
    assert found.method == whole.method == "gram"
    exact = torch.linalg.svdvals(matrix.double())
    assert torch.allclose(found.values.double(), exact, rtol=1e-6)
    for ours, theirs in ((found.left, whole.left), (found.right, whole.right)):
        assert torch.allclose((ours * theirs).sum(-2).abs(), torch.ones(4), atol=1e-6)
    scaled = found.left * found.values[..., None, :4]
    assert torch.allclose(matrix.float() @ found.right, scaled, atol=1e-5)


@pytest.mark.parametrize("lost", [torch.nan, torch.inf, -torch.inf])
def test_not_finite_is_seen_in_a_large_matrix_too(gaussian, lost):
    batch = gaussian(2, 40, 90, dtype=torch.float32)
    batch[1, 33, 7] = lost
    found = factors(batch, 3)
    assert found.method == "gram"
    assert found.values[1].isnan().all()
    assert torch.equal(found.values[0], factors(batch[0], 3).values)


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (5, 8)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("k", [0, 3])
def test_together_is_as_alone(gaussian, shape, dtype, k):
    matrices = gaussian(3, *shape, dtype=dtype).unbind()
    for matrix, found in zip(matrices, factors_together(matrices, k), strict=True):
        alone = factors(matrix, k)
        assert (found.method, found.shape) == (alone.method, alone.shape)
        for part in ("values", "left", "right", "errors"):
            assert torch.equal(getattr(found, part), getattr(alone, part))


def test_together_leaves_out_what_needs_another_solver(gaussian):
    good, lost = gaussian(2, 40, 60, dtype=torch.float32).unbind()
    lost[3, 3] = torch.nan
    assert factors_together([good, lost], 2) is None
    assert factors_together([good, torch.ones(40, 60)], 2) is None
    assert factors(torch.ones(40, 60), 2).method == "svd"
