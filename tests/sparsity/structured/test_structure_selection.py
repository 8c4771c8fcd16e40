"""The structures that stay: the largest logits, never above the budget, and near it."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latewood.errors import RequestError
from latewood.sparsity.structured.structure_selection import capped, largest_within


class Chain:
    """A chain of layers between one input and one output; block b doubles its own small part."""

    def at(self, widths, blocks):
        sides = [1, *widths, 1]
        products = sum(a * b for a, b in itertools.pairwise(sides))
        return products + sum(20 * there for there in blocks)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(2, 12), min_size=1, max_size=4),
    st.integers(0, 3),
    st.floats(0.05, 1.0),
    st.integers(0, 2**31),
)
def test_the_budget_holds_and_the_best_stay(sizes, blocks, share, seed):
    noise = torch.Generator().manual_seed(seed)
    scores = [torch.randn(size, generator=noise) for size in sizes]
    block_scores = torch.randn(blocks, generator=noise)
    full = Chain().at(sizes, [True] * blocks)
    limit = share * full
    if Chain().at([1] * len(sizes), [False] * blocks) > limit:
        with pytest.raises(RequestError, match="budget"):
            largest_within(scores, block_scores, Chain(), limit)
        return
    chosen, there = largest_within(scores, block_scores, Chain(), limit)
    widths = [int(each.sum()) for each in chosen]
    assert Chain().at(widths, there.tolist()) <= limit
    for each, score in zip(chosen, scores, strict=True):
        assert each.any()
        assert each.all() or score[each].min() >= score[~each].max()
    if there.any() and not there.all():
        assert block_scores[there].min() >= block_scores[~there].max()
    if share == 1.0:
        assert all(each.all() for each in chosen) and there.all()

    present = [torch.rand(size, generator=noise) < 0.7 for size in sizes]
    present = [each | (score == score.max()) for each, score in zip(present, scores, strict=True)]
    sampled = torch.rand(blocks, generator=noise) < 0.5
    kept, left = capped(present, scores, sampled, block_scores, Chain(), limit)
    widths = [int(each.sum()) for each in kept]
    assert Chain().at(widths, left.tolist()) <= limit
    assert not any((each & ~was).any() for each, was in zip(kept, present, strict=True))
    assert not (left & ~sampled).any()
    assert all(each.any() for each in kept)


def test_what_fits_is_left_as_it_was():
    present = [torch.tensor([True, False, True])]
    kept, blocks = capped(
        present, [torch.zeros(3)], torch.ones(1).bool(), torch.zeros(1), Chain(), 100
    )
    assert torch.equal(kept[0], present[0]) and blocks.all()


def test_a_wide_budget_is_met_within_one_percent():
    noise = torch.Generator().manual_seed(0)
    scores = [torch.randn(size, generator=noise) for size in (32, 64, 64)]
    full = Chain().at([32, 64, 64], [])
    for share in (0.05, 0.1, 0.2, 0.37, 0.5, 0.81):
        chosen, _ = largest_within(scores, torch.zeros(0), Chain(), share * full)
        used = Chain().at([int(each.sum()) for each in chosen], [])
        assert share * full - 0.01 * full <= used <= share * full
        assert used >= 0.99 * share * full or share < 0.1


@settings(max_examples=30, deadline=None)
@given(st.floats(0.0, 1.0), st.floats(0.02, 1.0), st.integers(0, 2**31))
def test_no_group_is_narrower_than_its_floor(floor, share, seed):
    sizes = [24, 32, 40]
    noise = torch.Generator().manual_seed(seed)
    # Logits of one group far above the others': without a floor it would take all of the budget.
    scores = [torch.rand(size, generator=noise) + 9 * (size == 24) for size in sizes]
    limit = share * Chain().at(sizes, [])
    alike = max(
        (
            [max(1, int(part / 1000 * size)) for size in sizes]
            for part in range(1001)
            if Chain().at([max(1, int(part / 1000 * size)) for size in sizes], []) <= limit
        ),
        key=sum,
    )
    chosen, _ = largest_within(scores, torch.zeros(0), Chain(), limit, floor=floor)
    widths = [int(each.sum()) for each in chosen]
    assert Chain().at(widths, []) <= limit
    for width, even, each, score in zip(widths, alike, chosen, scores, strict=True):
        assert width >= max(1, int(floor * even) - 1)
        assert each.all() or score[each].min() >= score[~each].max()
    if floor == 0:
        plain, _ = largest_within(scores, torch.zeros(0), Chain(), limit)
        assert all(torch.equal(a, b) for a, b in zip(plain, chosen, strict=True))


def test_blocks_come_in_where_channels_alone_do_not_use_the_budget():
    scores, blocks = [torch.zeros(3)], torch.tensor([-1.0, -2.0])
    full = Chain().at([3], [True, True])
    assert largest_within(scores, blocks, Chain(), full)[1].tolist() == [True, True]
    assert largest_within(scores, blocks, Chain(), 26)[1].tolist() == [True, False]
    assert largest_within(scores, blocks, Chain(), 6)[1].tolist() == [False, False]
    positive = torch.tensor([1.0, 2.0])
    assert largest_within(scores, positive, Chain(), 23)[1].tolist() == [False, True]
