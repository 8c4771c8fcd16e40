"""Finds the channel groups of any model by running it once and watching every operation."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import partial
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from latewood.core.coupling.code_numbers import CodeNumber, code_numbers
from latewood.core.coupling.data_movement_rules import MOVE_RULES
from latewood.core.coupling.einsum_rule import einsum_rule
from latewood.core.coupling.elementwise_rules import ELEMENTWISE_RULES
from latewood.core.coupling.grouping import gather_plan
from latewood.core.coupling.labels import Labels
from latewood.core.coupling.layer_rules import LAYER_RULES
from latewood.core.coupling.norm_recognition import NormCalls
from latewood.core.coupling.padded_values import PaddedValues
from latewood.core.coupling.plan import ChannelPlan
from latewood.core.coupling.position_rules import POSITION_RULES
from latewood.core.coupling.sequence_rules import SEQUENCE_RULES
from latewood.core.coupling.traced_call import Call, Rule, tensors_in
from latewood.core.modes import attributes_restored, evaluated, unfused
from latewood.core.selection import parametrization_list, stored_tensor
from latewood.errors import RequestError, invalid, listed

__all__ = ["layer_tensors", "outputs_of", "run_model", "trace_channels"]

_RULES: Final[dict[str, Rule]] = {
    **ELEMENTWISE_RULES,
    **MOVE_RULES,
    **POSITION_RULES,
    **LAYER_RULES,
    "einsum": einsum_rule,
    **SEQUENCE_RULES,
}

Axis = tuple[str, int]
"""Name of a parameter or buffer, and a dimension of it."""

_NO_RULES: Final[Mapping[Any, Rule]] = {}

_ALLOCATIONS: Final = (
    *("zeros", "ones", "empty", "full"),
    *("new_zeros", "new_ones", "new_empty", "new_full"),
)
"""Functions that make a tensor of a size that the code gives."""


def trace_channels(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Any] | dict[str, Any],
    *,
    rules: Mapping[Any, Rule] = _NO_RULES,
    tie: Iterable[Sequence[Axis]] = (),
    freeze: Iterable[str] = (),
) -> ChannelPlan:
    """Finds which tensor axes of a model must change size together, and which cannot change.

    Runs the model once in evaluation mode without gradients. Axes that an addition, a contraction,
    a norm or a recurrence ties become one group; through a concatenation, a flatten, fused gates or
    attention heads the plan keeps where each channel sits. An operation without a rule, a sum over
    channels, a norm over them, or code that holds their number makes a barrier, never a guess.

    Args:
        model: any module, with or without transformations attached.
        example_inputs: what the model is called with: a tensor, a sequence of positional arguments,
            or a dict of keyword arguments; a batch of one is enough.
        rules: how channels pass through operations of your own, by function or by class of module:
            what gets the ``Call`` and returns labels of the output. They come before ours.
        tie: sets of axes (tensor name, axis) of one size that must change together, position by
            position, although no operation says so.
        freeze: patterns on names of parameters and buffers whose axes stay as they are.

    Returns:
        The groups with their members and barriers.

    Raises:
        RequestError: the example does not reach any weight, a rule for something that is neither
            function nor module class, an axis that is not there or has another size, or a pattern
            that matches nothing.
    """
    tensors = dict(layer_tensors(model))
    with _computed(model) as computed, evaluated(model), unfused(), torch.no_grad():
        functions, classes = _sorted_rules(rules)
        watcher = _Watcher(Labels(computed), functions)
        _bar_split_weights(watcher.labels, computed, tensors)
        _tie(watcher.labels, computed, tie)
        _freeze(watcher.labels, computed, freeze)
        with (
            attributes_restored(model),
            code_numbers(model),
            _call_stack(model, watcher),
            _whole_modules(model, classes, watcher),
            watcher,
        ):
            outputs = run_model(model, example_inputs)
        for output in outputs_of(outputs):
            watcher.labels.bar(watcher.labels.of(output), "output", "the model's output")
        if not watcher.labels.axes:
            given = type(example_inputs).__name__
            raise invalid("example_inputs", given, "inputs that reach a weight")
        norms = list(watcher.norms.recognised())
    return gather_plan(watcher.labels, list(tensors), norms, watcher.values)


def _sorted_rules(
    rules: Mapping[Any, Rule],
) -> tuple[dict[Any, Rule], dict[type[nn.Module], Rule]]:
    """Rules for functions, and for classes of modules."""
    functions: dict[Any, Rule] = {}
    classes: dict[type[nn.Module], Rule] = {}
    for key, rule in rules.items():
        if isinstance(key, type) and issubclass(key, nn.Module):
            classes[key] = rule
        elif callable(key) and not isinstance(key, type):
            functions[key] = rule
        else:
            raise invalid("rules", key, "functions and classes of modules as keys")
    return functions, classes


@contextmanager
def _whole_modules(
    model: nn.Module, classes: Mapping[type[nn.Module], Rule], watcher: _Watcher
) -> Iterator[None]:
    """Has modules with a rule of their own run as one operation; undone with the attributes."""
    for module in model.modules():
        for kind, rule in classes.items():
            if isinstance(module, kind):
                forward = partial(watcher.run_module, module, rule, module.forward)
                vars(module)["forward"] = forward
                break
    yield


def _tie(labels: Labels, computed: Mapping[str, Tensor], ties: Iterable[Sequence[Axis]]) -> None:
    for axes in ties:
        rows = []
        for name, dim in axes:
            tensor = computed.get(name)
            if tensor is None or not -tensor.ndim <= dim < tensor.ndim:
                raise invalid("tie", (name, dim), "axes (name, axis) of parameters and buffers")
            rows.append(labels.axis(tensor, dim, "per_channel"))
        if len({len(row) for row in rows}) > 1:
            raise invalid("tie", list(axes), f"axes of one size, not {[len(row) for row in rows]}")
        for row in rows[1:]:
            labels.couple(rows[0], row)


def _freeze(labels: Labels, computed: Mapping[str, Tensor], patterns: Iterable[str]) -> None:
    for pattern in patterns:
        matches = fnmatch.filter(computed, pattern)
        if not matches:
            raise invalid("freeze", pattern, f"a pattern on one of {listed(computed)}")
        for name in matches:
            labels.bar_all_axes(computed[name], "fixed", f"{name} is frozen by {pattern!r}")


def _bar_split_weights(
    labels: Labels, computed: Mapping[str, Tensor], owners: Mapping[str, tuple[nn.Module, str]]
) -> None:
    for name, owner in owners.items():
        try:
            stored_tensor(*owner)
        except RequestError:
            reason = f"{name} is computed from several tensors, as weight norm does"
            labels.bar_all_axes(computed[name], "fixed", reason)


def layer_tensors(model: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, str]]]:
    """Names of the parameters and buffers that layers compute with, and where they are.

    A transformed weight has its plain name; what belongs to transformations is left out; a tensor
    tied between layers comes once.
    """
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        if "parametrizations" in module_name.split("."):
            continue
        names = list(module._parameters)
        if parametrize.is_parametrized(module):
            names += list(cast(nn.ModuleDict, module.parametrizations))
        for name in [*names, *module._buffers]:
            tensor = _identity(module, name)
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{module_name}.{name}" if module_name else name, (module, name)


def _identity(module: nn.Module, name: str) -> Tensor | None:
    if parametrize.is_parametrized(module, name):
        return next(parametrization_list(module, name).parameters(recurse=False), None)
    found = module._parameters.get(name)
    return module._buffers.get(name) if found is None else found


class _Watcher(TorchFunctionMode):
    """Applies the rule of every operation that touches a labelled or named tensor."""

    def __init__(self, labels: Labels, rules: Mapping[Any, Rule] = _NO_RULES) -> None:
        super().__init__()
        self.labels = labels
        self.values = PaddedValues(labels)
        self.norms = NormCalls(labels, self.values)
        self._rules = rules
        self.modules: list[tuple[str, nn.Module]] = []

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        output = function(*args, **named)
        name = getattr(function, "__name__", "").strip("_")
        outputs = list(tensors_in(output))
        touched = any(self.labels.touches(tensor) for tensor in tensors_in((args, named)))
        if touched and not outputs:
            measured = self._measured(function, name, args, named, output)
            if measured is not None:
                return measured
        if touched and (outputs or name == "setitem"):
            modules = tuple(self.modules)
            call = Call(self.labels, function, name, args, named, output, modules)
            found = (self._rules.get(function) or _RULES.get(name, Call.unknown))(call)
            self.values.follow(call, found)
            if name == "group_norm":
                self.norms.group_norm(call)
            if _in_place(function) and isinstance(found, Tensor):
                self.labels.overwrite(output, found)
            else:
                self._put(output, found)
        elif name in _ALLOCATIONS and isinstance(output, Tensor):
            self.labels.allocated[output] = _sizes_given(name, args, named)
        return output

    def _measured(
        self, function: Any, name: str, args: tuple[Any, ...], named: dict[str, Any], output: Any
    ) -> Any:
        """A shape whose numbers know where they come from; None for other facts."""
        if name == "size" and isinstance(output, int):
            dim = args[1] if len(args) > 1 else named["dim"]
            return CodeNumber(output, self.labels.extent(args[0], dim))
        if name == "size" or getattr(function, "__self__", None) is torch.Tensor.shape:
            return torch.Size(
                [
                    CodeNumber(size, self.labels.extent(args[0], dim))
                    for dim, size in enumerate(output)
                ]
            )
        return None

    def run_module(
        self, module: nn.Module, rule: Rule, forward: Callable[..., Any], *args: Any, **named: Any
    ) -> Any:
        """Runs a module as one operation, with a rule for it."""
        with torch._C.DisableTorchFunction():
            output = forward(*args, **named)
            name = type(module).__name__
            modules = tuple(self.modules)
            call = Call(self.labels, module, name, args, named, output, modules)
            self._put(output, rule(call))
            self.values.forget(output, call.where)
        return output

    def _put(self, output: Any, labels: Any) -> None:
        if isinstance(output, Tensor):
            if labels is not None:
                self.labels.put(output, labels)
            return
        for tensor, own in zip(output or (), labels or (), strict=False):
            self._put(tensor, own)


def _in_place(function: Callable[..., Any]) -> bool:
    name = getattr(function, "__name__", "")
    return name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))


def _sizes_given(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[int, ...]:
    given: Any = args[1:] if name.startswith("new_") else args
    given = given or (named["size"],)
    return tuple(given[0] if isinstance(given[0], (tuple, list)) else given)


@contextmanager
def _computed(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What the layers compute with, by name; each transformation runs once meanwhile."""
    with parametrize.cached():
        yield {name: getattr(*place) for name, place in layer_tensors(model)}


@contextmanager
def _call_stack(model: nn.Module, watcher: _Watcher) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():

        def enter(module: nn.Module, _: Any, name: str = name) -> None:
            watcher.modules.append((name, module))
            watcher.norms.enter()

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            watcher.modules.pop()
            watcher.norms.leave(name, module, args, kwargs, output)

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_model(model: nn.Module, example_inputs: Any) -> Any:
    """Calls a model on a tensor, on positional arguments or on keyword arguments."""
    if isinstance(example_inputs, Tensor):
        return model(example_inputs)
    if isinstance(example_inputs, dict):
        return model(**example_inputs)
    return model(*example_inputs)


def outputs_of(outputs: Any) -> Iterable[Tensor]:
    """The tensors in what a model returned; what a cache holds is not among them.

    Args:
        outputs: a tensor, or nested tuples, lists, mappings and dataclasses, in which any other
            object is taken for a cache.
    """
    known = isinstance(outputs, (Tensor, tuple, list, Mapping)) or is_dataclass(outputs)
    return tensors_in(outputs if known else vars(outputs))
