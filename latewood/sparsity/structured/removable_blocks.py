"""Residual blocks that a network can do without: those whose removal leaves the identity."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latewood.core.coupling import ChannelGroup, ChannelPlan
from latewood.core.coupling.trace import layer_tensors, run_model
from latewood.core.modes import evaluated, unfused
from latewood.slim.idle_blocks import Idleness, Overwrites
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
    bit for bit, and leave it as it was. Meanwhile the vectors have other values, since initial ones
    hide what they add; the model is as before afterwards. At last all go at once, and where the
    outputs then differ, each alone: some code collects what its layers return.

    Args:
        model: any module without transformations.
        plan: its channel plan.
        example_inputs: what the model is called with.
    """
    owners = dict(layer_tensors(model))
    tensors = {name: getattr(*owner) for name, owner in owners.items()}
    # A factor can scale parameters only: a frozen norm holds its weight and bias as buffers.
    fixed = {name for name, (module, attribute) in owners.items() if attribute in module._buffers}
    endings = _endings_by_module(model, plan, fixed)
    with torch.no_grad(), evaluated(model), unfused(), _unsettled(model):
        trials = _Trials(endings, tensors)
        with trials.watching(model):
            run_model(model, example_inputs)
        passed = trials.passed()
        # Innermost first: a stage of removable blocks is not one layer.
        chosen: list[str] = []
        for name in sorted(passed, key=lambda name: -name.count(".")):
            if not any(inner.startswith(f"{name}.") for inner in chosen):
                chosen.append(name)
        found = replaceable_modules(
            model,
            {name: passed[name][1] for name in chosen},
            lambda: run_model(model, copied_arguments(example_inputs)),
            lambda names: _zeroed([tensors[t] for name in names for t in passed[name][0]]),
        )
    return tuple(
        RemovableBlock(name, module, *passed[name])
        for name, module in model.named_modules()
        if name in found
    )


Ending = tuple[str, ...]
"""Names of the tensors that may write last onto a stream."""


class _Trials:
    """Tries the modules of a model while it runs.

    Args:
        endings: by the name of a module, what may write last in it.
        tensors: the model's, by name.
    """

    def __init__(
        self, endings: Mapping[str, Sequence[Ending]], tensors: Mapping[str, Tensor]
    ) -> None:
        self._endings, self._tensors = endings, tensors
        self._calls: Counter[str] = Counter()
        self._given: list[CallArguments | None] = []
        self._passed: dict[str, Ending] = {}
        self._overwrites = Overwrites()
        self._trying = False

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Tries every module with endings when it is called."""
        with ExitStack() as stack:
            for name in self._endings:
                module = model.get_submodule(name)

                def enter(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                    self._enter(name, args, kwargs)

                def leave(
                    module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name
                ) -> None:
                    self._leave(name, module, args, output)

                before = module.register_forward_pre_hook(enter, with_kwargs=True)
                after = module.register_forward_hook(leave, with_kwargs=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            yield

    def passed(self) -> dict[str, tuple[Ending, Idleness]]:
        """Of the modules that were called once and can be removed, what writes last, and how."""
        return {
            name: (ending, "copy" if self._overwrites.after(name) else "identity")
            for name, ending in self._passed.items()
            if self._calls[name] == 1
        }

    def _enter(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._trying:
            return
        self._calls[name] += 1
        tried = self._calls[name] == 1 and bool(args) and isinstance(args[0], Tensor)
        # A copy of now: the module itself and what follows may change it in place.
        self._given.append(copied_arguments((args, kwargs)) if tried else None)

    def _leave(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._trying:
            return
        given = self._given.pop()
        if given is None or not isinstance(output, Tensor):
            return
        first = given[0][0]
        if (first.shape, first.dtype) != (output.shape, output.dtype):
            return
        self._trying = True
        try:
            for ending in self._endings[name]:
                last = [self._tensors[tensor] for tensor in ending]
                with _zeroed(last), _hooks_silenced(module):
                    if _is_identity(module, given):
                        self._passed[name] = ending
                        self._overwrites.follow(name, args[0], output)
                        break
        finally:
            self._trying = False


def _is_identity(module: nn.Module, given: CallArguments) -> bool:
    args, kwargs = copied_arguments(given)
    output = module(*args, **kwargs)
    expected = given[0][0]
    return (
        isinstance(output, Tensor)
        and torch.equal(output, expected)
        and torch.equal(args[0], expected)
    )


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
    looking = [(inner, inner._forward_hooks) for inner in module.modules()]
    try:
        for inner, _ in looking:
            inner._forward_hooks = OrderedDict()
        yield
    finally:
        for inner, hooks in looking:
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
