"""The structures that stay: the largest logits, never above the budget, and near it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latewood.errors import RequestError
from latewood.sparsity.structured.running_cost import Cost, CostPart, RunningCost
from latewood.sparsity.structured.structure_selection import capped, largest_within


class Chain(Cost):
    """A chain of layers between one input and one output; block b doubles its own small part."""

    def parts(self, blocks):
        # Before the widths are known: the groups on both sides of layer n are n - 1 and n.
        count = self.groups
        products = [
            CostPart(
                tuple(group for group in (layer - 1, layer) if 0 <= group < count),
                lambda widths, layer=layer: [1, *widths, 1][layer] * [*widths, 1][layer],
            )
            for layer in range(count + 1)
        ]
        return [*products, *(CostPart((), lambda _: 20) for there in blocks if there)]

    def __init__(self, groups):
        self.groups = groups


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
    full = Chain(len(sizes)).at(sizes, [True] * blocks)
    limit = share * full
    if Chain(len(sizes)).at([1] * len(sizes), [False] * blocks) > limit:
        with pytest.raises(RequestError, match="budget"):
            largest_within(scores, block_scores, Chain(len(sizes)), limit)
        return
    chosen, there = largest_within(scores, block_scores, Chain(len(sizes)), limit)
    widths = [int(each.sum()) for each in chosen]
    assert Chain(len(sizes)).at(widths, there.tolist()) <= limit
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
    kept, left = capped(present, scores, sampled, block_scores, Chain(len(sizes)), limit)
    widths = [int(each.sum()) for each in kept]
    assert Chain(len(sizes)).at(widths, left.tolist()) <= limit
    assert not any((each & ~was).any() for each, was in zip(kept, present, strict=True))
    assert not (left & ~sampled).any()
    assert all(each.any() for each in kept)


def test_what_fits_is_left_as_it_was():
    present = [torch.tensor([True, False, True])]
    kept, blocks = capped(
        present, [torch.zeros(3)], torch.ones(1).bool(), torch.zeros(1), Chain(1), 100
    )
    assert torch.equal(kept[0], present[0]) and blocks.all()


def test_a_wide_budget_is_met_within_one_percent():
    noise = torch.Generator().manual_seed(0)
    scores = [torch.randn(size, generator=noise) for size in (32, 64, 64)]
    full = Chain(3).at([32, 64, 64], [])
    for share in (0.05, 0.1, 0.2, 0.37, 0.5, 0.81):
        chosen, _ = largest_within(scores, torch.zeros(0), Chain(3), share * full)
        used = Chain(3).at([int(each.sum()) for each in chosen], [])
        assert share * full - 0.01 * full <= used <= share * full
        assert used >= 0.99 * share * full or share < 0.1


@settings(max_examples=30, deadline=None)
@given(st.floats(0.0, 1.0), st.floats(0.02, 1.0), st.integers(0, 2**31))
def test_no_group_is_narrower_than_its_floor(floor, share, seed):
    sizes = [24, 32, 40]
    noise = torch.Generator().manual_seed(seed)
    # Logits of one group far above the others': without a floor it would take all of the budget.
    scores = [torch.rand(size, generator=noise) + 9 * (size == 24) for size in sizes]
    limit = share * Chain(len(sizes)).at(sizes, [])
    alike = max(
        (
            [max(1, int(part / 1000 * size)) for size in sizes]
            for part in range(1001)
            if Chain(len(sizes)).at([max(1, int(part / 1000 * size)) for size in sizes], [])
            <= limit
        ),
        key=sum,
    )
    chosen, _ = largest_within(scores, torch.zeros(0), Chain(len(sizes)), limit, floor=floor)
    widths = [int(each.sum()) for each in chosen]
    assert Chain(len(sizes)).at(widths, []) <= limit
    for width, even, each, score in zip(widths, alike, chosen, scores, strict=True):
        assert width >= max(1, int(floor * even) - 1)
        assert each.all() or score[each].min() >= score[~each].max()
    if floor == 0:
        plain, _ = largest_within(scores, torch.zeros(0), Chain(len(sizes)), limit)
        assert all(torch.equal(a, b) for a, b in zip(plain, chosen, strict=True))


def test_blocks_come_in_where_channels_alone_do_not_use_the_budget():
    scores, blocks = [torch.zeros(3)], torch.tensor([-1.0, -2.0])
    full = Chain(1).at([3], [True, True])
    assert largest_within(scores, blocks, Chain(1), full)[1].tolist() == [True, True]
    assert largest_within(scores, blocks, Chain(1), 26)[1].tolist() == [True, False]
    assert largest_within(scores, blocks, Chain(1), 6)[1].tolist() == [False, False]
    positive = torch.tensor([1.0, 2.0])
    assert largest_within(scores, positive, Chain(1), 23)[1].tolist() == [False, True]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(2, 12), min_size=1, max_size=5), st.integers(0, 2**31))
def test_a_running_cost_is_the_cost_to_the_bit(sizes, seed):
    class Thirds(Chain):
        """Parts that are no whole numbers: their sum depends on the order."""

        def parts(self, blocks):
            return [CostPart(part.groups, lambda widths, at=part.at: at(widths) / 3)
                    for part in super().parts(blocks)]  # fmt: skip

    noise = torch.Generator().manual_seed(seed)
    cost, blocks = Thirds(len(sizes)), [True, False, True]
    running = RunningCost(cost, sizes, blocks)
    for _ in range(20):
        group = int(torch.randint(len(sizes), (), generator=noise))
        by = int(torch.randint(-1, 3, (), generator=noise))
        assert running.change(group, by) == running.total == cost.at(running.widths, blocks)


def test_a_block_that_does_not_fit_alone_keeps_no_other_out():
    class Unequal(Chain):
        def parts(self, blocks):
            prices = zip(blocks, (50, 5), strict=True)
            return [*super().parts([]), *(CostPart((), lambda _, price=price: price)
                                          for there, price in prices if there)]  # fmt: skip

    best_is_dear = torch.tensor([2.0, 1.0])
    for limit, expected in [(20, [False, True]), (52, [True, False]), (60, [True, True])]:
        chosen = largest_within([torch.zeros(3)], best_is_dear, Unequal(1), limit)
        assert chosen[1].tolist() == expected
