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
    "EMBEDDING",
    "WEIGHT_LAYERS",
    "Selected",
    "is_embedding",
    "is_hugging_face_conv1d",
    "matrix_parameters",
    "select_parameters",
    "shared_with_embeddings",
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
"""Layer types of torch, in which every matrix that is called a weight is one."""

EMBEDDING: Final = "an embedding"
"""Why a table that is looked up is no weight matrix."""

_NORMS: Final = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_EMBEDDINGS: Final = (nn.Embedding, nn.EmbeddingBag)
_LISTS: Final = (nn.ParameterList, nn.ParameterDict)
_EMBEDDING_CLASSES: Final = ("embed", "position")
_EMBEDDING_PARTS: Final = ("emb", "position", "token", "table")
"""How a part of a parameter's name begins that is looked up or added, and multiplies nothing."""
_WEIGHTS: Final = ("weight", "proj")
"""Words in the names of matrices, whatever else their module holds."""

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
    types: Sequence[type[nn.Module]] | None = None,
    include: str | Sequence[str] = ("*",),
    exclude: str | Sequence[str] = (),
) -> list[Selected]:
    """Lists the weight matrices of a model: at least two axes, no biases, norms or embeddings.

    Layers of other libraries count like those of torch: Hugging Face's ``Conv1D``, routers, stacks
    of experts (``matrix_parameters`` has the rule). A tensor tied between layers is listed once,
    under the first layer that owns it; transforming it there leaves its other uses as they are.

    Args:
        model: any module, with or without transformations attached.
        types: layer types to look at instead, whatever the rule says.
        include: glob patterns on the layer name or the full parameter name; one match is enough.
        exclude: patterns of the same form; a match removes the parameter.

    Returns:
        The selected parameters in registration order.

    Raises:
        RequestError: a pattern matches nothing, nothing is left, or a lazy layer has no shape yet.
    """
    if types is None:
        candidates = [weight for weight, reason in matrix_parameters(model) if reason is None]
    else:
        candidates = list(_candidates(model, tuple(types)))
    if not candidates:
        wanted = ", ".join(kind.__name__ for kind in types or WEIGHT_LAYERS)
        others = "" if types else ", or others that hold a matrix"
        allowed = f"a model with weight layers ({wanted}{others})"
        raise invalid("model", type(model).__name__, allowed)
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


def matrix_parameters(model: nn.Module) -> Iterator[tuple[Selected, str | None]]:
    """Every parameter of at least two axes but biases, once, and why it is no weight matrix.

    In the layers of torch (``WEIGHT_LAYERS``) what is called a weight is one. In a module of any
    other class a floating-point parameter is one if two of its axes are longer than 1, unless the
    module is a norm or an embedding by its class, the name says a bias or something looked up, or
    the module has layers of its own too: what it holds beside them, such as the decays of a
    state-space model, is one only if it is called a weight or a projection or has a third axis.

    Args:
        model: any module, with or without transformations attached.

    Yields:
        The parameter and the reason in words, None for a weight matrix.

    Raises:
        RequestError: a lazy layer has no shape yet.
    """
    refused: dict[int, tuple[Selected, str]] = {}
    weights: set[int] = set()
    for candidate in _candidates(model, (nn.Module,), once=False):
        tensor = _identity(candidate.module, candidate.parameter_name)
        reason = _no_weight(candidate.module, candidate.parameter_name, tensor)
        if reason is not None:
            refused.setdefault(id(tensor), (candidate, reason))
        elif id(tensor) not in weights:
            weights.add(id(tensor))
            yield candidate, None
    # A tensor is a weight if any of its uses makes it one, so these wait for the last layer.
    yield from (pair for tensor_id, pair in refused.items() if tensor_id not in weights)


def shared_with_embeddings(model: nn.Module) -> set[str]:
    """Names of the weight matrices that an embedding of the model looks up too.

    Args:
        model: any module; a head that is tied to its embedding is the common case.
    """
    looked_up = {
        id(_identity(candidate.module, candidate.parameter_name))
        for candidate in _candidates(model, (nn.Module,), once=False)
        if is_embedding(candidate.module)
    }
    return {
        weight.name
        for weight, reason in matrix_parameters(model)
        if reason is None and id(_identity(weight.module, weight.parameter_name)) in looked_up
    }


def is_hugging_face_conv1d(module: nn.Module) -> bool:
    """Whether a layer is Hugging Face's linear layer that stores (in, out)."""
    # By name, so that transformers need not be installed; a parametrized module is a subclass.
    return hasattr(module, "nf") and any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)


def _no_weight(module: nn.Module, name: str, tensor: Tensor) -> str | None:
    if isinstance(module, WEIGHT_LAYERS):
        return None
    parts = name.lower().split("_")
    if is_embedding(module) or any(part.startswith(_EMBEDDING_PARTS) for part in parts):
        return EMBEDDING
    if isinstance(module, _NORMS) or _is_called(module, "norm"):
        return "of a norm"
    if not tensor.is_floating_point():
        return f"of {tensor.dtype}"
    long_axes = sum(size > 1 for size in tensor.shape)
    if long_axes < 2:
        return "a vector"
    if long_axes > 2 or any(word in name.lower() for word in _WEIGHTS):
        return None
    if isinstance(module, _LISTS):
        return "in a list, which does not say what it is for"
    if _has_layers(module):
        return "beside layers in one module, which does not say what it is for"
    return None


def is_embedding(module: nn.Module) -> bool:
    """Whether the matrix of a module is looked up, not multiplied with.

    Args:
        module: any module.
    """
    if isinstance(module, WEIGHT_LAYERS):
        return False
    named = any(_is_called(module, word) for word in _EMBEDDING_CLASSES)
    return named or isinstance(module, _EMBEDDINGS)


def _is_called(module: nn.Module, word: str) -> bool:
    # A module under a transformation is of a subclass, and so may be a library's variant. What
    # turns vectors back into words multiplies with a weight.
    names = [kind.__name__.lower().replace("unembed", "") for kind in type(module).__mro__]
    return any(word in name for name in names)


def _has_layers(module: nn.Module) -> bool:
    return any(
        next(child.parameters(), None) is not None
        for name, child in module.named_children()
        if name != "parametrizations"
    )


def _candidates(
    model: nn.Module, types: tuple[type[nn.Module], ...], *, once: bool = True
) -> Iterator[Selected]:
    """The parameters of at least two axes in layers of some types, tied ones once if asked for."""
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        # Layers inside a transformation belong to it, not to the model.
        if not isinstance(module, types) or "parametrizations" in module_name.split("."):
            continue
        for name in _matrix_names(module):
            tensor = _identity(module, name)
            if isinstance(tensor, UninitializedParameter):
                if isinstance(module, _NORMS):
                    continue
                raise RequestError(
                    f"{_join(module_name, name)}: a lazy layer without a shape; "
                    "run the model once on an example before selecting"
                )
            if tensor.ndim >= 2 and not (once and id(tensor) in seen):
                seen.add(id(tensor))
                yield Selected(module_name, module, name)


def _matrix_names(module: nn.Module) -> list[str]:
    names = [name for name, tensor in module._parameters.items() if tensor is not None]
    if parametrize.is_parametrized(module):
        names += list(cast(nn.ModuleDict, module.parametrizations))
    # Attaching a transformation moves a name to the end, so the order is restored from the layer.
    order = getattr(module, "_flat_weights_names", _ORDER)
    known = {name: position for position, name in enumerate(order)}
    return sorted(
        (name for name in names if _is_matrix_name(module, name)),
        key=lambda name: (known.get(name, len(known)), name),
    )


def _is_matrix_name(module: nn.Module, name: str) -> bool:
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
