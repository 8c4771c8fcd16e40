"""Which entries of a model's activations depend on its inputs, and what its weights therefore read.

A channel can only be removed exactly when its value is known whatever the input is. One run under
watch says so without chance: beside every tensor goes a mask of the entries that depend on the
input, moved by a rule for each operation; an operation without a rule depends on all it sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from latewood.core.coupling.traced_call import Operation, tensors_in
from latewood.core.coupling.watched_run import Watcher

__all__ = ["RANDOM", "Dependence", "DependenceRule", "Fold", "Reads"]

_FACTS: Final = """
    size dim ndimension numel nelement stride storage_offset element_size get len is_complex
    is_floating_point is_contiguous is_same_size data_ptr get_device
""".split()  # noqa: SIM905
"""What can be asked of a tensor without looking at its values."""
RANDOM: Final = ("rand", "normal", "bernoulli", "multinomial", "poisson", "dropout", "empty")
"""Parts of the names of operations whose result nothing tells."""


@dataclass(frozen=True)
class Fold:
    """Constants that a weight reads, and the bias that could hold what they add.

    Args:
        bias: name of the bias.
        values: what each position of the read axis holds; nan where it is not one number.
    """

    bias: str
    values: Tensor


@dataclass
class Reads:
    """What the weights of a model read in a run.

    Args:
        zeros: by the name of a weight, which positions of its read axis meet nothing but zeros in
            every use, bool (size,).
        folds: by the name of a weight, the constants that it reads, where they could be folded.
        uses: by the name of a vector, in how many operations it took part.
        seen: the weights whose reads an operation has noted; emptied before each.
    """

    zeros: dict[str, Tensor] = field(default_factory=dict)
    folds: dict[str, Fold] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def add(self, weight: str, zeros: Tensor, fold: Fold | None) -> None:
        """Notes one use; a second use keeps the zeros of both and folds nothing."""
        self.seen.add(weight)
        if weight in self.zeros:
            before = self.zeros[weight]
            unknown = before.ndim == 0 or zeros.ndim == 0
            self.zeros[weight] = torch.zeros((), dtype=torch.bool) if unknown else before & zeros
            self.folds.pop(weight, None)
            return
        self.zeros[weight] = zeros
        if fold is not None:
            self.folds[weight] = fold

    def settled(self) -> Reads:
        """Without the folds into a bias that something else uses too: it would change with it."""
        alone = {name: fold for name, fold in self.folds.items() if self.uses[fold.bias] == 1}
        return Reads(self.zeros, alone, self.uses)


class Dependence(Watcher):
    """Carries, beside every tensor of a run, which of its entries depend on the model's inputs.

    Args:
        tensors: what the layers compute with, by name.
        rule_of: gives the rule of an operation by its name; None where there is none.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], rule_of: Callable[[str], DependenceRule | None]
    ) -> None:
        self.reads = Reads()
        self._rule_of = rule_of
        # The tensors are kept, since the name of one that is gone would be another's.
        self._tensors = tensors
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self._known: dict[int, tuple[Tensor, Tensor]] = {}
        self.numbers_taken = 0
        """How often the code has taken a number out of data, which may steer it since then."""

    @property
    def opaque(self) -> bool:
        """Whether anything may depend on the inputs, since data may steer the code."""
        return self.numbers_taken > 0

    def name(self, tensor: Tensor | None) -> str | None:
        """The name of a parameter or buffer; None for other tensors."""
        return self._names.get(id(tensor))

    def of(self, tensor: Tensor) -> Tensor:
        """The mask of a tensor, bool and of its shape; all of a stranger depends on the inputs."""
        if not self.opaque:
            if id(tensor) in self._known:
                return self._known[id(tensor)][1]
            if id(tensor) in self._names:
                return _everywhere(False, tensor)
        return _everywhere(True, tensor)

    def depends(self, tensor: Tensor) -> bool:
        """Whether any entry of a tensor depends on the inputs."""
        if not self.opaque and id(tensor) in self._names and id(tensor) not in self._known:
            return False
        mask = self.of(tensor)
        return _anything(mask) if _is_one_value(mask) else bool(mask.any())

    def all_depends(self, tensor: Tensor) -> bool:
        """Whether it is plain without a look at every entry that all of a tensor depends."""
        mask = self.of(tensor)
        return _is_one_value(mask) and _anything(mask)

    def fixed(self, *tensors: Tensor | None) -> bool:
        """Whether no entry of any of some tensors depends on the inputs."""
        return not any(self.depends(tensor) for tensor in tensors if tensor is not None)

    def matters(self, tensor: Tensor) -> Tensor:
        """Where a tensor is not known to be zero, bool and of its shape."""
        return self.of(tensor) | (tensor != 0)

    def after(self, operation: Operation) -> Any:
        """Moves the masks as the operation moved the data."""
        output, inputs = operation.output, operation.tensors
        outputs = list(tensors_in(output))
        if not outputs and operation.name in _FACTS:
            return output
        for tensor in inputs:
            used = self.name(tensor)
            if used is not None and tensor.ndim == 1:
                self.reads.uses[used] = self.reads.uses.get(used, 0) + 1
        dependent = any(self.depends(tensor) for tensor in inputs)
        # A rule may run the operation on a mask, which must not go where the output is to go.
        plain = bool(outputs) and operation.named.get("out") is None
        rule = self._rule_of(operation.name) if plain else None
        self.reads.seen.clear()
        masks = None if rule is None else rule(operation, self)
        # A weight that is turned, say, is read along another axis by what follows.
        self.forget_reads(
            tensor for tensor in inputs if masks is None or self.name(tensor) not in self.reads.seen
        )
        drawn = any(word in operation.name for word in RANDOM)
        self._put(output, masks, dependent or drawn)
        if dependent or drawn:
            self._spoil(operation.changed, outputs)
        self.numbers_taken += dependent and not outputs and not operation.changed
        return output

    def forget_reads(self, inputs: Iterable[Tensor]) -> None:
        """Notes a use of weights of which nothing is known."""
        for tensor in inputs:
            name = self.name(tensor)
            if name is not None and tensor.ndim > 1:
                self.reads.add(name, torch.zeros((), dtype=torch.bool), None)

    def _put(self, output: Any, masks: Any, dependent: bool) -> None:
        if isinstance(output, Tensor):
            if not isinstance(masks, Tensor) or masks.shape != output.shape:
                masks = _everywhere(dependent, output)
            elif not _is_one_value(masks) and bool(masks.all()):
                masks = _everywhere(True, output)
            self._known[id(output)] = (output, masks)
        elif isinstance(output, (tuple, list)):
            same = isinstance(masks, (tuple, list)) and len(masks) == len(output)
            for position, item in enumerate(output):
                self._put(item, masks[position] if same else None, dependent)
        elif isinstance(output, dict):
            for item in output.values():
                self._put(item, None, dependent)

    def _spoil(self, changed: Iterable[Tensor], outputs: Iterable[Tensor]) -> None:
        """After a change in place, all that shares the memory depends, but for the result."""
        results = {id(tensor) for tensor in outputs}
        for tensor in changed:
            memory = tensor.untyped_storage().data_ptr()
            views = [view for view, _ in self._known.values()]
            for view in [tensor, *views]:
                if id(view) not in results and view.untyped_storage().data_ptr() == memory:
                    self._known[id(view)] = (view, _everywhere(True, view))


def _is_one_value(mask: Tensor) -> bool:
    return not any(mask.stride())


def _anything(mask: Tensor) -> bool:
    return mask.numel() > 0 and bool(mask[(0,) * mask.ndim])


def _everywhere(value: bool, tensor: Tensor) -> Tensor:
    """One truth value for all of a tensor, in the memory of one entry; masks are never written."""
    return torch.full((), value, dtype=torch.bool, device=tensor.device).expand(tensor.shape)


DependenceRule = Callable[[Operation, Dependence], Any]
"""Gives the masks of an operation's output or outputs; None where it cannot say."""
