"""Residual blocks that a network can do without: those whose removal leaves the identity."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latewood.core.coupling import ChannelGroup, ChannelPlan
from latewood.core.coupling.dependence import Dependence
from latewood.core.coupling.operation_table import dependence_rule
from latewood.core.coupling.trace import layer_tensors, prepared, run_model
from latewood.core.coupling.watched_run import Watcher, watched
from latewood.core.module_calls import ModuleCall
from latewood.slim.idle_blocks import Idleness, Overwrites, Values
from latewood.slim.layer_times import CallArguments
from latewood.slim.replaceable_modules import replaceable_modules
from latewood.sparsity.structured.recorded_calls import copied_arguments

__all__ = ["RemovableBlock", "removable_blocks"]

_CENTERED = ("bias", "mean", "beta")
"""In the names of vectors that are added; others multiply."""


@dataclass(frozen=True)
class RemovableBlock:
    """A block that becomes the identity when the last tensors of its branch are zero.

    Args:
        name: qualified name of the module.
        module: the block.
        last: names of those tensors: a norm's weight and bias, or those of the last layer.
        kind: "identity", or "copy" where what is around the block changes its input or its output
            in place.
    """

    name: str
    module: nn.Module
    last: tuple[str, ...]
    kind: Idleness = "identity"


def removable_blocks(
    model: nn.Module, plan: ChannelPlan, example_inputs: Any
) -> tuple[RemovableBlock, ...]:
    """Finds the innermost modules with a branch beside an identity, by trying.

    In one run each module is tried alone, on a copy of what it was given, as soon as it has
    returned: with the tensors that write last onto the stream set to zero it must return its input,
    whatever that is, and leave it as it was. Meanwhile the vectors have other values, since initial
    ones hide what they add; the model is as before afterwards. At last all go at once, and where
    the outputs then differ, each alone: some code collects what its layers return.

    Args:
        model: any module without transformations.
        plan: its channel plan.
        example_inputs: what the model is called with.
    """
    owners = dict(layer_tensors(model))
    # A factor can scale parameters only: a frozen norm holds its weight and bias as buffers.
    fixed = {name for name, (module, attribute) in owners.items() if attribute in module._buffers}
    with prepared(model) as tensors, _unsettled(model):
        trials = _Trials(_endings_by_module(model, plan, fixed), tensors)
        with watched(model, trials.values, trials):
            run_model(model, example_inputs)
        passed = trials.passed()
        # Innermost first: a stage of removable blocks is not one layer.
        chosen: list[str] = []
        for name in sorted(passed, key=lambda name: -name.count(".")):
            if not any(inner.startswith(f"{name}.") for inner in chosen):
                chosen.append(name)
        replaceable = replaceable_modules(
            model,
            {name: passed[name][1] for name in chosen},
            lambda: run_model(model, copied_arguments(example_inputs)),
            lambda names: _zeroed([tensors[t] for name in names for t in passed[name][0]]),
        )
    return tuple(
        RemovableBlock(name, module, *passed[name])
        for name, module in model.named_modules()
        if name in replaceable
    )


Ending = tuple[str, ...]
"""Names of the tensors that may write last onto a stream."""


class _Trials(Watcher):
    """Tries the modules of a model while it runs.

    Args:
        endings: by the name of a module, what may write last in it.
        tensors: the model's, by name.
    """

    def __init__(
        self,
        endings: Mapping[str, Sequence[Ending]],
        tensors: Mapping[str, Tensor],
    ) -> None:
        self.values = Values()
        self._endings, self._tensors = endings, tensors
        self._calls: Counter[str] = Counter()
        self._given: dict[ModuleCall, tuple[object, CallArguments]] = {}
        self._passed: dict[str, Ending] = {}
        self._overwrites = Overwrites()

    def passed(self) -> dict[str, tuple[Ending, Idleness]]:
        """Of the modules that were called once and can be removed, what writes last, and how."""
        return {
            name: (ending, "copy" if self._overwrites.after(name) else "identity")
            for name, ending in self._passed.items()
            if self._calls[name] == 1
        }

    def entered(self, call: ModuleCall) -> None:
        """Keeps what a module is given."""
        if call.name not in self._endings:
            return
        self._calls[call.name] += 1
        if self._calls[call.name] == 1 and call.first is not None:
            # Copies of now: the module itself and what follows may change it in place.
            given = copied_arguments((call.positional, call.named))
            self._given[call] = self.values.token(call.first), given

    def left(self, call: ModuleCall, output: Any) -> None:
        """Tries a module with each ending, on a copy of what it was given."""
        if call not in self._given or not isinstance(output, Tensor):
            return
        token, given = self._given.pop(call)
        first = given[0][0]
        if (first.shape, first.dtype) != (output.shape, output.dtype):
            return
        for ending in self._endings[call.name]:
            last = [self._tensors[tensor] for tensor in ending]
            with _zeroed(last), _hooks_silenced(call.module):
                if self._is_identity(call.module, token, given):
                    self._passed[call.name] = ending
                    self._overwrites.follow(call.name, call.positional[0], output)
                    break

    def _is_identity(self, module: nn.Module, token: object, given: CallArguments) -> bool:
        """Whether a module returns its first argument whatever it is given."""
        args, kwargs = copied_arguments(given)
        # Most do not even return this one, which is quicker to see.
        if not _returns(module(*args, **kwargs), args[0], given[0][0]):
            return False
        args, kwargs = copied_arguments(given)
        dependence = Dependence(self._tensors, dependence_rule)
        values = self.values.within(dependence)
        values.equate(args[0], token)
        with watched(module, dependence, values):
            output = module(*args, **kwargs)
        proven = values.idleness(token, args[0], output) == "identity"
        # Code that chooses by values, such as a loop over experts, can only be tried.
        return (proven and values.token(args[0]) is token) or dependence.opaque


def _returns(output: Any, argument: Tensor, expected: Tensor) -> bool:
    is_tensor = isinstance(output, Tensor)
    return is_tensor and torch.equal(output, expected) and torch.equal(argument, expected)


def _endings_by_module(
    model: nn.Module, plan: ChannelPlan, fixed: Collection[str]
) -> dict[str, list[Ending]]:
    """By the name of each module of several layers, which parameters may write last in it."""
    endings: dict[str, dict[Ending, None]] = {}
    containers = {name for name, module in model.named_modules() if any(module.children())}
    for group in plan:
        names = {member.tensor for member in group.members}
        around: dict[str, set[str]] = {}
        for tensor in names:
            for module in _modules_around(tensor):
                around.setdefault(module, set()).add(tensor)
        for module, inside in around.items():
            if module in containers and len(inside) < len(names):
                for ending in _endings(group, inside):
                    if not any(tensor in fixed for tensor in ending):
                        endings.setdefault(module, {})[ending] = None
    return {name: list(listed) for name, listed in endings.items()}


def _modules_around(tensor: str) -> Iterator[str]:
    """The names of the modules that a tensor is in, apart from the model itself."""
    parts = tensor.split(".")
    for length in range(1, len(parts)):
        yield ".".join(parts[:length])


def _endings(group: ChannelGroup, inside: set[str]) -> Iterator[Ending]:
    """What may write last onto a stream that passes through a block: its norms, or its layers."""
    makers = {member.tensor for member in group.having("producer")} & inside
    if not makers:
        return
    vectors = {member.tensor for member in group.having("per_channel")} & inside
    layers = {_layer(tensor) for tensor in makers}
    norms = {
        tensor
        for tensor in vectors
        if tensor.endswith((".weight", ".bias")) and _layer(tensor) not in layers
    }
    biases = {tensor for tensor in vectors if _layer(tensor) in layers}
    if norms:
        yield tuple(sorted(norms))
    yield tuple(sorted(makers | biases))


def _layer(tensor: str) -> str:
    return tensor.rpartition(".")[0]


@contextmanager
def _hooks_silenced(module: nn.Module) -> Iterator[None]:
    """Nothing looks at what a module and those inside it return: some networks collect it."""
    before = [(inner, inner._forward_hooks) for inner in module.modules()]
    try:
        for inner, _ in before:
            inner._forward_hooks = OrderedDict()
        yield
    finally:
        for inner, hooks in before:
            inner._forward_hooks = hooks


@contextmanager
def _zeroed(tensors: Sequence[Tensor]) -> Iterator[None]:
    with _restored(tensors):
        for tensor in tensors:
            tensor.zero_()
        yield


@contextmanager
def _restored(tensors: Sequence[Tensor]) -> Iterator[None]:
    before = [tensor.clone() for tensor in tensors]
    try:
        yield
    finally:
        for tensor, values in zip(tensors, before, strict=True):
            tensor.copy_(values)


@contextmanager
def _unsettled(model: nn.Module) -> Iterator[None]:
    """Other values for the statistics of norms, for vectors, and for tensors of one value."""
    drawn: dict[str, Tensor] = {
        name: tensor
        for name, tensor in model.named_parameters()
        if tensor.ndim < 2 or _is_constant(tensor)
    }
    for prefix, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            drawn |= module.named_buffers(prefix, recurse=False)
    drawn = {name: tensor for name, tensor in drawn.items() if tensor.is_floating_point()}
    generator = torch.Generator().manual_seed(0)
    with _restored(list(drawn.values())):
        for name, tensor in drawn.items():
            values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            is_added = any(word in name.rpartition(".")[2] for word in _CENTERED)
            tensor.copy_(values - 0.5 if is_added or tensor.ndim > 1 else values + 0.5)
        yield


def _is_constant(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and bool((tensor == tensor.flatten()[0]).all())
