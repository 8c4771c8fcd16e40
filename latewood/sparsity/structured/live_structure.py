"""The network as it is now: which structures are there, and how they come and go in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latewood.core import attach, bake, transformations
from latewood.core.coupling.attributes import Sizes
from latewood.core.coupling.resize import replace_data
from latewood.errors import RequestError
from latewood.slim.edits import Channels, Edit, Skipped
from latewood.slim.idle_blocks import Skip
from latewood.sparsity.structured.detached_store import Memory
from latewood.sparsity.structured.gates import ChannelFactors, Estimator, Gate, LayerFactor
from latewood.sparsity.structured.new_weight_init import Birth, newborn
from latewood.sparsity.structured.removable_blocks import replace_block
from latewood.sparsity.structured.structure_spec import Axis, Held, Skeleton

__all__ = ["Anatomy"]

_VALUE = "value"


class Anatomy:
    """Adds and removes structures of a model in place; the optimizer's state follows.

    Args:
        model: the full model; its readers get soft factors.
        skeleton: its structures.
        estimator: of the soft factors.
        birth: scale of newly born values.
        generator: for newly born values.
    """

    def __init__(
        self,
        model: nn.Module,
        skeleton: Skeleton,
        *,
        estimator: Estimator,
        birth: Birth,
        generator: torch.Generator,
    ) -> None:
        self.model = model
        self.skeleton = skeleton
        self.present = [torch.ones(group.width, dtype=torch.bool) for group in skeleton.groups]
        self.blocks = torch.ones(len(skeleton.blocks), dtype=torch.bool)
        self._generator, self._birth = generator, birth
        # Of the full layers: a depthwise one with a single channel looks like any other.
        self._sizes = {id(each.module): Sizes.of(each.module) for each in skeleton.tensors.values()}
        self._memories: dict[tuple[str, str], Memory] = {}
        self._counts = [
            (
                model.get_submodule(each.module),
                each.attribute,
                number,
                getattr(model.get_submodule(each.module), each.attribute) // group.width,
            )
            for number, group in enumerate(skeleton.groups)
            for each in group.resized
        ]
        first = next(iter(skeleton.tensors.values())).stored
        options: Any = {
            "estimator": estimator,
            "dtype": torch.promote_types(first.dtype, torch.float32),
            "device": first.device,
        }
        self.gates = [Gate(group.width, **options) for group in skeleton.groups]
        self.layer_gate = Gate(len(skeleton.blocks), **options) if skeleton.blocks else None
        self._factors: list[tuple[Held, Axis | None, ChannelFactors | LayerFactor]] = []
        self._attach()

    @property
    def widths(self) -> list[int]:
        """Channels of each group that are there."""
        return [int(each.sum()) for each in self.present]

    @property
    def folded(self) -> bool:
        """Whether the factors are in the weights."""
        return not self._factors

    def visible(self, group: int) -> bool:
        """Whether a group is there: not inside an absent block."""
        home = self.skeleton.home[group]
        return home is None or bool(self.blocks[home])

    def become(
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
        """
        there = [home is None or bool(blocks[home]) for home in self.skeleton.home]
        after = [
            (new if visible else old).clone()
            for old, new, visible in zip(self.present, present, there, strict=True)
        ]
        changed = [
            held
            for held in self.skeleton.tensors.values()
            if any(
                not torch.equal(self.present[group], after[group])
                for axis in held.axes
                for group, _ in axis.owners
            )
        ]
        self._refuse_strangers(changed)
        if optimizer is not None:
            _refuse_states(changed, optimizer)
        # All that can be refused was refused above; from here on everything changes.
        before, blocks_before = self.present, self.blocks
        self.present, self.blocks = after, blocks.clone()
        for held in changed:
            self._exchange(held, before, optimizer, remember=remember)
        for layer in {id(held.module) for held in changed}:
            self._sizes[layer].refresh()
        for module, attribute, group, per_channel in self._counts:
            setattr(module, attribute, per_channel * int(self.present[group].sum()))
        self._place_factors()
        for block, was, now in zip(
            self.skeleton.blocks, blocks_before.tolist(), blocks.tolist(), strict=True
        ):
            if was != now:
                replace_block(self.model, block.name, block.module if now else Skip())
                for parameter in block.module.parameters():
                    parameter.grad = None
        return bool(changed) or not torch.equal(blocks_before, blocks)

    def fold(self, optimizer: Optimizer | None) -> None:
        """Folds the factors into the weights and forgets what is not there."""
        for held, _, factor in self._factors:
            bake(held.module, held.attribute, factor)
        self._factors = []
        self._memories = {}
        for block, there in zip(self.skeleton.blocks, self.blocks.tolist(), strict=True):
            if not there and optimizer is not None:
                for parameter in block.module.parameters():
                    optimizer.state.pop(parameter, None)

    def edits(self) -> list[Edit]:
        """How the network that is there comes from the full one."""
        kept = {
            group.name: present.nonzero().flatten().tolist()
            for group, present in zip(self.skeleton.groups, self.present, strict=True)
            if not bool(present.all())
        }
        gone = {
            block.name: "identity"
            for block, there in zip(self.skeleton.blocks, self.blocks.tolist(), strict=True)
            if not there
        }
        return [*([Channels(kept)] if kept else []), *([Skipped(gone)] if gone else [])]

    def state(self) -> dict[str, Any]:
        """What the model's own state does not hold: which structures, and what is detached."""
        memories = {key: memory.state() for key, memory in self._memories.items()}
        return {
            "present": list(self.present),
            "blocks": self.blocks,
            "folded": self.folded,
            "memories": {key: each for key, each in memories.items() if each is not None},
            "detached": {
                block.name: dict(block.module.state_dict())
                for block, there in zip(self.skeleton.blocks, self.blocks.tolist(), strict=True)
                if not there
            },
        }

    def reshape(self, state: dict[str, Any]) -> None:
        """Gives the model, still full, the shapes of a saved state."""
        if self.folded or not all(bool(each.all()) for each in (*self.present, self.blocks)):
            raise RequestError(
                "reshape: the model has changed already; build it and the method anew"
            )
        everywhere = torch.ones_like(self.blocks)
        self.become(state["present"], everywhere, None, remember=False)
        self.become(state["present"], state["blocks"], None, remember=False)
        if state["folded"]:
            self.fold(None)

    def load(self, state: dict[str, Any]) -> None:
        """Restores what is detached."""
        self._memories = {key: Memory.of(each) for key, each in state["memories"].items()}
        for block in self.skeleton.blocks:
            if block.name in state["detached"]:
                block.module.load_state_dict(state["detached"][block.name])

    def _attach(self) -> None:
        for held in self.skeleton.tensors.values():
            for axis in held.axes:
                if axis.reads:
                    gates = [self.gates[group] for group, _ in axis.owners]
                    factor = ChannelFactors(axis.axis, gates, axis.channels())
                    attach(held.module, held.attribute, factor)
                    self._factors.append((held, axis, factor))
        for number, block in enumerate(self.skeleton.blocks):
            assert self.layer_gate is not None
            for name in block.last:
                held = self.skeleton.tensors[name]
                scale = LayerFactor(self.layer_gate, number)
                attach(held.module, held.attribute, scale)
                self._factors.append((held, None, scale))

    def _place_factors(self) -> None:
        for _, axis, factor in self._factors:
            if axis is not None and isinstance(factor, ChannelFactors):
                factor.place(axis.channels()[axis.positions(self.present)])

    def _exchange(
        self,
        held: Held,
        before: Sequence[Tensor],
        optimizer: Optimizer | None,
        *,
        remember: bool,
    ) -> None:
        positions = held.positions(before), held.positions(self.present)
        tensor = held.stored

        def changed(key: str, current: Tensor, fresh: Any) -> Tensor:
            memory = self._memories.get((held.name, key)) or Memory()
            values, _ = memory.exchange(current.detach(), *positions, fresh)
            if remember:
                self._memories[held.name, key] = memory
            return values

        state = optimizer.state.get(tensor, {}) if optimizer is not None else {}
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == tensor.shape:
                replace_data(value, changed(key, value, torch.zeros))

        def born(size: tuple[int, ...]) -> Tensor:
            return newborn(held, size, self._generator, self._birth)

        replace_data(tensor, changed(_VALUE, tensor, born))

    def _refuse_strangers(self, changed: Sequence[Held]) -> None:
        own = {id(factor) for _, _, factor in self._factors}
        for held in changed:
            for each in transformations(held.module, held.attribute):
                follows = all(tensor.numel() <= 1 for tensor in each.state_dict().values())
                if id(each) not in own and not follows:
                    raise RequestError(
                        f"{held.name}: {type(each).__name__} holds tensors that would not follow "
                        "its shape; attach it after the freeze, to the finalized model"
                    )


def _refuse_states(changed: Sequence[Held], optimizer: Optimizer) -> None:
    for held in changed:
        shape = held.stored.shape
        for key, value in optimizer.state.get(held.stored, {}).items():
            if isinstance(value, Tensor) and value.shape != shape and value.numel() > 1:
                raise RequestError(
                    f"optimizer: its {key} of {held.name} has shape {tuple(value.shape)}; expected "
                    f"the parameter's {tuple(shape)}, to change size with it"
                )
