"""What makes a slim module of a full one: edits that can be written down and done again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from latewood.core.coupling import BarrierKind, slice_channels, trace_channels, widen_channels
from latewood.core.coupling.widening import Fill
from latewood.errors import WorkError, invalid
from latewood.slim.comparison import Examples, mapped
from latewood.slim.csr_linear import CsrLinear
from latewood.slim.head_attention import unpack_attention
from latewood.slim.idle_blocks import skip_modules
from latewood.slim.residual_branches import scatter_branches

__all__ = [
    "Channels",
    "Compressed",
    "Edit",
    "Scattered",
    "Skipped",
    "SlimRecipe",
    "Unpacked",
    "Widened",
    "apply_edit",
    "has_recipe",
    "packed",
    "remember",
    "slim_recipe",
    "unpacked",
]

_RECIPE: Final = "_slim_recipe"
_HELD_BY_NORMS: Final[tuple[BarrierKind, ...]] = ("normalised",)


@dataclass(frozen=True)
class Channels:
    """Channels that stay.

    Args:
        keep: the kept channels by the name of their group.
    """

    keep: dict[str, list[int]]


@dataclass(frozen=True)
class Widened:
    """Groups that became wider.

    Args:
        widths: the new width by the name of the group.
        fill: how (``core.widen_channels``): "pair" also changed the eps of norms.
    """

    widths: dict[str, int]
    fill: Fill = "pair"


@dataclass(frozen=True)
class Skipped:
    """Modules that did nothing.

    Args:
        modules: by name, "identity", "copy" or "zeros".
    """

    modules: dict[str, str]


@dataclass(frozen=True)
class Unpacked:
    """Attention of torch that became ``HeadAttention``.

    Args:
        layers: names of the layers.
    """

    layers: list[str]


@dataclass(frozen=True)
class Scattered:
    """Layers with a ``Scatter`` behind them.

    Args:
        ends: by name, the axis of the channels and the width of the stream.
    """

    ends: dict[str, list[int]]


@dataclass(frozen=True)
class Compressed:
    """Linear layers in compressed rows.

    Args:
        layers: names of the layers; "" is the model itself.
    """

    layers: list[str]


Edit = Channels | Widened | Skipped | Unpacked | Scattered | Compressed

_EDIT_KINDS: Final[dict[str, type[Any]]] = {
    "channels": Channels,
    "widened": Widened,
    "skipped": Skipped,
    "unpacked": Unpacked,
    "scattered": Scattered,
    "compressed": Compressed,
}


@dataclass(frozen=True)
class SlimRecipe:
    """How a slim module comes from the one it was made of.

    Args:
        edits: what was done, in order.
        examples: what the model is called with, on the CPU.
    """

    edits: tuple[Edit, ...]
    examples: Any

    @property
    def steps(self) -> tuple[dict[str, list[int]], ...]:
        """The kept channels by the name of their group, one dict each time some were removed."""
        return tuple(edit.keep for edit in self.edits if isinstance(edit, Channels))


def apply_edit(model: nn.Module, edit: Edit, example_inputs: Examples) -> nn.Module:
    """Does one edit.

    Args:
        model: changed in place.
        edit: what to do.
        example_inputs: what the model is called with.

    Returns:
        The model, or what took its place.

    Raises:
        RequestError: the edit does not fit the model.
    """
    match edit:
        case Channels():
            slice_channels(model, trace_channels(model, example_inputs), edit.keep)
        case Widened():
            plan = trace_channels(model, example_inputs)
            added = {name: width - plan[name].width for name, width in edit.widths.items()}
            widen_channels(model, plan, added, fill=edit.fill, allow=_HELD_BY_NORMS)
        case Skipped():
            skip_modules(model, edit.modules)
        case Unpacked():
            unpack_attention(model, edit.layers)
        case Scattered():
            scatter_branches(model, {name: (end[0], end[1]) for name, end in edit.ends.items()})
        case Compressed():
            for name in edit.layers:
                layer = model.get_submodule(name)
                if not isinstance(layer, nn.Linear):
                    raise invalid("layers", name, "the name of a linear layer")
                if not name:
                    return CsrLinear.of(layer)
                model.set_submodule(name, CsrLinear.of(layer))
    return model


def packed(edit: Edit) -> dict[str, Any]:
    """An edit as what JSON can hold."""
    kind = next(name for name, edit_type in _EDIT_KINDS.items() if isinstance(edit, edit_type))
    return {"kind": kind, **asdict(edit)}


def unpacked(stored: Any) -> Edit:
    """The edit that ``packed`` made this of.

    Raises:
        WorkError: it is none.
    """
    try:
        rest = dict(stored)
        edit: Edit = _EDIT_KINDS[rest.pop("kind")](**rest)
    except (KeyError, TypeError, ValueError) as error:
        raise WorkError(f"not an edit of a slim module that Latewood wrote ({error!r})") from error
    return edit


def remember(model: nn.Module, edits: Sequence[Edit], example_inputs: Examples) -> None:
    """Leaves on a module what was done to it, outside its parameters, buffers and state dict.

    Args:
        model: a module on which an earlier recipe may be.
        edits: what was done since then.
        example_inputs: what the model is called with.
    """
    before = getattr(model, _RECIPE, None)
    if isinstance(before, SlimRecipe):
        recipe = SlimRecipe((*before.edits, *edits), before.examples)
    else:
        recipe = SlimRecipe(tuple(edits), mapped(example_inputs, _on_cpu))
    object.__setattr__(model, _RECIPE, recipe)


def slim_recipe(model: nn.Module) -> SlimRecipe:
    """What was done to a module that ``slim``, ``export`` or ``load_slim`` returned.

    Args:
        model: such a module.

    Raises:
        RequestError: it is none.
    """
    recipe = getattr(model, _RECIPE, None)
    if not isinstance(recipe, SlimRecipe):
        raise invalid(
            "model", type(model).__name__, "a module that slim, export or load_slim returned"
        )
    return recipe


def has_recipe(model: nn.Module) -> bool:
    """Whether a module says what was done to it."""
    return isinstance(getattr(model, _RECIPE, None), SlimRecipe)


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.device("cpu"))
