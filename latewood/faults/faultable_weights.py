"""Which weights of a model lie on crossbars, in which parts, and under which names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from latewood.core import Selected, select_parameters, transformations
from latewood.core.parameter_uses import parameter_uses
from latewood.core.selection import is_embedding, is_hugging_face_conv1d
from latewood.errors import RequestError, invalid
from latewood.faults.encoding import require_weight
from latewood.faults.placement import WeightAxes

__all__ = ["Faultable", "Part", "faultable", "require_module"]

_TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FUSED: Final = "in_proj_weight"
_PROJECTIONS: Final = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
_COMPILED: Final = "_orig_mod."
_HOOKS: Final = (
    (WeightNorm, "a factor of torch.nn.utils.weight_norm", "remove_weight_norm"),
    (SpectralNorm, "what torch.nn.utils.spectral_norm divides", "remove_spectral_norm"),
    (BasePruningMethod, "what torch.nn.utils.prune multiplies with a mask", "prune.remove"),
)
"""What computes a weight before each pass, out of a parameter that is not what cells hold."""


@dataclass(frozen=True)
class Part:
    """Rows of a weight that are on crossbars of their own.

    Args:
        name: of the stream that their faults come from.
        rows: of the weight; all of it if None.
    """

    name: str
    rows: slice | None = None


@dataclass(frozen=True)
class Faultable:
    """A weight that lies on crossbars.

    Args:
        weight: the layer that it is listed under.
        uses: all layers that multiply with it; embeddings, which look it up, are left out.
        parts: one, or the queries, keys and values of a fused projection.
        axes: how it is laid out.
    """

    weight: Selected
    uses: list[Selected]
    parts: tuple[Part, ...]
    axes: WeightAxes


def faultable(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> list[Faultable]:
    """The weight matrices of a model that lie on crossbars, each checked.

    Biases, norms and embeddings stay digital. A tied weight has one map in all its uses.

    Args:
        model: any module.
        include: patterns on layer or parameter names (``core.select_parameters``).
        exclude: patterns of the same form.

    Raises:
        RequestError: a pattern that matches nothing, no weight with elements, or one that is split
            by a foreign parametrization, not floating, not finite, or without data.
    """
    require_module(model)
    uses = parameter_uses(model)
    found = []
    for weight in select_parameters(model, include=include, exclude=exclude):
        _require_one_piece(weight)
        if weight.stored.numel() == 0:
            continue
        require_weight(weight.stored, f"model, {weight.name}")
        readers = [use for use in uses[id(weight.stored)] if not is_embedding(use.module)]
        found.append(Faultable(weight, readers, _parts(weight), _axes(weight.module)))
    if not found:
        raise invalid("model", type(model).__name__, "a model with a weight that has elements")
    return found


def require_module(model: object) -> None:
    """Refuses what is no network.

    Raises:
        RequestError: it is no torch module.
    """
    if not isinstance(model, nn.Module):
        raise RequestError(f"model: got {type(model).__name__}; expected a torch module")


def _parts(weight: Selected) -> tuple[Part, ...]:
    layer = weight.module_name.replace(_COMPILED, "")
    prefix = f"{layer}." if layer else ""
    if isinstance(weight.module, nn.MultiheadAttention) and weight.parameter_name == _FUSED:
        size = weight.module.embed_dim
        return tuple(
            Part(prefix + name, slice(k * size, (k + 1) * size))
            for k, name in enumerate(_PROJECTIONS)
        )
    # The layer's own name, unless it has several matrices to tell apart.
    alone = weight.parameter_name == "weight"
    return (Part(layer if alone else prefix + weight.parameter_name),)


def _axes(module: nn.Module) -> WeightAxes:
    if is_hugging_face_conv1d(module):
        return WeightAxes(outputs=1)
    if isinstance(module, _TRANSPOSED):
        # With groups the outputs of a group come after its inputs, so these are its columns.
        return WeightAxes(outputs=1) if module.groups == 1 else WeightAxes()
    if isinstance(module, _CONVOLUTIONS):
        return WeightAxes(groups=module.groups)
    return WeightAxes()


def _require_one_piece(weight: Selected) -> None:
    for hook in weight.module._forward_pre_hooks.values():
        for kind, takes, removal in _HOOKS:
            name = getattr(hook, "_tensor_name", getattr(hook, "name", None))
            if isinstance(hook, kind) and weight.parameter_name.startswith(f"{name}_"):
                raise RequestError(
                    f"model: {weight.name} is {takes}, no weight that a "
                    f"crossbar holds; {removal} first or exclude this parameter"
                )
    for transformation in transformations(weight.module, weight.parameter_name):
        if getattr(transformation, "order", None) is None:
            raise RequestError(
                f"model: {weight.name} has the parametrization {type(transformation).__name__}, "
                "inside which faults would be applied; remove it or exclude this parameter"
            )
