"""A probe that follows the singular values of a model's weights while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from latewood.core.selection import Selected
from latewood.errors import invalid
from latewood.spectra.cadence import Cadence, Every
from latewood.spectra.factors import factors
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
        every: number of steps between two observations; "epoch" for its ends; "auto" for as often
            as ``budget`` allows, which depends on the machine's speed.
        include: globs on layer or parameter names to cover.
        exclude: globs on layer or parameter names to leave out.
        folder: where one Parquet file per observation goes; None keeps no singular values.
        kind: the definition of the effective rank, see ``effective_rank``.
        vectors: pairs of singular vectors that each file keeps per matrix, from which
            ``agreement_over_time`` works without checkpoints; 0 keeps none.
        half: whether they are kept in half precision.
        steps_per_epoch: length of an epoch, for "epoch".
        total_steps: last step of the training, which "auto" then always observes.
        budget: share of the wall-clock time that "auto" may take. The first and the last
            observation are made in any case.

    Raises:
        RequestError: ``every``, ``kind``, ``vectors`` or ``budget`` not allowed, "epoch" without
            its length, or a glob that matches nothing.

    Source: arXiv 2408.11804, section 3.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: Every,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        folder: Path | None = None,
        kind: RankKind = "exp",
        vectors: int = 16,
        half: bool = True,
        steps_per_epoch: int | None = None,
        total_steps: int | None = None,
        budget: float = 0.03,
    ) -> None:
        if kind not in ("exp", "entropy"):
            raise invalid("kind", kind, '"exp" or "entropy"')
        if vectors < 0:
            raise invalid("vectors", vectors, "an integer of at least 0")
        self.parameters = spectral_parameters(model, include=include, exclude=exclude)
        self.every = every
        self.folder = None if folder is None else Path(folder)
        self.kind = kind
        self.vectors = vectors
        self.half = half
        self._cadence = Cadence(
            every, steps_per_epoch=steps_per_epoch, total_steps=total_steps, budget=budget
        )

    @property
    def overhead(self) -> float:
        """Share of the wall-clock time since the first call of ``observe`` that it has taken."""
        return self._cadence.overhead

    def observe(self, step: int) -> dict[str, float]:
        """The effective ranks after ``step`` updates.

        Args:
            step: number of updates so far.

        Returns:
            {"effective_rank/<parameter name>": value}, the mean over groups for a grouped
            convolution; {} where no observation is due.
        """
        if not self._cadence.due(step):
            return {}
        self._wait_for_devices()
        with self._cadence.measured():
            spectra = [self._spectrum(selected) for selected in self.parameters]
            if self.folder is not None:
                write_snapshot(snapshot_path(self.folder, step), step, spectra)
            return {f"effective_rank/{each.name}": self._rank(each) for each in spectra}

    def _spectrum(self, selected: Selected) -> Spectrum:
        matrix = current_matrix(selected.module, selected.parameter_name)
        shape = tuple(matrix.shape)
        if self.folder is None or not self.vectors:
            return Spectrum(selected.name, shape, singular_values(matrix).cpu().float().numpy())
        found = factors(matrix, self.vectors)
        stored = torch.float16 if self.half else torch.float32

        def kept(tensor: Tensor) -> Tensor:
            return tensor.to("cpu", stored)

        return Spectrum(
            selected.name,
            shape,
            found.values.cpu().float().numpy(),
            left=kept(found.left).numpy(),
            right=kept(found.right).numpy(),
        )

    def _rank(self, spectrum: Spectrum) -> float:
        values = torch.from_numpy(spectrum.values)
        return float(effective_rank(values, kind=self.kind).mean())

    def _wait_for_devices(self) -> None:
        # The time of the training step still under way is not the probe's.
        for device in {each.stored.device for each in self.parameters}:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
