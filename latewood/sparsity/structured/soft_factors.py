"""The gates of a model's structures, and the factors that they put on its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latewood.core import attach, bake
from latewood.sparsity.structured.gates import ChannelFactors, Estimator, Gate, LayerFactor
from latewood.sparsity.structured.structure_spec import OwnedAxis, StructureSpec, TensorSpec

__all__ = ["SoftFactors"]


@dataclass(frozen=True)
class _Attached:
    """A factor on a tensor; the axis that it scales is None for a whole block's."""

    tensor: TensorSpec
    axis: OwnedAxis | None
    factor: ChannelFactors | LayerFactor


class SoftFactors:
    """Scales what reads each channel, and the last tensors of each removable block.

    Args:
        spec: of the full model, whose readers get the factors.
        estimator: of the factors.
    """

    def __init__(self, spec: StructureSpec, estimator: Estimator) -> None:
        first = next(iter(spec.tensors.values())).stored
        dtype = torch.promote_types(first.dtype, torch.float32)

        def gate(size: int) -> Gate:
            return Gate(size, estimator=estimator, dtype=dtype, device=first.device)

        self.gates = [gate(group.width) for group in spec.groups]
        """Of the channels of each group."""
        self.layer_gate = gate(len(spec.blocks)) if spec.blocks else None
        """Of the removable blocks."""
        self._attached: list[_Attached] = []
        self._attach(spec)

    @property
    def folded(self) -> bool:
        """Whether the factors are in the weights."""
        return not self._attached

    def include(self, transformation: nn.Module) -> bool:
        """Whether a transformation on a weight is one of the factors."""
        return any(attached.factor is transformation for attached in self._attached)

    def follow(self, present: Sequence[Tensor]) -> None:
        """Has each factor scale the channels that are there.

        Args:
            present: for each group which are, bool (width,).
        """
        for attached in self._attached:
            if attached.axis is not None and isinstance(attached.factor, ChannelFactors):
                positions = attached.axis.positions(present)
                attached.factor.set_channels(attached.axis.channels()[positions])

    def fold(self) -> None:
        """Multiplies the factors into the weights, and takes them off."""
        for attached in self._attached:
            bake(attached.tensor.module, attached.tensor.attribute, attached.factor)
        self._attached = []

    def _attach(self, spec: StructureSpec) -> None:
        for tensor in spec.tensors.values():
            for axis in tensor.axes:
                if axis.reads:
                    gates = [self.gates[group] for group, _ in axis.owners]
                    self._put(tensor, axis, ChannelFactors(axis.axis, gates, axis.channels()))
        for number, block in enumerate(spec.blocks):
            assert self.layer_gate is not None
            for name in block.last:
                self._put(spec.tensors[name], None, LayerFactor(self.layer_gate, number))

    def _put(
        self, tensor: TensorSpec, axis: OwnedAxis | None, factor: ChannelFactors | LayerFactor
    ) -> None:
        attach(tensor.module, tensor.attribute, factor)
        self._attached.append(_Attached(tensor, axis, factor))
