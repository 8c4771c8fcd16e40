"""LAPACK called by address against numpy, and that nothing else's threads are touched."""

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from latewood.spectra.solvers import symmetric_eigen
from latewood.spectra.solvers.symmetric_eigen import (
    LapackError,
    add_lower_product,
    blas_threads,
    symmetric_spectrum,
    write_product,
)


@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (7, 3), (40, 40), (90, 65)])
@pytest.mark.parametrize("transposed", [False, True])
def test_against_numpy(shape, transposed):
    tall = np.random.default_rng(0).standard_normal(shape)
    stored = np.ascontiguousarray(tall.T if transposed else tall)
    lower = np.zeros((shape[1], shape[1]), order="F")
    for _ in range(2):
        add_lower_product(lower, stored, transposed=transposed)
    lower /= 2
    assert np.allclose(np.tril(lower), np.tril(tall.T @ tall), atol=1e-12)
    vectors = np.random.default_rng(1).standard_normal((shape[1], 3)).copy(order="F")
    products = np.zeros((shape[0] + 2, 3), order="F")
    write_product(products[1:-1], stored, vectors, transposed=transposed)
    assert np.allclose(products[1:-1], tall @ vectors, atol=1e-12)
    assert not products[[0, -1]].any()
    values = np.linalg.eigvalsh(tall.T @ tall)[::-1]
    for count in {0, 1, shape[1] // 2, shape[1]}:
        found, vectors = symmetric_spectrum(lower.copy(order="F"), count)
        assert np.allclose(found, values, atol=1e-11)
        assert vectors.shape == (shape[1], count)
        assert np.allclose(vectors.T @ vectors, np.eye(count), atol=1e-12)
        assert np.allclose(tall.T @ (tall @ vectors), vectors * found[:count], atol=1e-10)


def test_a_hidden_routine_is_named_and_not_guessed(monkeypatch):
    symmetric_eigen._routine.cache_clear()
    monkeypatch.setitem(symmetric_eigen._ARGUMENTS, "dsterf", "idd")
    with pytest.raises(LapackError, match="dsterf: this scipy offers"):
        symmetric_spectrum(np.eye(3, order="F"), 0)
    symmetric_eigen._routine.cache_clear()


def test_without_the_routines_the_other_solver_serves(monkeypatch):
    from latewood.spectra import factors

    def missing(*arguments, **options):
        raise LapackError("dsyrk: this scipy offers nothing")

    monkeypatch.setattr("latewood.spectra.solvers.gram_spectrum.add_lower_product", missing)
    matrix = torch.randn(50, 70, generator=torch.Generator().manual_seed(0))
    found = factors(matrix, 3)
    assert found.method == "svd"
    assert torch.allclose(found.values.double(), torch.linalg.svdvals(matrix.double()))


def test_threads_of_others_are_left_alone():
    def threads():
        own = {each["filepath"]: each["num_threads"] for each in threadpool_info()}
        mine = [path for path in own if "scipy.libs" in path]
        return [own.pop(path) for path in mine], own, torch.get_num_threads()

    before = threads()
    with blas_threads(1):
        mine, *others = threads()
        assert all(count == 1 for count in mine)
        assert others == list(before[1:])
    assert threads() == before
