"""Parts of a model that do nothing: blocks that return their input, branches that are zero."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from latewood.core.coupling.dependence import Dependence, Reads
from latewood.core.coupling.operation_table import dependence_rule
from latewood.core.coupling.trace import prepared, run_model
from latewood.core.coupling.traced_call import Operation
from latewood.core.coupling.watched_run import Watcher, watched
from latewood.core.module_calls import ModuleCall
from latewood.slim.cache_places import cached_layers, keep_places
from latewood.slim.comparison import Examples

__all__ = [
    "Idleness",
    "Overwrites",
    "Skip",
    "Values",
    "Zeros",
    "idle_modules",
    "idle_modules_and_reads",
    "replace_modules",
    "skip_modules",
]

Idleness = Literal["identity", "copy", "zeros"]
"""What a module returns: its input, a copy of it where one of the two is overwritten, zeros."""

_FACT: Final = (bool, int, float, str, type(None))

_SAME: Final = """
    contiguous clone detach view view_as reshape reshape_as flatten unflatten squeeze unsqueeze
    expand expand_as
""".split()  # noqa: SIM905
"""Operations that leave the values as they are, in their order, where their number stays."""
_MOVING: Final = "permute transpose movedim moveaxis swapaxes swapdims roll flip".split()  # noqa: SIM905
"""Operations that only change the order of the values."""
_POSITIVE: Final = ("relu", "relu6", "sigmoid", "softmax", "softplus", "exp", "abs", "square")
_KEEPING_SIGN: Final = """
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d getitem permute transpose squeeze unsqueeze mean
""".split()  # noqa: SIM905


class _StandIn(nn.Module):
    """Answers what the code around a module asks it, in its place.

    ``nn.TransformerEncoder`` asks its first layer whether its attention is batch first, others ask
    each layer for its kind of attention.

    Args:
        replaced: whose plain attributes it has, and those of the modules inside; None has none.
    """

    def __init__(self, replaced: nn.Module | None = None) -> None:
        super().__init__()
        facts = {} if replaced is None else _facts(replaced)
        vars(self).update(facts)
        self._cached_layers = cached_layers(facts)


class Skip(_StandIn):
    """Returns its first argument, whatever else it is called with; a cache still grows.

    Args:
        replaced: the module that it stands for.
        copies: return a copy, since the input or the output is overwritten later.
    """

    def __init__(self, replaced: nn.Module | None = None, *, copies: bool = False) -> None:
        super().__init__(replaced)
        self.copies = copies

    def forward(self, inputs: Tensor, *others: Any, **named: Any) -> Tensor:
        """The input."""
        keep_places(self._cached_layers, inputs, [*others, *named.values()])
        return inputs.clone() if self.copies else inputs


class Zeros(_StandIn):
    """Returns zeros shaped like its first argument; a cache that it is called with still grows.

    Args:
        replaced: the module that it stands for.
    """

    def forward(self, inputs: Tensor, *others: Any, **named: Any) -> Tensor:
        """Zeros of the input's shape and type."""
        keep_places(self._cached_layers, inputs, [*others, *named.values()])
        return torch.zeros_like(inputs)


class Overwrites:
    """Sees where an identity may not return its very input: one of the two is overwritten later."""

    def __init__(self) -> None:
        self._versions: dict[str, list[tuple[Tensor, int]]] = {}

    def follow(self, name: str, inputs: Tensor, output: Tensor) -> None:
        """Notes what a module was given and what it returned, when it has run."""
        if _memory(inputs) != _memory(output):
            pair = [(tensor, tensor._version) for tensor in (inputs, output)]
            self._versions.setdefault(name, []).extend(pair)

    def after(self, name: str) -> bool:
        """Whether what the module was given or returned has been changed in place since."""
        return any(tensor._version > version for tensor, version in self._versions.get(name, ()))


def idle_modules(model: nn.Module, example_inputs: Examples) -> dict[str, Idleness]:
    """Finds the modules with weights that do nothing, whatever the model is given.

    A module is an identity if, operation by operation, it only adds exact zeros to its input, or
    applies a ReLU to what a ReLU made, or moves nothing; a residual block whose branch is masked is
    one. A module of several layers is zero if its output is, and has its input's shape.

    Args:
        model: any module, with its masks folded in.
        example_inputs: what it is called with.

    Returns:
        The outermost such modules by name, and which they are; never the model itself.
    """
    return idle_modules_and_reads(model, example_inputs)[0]


def idle_modules_and_reads(
    model: nn.Module, example_inputs: Examples
) -> tuple[dict[str, Idleness], Reads]:
    """What ``idle_modules`` finds, and what the weights read in the same run."""
    with prepared(model) as tensors:
        dependence = Dependence(tensors, dependence_rule)
        values = Values(dependence)
        judged = _IdleModules(dependence, values)
        with watched(model, dependence, values, judged):
            run_model(model, example_inputs)
    idle: dict[str, Idleness] = {}
    # Outer modules come first here, but last in the run.
    for name, _ in model.named_modules():
        kinds = judged.verdicts.get(name, set())
        kind = next(iter(kinds)) if len(kinds) == 1 else None
        inside = any(name.startswith(f"{outer}.") for outer in idle)
        if kind is not None and not inside:
            overwritten = kind == "identity" and judged.overwrites.after(name)
            idle[name] = "copy" if overwritten else kind
    return idle, dependence.reads.settled()


def replace_modules(model: nn.Module, modules: Mapping[str, str]) -> None:
    """Puts stand-ins in the places of modules, which keep their names.

    Args:
        model: changed in place.
        modules: by name, "identity", "copy" or "zeros".
    """
    for name, kind in modules.items():
        replaced = model.get_submodule(name)
        if kind == "zeros":
            stand_in: nn.Module = Zeros(replaced)
        else:
            stand_in = Skip(replaced, copies=kind == "copy")
        model.set_submodule(name, stand_in.train(replaced.training))


def skip_modules(model: nn.Module, modules: Mapping[str, str]) -> None:
    """Takes idle modules out of a model, with their parameters; torch's encoders get shorter.

    Args:
        model: changed in place.
        modules: by name, "identity", "copy" or "zeros".
    """
    replace_modules(model, modules)
    for encoder in model.modules():
        if isinstance(encoder, nn.TransformerEncoder):
            layers = [layer for layer in encoder.layers if not _is_plain_skip(layer)]
            # It asks its first layer about its attention, so one must stay to answer.
            layers = layers or [*encoder.layers][:1]
            if len(layers) < len(encoder.layers):
                encoder.layers = nn.ModuleList(layers)
                encoder.num_layers = len(layers)


def _is_plain_skip(layer: nn.Module) -> bool:
    return isinstance(layer, Skip) and not layer.copies


def _facts(module: nn.Module) -> dict[str, Any]:
    """The plain attributes of a module by name, and namespaces with those of its submodules."""
    facts: dict[str, Any] = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, _FACT) and not name.startswith("_") and name != "training"
    }
    stand_ins = {
        name: value for name, value in vars(module).items() if isinstance(value, SimpleNamespace)
    }
    inside = {
        name: SimpleNamespace(**_facts(submodule)) for name, submodule in module.named_children()
    }
    return {**facts, **stand_ins, **inside}


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Values(Watcher):
    """Which tensors of a run are equal whatever the input is, and which are never negative.

    Each value has a token; tensors with the same token have equal entries in the same order.

    Args:
        dependence: sees the same run, before this; without it no sum with zeros is seen.
    """

    def __init__(self, dependence: Dependence | None = None) -> None:
        self._dependence = dependence
        self._tokens: dict[int, tuple[Tensor, object]] = {}
        self._positive: set[object] = set()
        self._orders: dict[object, tuple[object, Tensor]] = {}
        self._known: object = None
        self._same: object | None = None

    def token(self, tensor: Tensor) -> object:
        """What stands for a tensor's present value."""
        return self._tokens.setdefault(id(tensor), (tensor, object()))[1]

    def equate(self, tensor: Tensor, token: object) -> None:
        """Notes that a tensor has the value that a token stands for."""
        self._tokens[id(tensor)] = (tensor, token)

    def within(self, dependence: Dependence) -> Values:
        """What is known by now, for a run inside this one, which goes on without what it finds.

        Args:
            dependence: sees the run inside, before what this returns.
        """
        inner = Values(dependence)
        inner._positive = set(self._positive)
        return inner

    def idleness(self, token: object, given: Tensor | None, output: Any) -> Idleness | None:
        """What a module did, if it did nothing.

        Args:
            token: of the module's first argument, when it was called.
            given: that argument, which may have been changed in place since.
            output: what it returned.
        """
        if given is None or not isinstance(output, Tensor):
            return None
        if (output.shape, output.dtype) != (given.shape, given.dtype):
            return None
        if self.token(output) is token:
            return "identity"
        return "zeros" if self._is_zero(output) else None

    def before(self, operation: Operation) -> None:
        """Looks at an operation: in place it overwrites what its result equals."""
        first = _first(operation)
        self._known = None if first is None else self.token(first)
        self._same = None if first is None else self._unchanged(operation, first)

    def after(self, operation: Operation) -> Any:
        """Gives the output a token: that of an input if it equals it, else a new one."""
        output, name, first = operation.output, operation.name, _first(operation)
        same, known = self._same, self._known
        for tensor in operation.changed:
            if not (tensor is first and same is known):
                self._renew(tensor)
        if not isinstance(output, Tensor):
            return output
        if first is not None and same is not None and _fits(name, output, first):
            self.equate(output, same)
        elif first is not None and name in _MOVING and not operation.in_place:
            self.equate(output, self._moved(operation, known, first))
        elif output is not first or operation.in_place:
            self.equate(output, object())
        if name in _POSITIVE or (name in _KEEPING_SIGN and known in self._positive):
            self._positive.add(self.token(output))
        return output

    def _unchanged(self, operation: Operation, first: Tensor) -> object | None:
        """The token of what the operation's result equals, if it equals something."""
        name = operation.name
        if name in _SAME:
            return self.token(first)
        if name == "relu" and self.token(first) in self._positive:
            return self.token(first)
        if name.startswith("dropout") and operation.named.get("training") is False:
            return self.token(first)
        if name in ("add", "iadd", "radd") and not operation.named:
            other = operation.positional[1]
            if isinstance(other, Tensor) and (other.shape, other.dtype) == (
                first.shape,
                first.dtype,
            ):
                if self._is_zero(other):
                    return self.token(first)
                if self._is_zero(first):
                    return self.token(other)
        return None

    def _moved(self, operation: Operation, token: object, first: Tensor) -> object:
        """The token of a tensor's values in another order; back in the first order, the first."""
        places = torch.arange(first.numel(), device=first.device)
        base, order = self._orders.get(token, (token, places))
        moved = operation.function(
            order.view(first.shape), *operation.positional[1:], **operation.named
        ).flatten()
        if torch.equal(moved, places):
            return base
        token = object()
        self._orders[token] = (base, moved)
        return token

    def _is_zero(self, tensor: Tensor) -> bool:
        """Whether all of a tensor is zero whatever the input is."""
        if self._dependence is None:
            return False
        return not bool(self._dependence.matters(tensor).any())

    def _renew(self, changed: Tensor) -> None:
        """After a change in place, what shares the memory has a new value."""
        memory = _memory(changed)
        for tensor, _ in list(self._tokens.values()):
            if tensor is changed or _memory(tensor) == memory:
                self.equate(tensor, object())


def _fits(name: str, output: Tensor, first: Tensor) -> bool:
    """Whether a result can have the values of the first argument in their order."""
    if output.dtype != first.dtype:
        return False
    return output.shape == first.shape or (name in _SAME and output.numel() == first.numel())


def _first(operation: Operation) -> Tensor | None:
    first = operation.positional[0] if operation.positional else None
    return first if isinstance(first, Tensor) else None


class _IdleModules(Watcher):
    """Judges every module with weights when it has returned, apart from the model itself.

    Args:
        dependence: sees the same run, before this.
        values: sees it in between.
    """

    def __init__(self, dependence: Dependence, values: Values) -> None:
        self.verdicts: dict[str, set[Idleness | None]] = {}
        self.overwrites = Overwrites()
        self._dependence = dependence
        self._values = values
        self._at_entry: dict[ModuleCall, tuple[object, int]] = {}

    def entered(self, call: ModuleCall) -> None:
        """Notes the token of now, since the tensor itself may be changed in place."""
        if call.name and call.first is not None:
            token = self._values.token(call.first)
            self._at_entry[call] = token, self._dependence.numbers_taken

    def left(self, call: ModuleCall, output: Any) -> None:
        """Judges a module."""
        if not call.name or not any(weight.ndim > 1 for weight in call.module.parameters()):
            return
        token, taken = self._at_entry.get(call, (None, 0))
        idleness = self._values.idleness(token, call.first, output)
        if idleness == "zeros" and not any(call.module.children()):
            idleness = None
        if self._dependence.numbers_taken > taken:
            # It has looked at values, and may do something where they are others.
            idleness = None
        if idleness == "identity" and call.first is not None:
            self.overwrites.follow(call.name, call.first, output)
        self.verdicts.setdefault(call.name, set()).add(idleness)
