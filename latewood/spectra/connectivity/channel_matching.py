"""Finds the order of one network's channels in which its weights are closest to another's."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latewood.core.coupling import ChannelGroup, Member
from latewood.errors import invalid
from latewood.spectra.connectivity.symmetries import ChannelSymmetries, Permutations, permuted_entry

__all__ = ["Matching", "match_channels", "matched"]

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Matching:
    """The best order of channels that was found.

    Args:
        permutations: for every group, the second network's channel at each place.
        objective: the inner product of the two networks' weights before the first sweep over the
            groups and after each; it never falls.
        fixed_groups: groups that cannot be permuted, and why.
    """

    permutations: Permutations
    objective: tuple[float, ...]
    fixed_groups: dict[str, str]


def match_channels(
    symmetries: ChannelSymmetries,
    first: State,
    second: State,
    *,
    sweeps: int = 100,
    seed: int = 0,
) -> Matching:
    r"""Permutes the second network's channels towards the first's, without any data.

    .. math:: \max_{\pi} \sum_l \langle W_l^{(1)}, \pi(W_l^{(2)}) \rangle

    over all weights, biases and gains that channels sit on; not over running statistics, which are
    no weights. One group after the other, in a random order, is assigned exactly while the others
    stay, until none moves. Where a tensor holds a group on both its axes (a recurrence, a square
    layer inside a stream) the problem is quadratic: its linear approximation is assigned, and taken
    if the inner product has risen.

    Args:
        symmetries: of the networks' model.
        first: state dict of the network that stays.
        second: state dict of the network to permute.
        sweeps: most passes over the groups.
        seed: of the order of the groups.

    Returns:
        The permutations, for ``symmetries.permuted(second, ...)``; none, with a warning that says
        what holds the channels, if none of them may move.

    Raises:
        RequestError: states of other shapes, or with NaN or Inf.

    Source: Ainsworth et al. 2022, Git Re-Basin (arXiv 2209.04836), section 3.2, weight matching.
    """
    if sweeps < 1:
        raise invalid("sweeps", sweeps, "an integer of at least 1")
    if not symmetries.groups:
        warnings.warn(
            "second: stays in its own order, as no group of channels can be permuted; what holds "
            f"them: {symmetries.barriers()}",
            UserWarning,
            stacklevel=2,
        )
    search = _Search(symmetries, first, second)
    generator = torch.Generator().manual_seed(seed)
    names = list(symmetries.groups)
    objective = [search.objective()]
    for _ in range(sweeps):
        order = torch.randperm(len(names), generator=generator).tolist()
        moved = [search.improve(names[index]) for index in order]
        objective.append(search.objective())
        if not any(moved):
            break
    return Matching(search.permutations, tuple(objective), dict(symmetries.fixed_groups))


def matched(
    model: nn.Module,
    first: State,
    second: State,
    example_inputs: Tensor | Sequence[Any] | dict[str, Any],
    *,
    seed: int = 0,
) -> tuple[dict[str, Tensor], Matching]:
    """The second network with its channels in the order that is closest to the first's.

    Args:
        model: the network of these states; it is left as it is.
        first: state dict of the network that stays.
        second: state dict of the network to permute.
        example_inputs: what the model is called with, as for ``ChannelSymmetries``.
        seed: see ``match_channels``.

    Returns:
        The permuted state, which computes what ``second`` does, and how it was found.

    Raises:
        RequestError: see ``ChannelSymmetries`` and ``match_channels``.
    """
    symmetries = ChannelSymmetries(model, example_inputs)
    matching = match_channels(symmetries, first, second, seed=seed)
    return symmetries.permuted(second, matching.permutations), matching


class _Search:
    """Two networks and the permutations found so far."""

    def __init__(self, symmetries: ChannelSymmetries, first: State, second: State) -> None:
        # Here, because importing it takes longer than most users of spectra ever need it.
        from scipy.optimize import linear_sum_assignment

        self._assign = linear_sum_assignment
        self._symmetries = symmetries
        self._axes = {name: _axes(group, symmetries) for name, group in symmetries.groups.items()}
        tensors = sorted({axis.tensor for axes in self._axes.values() for axis in axes})
        self._first = {name: _values(name, first) for name in tensors}
        self._second = {name: _values(name, second) for name in tensors}
        for name, entry in self._first.items():
            other = self._second[name]
            if entry.shape != other.shape:
                expected = f"the shape {tuple(entry.shape)} of first"
                raise invalid(f"second[{name!r}]", tuple(other.shape), expected)
        self.permutations = {
            name: torch.arange(group.width) for name, group in symmetries.groups.items()
        }

    def objective(self) -> float:
        """The inner product of all weights that channels sit on."""
        return self._product(self._first, self.permutations)

    def improve(self, name: str) -> bool:
        """Assigns one group anew; whether that raised the inner product."""
        axes, old = self._axes[name], self.permutations[name]
        tensors = [axis.tensor for axis in axes]
        gain = self._gains(axes, len(old))
        assigned = torch.from_numpy(self._assign(gain.numpy(), maximize=True)[1])
        candidate = self.permutations | {name: assigned}
        if len(set(tensors)) < len(tensors):
            before = self._product(set(tensors), self.permutations)
            after = self._product(set(tensors), candidate)
        else:
            channels = torch.arange(len(old))
            before, after = (float(gain[channels, order].sum()) for order in (old, assigned))
        # Within rounding nothing was gained, and going on would never end.
        scale = sum(float(self._first[t].norm() * self._second[t].norm()) for t in tensors)
        if after <= before + 1e-12 * scale:
            return False
        self.permutations = candidate
        return True

    def _gains(self, axes: Sequence[Member], width: int) -> Tensor:
        """Entry (c, d): the inner product of the first's channel c with the second's d."""
        sources = self._symmetries.sources(self.permutations, {axis.tensor for axis in axes})
        gain = torch.zeros(width, width, dtype=torch.float64)
        for axis in axes:
            others = {a: order for a, order in sources[axis.tensor].items() if a != axis.axis}
            second = permuted_entry(self._second[axis.tensor], others)
            gain += _by_channel(self._first[axis.tensor], axis) @ _by_channel(second, axis).mT
        return gain

    def _product(self, tensors: Collection[str], permutations: Permutations) -> float:
        sources = self._symmetries.sources(permutations, tensors)
        return sum(
            float((self._first[name] * permuted_entry(self._second[name], sources[name])).sum())
            for name in tensors
        )


def _axes(group: ChannelGroup, symmetries: ChannelSymmetries) -> list[Member]:
    """The axes of weights that a group sits on, each once even if it has several roles."""
    members = {(member.tensor, member.axis): member for member in group.members}
    return [member for member in members.values() if member.tensor in symmetries.parameters]


def _by_channel(entry: Tensor, member: Member) -> Tensor:
    """What each channel owns of a tensor, (width, rest)."""
    return entry.movedim(member.axis, 0)[member.indices].flatten(1)


def _values(name: str, state: State) -> Tensor:
    if name not in state:
        raise invalid("state", f"no entry {name}", "the entries of the traced model")
    entry = state[name].detach().double().cpu()
    if not bool(entry.isfinite().all()):
        raise invalid(name, "NaN or Inf", "finite weights")
    return entry
