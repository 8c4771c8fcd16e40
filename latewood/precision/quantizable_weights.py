"""Which weights of a model can learn their bits, and where their input channels lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from torch import nn
from torch.nn.utils.weight_norm import WeightNorm

from latewood.core import Selected, select_parameters, transformations
from latewood.core.parameter_uses import parameter_uses
from latewood.core.selection import (
    is_hugging_face_conv1d,
    matrix_parameters,
    shared_with_embeddings,
)
from latewood.errors import RequestError, invalid, listed

__all__ = ["Axes", "Quantizable", "axes_of", "quantizable"]

_ENDS: Final = ("first", "last")
_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Axes:
    """How a weight is laid out.

    Args:
        inputs: axis of the input channels of a group.
        outputs: axis of the output channels.
        groups: of a convolution; each has input channels of its own.
    """

    inputs: int
    outputs: int
    groups: int = 1


@dataclass(frozen=True)
class Quantizable:
    """The weights of a model by what becomes of them.

    Args:
        learned: learn their bits.
        fixed: get 8 bits.
        left: why a matrix stays in float, by its name.
    """

    learned: list[Selected]
    fixed: list[Selected]
    left: dict[str, str]


def axes_of(module: nn.Module) -> Axes | None:
    """How the weights of a layer are laid out; None for layers that nothing is known of.

    Args:
        module: the layer.
    """
    if is_hugging_face_conv1d(module):
        return Axes(inputs=0, outputs=1)
    if isinstance(module, _TRANSPOSED):
        return Axes(inputs=0, outputs=1) if module.groups == 1 else None
    if isinstance(module, _CONVOLUTIONS):
        return Axes(inputs=1, outputs=0, groups=module.groups)
    known = (nn.Linear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
    return Axes(inputs=1, outputs=0) if isinstance(module, known) else None


def quantizable(model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> Quantizable:
    """Sorts the weight matrices of a model, each checked to be free for a format.

    Args:
        model: any module.
        include: patterns on layer or parameter names (``core.select_parameters``).
        exclude: what gets 8 bits: patterns of the same form, and "first" and "last" for these
            layers in registration order, as far as others remain.

    Raises:
        RequestError: a pattern that matches nothing, nothing that can learn bits, or a weight with
            a foreign parametrization, a format already, no data or no real dtype.
    """
    patterns = [pattern for pattern in exclude if pattern not in _ENDS]
    everything = tuple(include) == ("*",)
    tied = shared_with_embeddings(model) if everything else set()
    left = {
        weight.name: reason
        for weight, reason in matrix_parameters(model)
        if reason is not None and "embedding" not in reason and everything
    }
    chosen = []
    for weight in select_parameters(model, include=include):
        _require_one_piece(weight)
        axes = axes_of(weight.module)
        if axes is None:
            left[weight.name] = f"in a {type(weight.module).__name__}"
        elif weight.name in tied:
            left[weight.name] = "shared with an embedding"
        elif weight.stored.numel() == 0:
            left[weight.name] = "without elements"
        elif _differs(model, weight, axes):
            left[weight.name] = "shared between layers that read it along different axes"
        else:
            chosen.append(weight)
    if not chosen:
        why = listed(f"{name} ({reason})" for name, reason in left.items())
        raise invalid("model", f"nothing but {why}", "a model with weights that can have formats")
    for weight in chosen:
        _require_free(weight)
    by_name = (
        {weight.name for weight in select_parameters(model, include=patterns)}
        if patterns
        else set()
    )
    fixed = _ends(chosen, exclude, by_name) | by_name
    learned = [weight for weight in chosen if weight.name not in fixed]
    if not learned:
        raise invalid("exclude", tuple(exclude), "patterns that leave a weight whose bits to learn")
    return Quantizable(learned, [weight for weight in chosen if weight.name in fixed], left)


def _ends(chosen: list[Selected], exclude: Sequence[str], taken: set[str]) -> set[str]:
    """The weights of the first and the last layer, as far as something is left without them."""
    names: set[str] = set()
    for end, place in (("last", -1), ("first", 0)):
        module = chosen[place].module
        these = {weight.name for weight in chosen if weight.module is module}
        if end in exclude and any(weight.name not in names | these | taken for weight in chosen):
            names |= these
    return names


def _differs(model: nn.Module, weight: Selected, axes: Axes) -> bool:
    return any(axes_of(use.module) != axes for use in parameter_uses(model)[id(weight.stored)])


def _require_one_piece(selected: Selected) -> None:
    for transformation in transformations(selected.module, selected.parameter_name):
        if getattr(transformation, "order", None) is None:
            raise RequestError(
                f"model: {selected.name} has the parametrization {type(transformation).__name__}, "
                "through which a format cannot be folded; remove it or leave it out of include"
            )


def _require_free(selected: Selected) -> None:
    for hook in selected.module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and selected.parameter_name.startswith(f"{hook.name}_"):
            raise RequestError(
                f"model: {selected.name} is a factor of torch.nn.utils.weight_norm, which has no "
                "format; remove_weight_norm first or leave it out of include"
            )
    for transformation in transformations(selected.module, selected.parameter_name):
        if getattr(transformation, "is_format", False):
            raise RequestError(f"model: {selected.name} has a format already; finalize it first")
    if f"{selected.parameter_name}_bits" in selected.module._buffers:
        raise RequestError(
            f"model: {selected.name} has the format of an earlier run; take it off with "
            "precision.remove_formats first"
        )
    weight = selected.stored
    if weight.is_meta:
        raise invalid("model", f"{selected.name} on the meta device", "weights that hold data")
    if not weight.is_floating_point():
        raise invalid("model", f"{selected.name} of {weight.dtype}", "weights of a real dtype")
    if not weight.isfinite().all():
        raise invalid("model", f"{selected.name} with NaN or infinity", "finite weights")
