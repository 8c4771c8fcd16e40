"""The network as it is now: which structures are there, and how they come and go in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latewood.core import transformations
from latewood.core.coupling.attributes import Sizes
from latewood.core.coupling.resize import replace_data, state_that_follows
from latewood.errors import RequestError
from latewood.slim.edits import Channels, Edit, Skipped
from latewood.slim.idle_blocks import replace_modules, skip_modules
from latewood.sparsity.structured.detached_store import DetachedStore
from latewood.sparsity.structured.gates import Estimator, Gate
from latewood.sparsity.structured.new_weight_init import NewWeightScale, new_values
from latewood.sparsity.structured.removable_blocks import RemovableBlock
from latewood.sparsity.structured.soft_factors import SoftFactors
from latewood.sparsity.structured.structure_spec import StructureSpec, TensorSpec

__all__ = ["LiveStructure"]

_VALUE = "value"
"""Key of a tensor's own values, beside the keys of the optimizer's state."""


class LiveStructure:
    """Adds and removes structures of a model in place; the optimizer's state follows.

    Args:
        model: the full model; its readers get soft factors.
        spec: its structures.
        estimator: of the soft factors.
        birth: scale of newly born weights.
        generator: for newly born weights.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: StructureSpec,
        *,
        estimator: Estimator,
        birth: NewWeightScale,
        generator: torch.Generator,
    ) -> None:
        self.model = model
        self.spec = spec
        self.present = [torch.ones(group.width, dtype=torch.bool) for group in spec.groups]
        """For each group which channels are there, bool (width,)."""
        self.blocks = torch.ones(len(spec.blocks), dtype=torch.bool)
        """Which removable blocks are there, bool."""
        self._generator, self._birth = generator, birth
        # Of the full layers: a depthwise one with a single channel looks like any other.
        self._sizes = {tensor.module: Sizes.of(tensor.module) for tensor in spec.tensors.values()}
        self._detached: dict[tuple[str, str], DetachedStore] = {}
        self._factors = SoftFactors(spec, estimator)
        self.gates = self._factors.gates
        self.layer_gate = self._factors.layer_gate

    @property
    def all_gates(self) -> list[Gate]:
        """The gates of the groups, and behind them that of the blocks if any can go."""
        return self.gates if self.layer_gate is None else [*self.gates, self.layer_gate]

    @property
    def widths(self) -> list[int]:
        """Channels of each group that are there."""
        return [int(channels.sum()) for channels in self.present]

    @property
    def folded(self) -> bool:
        """Whether the factors are in the weights."""
        return self._factors.folded

    def visible(self, group: int) -> bool:
        """Whether a group is there: not inside an absent block."""
        block = self.spec.block_of[group]
        return block is None or bool(self.blocks[block])

    def change_to(
        self,
        present: Sequence[Tensor],
        blocks: Tensor,
        optimizer: Optimizer | None,
        *,
        remember: bool = True,
    ) -> bool:
        """Changes the model to other structures.

        Args:
            present: for each group which channels shall be there, bool (width,); those of a group
                in an absent block stay as they are.
            blocks: which removable blocks shall be there, bool.
            optimizer: whose state is to follow.
            remember: whether what goes can come back.

        Returns:
            Whether anything changed.

        Raises:
            RequestError: a transformation or an optimizer state that would not follow; then nothing
                has changed.
        """
        after = [
            (new if block is None or bool(blocks[block]) else old).clone()
            for old, new, block in zip(self.present, present, self.spec.block_of, strict=True)
        ]
        resized = self._resized(after)
        self._refuse_strangers(resized)
        if optimizer is not None:
            for tensor in resized:
                list(state_that_follows(tensor.stored, optimizer, tensor.name))
        # All that can be refused was refused above; from here on everything changes.
        before, blocks_before = self.present, self.blocks
        self.present, self.blocks = after, blocks.clone()
        for tensor in resized:
            self._exchange(tensor, before, optimizer, remember=remember)
        for layer in {tensor.module for tensor in resized}:
            self._sizes[layer].refresh()
        for count in self.spec.counts:
            setattr(count.module, count.attribute, count.per_channel * self.widths[count.group])
        self._factors.follow(self.present)
        self._replace_blocks(blocks_before)
        return bool(resized) or not torch.equal(blocks_before, blocks)

    def fold(self, optimizer: Optimizer | None) -> None:
        """Folds the factors into the weights and forgets what is not there."""
        self._factors.fold()
        self._detached = {}
        if optimizer is not None:
            for block in self._absent_blocks():
                for parameter in block.module.parameters():
                    optimizer.state.pop(parameter, None)

    def edits(self) -> list[Edit]:
        """How the network that is there comes from the full one."""
        channels = {
            group.name: present.repeat_interleave(unit).nonzero().flatten().tolist()
            for group, unit, present in zip(
                self.spec.groups, self.spec.units, self.present, strict=True
            )
            if not bool(present.all())
        }
        skipped: dict[str, str] = {block.name: block.kind for block in self._absent_blocks()}
        return [
            *([Channels(channels)] if channels else []),
            *([Skipped(skipped)] if skipped else []),
        ]

    def finalize(self) -> None:
        """Takes the absent blocks out for good, as reading the ``edits`` from a file does."""
        skip_modules(self.model, {block.name: block.kind for block in self._absent_blocks()})

    def state(self) -> dict[str, Any]:
        """What the model's own state does not hold: which structures, and what is detached."""
        stores = {key: store.state() for key, store in self._detached.items()}
        # The keys are those of checkpoints that are there already.
        return {
            "present": list(self.present),
            "blocks": self.blocks,
            "folded": self.folded,
            # Of the values that training began with, which a rebuilt model need not have.
            "deviations": {name: tensor.deviation for name, tensor in self.spec.tensors.items()},
            "memories": {key: state for key, state in stores.items() if state is not None},
            "detached": {
                block.name: dict(block.module.state_dict()) for block in self._absent_blocks()
            },
        }

    def reshape(self, state: dict[str, Any]) -> None:
        """Gives the model, still full, the shapes of a saved state.

        Raises:
            RequestError: it is no longer full.
        """
        if self.folded or not all(bool(part.all()) for part in (*self.present, self.blocks)):
            raise RequestError(
                "reshape: the model has changed already; build it and the method anew"
            )
        # Channels inside a block can only be cut while it is there.
        everywhere = torch.ones_like(self.blocks)
        self.change_to(state["present"], everywhere, None, remember=False)
        self.change_to(state["present"], state["blocks"], None, remember=False)
        if state["folded"]:
            self.fold(None)

    def load(self, state: dict[str, Any]) -> None:
        """Restores what is detached, and the scale of what is new."""
        # Checkpoints of earlier versions have none.
        for name, deviation in state.get("deviations", {}).items():
            tensor = self.spec.tensors[name]
            self.spec.tensors[name] = replace(tensor, deviation=deviation)
        self._detached = {key: DetachedStore.of(saved) for key, saved in state["memories"].items()}
        for block in self.spec.blocks:
            if block.name in state["detached"]:
                block.module.load_state_dict(state["detached"][block.name])

    def _absent_blocks(self) -> list[RemovableBlock]:
        pairs = zip(self.spec.blocks, self.blocks.tolist(), strict=True)
        return [block for block, is_there in pairs if not is_there]

    def _resized(self, after: Sequence[Tensor]) -> list[TensorSpec]:
        """The tensors whose shape follows the groups that change."""
        changing = {
            group
            for group, (old, new) in enumerate(zip(self.present, after, strict=True))
            if not torch.equal(old, new)
        }
        return [
            tensor
            for tensor in self.spec.tensors.values()
            if any(group in changing for axis in tensor.axes for group, _ in axis.owners)
        ]

    def _exchange(
        self,
        tensor: TensorSpec,
        before: Sequence[Tensor],
        optimizer: Optimizer | None,
        *,
        remember: bool,
    ) -> None:
        """Gives a tensor and its optimizer state the channels that are there now."""
        positions = tensor.positions(before), tensor.positions(self.present)
        stored = tensor.stored

        def exchanged(
            key: str, current: Tensor, fresh: Callable[[tuple[int, ...]], Tensor]
        ) -> Tensor:
            store = self._detached.get((tensor.name, key)) or DetachedStore()
            values = store.exchange(current.detach(), *positions, fresh, remember=remember)
            if remember:
                self._detached[tensor.name, key] = store
            return values

        if optimizer is not None:
            # All at once: the parameter's shape, which tells them, is still the old one.
            for key, value in list(state_that_follows(stored, optimizer, tensor.name)):
                replace_data(value, exchanged(key, value, torch.zeros))

        def drawn(shape: tuple[int, ...]) -> Tensor:
            return new_values(tensor, shape, self._generator, self._birth)

        replace_data(stored, exchanged(_VALUE, stored, drawn))

    def _replace_blocks(self, before: Tensor) -> None:
        for block, was_there, is_there in zip(
            self.spec.blocks, before.tolist(), self.blocks.tolist(), strict=True
        ):
            if was_there != is_there:
                if is_there:
                    self.model.set_submodule(block.name, block.module)
                else:
                    replace_modules(self.model, {block.name: block.kind})
                for parameter in block.module.parameters():
                    parameter.grad = None

    def _refuse_strangers(self, resized: Sequence[TensorSpec]) -> None:
        for tensor in resized:
            for transformation in transformations(tensor.module, tensor.attribute):
                state = transformation.state_dict()
                follows = all(value.numel() <= 1 for value in state.values())
                if not follows and not self._factors.include(transformation):
                    raise RequestError(
                        f"{tensor.name}: {type(transformation).__name__} holds tensors that would "
                        "not follow its shape; attach it after the freeze, to the finalized model"
                    )
