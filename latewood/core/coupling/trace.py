"""Finds the channel groups of any model by running it once and watching every operation."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from functools import partial
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latewood.core.copies import own_objects
from latewood.core.coupling.channel_watcher import ChannelWatcher
from latewood.core.coupling.code_numbers import NumberUse, code_numbers
from latewood.core.coupling.flow import Flow
from latewood.core.coupling.grouping import gather_plan
from latewood.core.coupling.labels import Labels
from latewood.core.coupling.layer_facts import layer_facts
from latewood.core.coupling.plan import ChannelPlan
from latewood.core.coupling.traced_call import Rule, tensors_in
from latewood.core.coupling.unreached import follow_unreached, with_unreached
from latewood.core.coupling.watched_run import Running, is_watching, watched
from latewood.core.modes import (
    attributes_restored,
    buffers_restored,
    evaluated,
    uncompiled,
    unfused,
)
from latewood.core.parameter_uses import parameter_uses
from latewood.core.selection import parametrization_list, stored_tensor
from latewood.core.transforms import transformations
from latewood.errors import RequestError, invalid, listed

__all__ = [
    "Axis",
    "layer_tensors",
    "outputs_of",
    "prepared",
    "run_model",
    "trace_channels",
    "traced",
]

Axis = tuple[str, int]
"""Name of a parameter or buffer, and a dimension of it."""

_NO_RULES: Final[Mapping[Any, Rule]] = {}


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
    return traced(model, example_inputs, rules=rules, tie=tie, freeze=freeze)[0]


def traced(
    model: nn.Module,
    example_inputs: Any,
    *,
    rules: Mapping[Any, Rule] = _NO_RULES,
    tie: Iterable[Sequence[Axis]] = (),
    freeze: Iterable[str] = (),
    by_head_size: bool = False,
) -> tuple[ChannelPlan, Flow]:
    """The plan of a model and the operations of the run that it was made from.

    Args:
        model: as for ``trace_channels``, as the others but the last.
        example_inputs: what it is called with.
        rules: of operations.
        tie: axes.
        freeze: patterns.
        by_head_size: whether entries of all heads are the channels of attention, not heads.

    Raises:
        RequestError: as ``trace_channels`` does.
    """
    tensors = dict(layer_tensors(model))
    with prepared(model) as computed:
        functions, classes = _sorted_rules(rules)
        labels = Labels(computed, _other_uses(model, computed), by_head_size=by_head_size)
        weights = [name for name, (module, kind) in tensors.items() if kind not in module._buffers]
        watcher = ChannelWatcher(labels, Flow(labels, weights), functions)
        _bar_computed_weights(watcher.labels, computed, tensors)
        _tie(watcher.labels, computed, tie)
        _freeze(watcher.labels, computed, freeze)
        with (
            watched(model, watcher) as running,
            code_numbers(model, partial(_note_use, labels, running)),
            _scripts_barred(model, labels),
        ):
            _teach_modules(model, classes, watcher, running)
            outputs = run_model(model, example_inputs)
        ends = []
        returned = list(outputs_of(outputs))
        if not returned:
            raise RequestError(
                f"model: {type(model).__name__} returned {type(outputs).__name__}; expected tensors"
            )
        if not any(output.numel() for output in returned):
            shapes = [tuple(output.shape) for output in returned]
            raise invalid(
                "example_inputs", f"what gives outputs of shapes {shapes}", "at least one entry"
            )
        for output in returned:
            watcher.labels.bar(watcher.labels.of(output), "output", "the model's output")
            ends.append(watcher.flow.of(output))
        if not watcher.labels.axes:
            given = type(example_inputs).__name__
            raise invalid("example_inputs", given, "inputs that reach a weight")
        norms = list(watcher.norms.recognised())
        unreached = follow_unreached(model, labels)
    plan = gather_plan(watcher.labels, list(tensors), norms, watcher.values)
    layers = layer_facts(watcher.flow.nodes, [end for end in ends if end is not None], labels)
    order = {name: layers[name] for name in tensors if name in layers}
    return with_unreached(replace(plan, layers=order), unreached), watcher.flow


@contextmanager
def _scripts_barred(model: nn.Module, labels: Labels) -> Iterator[None]:
    """Bars what is given to scripted modules, inside which nothing is seen."""
    names = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, torch.jit.ScriptModule)
    }

    def bar(module: nn.Module, given: Any) -> None:
        if module in names:
            reason = f"{names[module] or 'the model'} is scripted, and nothing inside it is seen"
            with torch._C.DisableTorchFunction():
                for tensor in tensors_in(given):
                    labels.bar(labels.of(tensor), "unknown", reason)

    # They take no hooks of their own.
    handle = nn.modules.module.register_module_forward_pre_hook(bar) if names else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _note_use(labels: Labels, running: Running, use: NumberUse) -> None:
    """Notes what the model's code does with a number, and where; rules and torch do not count."""
    if is_watching():
        labels.number_uses.append((use, running[-1][0] if running else ""))


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


def _teach_modules(
    model: nn.Module,
    classes: Mapping[type[nn.Module], Rule],
    watcher: ChannelWatcher,
    running: Running,
) -> None:
    """Has modules with a rule of their own run as one operation; undone with the attributes."""
    for module in model.modules() if classes else ():
        for kind, rule in classes.items():
            if isinstance(module, kind):
                forward = partial(watcher.run_module, rule, module.forward, running)
                vars(module)["forward"] = forward
                break


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


def _bar_computed_weights(
    labels: Labels, computed: Mapping[str, Tensor], owners: Mapping[str, tuple[nn.Module, str]]
) -> None:
    for name, owner in owners.items():
        try:
            stored_tensor(*owner)
        except RequestError:
            reason = f"{name} is computed from several tensors, as weight norm does"
            labels.bar_all_axes(computed[name], "fixed", reason)
            continue
        for transformation in transformations(*owner):
            # Ours act entry by entry, or say otherwise how they follow.
            if getattr(transformation, "order", None) is None:
                kind = type(transformation).__name__
                reason = f"{name} is computed by {kind}, which says nothing of channels"
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
        names = list(module._parameters.keys())
        if parametrize.is_parametrized(module):
            names += list(cast(nn.ModuleDict, module.parametrizations))
        for name in [*names, *module._buffers.keys()]:
            tensor = _identity(module, name)
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{module_name}.{name}" if module_name else name, (module, name)


def _identity(module: nn.Module, name: str) -> Tensor | None:
    if parametrize.is_parametrized(module, name):
        return next(parametrization_list(module, name).parameters(recurse=False), None)
    # The collections of scripted modules have no ``get``.
    parameter = dict(module._parameters.items()).get(name)
    return dict(module._buffers.items()).get(name) if parameter is None else parameter


@contextmanager
def prepared(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Sets a model up for a run under watch: every run of a trace takes place in here.

    Evaluation mode, no gradients, attention in single steps, each transformation
    computed once; what the run leaves on the modules is forgotten.

    Args:
        model: any module.

    Yields:
        What the layers compute with, by name.

    Raises:
        RequestError: a lazy layer has no shape yet.
    """
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise RequestError(f"model: {name} has no shape yet; run the lazy model once first")
    with (
        parametrize.cached(),
        evaluated(model),
        unfused(),
        torch.no_grad(),
        attributes_restored(model),
        buffers_restored(model),
    ):
        yield {name: getattr(*place) for name, place in layer_tensors(model)}


def _other_uses(model: nn.Module, computed: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """What layers compute with in further uses of a tied weight, by its first name.

    Under transformations that is another tensor in each use.
    """
    others = []
    for first, *rest in parameter_uses(model).values():
        others += [(first.name, use.tensor) for use in rest if first.name in computed]
    return others


def run_model(model: nn.Module, example_inputs: Any) -> Any:
    """Calls a model on a tensor, on positional arguments or on keyword arguments.

    What is compiled runs as it is written, since those who watch see nothing of compiled code.
    Objects among the inputs, such as a cache that a call fills, are copies of its own.

    Raises:
        RequestError: none of these.
    """
    if not isinstance(example_inputs, (Tensor, Sequence, dict)) or isinstance(example_inputs, str):
        expected = "a tensor, a sequence of arguments or a dict of keyword arguments"
        raise invalid("example_inputs", type(example_inputs).__name__, expected)
    with uncompiled():
        if isinstance(example_inputs, Tensor):
            return model(example_inputs)
        inputs = own_objects(example_inputs)
        return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def outputs_of(outputs: Any) -> Iterable[Tensor]:
    """The tensors in what a model returned; what a cache holds is not among them.

    Args:
        outputs: a tensor, or nested tuples, lists, mappings and dataclasses, in which any other
            object is taken for a cache.
    """
    known = isinstance(outputs, (Tensor, tuple, list, Mapping)) or is_dataclass(outputs)
    return tensors_in(outputs if known else getattr(outputs, "__dict__", None))
