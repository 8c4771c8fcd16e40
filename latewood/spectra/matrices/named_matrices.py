"""The matrices of a model, each under a name and with a way to read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from latewood.core.selection import Selected
from latewood.errors import RequestError, invalid
from latewood.spectra.matrices.attention import Heads, Projection, fused_heads, projection
from latewood.spectra.matrices.lora import adapters
from latewood.spectra.matrices.matrix_views import has_taps, tap_matrices
from latewood.spectra.matrices.weights import (
    current_matrix,
    current_weight,
    spectral_parameters,
    stored_dtype,
    unwrapped,
)

__all__ = ["Conv", "Lora", "MatrixView", "Split", "Views"]

Split = Literal["fused", "qkv", "heads"]
Conv = Literal["flatten", "taps"]
Lora = Literal["factors", "product", "merged"]

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


@dataclass(frozen=True)
class MatrixView:
    """One matrix, or batch of matrices, that a model's parameters make.

    Args:
        name: what tables call it: the parameter's name, with a part of it in brackets.
        dtype: of the parameter as it is stored, whose rounding is part of the spectrum.
        read: gives (out, in), or (batch, out, in); it may share memory with the parameter.
    """

    name: str
    dtype: torch.dtype
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Views:
    """Which matrices of a model to see, and how.

    Args:
        include: globs on layer or parameter names to cover.
        exclude: globs on layer or parameter names to leave out.
        split: fused projections of attention as one matrix ("fused"), as queries, keys and values
            ("qkv"), or each of those per head ("heads"); fused ones whose heads nobody knows stay
            whole.
        conv: a kernel as one matrix ("flatten"), or as one matrix per tap ("taps").
        lora: low-rank adapters as their two factors, as their "product" B A, or "merged" into the
            weight that they adapt.

    Raises:
        RequestError: an unknown choice.
    """

    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    split: Split = "fused"
    conv: Conv = "flatten"
    lora: Lora = "factors"

    def __post_init__(self) -> None:
        for name, kinds in (("split", Split), ("conv", Conv), ("lora", Lora)):
            allowed = get_args(kinds)
            if (given := getattr(self, name)) not in allowed:
                raise invalid(name, given, " or ".join(f'"{choice}"' for choice in allowed))

    def require_no_model(self) -> None:
        """Refuses what a checkpoint without its model cannot tell.

        Raises:
            RequestError: "heads" or "merged".
        """
        if self.split == "heads":
            raise invalid("split", self.split, '"fused" or "qkv" without the model')
        if self.lora == "merged":
            raise invalid("lora", self.lora, '"factors" or "product" without the model')

    def covers(self, name: str) -> bool:
        """Whether a tensor of this name is wanted; globs take its name, or that of its layer."""
        names = (name, name.rpartition(".")[0])
        included, excluded = (
            any(fnmatchcase(either, glob) for glob in globs for either in names)
            for globs in (self.include, self.exclude)
        )
        return included and not excluded

    def of(self, model: nn.Module) -> list[MatrixView]:
        """The matrices of a model as it is now.

        Args:
            model: any module, perhaps wrapped for several devices or compiled.

        Raises:
            RequestError: a glob that matches nothing, or no matrices at all.
        """
        bare = unwrapped(model)
        chosen = spectral_parameters(bare, include=self.include, exclude=self.exclude)
        return self._views(bare, chosen)

    def again(self, model: nn.Module) -> list[MatrixView]:
        """Like ``of`` for a model that has changed: what is gone is left out, without an error."""
        bare = unwrapped(model)
        try:
            parameters = spectral_parameters(bare)
        except RequestError:
            return []
        included, excluded = (
            {selected.name for selected in parameters if _matches(selected, globs)}
            for globs in (self.include, self.exclude)
        )
        chosen = [selected for selected in parameters if selected.name in included - excluded]
        return self._views(bare, chosen)

    def _views(self, model: nn.Module, chosen: Sequence[Selected]) -> list[MatrixView]:
        views: list[MatrixView] = []
        adapted = adapters(model) if self.lora != "factors" else {}
        factors = {factor for adapter in adapted.values() for factor in adapter.factors}
        for selected in chosen:
            if selected.name in factors:
                continue
            if (adapter := adapted.get(selected.name)) is not None:
                views += self._adapted(selected, adapter.product, adapter.names)
            else:
                views += self._plain(model, selected)
        return views

    def _adapted(
        self, selected: Selected, product: Callable[[str], Tensor], names: Sequence[str]
    ) -> Iterator[MatrixView]:
        name, dtype = _clean(selected.name), stored_dtype(selected.module, selected.parameter_name)
        base = partial(current_matrix, selected.module, selected.parameter_name)
        if self.lora == "merged":

            def merged() -> Tensor:
                return sum((product(adapter) for adapter in names), start=base())

            yield MatrixView(name, dtype, merged)
            return
        yield MatrixView(name, dtype, base)
        for adapter in names:
            yield MatrixView(f"{name}[lora {adapter}]", dtype, partial(product, adapter))

    def _plain(self, model: nn.Module, selected: Selected) -> Iterator[MatrixView]:
        module, parameter = selected.module, selected.parameter_name
        name, dtype = _clean(selected.name), stored_dtype(selected.module, selected.parameter_name)
        matrix = partial(current_matrix, module, parameter)
        if self.conv == "taps" and has_taps(module, parameter):

            def taps() -> Tensor:
                return tap_matrices(module, current_weight(module, parameter))

            yield MatrixView(name, dtype, taps)
            return
        heads = fused_heads(model, selected.name) if self.split != "fused" else None
        if heads is None or not heads.fit(matrix().shape[0]):
            yield MatrixView(name, dtype, matrix)
            return
        for part in get_args(Projection):
            read = partial(_part_of, matrix, heads, part, self.split == "heads")
            per_head = " heads" if self.split == "heads" else ""
            yield MatrixView(f"{name}[{part}{per_head}]", dtype, read)


def _part_of(
    matrix: Callable[[], Tensor], heads: Heads, part: Projection, per_head: bool
) -> Tensor:
    return projection(matrix(), heads, part, per_head=per_head)


def _matches(selected: Selected, globs: Sequence[str]) -> bool:
    patterns = (globs,) if isinstance(globs, str) else globs
    names = (selected.name, selected.layer)
    return any(fnmatchcase(name, glob) for glob in patterns for name in names)


def _clean(name: str) -> str:
    """A parameter's name without what wrappers around a layer put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
