"""Which structures stay: the most likely ones that fit the budget, never above it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from latewood.errors import invalid
from latewood.sparsity.structured.running_cost import Cost, RunningCost

__all__ = ["capped", "floored", "largest_within"]

_GOOD_USE = 0.995
_MOST_TRADED = 3
_HALVINGS = 40


def floored(sampled: Tensor, scores: Tensor) -> Tensor:
    """A sample of one group with at least one channel: that of the largest score if it was empty.

    Args:
        sampled: bool (width,).
        scores: of the channels, (width,).

    Returns:
        bool (width,).
    """
    if bool(sampled.any()):
        return sampled
    only = torch.zeros_like(sampled)
    only[int(scores.argmax())] = True
    return only


def capped(
    present: Sequence[Tensor],
    scores: Sequence[Tensor],
    blocks: Tensor,
    block_scores: Tensor,
    cost: Cost,
    limit: float,
) -> tuple[list[Tensor], Tensor]:
    """Takes the lowest scores out of a sample until it fits; each group keeps its best channel.

    Args:
        present: for each group which channels were sampled, bool (width,).
        scores: of the channels.
        blocks: which removable blocks were sampled, bool; they go where narrow ones do not fit.
        block_scores: of the blocks.
        cost: of a network.
        limit: what it may cost.

    Returns:
        As ``present`` and ``blocks``.
    """
    there = blocks.tolist()
    for block in block_scores.argsort(stable=True).tolist():
        if cost.at([1] * len(present), there) > limit:
            there[block] = False
    chosen = [channels.clone() for channels in present]
    running = RunningCost(cost, [int(channels.sum()) for channels in chosen], there)
    ranked = sorted(
        (float(scores[group][channel]), group, channel)
        for group, channels in enumerate(chosen)
        for channel in channels.nonzero().flatten().tolist()
    )
    for _, group, channel in ranked:
        if running.total <= limit:
            break
        if running.widths[group] > 1:
            chosen[group][channel] = False
            running.change(group, -1)
    return chosen, torch.tensor(there, dtype=torch.bool)


def largest_within(
    scores: Sequence[Tensor],
    block_scores: Tensor,
    cost: Cost,
    limit: float,
    *,
    floor: float = 0.0,
) -> tuple[list[Tensor], Tensor]:
    """The structures of the largest scores whose network costs at most so much.

    Blocks first: those of positive score, fewer if not even their narrowest form fits, more if all
    channels of the others leave budget. Then each group's best channels up to its floor, then those
    of all groups by score, each that still fits; at last a few channels are traded between groups
    where that uses the budget better.

    Args:
        scores: of the channels of each group.
        block_scores: of the blocks, (blocks,).
        cost: of a network.
        limit: what it may cost.
        floor: least width of a group, as a share of its width in the widest network within the
            limit whose groups are all narrowed alike; in [0, 1]. One channel stays in any case.

    Returns:
        For each group bool (width,), and bool (blocks,).

    Raises:
        RequestError: not even the narrowest network without blocks fits.
    """
    narrowest = [1] * len(scores)
    widest = [len(channels) for channels in scores]
    ranked_blocks = block_scores.argsort(descending=True, stable=True).tolist()
    # One that does not even fit alone would keep out all that come behind it.
    order = [
        block
        for block in ranked_blocks
        if cost.at(narrowest, _only([block], len(ranked_blocks))) <= limit
    ]
    count = int((block_scores[order] > 0).sum())
    while count and cost.at(narrowest, _only(order[:count], len(block_scores))) > limit:
        count -= 1
    while count < len(order) and cost.at(widest, _only(order[:count], len(block_scores))) <= limit:
        if cost.at(narrowest, _only(order[: count + 1], len(block_scores))) > limit:
            break
        count += 1
    blocks = _only(order[:count], len(block_scores))
    smallest = cost.at(narrowest, blocks)
    if smallest > limit:
        raise invalid("budget", limit, f"at least {smallest:.6g}, one channel in each group")
    ranks = [channels.argsort(descending=True, stable=True) for channels in scores]
    least = _floors(widest, blocks, cost, limit, floor)
    running = RunningCost(cost, least, blocks)
    ranked = sorted(
        (-float(scores[group][channel]), group)
        for group, rank in enumerate(ranks)
        for channel in rank[least[group] :].tolist()
    )
    for _, group in ranked:
        if running.change(group, 1) > limit:
            running.change(group, -1)
    widths = _traded(running, least, widest, limit)
    chosen = []
    for width, rank in zip(widths, ranks, strict=True):
        channels = torch.zeros(len(rank), dtype=torch.bool)
        channels[rank[:width]] = True
        chosen.append(channels)
    return chosen, torch.tensor(blocks, dtype=torch.bool)


def _floors(
    widest: Sequence[int], blocks: list[bool], cost: Cost, limit: float, floor: float
) -> list[int]:
    """The least width of each group, at least 1, below that of groups narrowed alike."""

    def narrowed(fraction: float) -> list[int]:
        return [max(1, int(fraction * width)) for width in widest]

    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if cost.at(narrowed(middle), blocks) <= limit:
            low = middle
        else:
            high = middle
    return narrowed(floor * low)


def _traded(
    running: RunningCost, least: Sequence[int], widest: Sequence[int], limit: float
) -> list[int]:
    """Widths with some channels of one group traded for some of another, if too much was unused."""
    widths = list(running.widths)
    best, used = widths, running.total
    numbers = range(len(widths))
    amounts = itertools.product(range(_MOST_TRADED + 1), range(1, _MOST_TRADED + 1))
    for (less, more), giving, taking in itertools.product(amounts, numbers, numbers):
        if used >= _GOOD_USE * limit:
            break
        fits = widths[giving] - less >= least[giving] and widths[taking] + more <= widest[taking]
        if giving == taking or not fits:
            continue
        running.change(giving, -less)
        if used < (now := running.change(taking, more)) <= limit:
            best, used = list(running.widths), now
        running.change(giving, less)
        running.change(taking, -more)
    return best


def _only(chosen: Sequence[int], count: int) -> list[bool]:
    """Of so many blocks, which are chosen."""
    there = [False] * count
    for number in chosen:
        there[number] = True
    return there
