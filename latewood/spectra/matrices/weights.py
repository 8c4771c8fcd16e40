"""The matrices that a model computes with, read without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latewood.core.modes import evaluated
from latewood.core.selection import Selected, select_parameters
from latewood.spectra.matrices.matrix_views import parameter_matrix

__all__ = [
    "current_matrix",
    "current_weight",
    "spectral_parameters",
    "stored_dtype",
    "unwrapped",
]

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def spectral_parameters(
    model: nn.Module, *, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> list[Selected]:
    """The matrices of a model: parameters of two or more dimensions but biases and norm gains.

    Args:
        model: any module.
        include: globs on layer or parameter names to cover.
        exclude: globs on layer or parameter names to leave out.

    Returns:
        The parameters in registration order; a tensor tied between layers once.

    Raises:
        RequestError: a glob that matches nothing.
    """
    chosen = select_parameters(model, types=(nn.Module,), include=include, exclude=exclude)
    return [selected for selected in chosen if not _is_gain_or_bias(selected)]


def _is_gain_or_bias(selected: Selected) -> bool:
    return isinstance(selected.module, _NORMS) or selected.parameter_name.startswith("bias")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``, DDP or DataParallel, whose names are its own."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        else:
            inner = getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def stored_dtype(module: nn.Module, name: str) -> torch.dtype:
    """The dtype in which a layer stores a parameter, before any transformation."""
    if not parametrize.is_parametrized(module, name):
        return module.get_parameter(name).dtype
    transformations = module.get_submodule(f"parametrizations.{name}")
    return next(p for n, p in transformations.named_parameters() if n.startswith("original")).dtype


def current_matrix(module: nn.Module, name: str) -> Tensor:
    """The out x in matrix of a layer's parameter as evaluation mode would use it.

    Args:
        module: the layer.
        name: the parameter's name in the layer.

    Returns:
        (out, in), or (groups, out, in) for a grouped convolution; it may share memory with the
        parameter.
    """
    return parameter_matrix(module, name, current_weight(module, name))


@torch.no_grad()
def current_weight(module: nn.Module, name: str) -> Tensor:
    """The value of a layer's parameter as evaluation mode would compute it: masked, quantised.

    Reading changes nothing: no buffer, no random generator, no cache of parametrizations. A
    weight sharded over processes is gathered, so that all of them must call this.

    Args:
        module: the layer.
        name: the parameter's name in the layer.

    Returns:
        The value, without a graph; it may share memory with the parameter.
    """
    if not parametrize.is_parametrized(module, name):
        return _gathered(module.get_parameter(name).detach())
    # Not through the attribute: inside parametrize.cached() that would leave a value without a
    # graph for the training step to find.
    transformations = module.get_submodule(f"parametrizations.{name}")
    # In training mode some transformations update buffers or draw random numbers.
    with evaluated(transformations), _random_state_kept(transformations):
        value: Tensor = transformations()
    return _gathered(value)


def _gathered(value: Tensor) -> Tensor:
    """The whole of a tensor that is sharded over processes, all of which must ask for it."""
    full = getattr(value, "full_tensor", None)
    if callable(full):
        whole: Tensor = full()
        return whole
    return value


@contextmanager
def _random_state_kept(module: nn.Module) -> Iterator[None]:
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=[d.index for d in devices]):
        yield
