"""Which weight matrices of a model a method or a probe works on, chosen by layer type and name."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, cast

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from latewood.errors import RequestError, invalid, listed

__all__ = [
    "WEIGHT_LAYERS",
    "Selected",
    "is_hugging_face_conv1d",
    "select_parameters",
    "stored_tensor",
]

WEIGHT_LAYERS: Final[tuple[type[nn.Module], ...]] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)
"""Layer types whose weight matrices are selected when nothing else is asked for.

Hugging Face's ``Conv1D``, which GPT-2 is made of, counts as ``nn.Linear``.
"""

_ORDER: Final = (
    "weight_ih",
    "weight_hh",
    "q_proj_weight",
    "k_proj_weight",
    "v_proj_weight",
    "in_proj_weight",
)
_MOST_NAMES: Final = 60
"""In an error: whoever writes a pattern wants to see what it can match."""


@dataclass(frozen=True)
class Selected:
    """One weight matrix of a model: the layer that owns it and its name there.

    Args:
        module_name: qualified name of the layer, "" for the model itself.
        module: the layer.
        parameter_name: the tensor's name in the layer, "weight" or, say, "weight_hh_l0".
    """

    module_name: str
    module: nn.Module
    parameter_name: str

    @property
    def layer(self) -> str:
        """Qualified name of the layer."""
        return self.module_name

    @property
    def name(self) -> str:
        """Qualified name of the tensor, the same with and without transformations on it."""
        return _join(self.module_name, self.parameter_name)

    @property
    def tensor(self) -> Tensor:
        """The tensor the layer computes with, transformations applied."""
        tensor: Tensor = getattr(self.module, self.parameter_name)
        return tensor

    @property
    def stored(self) -> Tensor:
        """The tensor the optimizer updates, before any transformation."""
        return stored_tensor(self.module, self.parameter_name)


def stored_tensor(module: nn.Module, parameter_name: str) -> Tensor:
    """The tensor behind a parameter name, before any transformation.

    Args:
        module: the layer.
        parameter_name: the tensor's name in the layer.

    Returns:
        The parameter itself, or the original under its parametrizations.

    Raises:
        RequestError: a parametrization splits the tensor into several (weight norm does).
    """
    if not parametrize.is_parametrized(module, parameter_name):
        plain: Tensor = getattr(module, parameter_name)
        return plain
    stack = parametrization_list(module, parameter_name)
    if not stack.is_tensor:
        raise invalid(
            "parameter_name",
            parameter_name,
            "a tensor stored as one piece; remove the parametrization that splits it "
            "(weight norm, say) first",
        )
    return stack.original


def parametrization_list(module: nn.Module, parameter_name: str) -> parametrize.ParametrizationList:
    """The parametrizations of a tensor that has some, with the tensor they start from."""
    lists = cast(nn.ModuleDict, module.parametrizations)
    return cast(parametrize.ParametrizationList, lists[parameter_name])


def select_parameters(
    model: nn.Module,
    *,
    types: Sequence[type[nn.Module]] = WEIGHT_LAYERS,
    include: str | Sequence[str] = ("*",),
    exclude: str | Sequence[str] = (),
) -> list[Selected]:
    """Lists the weight matrices of a model: at least two axes, no biases, norms or embeddings.

    A tensor tied between layers is listed once, under the first layer that owns it; transforming it
    there leaves its other uses as they are.

    Args:
        model: any module, with or without transformations attached.
        types: layer types to look at.
        include: glob patterns on the layer name or the full parameter name; one match is enough.
        exclude: patterns of the same form; a match removes the parameter.

    Returns:
        The selected parameters in registration order.

    Raises:
        RequestError: a pattern matches nothing, nothing is left, or a lazy layer has no shape yet.
    """
    candidates = list(_candidates(model, tuple(types)))
    if not candidates:
        wanted = ", ".join(kind.__name__ for kind in types)
        raise invalid("model", type(model).__name__, f"a model with weight layers ({wanted})")
    included = _matching("include", include, candidates)
    excluded = _matching("exclude", exclude, candidates)
    chosen = [
        candidate
        for candidate in candidates
        if candidate.name in included and candidate.name not in excluded
    ]
    if not chosen:
        raise invalid(
            "exclude", _as_patterns(exclude), "patterns that leave at least one included parameter"
        )
    return chosen


def is_hugging_face_conv1d(module: nn.Module) -> bool:
    """Whether a layer is Hugging Face's linear layer that stores (in, out)."""
    # By name, so that transformers need not be installed; a parametrized module is a subclass.
    return hasattr(module, "nf") and any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)


def _candidates(model: nn.Module, types: tuple[type[nn.Module], ...]) -> Iterator[Selected]:
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        # Layers inside a transformation belong to it, not to the model.
        wanted = isinstance(module, types) or (
            nn.Linear in types and is_hugging_face_conv1d(module)
        )
        if not wanted or "parametrizations" in module_name.split("."):
            continue
        for name in _weight_names(module):
            tensor = _identity(module, name)
            if isinstance(tensor, UninitializedParameter):
                raise RequestError(
                    f"{_join(module_name, name)}: a lazy layer without a shape; "
                    "run the model once on an example before selecting"
                )
            if tensor.ndim >= 2 and id(tensor) not in seen:
                seen.add(id(tensor))
                yield Selected(module_name, module, name)


def _weight_names(module: nn.Module) -> list[str]:
    names = [name for name, tensor in module._parameters.items() if tensor is not None]
    if parametrize.is_parametrized(module):
        names += list(cast(nn.ModuleDict, module.parametrizations))
    # Attaching a transformation moves a name to the end, so the order is restored from the layer.
    order = getattr(module, "_flat_weights_names", _ORDER)
    known = {name: position for position, name in enumerate(order)}
    return sorted(
        (name for name in names if _is_weight(module, name)),
        key=lambda name: (known.get(name, len(known)), name),
    )


def _is_weight(module: nn.Module, name: str) -> bool:
    # The known layers call their matrices weights; in any other module that the caller asks for,
    # every matrix counts that is not called a bias.
    return "weight" in name if isinstance(module, WEIGHT_LAYERS) else "bias" not in name


def _identity(module: nn.Module, name: str) -> Tensor:
    """A tensor that tells ties apart and has the parameter's number of axes."""
    if parametrize.is_parametrized(module, name):
        stack = parametrization_list(module, name)
        if not stack.is_tensor:
            return cast(Tensor, stack.original1)
    return stored_tensor(module, name)


def _matching(
    argument: str, patterns: str | Sequence[str], candidates: Sequence[Selected]
) -> set[str]:
    matched: set[str] = set()
    for pattern in _as_patterns(patterns):
        names_matched = {
            candidate.name
            for candidate in candidates
            if fnmatch.fnmatchcase(candidate.name, pattern)
            or fnmatch.fnmatchcase(candidate.layer, pattern)
        }
        if not names_matched:
            names = listed((candidate.name for candidate in candidates), most=_MOST_NAMES)
            raise invalid(argument, pattern, f"a pattern that matches one of {names}")
        matched |= names_matched
    return matched


def _as_patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _join(module_name: str, parameter_name: str) -> str:
    return f"{module_name}.{parameter_name}" if module_name else parameter_name
