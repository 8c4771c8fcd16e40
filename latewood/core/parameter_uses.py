"""Every use of a parameter in a model: a tied one has several."""

from __future__ import annotations

from torch import nn

from latewood.core.selection import Selected

__all__ = ["parameter_uses"]


def parameter_uses(model: nn.Module) -> dict[int, list[Selected]]:
    """The layers of a model that hold a parameter, under any name, in the model's order.

    Args:
        model: any module; what is stored under a transformation counts as the layer's, of a weight
            that is split into several tensors the first.

    Returns:
        The id of a parameter -> its uses.
    """
    uses: dict[int, list[Selected]] = {}
    for module_name, module in model.named_modules():
        if "parametrizations" in module_name.split("."):
            continue
        parameters = dict(module._parameters.items())
        for name, stack in getattr(module, "parametrizations", {}).items():
            parameters[name] = stack.original if stack.is_tensor else stack.original0
        for name, parameter in parameters.items():
            if parameter is not None:
                uses.setdefault(id(parameter), []).append(Selected(module_name, module, name))
    return uses
