"""What the modules of a model are given in a run, kept so that each can be called alone."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from latewood.core.coupling.trace import run_model
from latewood.core.modes import undisturbed, unfused
from latewood.core.module_calls import ModuleCall, module_calls
from latewood.slim.comparison import Examples
from latewood.slim.layer_times import CallArguments

__all__ = ["copied_arguments", "recorded_calls"]


def recorded_calls(
    model: nn.Module, names: Iterable[str], example_inputs: Examples
) -> dict[str, list[CallArguments]]:
    """Runs a model in evaluation mode and keeps what some of its modules are given.

    Args:
        model: any module.
        names: of the modules; "" is the model itself.
        example_inputs: what it is called with.

    Returns:
        For each module that was called, the arguments of its calls as they were then.
    """
    calls: dict[str, list[CallArguments]] = {}

    def note(call: ModuleCall) -> None:
        calls.setdefault(call.name, []).append(copied_arguments((call.positional, call.named)))

    modules = {name: model.get_submodule(name) for name in names}
    with undisturbed(model), unfused(), module_calls(modules, note):
        run_model(model, example_inputs)
    return calls


def copied_arguments(tree: Any) -> Any:
    """Arguments that a call can change without a trace: tensors, containers and caches are copies.

    Args:
        tree: tensors and other objects in nested tuples, lists and dicts.
    """
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if type(tree) in (tuple, list):
        return type(tree)(copied_arguments(item) for item in tree)
    if type(tree) is dict:
        return {name: copied_arguments(item) for name, item in tree.items()}
    return tree if isinstance(tree, nn.Module) else copy.deepcopy(tree)
