"""Recognises norms by what they compute: a padded norm of a padded input gives a padded output."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from latewood.core.coupling.attributes import Sizes
from latewood.core.coupling.label_layout import compact
from latewood.core.coupling.labels import Constancy, Labels, varies_along
from latewood.core.coupling.padded_values import SILENT, Padded, PaddedValues
from latewood.core.coupling.plan import Norm, NormKind
from latewood.core.coupling.traced_call import Call
from latewood.core.double_precision import in_float64

__all__ = ["MetNorm", "NormCalls", "padded_scale"]

_ADDED: Final = 3
"""Channels by which a norm is widened to see what it does."""
_LARGE: Final = 1e4
"""Size of inputs beside which every eps vanishes."""
_TOLERANCE: Final = 1e-7

Key = int | str
"""Place of an argument: its position or its name."""


@dataclass(frozen=True)
class MetNorm:
    """A norm that a run went through.

    Args:
        norm: what it is.
        labels: of the channels that it normalises.
        inputs: what padded channels of its inputs hold.
    """

    norm: Norm
    labels: Tensor
    inputs: tuple[Padded, ...]


@dataclass(frozen=True)
class _Seen:
    """A call of a module in which something was divided by a mean over channels."""

    name: str
    module: nn.Module
    labels: Tensor
    dims: Mapping[Key, int]
    positional: tuple[Any, ...]
    named: Mapping[str, Any]
    inputs: tuple[Padded, ...]


class NormCalls:
    """Notes, while a model runs, in which modules channels are normalised.

    Args:
        labels: those of the run.
        values: what padded channels hold.
    """

    def __init__(self, labels: Labels, values: PaddedValues) -> None:
        self._labels, self._values = labels, values
        self._seen: dict[str, _Seen] = {}
        self._claimed: set[int] = set()
        self._grouped: list[MetNorm] = []
        self._starts: list[int] = []

    def enter(self) -> None:
        """A module is called."""
        self._starts.append(len(self._labels.constancies))

    def leave(
        self, name: str, module: nn.Module, args: Sequence[Any], named: Mapping[str, Any], out: Any
    ) -> None:
        """A module has returned: the innermost one in which a norm is complete computes it."""
        start = self._starts.pop()
        fresh = [
            constancy
            for constancy in self._labels.constancies[start:]
            if constancy.kind == "normalised" and id(constancy) not in self._claimed
        ]
        if not fresh:
            return
        self._claimed.update(map(id, fresh))
        row = _row(self._labels, fresh[0])
        arguments: dict[Key, Any] = dict(enumerate(args))
        arguments.update(named)
        dims = {
            key: dim
            for key, value in arguments.items()
            if isinstance(value, Tensor) and (dim := _dim_of(self._labels, value, row)) is not None
        }
        inputs = tuple(self._values.of(arguments[key]) for key in dims)
        before = self._seen.get(name)
        if before is not None:
            inputs += before.inputs
        light = tuple(_shape_only(value) for value in args)
        light_named = {key: _shape_only(value) for key, value in named.items()}
        self._seen[name] = _Seen(name, module, row, dims, light, light_named, inputs)
        if isinstance(out, Tensor):
            self._values.put(out, SILENT)

    def group_norm(self, call: Call) -> None:
        """Notes a norm within groups of channels, which whole groups pass."""
        inputs, _, weight, bias = call.arguments("input", "num_groups", "weight", "bias")
        name = call.modules[-1][0] if call.modules else ""
        module = call.modules[-1][1] if call.modules else None
        norm = Norm(
            name,
            "group",
            None if weight is None else self._labels.name(weight),
            None if bias is None else self._labels.name(bias),
            "eps" if isinstance(getattr(module, "eps", None), float) else None,
        )
        labels = compact(self._labels.of(inputs).movedim(1, -1))
        self._grouped.append(MetNorm(norm, labels.flatten(), (self._values.of(inputs),)))

    def recognised(self) -> Iterator[MetNorm]:
        """What the modules turned out to compute; to be asked for when the run is over."""
        known: dict[Any, _Form | None] = {}
        for seen in self._seen.values():
            key = _likeness(seen)
            if key not in known:
                known[key] = _form(seen)
            form = known[key]
            norm = Norm(seen.name, "unknown")
            if form is not None:
                weight, bias = (
                    None if name is None else self._labels.name(seen.module._parameters[name])
                    for name in (form.weight, form.bias)
                )
                lost = (weight is None) != (form.weight is None)
                kind: NormKind = "unknown" if lost else form.kind
                norm = Norm(seen.name, kind, weight, bias, form.eps, form.offset, form.on_root)
            yield MetNorm(norm, seen.labels, seen.inputs)
        yield from self._grouped


def padded_scale(weight: Tensor, offset: float, ratio: float) -> Tensor:
    """The scale of old channels when a norm counts more of them: so much less is the deviation.

    Args:
        weight: the stored scale.
        offset: what the norm adds to it.
        ratio: number of channels before, over that after.
    """
    return (weight + offset) * math.sqrt(ratio) - offset


def _shape_only(value: Any) -> Any:
    return value.shape if isinstance(value, Tensor) else value


def _row(labels: Labels, constancy: Constancy) -> Tensor:
    """Channels along the dimension of a mean."""
    channels = labels.channels(compact(constancy.labels.movedim(constancy.dim, -1)))
    return channels.reshape(-1, channels.shape[-1])[0]


def _dim_of(labels: Labels, tensor: Tensor, row: Tensor) -> int | None:
    """The dimension along which a tensor has the channels of a row; None if there is none."""
    few = compact(labels.of(tensor))
    for dim in range(tensor.ndim):
        if tensor.shape[dim] == len(row) and varies_along(few, dim):
            moved = labels.channels(few).movedim(dim, -1).reshape(-1, len(row))
            if torch.equal(moved[0], row):
                return dim
    return None


@dataclass(frozen=True)
class _Form:
    """A hypothesis about a module: a norm of this kind with these parts."""

    kind: NormKind
    weight: str | None
    bias: str | None
    offset: float = 0.0
    eps: str | None = None
    on_root: bool = False


def _likeness(seen: _Seen) -> Any:
    """Equal for modules of which one trial is enough."""
    attributes = tuple(
        sorted(
            (name, value)
            for name, value in vars(seen.module).items()
            if type(value) in (int, float, str, tuple) and name != "training" and _hashable(value)
        )
    )
    shapes = tuple(
        (name, None if tensor is None else tuple(tensor.shape))
        for name, tensor in seen.module._parameters.items()
    )
    return (type(seen.module), repr(attributes), shapes, repr(seen.dims), len(seen.labels))


def _hashable(value: Any) -> bool:
    return not isinstance(value, tuple) or all(type(item) in (int, float, str) for item in value)


def _form(seen: _Seen) -> _Form | None:
    """The first hypothesis that holds; None if the module computes something else."""
    size = len(seen.labels)
    parameters = [name for name, tensor in seen.module._parameters.items() if tensor is not None]
    shaped = all(
        tensor.numel() == size for tensor in seen.module._parameters.values() if tensor is not None
    )
    inner = any(True for child in seen.module.children() for _ in child.parameters())
    if (
        not seen.dims
        or not shaped
        or len(parameters) > 2
        or inner
        or "forward" in vars(seen.module)
    ):
        return None
    if hasattr(seen.module, "parametrizations"):
        return None
    if any(
        isinstance(value, torch.Size) and key not in seen.dims
        for key, value in [*enumerate(seen.positional), *seen.named.items()]
    ):
        return None
    assignments: list[tuple[str | None, str | None]] = [(None, None)]
    if parameters:
        padded: list[str | None] = [*parameters, None]
        assignments = [
            (weight, bias)
            for weight, bias in itertools.permutations(padded, 2)
            if {weight, bias} >= set(parameters)
        ]
    for kind, (weight, bias), offset in itertools.product(
        ("layer", "rms"), assignments, (0.0, 1.0)
    ):
        form = _Form(kind, weight, bias, offset)  # type: ignore[arg-type]
        if _holds(seen, form, _LARGE):
            return _with_eps(seen, form)
    return None


def _with_eps(seen: _Seen, form: _Form) -> _Form:
    """The form with the attribute that is its eps, if there is one."""
    for name, value in vars(seen.module).items():
        if type(value) is not float or not value > 0:
            continue
        for on_root in (False, True):
            whole = replace(form, eps=name, on_root=on_root)
            if _holds(seen, whole, value if on_root else math.sqrt(value)):
                return whole
    return form


def _holds(seen: _Seen, form: _Form, size: float) -> bool:
    """Whether the module does as the form says, padded and not, on inputs of some size."""
    old = len(seen.labels)
    ratio = old / (old + _ADDED)
    generator = torch.Generator().manual_seed(0)
    narrow = copy.deepcopy(seen.module)
    drawn = {
        name: 0.5 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        for name, tensor in narrow._parameters.items()
        if tensor is not None
    }
    _set(narrow, drawn)
    wide = copy.deepcopy(narrow)
    _set(wide, {name: _enlarged(name, value, form, ratio) for name, value in drawn.items()})
    if form.eps is not None:
        eps = getattr(wide, form.eps)
        setattr(wide, form.eps, eps * (math.sqrt(ratio) if form.on_root else ratio))
    inputs = {
        key: size * torch.randn(_small(seen, key), generator=generator, dtype=torch.float64)
        for key in seen.dims
    }
    padded = {key: _padded(value, seen.dims[key], form) for key, value in inputs.items()}
    try:
        if isinstance(wide, (nn.LayerNorm, nn.RMSNorm)) and wide._parameters["weight"] is None:
            wide.normalized_shape = (*wide.normalized_shape[:-1], old + _ADDED)
        else:
            Sizes.of(wide).refresh()
        with torch.no_grad(), in_float64():
            before, after = _run(narrow, seen, inputs), _run(wide, seen, padded)
    except Exception:
        # Code that does not take another width, or that takes other inputs, is no norm of ours.
        return False
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    dim = next(iter(seen.dims.values()))
    if dim >= after.ndim or after.shape[dim] != old + _ADDED or before.shape[dim] != old:
        return False
    old_part, new = after.split([old, _ADDED], dim)
    if form.weight is None:
        old_part = old_part * math.sqrt(ratio)
    close = old_part.shape == before.shape and torch.allclose(
        old_part, before, _TOLERANCE, _TOLERANCE
    )
    return close and bool((new.abs() <= _TOLERANCE).all())


def _set(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        module._parameters[name] = nn.Parameter(value, requires_grad=False)


def _enlarged(name: str, value: Tensor, form: _Form, ratio: float) -> Tensor:
    """A scale or shift of more channels; new ones are shifted by nothing."""
    axis = max(range(value.ndim), key=lambda dim: value.shape[dim])
    shape = list(value.shape)
    shape[axis] = _ADDED
    if name == form.weight:
        added = torch.full(shape, 0.7, dtype=value.dtype)
        return torch.cat([padded_scale(value, form.offset, ratio), added], axis)
    return torch.cat([value, torch.zeros(shape, dtype=value.dtype)], axis)


def _small(seen: _Seen, key: Key) -> list[int]:
    """The shape of an input of at most two entries along every dimension but the channels'."""
    shape = seen.positional[key] if isinstance(key, int) else seen.named[key]
    return [size if dim == seen.dims[key] else min(size, 2) for dim, size in enumerate(shape)]


def _padded(value: Tensor, dim: int, form: _Form) -> Tensor:
    shape = [_ADDED if position == dim else -1 for position in range(value.ndim)]
    added = value.mean(dim, keepdim=True).expand(shape)
    if form.kind == "rms":
        added = torch.zeros_like(added)
    return torch.cat([value, added], dim)


def _run(module: nn.Module, seen: _Seen, inputs: Mapping[Key, Tensor]) -> Any:
    args = [inputs.get(key, value) for key, value in enumerate(seen.positional)]
    named = {key: inputs.get(key, value) for key, value in seen.named.items()}
    return module.forward(*args, **named)
