"""What had to wait until a run was over: which positions and numbers follow the channels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from latewood.core.coupling.code_numbers import (
    Attribute,
    CodeNumber,
    Extent,
    NumberUse,
    attribute_of,
    counts_entries,
    divided_extent,
    origins,
    recomputed,
)
from latewood.core.coupling.label_layout import compact
from latewood.core.coupling.labels import (
    NONE,
    Alignment,
    Division,
    Labels,
    Parts,
    varies_along,
)

__all__ = ["Follows", "settle"]

Follows = dict[Attribute, dict[int, int]]
"""By attribute: for each channel that it counts, by how much."""


def settle(labels: Labels) -> Follows:
    """Evaluates a run's divisions, parts and sums over channels, into barriers.

    Args:
        labels: what a run left behind.

    Returns:
        The attributes that must follow the channels.
    """
    follows: Follows = {}
    for use, layer in labels.number_uses:
        multiple = _multiple(use)
        if multiple is not None:
            reason = f"the code of {layer or 'the model'} divides by {multiple[1]}"
            labels.alignments.append(Alignment(*multiple, reason))
    # A coupling can make other channels vary less, and attributes follow what is divided by them.
    while (
        _couple_shared(labels)
        or _couple_parts(labels, follows)
        or _couple_divisions(labels)
        or _couple_counted(labels)
        or _couple_agreeing(labels)
        or _follow(labels, follows)
    ):
        pass
    for _, few in labels.shared:
        labels.bar(few, "fixed", "it meets every channel of another group, such as every head")
    for parts in labels.parts:
        for moving in _misplaced(labels, parts, follows):
            labels.bar(moving, "fixed", f"{parts.where} takes channels by position")
    kinds = _kinds(labels)
    for division in labels.divisions:
        for moving, reason in _misfits(labels, division, follows, kinds):
            labels.bar(moving, "fixed", f"{division.where} {reason}")
    for use, layer in labels.number_uses:
        for moving, verb in _misused(labels, use, follows, kinds):
            where = layer or "the model"
            labels.bar(moving, "fixed", f"the code of {where} {verb} their number")
    for constancy in labels.constancies:
        if _counted_vary(labels, constancy.labels, constancy.dim):
            labels.bar(constancy.labels, constancy.kind, constancy.reason)
    for (name, _), atoms in labels.axes.items():
        if name in labels.opaque:
            labels.bar(atoms, labels.opaque[name].kind, labels.opaque[name].reason)
    return follows


def _along(channels: Tensor, dim: int) -> Tensor:
    """Channels along a dimension, at the first place of the others."""
    return _columns(compact(channels), dim)[:, 0]


def _columns(channels: Tensor, dim: int) -> Tensor:
    return channels.movedim(dim, 0).reshape(channels.shape[dim], -1)


def _rows(channels: Tensor, dim: int) -> tuple[Tensor, ...]:
    """The different rows of channels along a dimension."""
    different: Tensor = _columns(channels, dim).unique(dim=1)
    return different.unbind(1)


def _counts(row: Tensor) -> dict[int, int]:
    channels, counts = row[row != NONE].unique(return_counts=True)
    return dict(zip(channels.tolist(), counts.tolist(), strict=True))


def _recomputed(labels: Labels, number: int, moving: Tensor, follows: Follows) -> int | None:
    """A number of the code if some channels came twice."""
    channels = set(moving.tolist())
    attributes = {
        attribute: attribute.value + sum(of[channel] for channel in channels & of.keys())
        for attribute, of in follows.items()
    }

    def grown(extent: Tensor) -> int:
        channels = labels.channels(extent)
        # Where all turned out to be one channel, its dimension is another one.
        return int(torch.isin(channels, moving).sum()) if varies_along(channels, 0) else 0

    return recomputed(number, grown, attributes)


def _follow(labels: Labels, follows: Follows) -> bool:
    """Lets attributes that hold a size follow the channels they count; whether one began to."""
    news = False
    for size, row in _held_sizes(labels):
        attribute = attribute_of(size)
        if attribute is None:
            continue
        for channel, count in _counts(row).items():
            if channel not in follows.setdefault(attribute, {}):
                follows[attribute][channel] = count
                news = True
    return news


def _held_sizes(labels: Labels) -> Iterator[tuple[int, Tensor]]:
    """Sizes that the code has numbers for, with the channels along what they measure."""
    for division in labels.divisions:
        channels = labels.channels(division.labels)
        for dim, size in enumerate(division.sizes):
            if size is not None and varies_along(channels, dim):
                yield size, _along(channels, dim)
    for parts in labels.parts:
        channels = labels.channels(parts.labels)
        if varies_along(channels, parts.dim):
            row = _along(channels, parts.dim)
            for size, start in parts.sections:
                yield size, row[start : start + size]
    for use, _ in labels.number_uses:
        if use.agree:
            for extent, other in (use.numbers, use.numbers[::-1]):
                measured = _extent(extent)
                if measured is not None:
                    row = labels.channels(measured.labels)
                    if varies_along(row, 0):
                        yield other, row


def _extent(number: int) -> Extent | None:
    """The extent that a number of the code is, if it is one without any arithmetic."""
    origin = number.origin if isinstance(number, CodeNumber) else None
    return origin if isinstance(origin, Extent) else None


def _multiple(use: NumberUse) -> tuple[Tensor, int] | None:
    """What a size along some labels is a multiple of, as the code has made sure."""
    number, rest = use.numbers if use.agree else (0, None)
    divided = divided_extent(number) if rest == 0 else None
    return None if divided is None else (divided[0].labels, divided[1])


def _couple_agreeing(labels: Labels) -> bool:
    """Couples channels along two sizes that the code wants to be equal; whether any were not."""
    for use, _ in labels.number_uses:
        extents = [_extent(number) for number in use.numbers] if use.agree else []
        rows = [labels.channels(extent.labels) for extent in extents if extent is not None]
        if (
            len(rows) == 2
            and all(varies_along(row, 0) for row in rows)
            and not torch.equal(rows[0], rows[1])
        ):
            labels.couple(rows[0], rows[1])
            return True
    return False


def _couple_shared(labels: Labels) -> bool:
    """Couples what met broadcast, where channels still differ along what it has; whether any did.

    Entries for the size of a head, say, meet every head: where heads are the channels they are data
    of fixed size.
    """
    for number, (many, few) in enumerate(labels.shared):
        dims = [dim for dim in range(few.ndim) if varies_along(few, dim)]
        if any(labels.vary(many, dim) for dim in dims):
            labels.couple(many, few)
            del labels.shared[number]
            return True
    return False


def _couple_parts(labels: Labels, follows: Follows) -> bool:
    """Couples parts of one size where the code would not follow a change in one of them."""
    for parts in labels.parts:
        # Where the code's bounds are plain numbers, nothing would make them follow.
        if parts.equal < 2 or not any(type(bound) is CodeNumber for bound in parts.bounds or ()):
            continue
        if next(_misplaced(labels, parts, follows), None) is not None:
            moved = parts.labels.movedim(parts.dim, 0)
            apart = moved.unflatten(0, (parts.equal, -1))
            before = labels.channels(apart)
            labels.couple(apart, apart[:1])
            if not torch.equal(labels.channels(apart), before):
                return True
    return False


def _couple_divisions(labels: Labels) -> bool:
    """Couples channels along a size that is a plain number where another one is left to follow."""
    for division in labels.divisions:
        channels = labels.channels(division.labels)
        moving = [dim for dim in division.new if varies_along(channels, dim)]
        if labels.by_head_size and len(moving) == 2:
            # Heads come in front of what they are made of.
            labels.couple(division.labels, division.labels.narrow(moving[0], 0, 1))
            return True
        plain = [dim for dim in moving if type(division.sizes[dim]) is int]
        if len(moving) > 1 and len(plain) == len(moving) - 1:
            for dim in plain:
                labels.couple(division.labels, division.labels.narrow(dim, 0, 1))
            return True
    return False


def _couple_counted(labels: Labels) -> bool:
    """Couples entries of heads that one attribute counts, such as those of keys and values."""
    if not labels.by_head_size:
        return False
    rows: dict[Attribute, Tensor] = {}
    for size, row in _held_sizes(labels):
        attribute = attribute_of(size)
        if attribute is None or bool((row == NONE).any()):
            continue
        first = rows.setdefault(attribute, row)
        if len(first) == len(row) and not torch.equal(first, row):
            labels.couple(first, row)
            return True
    return False


def _misplaced(labels: Labels, parts: Parts, follows: Follows) -> Iterator[Tensor]:
    """Channels whose change would move others out of the part that the code takes."""
    channels = compact(labels.channels(parts.labels))
    if not varies_along(channels, parts.dim):
        return
    for row in _rows(channels, parts.dim):
        if parts.bounds is None:
            yield row
            continue
        edges = [int(bound) for bound in parts.bounds]
        for moving in _alike(row, edges):
            moves = torch.isin(row, moving).cumsum(0)
            for bound, edge in zip(parts.bounds, edges, strict=True):
                wanted = edge + (int(moves[edge - 1]) if edge else 0)
                if _recomputed(labels, bound, moving, follows) != wanted:
                    yield moving
                    break


def _alike(row: Tensor, edges: list[int]) -> Iterator[Tensor]:
    """Channels along a row, put together where they lie in the same parts equally often."""
    channels, places = row.unique(return_inverse=True)
    starts = torch.bucketize(torch.arange(len(row)), torch.tensor(sorted(set(edges))), right=True)
    table = torch.zeros(len(channels), int(starts.max()) + 1, dtype=torch.long)
    table.index_put_((places, starts), torch.ones(len(row), dtype=torch.long), accumulate=True)
    kinds = table.unique(dim=0, return_inverse=True)[1]
    for kind in kinds.unique():
        alike = channels[kinds == kind]
        alike = alike[alike != NONE]
        if len(alike):
            yield alike


def _kinds(labels: Labels) -> Tensor:
    """A number for each channel, the same for those that sit equally often on the same axes.

    They are what can change without others.
    """
    generator = torch.Generator().manual_seed(0)
    kinds = torch.zeros(labels.components.count + 1, dtype=torch.long)
    rows = list(labels.axes.values())
    marks = torch.randint(2**62, (len(rows),), generator=generator)
    seats = labels.channels(torch.cat(rows))
    marks = marks.repeat_interleave(torch.tensor([len(row) for row in rows]))
    kinds.index_add_(0, seats[seats != NONE], marks[seats != NONE])
    return kinds


def _misfits(
    labels: Labels, division: Division, follows: Follows, kinds: Tensor
) -> Iterator[tuple[Tensor, str]]:
    """Channels whose change the code's shape would not follow, and why."""
    channels = compact(labels.channels(division.labels))
    shape = tuple(division.labels.shape)
    moving = [dim for dim in range(channels.ndim) if varies_along(channels, dim)]
    if sum(dim in division.new for dim in moving) > 1:
        yield channels.unique(), f"divides channels into {shape}"
        return
    for dim in moving:
        for row in _rows(channels, dim):
            here = row.unique()
            here = here[here != NONE]
            for kind in kinds[here].unique():
                alike = here[kinds[here] == kind]
                wanted = list(shape)
                wanted[dim] += int(torch.isin(row, alike).sum())
                for size, expected in zip(division.sizes, wanted, strict=True):
                    if size is None:
                        continue
                    if _recomputed(labels, size, alike, follows) != expected:
                        yield alike, f"divides channels into {shape}, of which {size} is fixed"
                        break
    yield from _strangers(labels, division, channels, follows)


def _misused(
    labels: Labels, use: NumberUse, follows: Follows, kinds: Tensor
) -> Iterator[tuple[Tensor, str]]:
    """Channels whose number the code computes with, or compares with what does not follow."""
    counted: set[int] = set()
    for number in use.numbers if _multiple(use) is None else ():
        for origin in origins(number):
            counted.update(_counted_by(labels, origin, follows))
    here = torch.tensor(sorted(counted - {NONE}))
    if not len(here) or (use.comparison is None and _are_scored(labels, here)):
        return
    # There are never none, whatever becomes of them.
    if type(use.numbers[-1]) is int and use.numbers[-1] == 0 and counts_entries(use.numbers[0]):
        return
    for kind in kinds[here].unique():
        alike = here[kinds[here] == kind]
        now = [int(number) for number in use.numbers]
        # A quotient may stay as it is when one channel comes, but not when all come twice.
        for moving in (alike[:1], alike):
            then = [_recomputed(labels, number, moving, follows) for number in use.numbers]
            if use.comparison is None:
                if then != now:
                    yield alike, "computes with"
                    break
            elif None in then or (then[0] or 0) - (then[1] or 0) != now[0] - now[1]:
                yield alike, "compares"
                break


def _counted_by(labels: Labels, origin: Attribute | Extent, follows: Follows) -> set[int]:
    """The channels that make up a number."""
    if isinstance(origin, Attribute):
        return set(follows.get(origin, ()))
    row = labels.channels(origin.labels)
    return set(row.tolist()) if varies_along(row, 0) else set()


def _are_scored(labels: Labels, channels: Tensor) -> bool:
    """Whether channels are entries of queries and keys, whose scores are looked at elsewhere."""
    scored = [labels.channels(entries) for entries in labels.scores]
    return bool(scored) and bool(torch.isin(channels, torch.cat(scored)).all())


def _strangers(
    labels: Labels, division: Division, channels: Tensor, follows: Follows
) -> Iterator[tuple[Tensor, str]]:
    """Channels that are not here, but with which a size in the code would change.

    Nothing here follows them, also where the data has no channels at all.
    """
    here = set(channels.unique().tolist())
    for size in (size for size in division.sizes if size is not None):
        for origin in origins(size):
            if isinstance(origin, Attribute):
                counted = set(follows.get(origin, ()))
            else:
                counted = set(labels.channels(origin.labels).tolist())
            elsewhere = torch.tensor(sorted(counted - here - {NONE}))
            if len(elsewhere) and _recomputed(labels, size, elsewhere, follows) != size:
                yield elsewhere, "divides other channels by a size that counts these"


def _counted_vary(labels: Labels, constant: Tensor, dim: int) -> bool:
    """Whether channels differ along a dimension, apart from those of one label only.

    Those are entries that met no other tensor, such as the rows of a position table beyond the
    example's length.
    """
    few = compact(constant.movedim(dim, -1))
    rows, counted = labels.channels(few), labels.counted(few)
    first = rows.gather(-1, counted.int().argmax(-1, keepdim=True))
    return bool(((rows != first) & counted).any())
