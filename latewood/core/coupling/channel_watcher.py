"""What a run of a model shows of its channels: the rule of every operation, applied as it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from latewood.core.coupling.code_numbers import CodeNumber, NumberUse
from latewood.core.coupling.flow import Flow
from latewood.core.coupling.labels import Labels
from latewood.core.coupling.norm_recognition import NormCalls
from latewood.core.coupling.operation_table import OPERATIONS, channel_rule
from latewood.core.coupling.padded_values import PaddedValues
from latewood.core.coupling.traced_call import Call, Operation, Result, Rule, tensors_in
from latewood.core.coupling.watched_run import Running, Watcher
from latewood.core.module_calls import ModuleCall
from latewood.errors import LatewoodError

__all__ = ["ChannelWatcher"]

_NO_RULES: Final[Mapping[Any, Rule]] = {}

_ALLOCATIONS: Final = (
    *("zeros", "ones", "empty", "full"),
    *("new_zeros", "new_ones", "new_empty", "new_full"),
)
"""Functions that make a tensor of a size that the code gives."""
_VALUES: Final = frozenset(
    f"{prefix}{name}"
    for name in ("add", "sub", "mul", "div", "truediv", "floordiv", "pow")
    for prefix in ("", "i", "r")
) | {
    *("true_divide", "divide", "multiply", "subtract", "floor_divide", "remainder", "fill"),
    *("full", "new_full", "full_like", "tensor", "as_tensor", "scalar_tensor", "new_tensor"),
}
"""Functions that compute with the numbers that they are given."""
_LEAVING: Final = ("numpy", "array", "tolist", "item", "float", "int", "bool", "dlpack")
"""Functions that take values out of a tensor to where nothing follows them."""
_DIVISIONS: Final = ("view", "reshape", "unflatten")
"""Functions that give a tensor the sizes that the code holds."""


class ChannelWatcher(Watcher):
    """Applies the rule of every operation that touches a labelled or named tensor."""

    def __init__(self, labels: Labels, flow: Flow, rules: Mapping[Any, Rule] = _NO_RULES) -> None:
        self.labels = labels
        self.flow = flow
        self.values = PaddedValues(labels)
        self.norms = NormCalls(labels, self.values)
        self._rules = rules

    def after(self, operation: Operation) -> Any:
        """Labels the outputs; a shape becomes numbers that know where they come from."""
        output, name = operation.output, operation.name
        outputs = list(tensors_in(output))
        given = operation.tensors
        if name in _VALUES:
            self._note_values(operation)
        touched = any(self.labels.touches(tensor) for tensor in given)
        if touched and not outputs:
            measured = self._measured(operation)
            if measured is not None:
                return measured
            if name in _LEAVING:
                Call.of(operation, self.labels).unknown()
        # The shape of data without channels may still be made of numbers that count some.
        touched = touched or (name in _DIVISIONS and _are_counted(operation))
        if touched and (outputs or name == "setitem"):
            call = Call.of(operation, self.labels)
            self.labels.used.clear()
            labels = self._rule(operation)(call)
            self.values.follow(call, labels)
            if name == "group_norm":
                self.norms.group_norm(call)
            if operation.in_place and isinstance(labels, Tensor):
                self.labels.overwrite(output, labels)
            else:
                self._put(output, labels)
            known = name in OPERATIONS and operation.function not in self._rules
            self.flow.record(call, given, self.labels.used, known=known)
        elif outputs and any(self.flow.of(tensor) is not None for tensor in given):
            call = Call.of(operation, self.labels)
            self.flow.record(call, given, (), known=name in OPERATIONS)
        elif name in _ALLOCATIONS and isinstance(output, Tensor):
            sizes = _sizes_given(name, operation.positional, operation.named)
            self.labels.allocated[output] = sizes
        return output

    def _note_values(self, operation: Operation) -> None:
        """A number that the code counts enters a computation."""
        given = operation.positional, operation.named
        if operation.name.endswith("full"):
            given = operation.positional[-1:], {"fill_value": operation.named.get("fill_value")}
        for number in _counted(given):
            self._note_value(operation, number)

    def _note_value(self, operation: Operation, number: CodeNumber) -> None:
        layer = operation.modules[-1][0] if operation.modules else ""
        self.labels.number_uses.append((NumberUse((number,)), layer))

    def entered(self, call: ModuleCall) -> None:
        """A norm may begin."""
        self.norms.enter()

    def left(self, call: ModuleCall, output: Any) -> None:
        """A norm may be complete."""
        self.norms.leave(call.name, call.module, call.positional, call.named, output)

    def _rule(self, operation: Operation) -> Rule:
        taught = self._rules.get(operation.function)
        if taught is None and any(map(is_functorch_wrapped_tensor, operation.tensors)):
            # Under vmap shapes are those of one entry, and what comes out is another tensor.
            return Call.unknown
        return taught or _careful(channel_rule(operation.name))

    def _measured(self, operation: Operation) -> Any:
        """A shape whose numbers know where they come from; None for other facts."""
        output, measured = operation.output, operation.positional[0]
        if operation.name == "size" and isinstance(output, int):
            dim = operation.argument(1, "dim")
            return CodeNumber(output, self.labels.extent(measured, dim))
        asked = getattr(operation.function, "__self__", None)
        if operation.name == "len":
            # What the code gets of it is always a plain number.
            self._note_value(operation, CodeNumber(output, self.labels.extent(measured, 0)))
        if operation.name in ("numel", "nelement"):
            return math.prod(self._sizes(measured))
        if operation.name == "size" or asked is torch.Tensor.shape:
            return torch.Size(self._sizes(measured))
        return None

    def _sizes(self, measured: Tensor) -> list[int]:
        return [
            CodeNumber(size, self.labels.extent(measured, dim))
            for dim, size in enumerate(measured.shape)
        ]

    def run_module(
        self,
        rule: Rule,
        forward: Callable[..., Any],
        running: Running,
        *args: Any,
        **named: Any,
    ) -> Any:
        """Runs a module as one operation, with a rule for it."""
        with torch._C.DisableTorchFunction():
            output = forward(*args, **named)
            module = running[-1][1]
            call = Call(
                module,
                type(module).__name__,
                args,
                named,
                tuple(running),
                output,
                labels=self.labels,
            )
            self.labels.used.clear()
            self._put(output, rule(call))
            given = list(tensors_in((args, named)))
            self.flow.record(call, given, self.labels.used, known=False)
            self.values.forget(output, call.where)
        return output

    def _put(self, output: Any, labels: Any) -> None:
        if isinstance(output, Tensor):
            if labels is not None:
                self.labels.put(output, labels)
            return
        for tensor, its_labels in zip(output or (), labels or (), strict=False):
            self._put(tensor, its_labels)


def _careful(rule: Rule) -> Rule:
    """A rule of ours that leaves a use of its operation that it does not know to the barriers."""

    def applied(call: Call) -> Result:
        try:
            return rule(call)
        except LatewoodError:
            raise
        except Exception:
            return call.unknown()

    return applied


def _are_counted(operation: Operation) -> bool:
    """Whether numbers of known origin are among the arguments."""
    return next(_counted((operation.positional, operation.named)), None) is not None


def _counted(tree: Any) -> Iterator[CodeNumber]:
    """The numbers of known origin among the arguments of a call."""
    if isinstance(tree, (tuple, list)):
        for item in tree:
            yield from _counted(item)
    elif isinstance(tree, dict):
        yield from _counted(list(tree.values()))
    elif type(tree) is CodeNumber:
        yield tree


def _sizes_given(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[int, ...]:
    given: Any = args[1:] if name.startswith("new_") else args
    given = given or (named["size"],)
    sizes = given[0] if isinstance(given[0], (tuple, list)) else given
    return tuple(size if isinstance(size, int) else int(size) for size in sizes)
