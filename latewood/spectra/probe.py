"""A probe that follows the singular values of a model's weights while it trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latewood.core.selection import Selected, select_parameters
from latewood.errors import invalid
from latewood.spectra.measures import RankKind, effective_rank, singular_values
from latewood.spectra.snapshots import Spectrum, snapshot_path, write_snapshot
from latewood.spectra.views import parameter_matrix

__all__ = ["SpectralProbe"]

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


class SpectralProbe:
    """Measures the normalised effective rank of every weight matrix, and keeps its singular values.

    Covers every parameter of two or more dimensions except biases and norm gains. A parametrized
    weight is seen as evaluation mode would compute it: masked, quantised. The linear algebra uses
    the caller's thread count.

    Args:
        model: the model to look at; it may be parametrized later.
        every: number of steps between two observations.
        include: globs on layer or parameter names to cover.
        exclude: globs on layer or parameter names to leave out.
        folder: where one Parquet file per observation goes; None keeps no singular values.
        kind: the definition of the effective rank, see ``effective_rank``.

    Raises:
        RequestError: ``every`` below 1, an unknown ``kind``, or a glob that matches nothing.

    Source: arXiv 2408.11804, section 3.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        folder: Path | None = None,
        kind: RankKind = "exp",
    ) -> None:
        if every < 1:
            raise invalid("every", every, "an integer of at least 1")
        if kind not in ("exp", "entropy"):
            raise invalid("kind", kind, '"exp" or "entropy"')
        chosen = select_parameters(model, types=(nn.Module,), include=include, exclude=exclude)
        self.parameters = [s for s in chosen if not _is_gain_or_bias(s)]
        self.every = every
        self.folder = None if folder is None else Path(folder)
        self.kind = kind

    def observe(self, step: int) -> dict[str, float]:
        """The effective ranks after ``step`` updates.

        Args:
            step: number of updates so far.

        Returns:
            {"effective_rank/<parameter name>": value}, the mean over groups for a grouped
            convolution; {} unless ``step`` is a multiple of ``every``.
        """
        if step % self.every:
            return {}
        spectra, metrics = [], {}
        for selected in self.parameters:
            weight = _value(selected.module, selected.parameter_name)
            matrix = parameter_matrix(selected.module, selected.parameter_name, weight)
            values = singular_values(matrix).cpu()
            rank = effective_rank(values, kind=self.kind).mean()
            metrics[f"effective_rank/{selected.name}"] = float(rank)
            spectra.append(Spectrum(selected.name, tuple(matrix.shape), values.float().numpy()))
        if self.folder is not None:
            write_snapshot(snapshot_path(self.folder, step), step, spectra)
        return metrics


def _is_gain_or_bias(selected: Selected) -> bool:
    return isinstance(selected.module, _NORMS) or selected.parameter_name.startswith("bias")


@torch.no_grad()
def _value(module: nn.Module, name: str) -> Tensor:
    if not parametrize.is_parametrized(module, name):
        return module.get_parameter(name).detach()
    # Not through the attribute: inside parametrize.cached() that would leave a value without a
    # graph for the training step to find.
    transformations = module.get_submodule(f"parametrizations.{name}")
    with _evaluation(transformations), _random_state_kept(transformations):
        value: Tensor = transformations()
    return value


@contextmanager
def _evaluation(module: nn.Module) -> Iterator[None]:
    # In training mode some transformations update buffers or draw random numbers.
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes:
            child.training = mode


@contextmanager
def _random_state_kept(module: nn.Module) -> Iterator[None]:
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=[d.index for d in devices]):
        yield
