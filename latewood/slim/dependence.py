"""Which entries of a model's activations depend on its inputs, and what its weights therefore read.

A channel can only be removed exactly when its value is known whatever the input is. One run under
watch says so without chance: beside every tensor goes a mask of the entries that depend on the
input, moved by a rule for each operation; an operation without a rule depends on all it sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from latewood.core.coupling.trace import layer_tensors, run_model
from latewood.core.coupling.traced_call import tensors_in
from latewood.core.modes import evaluated, unfused

__all__ = ["Dependence", "DependenceRule", "Fold", "Operation", "Reads", "watch"]

_FACTS: Final = """
    size dim ndimension numel nelement stride storage_offset element_size get len is_complex
    is_floating_point is_contiguous is_same_size data_ptr get_device
""".split()  # noqa: SIM905
"""What can be asked of a tensor without looking at its values."""
_RANDOM: Final = ("rand", "normal", "bernoulli", "multinomial", "poisson", "dropout", "empty")


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
    """

    zeros: dict[str, Tensor] = field(default_factory=dict)
    folds: dict[str, Fold] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)

    def add(self, weight: str, zeros: Tensor, fold: Fold | None) -> None:
        """Notes one use; a second use keeps the zeros of both and folds nothing."""
        if weight in self.zeros:
            self.zeros[weight] = self.zeros[weight] & zeros
            self.folds.pop(weight, None)
            return
        self.zeros[weight] = zeros
        if fold is not None:
            self.folds[weight] = fold

    def settled(self) -> Reads:
        """Without the folds into a bias that something else uses too: it would change with it."""
        alone = {name: fold for name, fold in self.folds.items() if self.uses[fold.bias] == 1}
        return Reads(self.zeros, alone, self.uses)


@dataclass(frozen=True)
class Operation:
    """One operation of the run, as the rules see it.

    Args:
        state: what is known so far.
        function: what was called.
        name: its name without underscores at the ends.
        positional: its positional arguments.
        named: its keyword arguments.
        output: what it returned.
    """

    state: Dependence
    function: Callable[..., Any]
    name: str
    positional: tuple[Any, ...]
    named: dict[str, Any]
    output: Any

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """One argument by position or name."""
        if position < len(self.positional):
            return self.positional[position]
        return self.named.get(name, default)


DependenceRule = Callable[[Operation], Any]
"""Gives the masks of an operation's output or outputs; None where it cannot say."""


class Dependence(TorchFunctionMode):
    """Carries, beside every tensor of a run, which of its entries depend on the model's inputs.

    Args:
        names: by id, the names of the tensors that the layers compute with.
        rules: by the name of the operation.
    """

    def __init__(self, names: dict[int, str], rules: dict[str, DependenceRule]) -> None:
        super().__init__()
        self.names = names
        self.reads = Reads()
        self._rules = rules
        self._known: dict[int, tuple[Tensor, Tensor]] = {}
        self._opaque = False

    def of(self, tensor: Tensor) -> Tensor:
        """The mask of a tensor, bool and of its shape; all of a stranger depends on the inputs."""
        if not self._opaque:
            if id(tensor) in self._known:
                return self._known[id(tensor)][1]
            if id(tensor) in self.names:
                return torch.zeros_like(tensor, dtype=torch.bool)
        return torch.ones_like(tensor, dtype=torch.bool)

    def matters(self, tensor: Tensor) -> Tensor:
        """Where a tensor is not known to be zero, bool and of its shape."""
        return self.of(tensor) | (tensor != 0)

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        inputs = list(tensors_in((args, named)))
        versions = [tensor._version for tensor in inputs]
        name = getattr(function, "__name__", "").strip("_")
        output = function(*args, **named)
        outputs = list(tensors_in(output))
        if not outputs and name in _FACTS:
            return output
        for tensor in inputs:
            used = self.names.get(id(tensor))
            if used is not None and tensor.ndim == 1:
                self.reads.uses[used] = self.reads.uses.get(used, 0) + 1
        dependent = any(bool(self.of(tensor).any()) for tensor in inputs)
        operation = Operation(self, function, name, args, named, output)
        rule = self._rules.get(name)
        masks = rule(operation) if rule is not None and outputs else None
        if masks is None:
            self._forget_reads(inputs)
        changed = [
            tensor
            for tensor, version in zip(inputs, versions, strict=True)
            if tensor._version > version
        ]
        self._put(output, masks, dependent or any(word in name for word in _RANDOM))
        self._spoil(changed, outputs)
        # A number taken out of data may steer anything from here on.
        self._opaque = self._opaque or (dependent and not outputs and not changed)
        return output

    def _forget_reads(self, inputs: Sequence[Tensor]) -> None:
        for tensor in inputs:
            name = self.names.get(id(tensor))
            if name is not None and tensor.ndim > 1:
                self.reads.add(name, torch.zeros((), dtype=torch.bool), None)

    def _put(self, output: Any, masks: Any, dependent: bool) -> None:
        if isinstance(output, Tensor):
            if not isinstance(masks, Tensor) or masks.shape != output.shape:
                masks = torch.full_like(output, dependent, dtype=torch.bool)
            self._known[id(output)] = (output, masks)
        elif isinstance(output, (tuple, list)):
            same = isinstance(masks, (tuple, list)) and len(masks) == len(output)
            for position, item in enumerate(output):
                self._put(item, masks[position] if same else None, dependent)
        elif isinstance(output, dict):
            for item in output.values():
                self._put(item, None, dependent)

    def _spoil(self, changed: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """After a change in place, all that shares the memory depends, but for the result."""
        results = {id(tensor) for tensor in outputs}
        for tensor in changed:
            memory = tensor.untyped_storage().data_ptr()
            views = [view for view, _ in self._known.values()]
            for view in [tensor, *views]:
                if id(view) not in results and view.untyped_storage().data_ptr() == memory:
                    self._known[id(view)] = (view, torch.ones_like(view, dtype=torch.bool))


def watch(model: nn.Module, example_inputs: Any, rules: dict[str, DependenceRule]) -> Reads:
    """Runs a model once in evaluation mode and says what its weights read whatever the input is.

    Args:
        model: any module.
        example_inputs: what it is called with.
        rules: by the name of the operation.
    """
    with evaluated(model), unfused(), torch.no_grad(), parametrize.cached():
        tensors = {name: getattr(*owner) for name, owner in layer_tensors(model)}
        state = Dependence({id(tensor): name for name, tensor in tensors.items()}, rules)
        with state:
            run_model(model, example_inputs)
    return state.reads.settled()
