"""Agreement of singular vectors: worked numbers, bounds, and what breaks single vectors only."""

import math

import pytest
import torch

from latewood.errors import RequestError
from latewood.spectra import agreement, factors, random_agreement, subspace_agreement


def test_worked_pair(worked_matrix):
    first = worked_matrix(6, 5, 1, 0.7, 0)
    second = first + 0.1 * worked_matrix(6, 5, 2.1, 0.3, 0.5)
    found = agreement(factors(first), factors(second))
    expected = [0.99674683, 0.93455660, 0.93194715, 0.97864196, 0.98118696]
    assert found.diagonal.tolist() == pytest.approx(expected, abs=1e-8)
    assert found.score.item() == pytest.approx(sum(expected) / 5, abs=1e-8)
    assert agreement(factors(first), factors(second), top=2).score.item() == pytest.approx(
        sum(expected[:2]) / 2, abs=1e-8
    )
    assert found.baseline == random_agreement(6, 5)


def test_matrix_is_the_inner_product_of_the_components(gaussian):
    first, second = factors(gaussian(6, 4)), factors(gaussian(6, 4, seed=1))
    found = agreement(first, second).matrix
    for j in range(4):
        one = torch.outer(first.left[:, j], first.right[:, j])
        for k in range(4):
            other = torch.outer(second.left[:, k], second.right[:, k])
            assert found[j, k].item() == pytest.approx((one * other).sum().abs().item())
    swapped = agreement(second, first).matrix
    assert torch.allclose(found, swapped.T)


def test_with_itself_is_the_identity(gaussian):
    own = factors(gaussian(7, 5))
    assert torch.allclose(agreement(own, own).matrix, torch.eye(5, dtype=torch.float64))
    signs = torch.tensor([1, -1, 1, -1, -1.0], dtype=torch.float64)
    flipped = type(own)(own.values, own.left * signs, own.right * -signs)
    assert torch.allclose(agreement(own, flipped).matrix, torch.eye(5, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(5))
def test_rows_have_at_most_unit_energy(gaussian, seed):
    first, second = factors(gaussian(5, 8, seed=seed)), factors(gaussian(5, 8, seed=seed + 50))
    matrix = agreement(first, second).matrix
    assert matrix.square().sum(1).max() <= 1 + 1e-12
    assert matrix.square().sum(0).max() <= 1 + 1e-12


def test_unrelated_matrices_are_at_the_baseline(gaussian):
    first = factors(gaussian(8, 40, 60))
    second = factors(gaussian(8, 40, 60, seed=9))
    found = agreement(first, second)
    assert found.matrix.shape == (8, 40, 40)
    assert found.score.shape == (8,)
    assert found.matrix.mean().item() == pytest.approx(found.baseline, rel=0.02)
    assert found.baseline == pytest.approx(2 / (math.pi * math.sqrt(40 * 60)), rel=0.02)


def test_spans_do_not_turn_with_their_vectors(gaussian, orthogonal):
    left, right = orthogonal(8, 1)[:, :6], orthogonal(7, 2)[:, :6]
    values = torch.tensor([3, 3, 3, 0.1, 0.1, 0.1], dtype=torch.float64)
    first = factors(left * values @ right.T)
    turned = torch.block_diag(orthogonal(3, 3), orthogonal(3, 4))
    second = factors(left @ turned * (values + 1e-3 * gaussian(6).abs()) @ (right @ turned).T)
    assert agreement(first, second, top=3).score < 0.9
    for shared in subspace_agreement(first, second, k=3):
        assert shared.item() == pytest.approx(1)
    for shared in subspace_agreement(first, second, k=2):
        assert shared < 0.99


def test_span_agreement_is_the_mean_squared_principal_cosine(gaussian):
    first, second = gaussian(9, 6), gaussian(9, 6, seed=1)
    left, right = subspace_agreement(factors(first), factors(second), k=3)
    one, other = (torch.linalg.svd(m, full_matrices=False) for m in (first, second))
    cosines = torch.linalg.svdvals(one.U[:, :3].T @ other.U[:, :3])
    assert left.item() == pytest.approx(cosines.square().mean().item())
    cosines = torch.linalg.svdvals(one.Vh[:3] @ other.Vh[:3].T)
    assert right.item() == pytest.approx(cosines.square().mean().item())
    # All of the input side is spanned, whatever the matrix.
    assert subspace_agreement(factors(first), factors(second), k=99)[1].item() == pytest.approx(1)


def test_a_matrix_of_zeros_agrees_with_nothing(gaussian):
    zero = factors(torch.zeros(5, 4))
    assert agreement(zero, zero).matrix.count_nonzero() == 0
    assert agreement(zero, factors(gaussian(5, 4))).score.item() == 0
    broken = factors(torch.full((5, 4), torch.nan))
    assert agreement(broken, zero).score.isnan()


def test_different_counts_of_vectors(gaussian):
    found = agreement(factors(gaussian(6, 5), 2), factors(gaussian(6, 5), 4))
    assert found.matrix.shape == (2, 4)
    assert found.diagonal.tolist() == pytest.approx([1, 1])


def test_bad_arguments_are_refused(gaussian):
    with pytest.raises(RequestError, match=r"second: got .*\(5, 6\)"):
        agreement(factors(gaussian(6, 5)), factors(gaussian(5, 6)))
    with pytest.raises(RequestError, match="second"):
        subspace_agreement(factors(gaussian(6, 5)), factors(gaussian(5, 6)))
    with pytest.raises(RequestError, match="top"):
        agreement(factors(gaussian(6, 5)), factors(gaussian(6, 5)), top=0)
    with pytest.raises(RequestError, match="k"):
        subspace_agreement(factors(gaussian(6, 5)), factors(gaussian(6, 5)), k=0)
