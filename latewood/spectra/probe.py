"""A probe that follows the singular values of a model's weights while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from latewood.errors import invalid
from latewood.spectra.measures import RankKind, effective_rank, singular_values
from latewood.spectra.snapshots import Spectrum, snapshot_path, write_snapshot
from latewood.spectra.weights import current_matrix, spectral_parameters

__all__ = ["SpectralProbe"]


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
        self.parameters = spectral_parameters(model, include=include, exclude=exclude)
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
            matrix = current_matrix(selected.module, selected.parameter_name)
            values = singular_values(matrix).cpu()
            rank = effective_rank(values, kind=self.kind).mean()
            metrics[f"effective_rank/{selected.name}"] = float(rank)
            spectra.append(Spectrum(selected.name, tuple(matrix.shape), values.float().numpy()))
        if self.folder is not None:
            write_snapshot(snapshot_path(self.folder, step), step, spectra)
        return metrics
