"""Lottery tickets: a mask together with the early weights that it is to be trained from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latewood.core import MASK
from latewood.core.masks import Masks, require_masks
from latewood.core.state import load_state, save_state
from latewood.errors import WorkError, invalid, listed
from latewood.sparsity.continuous_sparsification import ContinuousSparsification
from latewood.sparsity.fixed_masks import FixedMasks

__all__ = ["Snapshot", "Ticket", "restore", "snapshot"]

Snapshot = dict[str, Tensor]
"""Plain name -> value of every parameter and buffer of a model, its masks left out."""

_FORMAT = "latewood ticket 1"


@dataclass(frozen=True)
class Ticket:
    """Which weights to keep, and what to rewind all of them to.

    Args:
        masks: parameter name -> bool tensor, True where kept.
        snapshot: the model's parameters and buffers at the rewind point.
        scale: factor of each masked weight by parameter name; 1 where a name is missing.
    """

    masks: Masks
    snapshot: Snapshot
    scale: Mapping[str, float]

    def __post_init__(self) -> None:
        require_masks(self.masks, self.snapshot)

    @classmethod
    def of(
        cls,
        method: ContinuousSparsification,
        snapshot: Snapshot,
        *,
        finished_round: int = -1,
        ticket_scale: Literal["one", "keep"] = "one",
    ) -> Ticket:
        """The ticket that continuous sparsification has found.

        Args:
            method: at the end of a round (or later, for the rounds before).
            snapshot: what ``snapshot`` returned early in the same run.
            finished_round: index into ``method.tickets``; -1 is the last.
            ticket_scale: "one" uses the rewound weights as they are, "keep" multiplies them by the
                scale c of the masks, as the authors' code does.

        Raises:
            RequestError: there is no such round or scale.
        """
        if ticket_scale not in ("one", "keep"):
            raise invalid("ticket_scale", ticket_scale, "'one' or 'keep'")
        tickets = method.tickets
        if not -len(tickets) <= finished_round < len(tickets):
            raise invalid("finished_round", finished_round, f"an index of {len(tickets)} tickets")
        return cls(
            tickets[finished_round], snapshot, method.scales if ticket_scale == "keep" else {}
        )

    @property
    def density(self) -> float:
        """Fraction kept of all masked weights."""
        total = sum(mask.numel() for mask in self.masks.values())
        return sum(int(mask.sum()) for mask in self.masks.values()) / total

    def rewind(self, model: nn.Module) -> FixedMasks:
        """Gives a model the snapshot's values, bit for bit, and puts the masks on it.

        Args:
            model: of the same architecture, without masks; changed in place, parameters stay the
                same objects, so that optimizers built on them stay valid.

        Returns:
            The method to train with; its ``finalize`` folds the masks.

        Raises:
            RequestError: the model has other parameters or buffers, or already has masks.
        """
        tensors = _fitting(model, self.snapshot)
        scale = {name: self.scale.get(name, 1.0) for name in self.masks}
        method = FixedMasks(model, self.masks, scale=scale)
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(self.snapshot[name])
        return method

    def save(self, path_stem: str | Path) -> None:
        """Writes STEM.safetensors and STEM.json.

        Raises:
            WorkError: they cannot be written.
        """
        tree = {"format": _FORMAT, "masks": self.masks, "snapshot": self.snapshot}
        save_state(path_stem, {**tree, "scale": dict(self.scale)})

    @classmethod
    def load(cls, path_stem: str | Path) -> Ticket:
        """Reads what ``save`` wrote, bit for bit, tensors on the CPU.

        Raises:
            WorkError: a file is missing, damaged or no ticket.
        """
        tree = load_state(path_stem)
        parts = {"format", "masks", "snapshot", "scale"}
        if not isinstance(tree, dict) or tree.get("format") != _FORMAT or tree.keys() != parts:
            raise WorkError(f"{path_stem}.json: not a ticket that Latewood wrote")
        return cls(tree["masks"], tree["snapshot"], tree["scale"])


def snapshot(model: nn.Module) -> Snapshot:
    """A copy of every parameter and buffer under the name it has without masks.

    Batch-norm statistics with their step count and buffers that no state dict holds are included;
    what masks hold is not.

    Args:
        model: with or without masks.

    Returns:
        Name -> value, detached.
    """
    return {name: tensor.detach().clone() for name, tensor in _plain_tensors(model)}


@torch.no_grad()
def restore(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Sets every parameter and buffer to its value in a snapshot, in place; masks stay.

    Args:
        model: of the snapshot's architecture, with or without masks.
        values: what ``snapshot`` returned.

    Raises:
        RequestError: names, shapes or dtypes differ; the model is unchanged.
    """
    for name, tensor in _fitting(model, values).items():
        tensor.copy_(values[name])


def _fitting(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's own tensors, after a check that the snapshot has a value for each."""
    tensors = dict(_plain_tensors(model))
    if tensors.keys() != values.keys():
        differing = sorted(tensors.keys() ^ values.keys())
        raise invalid(
            "snapshot",
            f"{len(values)} tensors",
            f"those of the model; only one of the two has {listed(differing)}",
        )
    for name, tensor in tensors.items():
        value = values[name]
        if value.shape != tensor.shape or value.dtype != tensor.dtype:
            raise invalid(
                f"snapshot[{name!r}]",
                f"{value.dtype} of shape {tuple(value.shape)}",
                f"{tensor.dtype} of shape {tuple(tensor.shape)}",
            )
    return tensors


def _plain_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    of_masks = {
        id(tensor)
        for module in model.modules()
        if isinstance(module, parametrize.ParametrizationList)
        for transformation in module
        if getattr(transformation, "order", None) == MASK
        for tensor in (*transformation.parameters(), *transformation.buffers())
    }
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        if id(tensor) not in of_masks:
            head, _, tail = name.rpartition("parametrizations.")
            plain = head + tail.removesuffix(".original") if tail.endswith(".original") else name
            yield plain, tensor
