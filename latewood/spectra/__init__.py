"""Singular values of weights during training, and what they say about how a network learns."""

from __future__ import annotations

from latewood.spectra.baselines import random_effective_rank
from latewood.spectra.measures import (
    RankKind,
    count90,
    effective_rank,
    gini,
    singular_values,
    stable_rank,
)
from latewood.spectra.probe import SpectralProbe
from latewood.spectra.snapshots import (
    Spectrum,
    read_snapshot,
    snapshot_path,
    snapshot_paths,
    write_snapshot,
)
from latewood.spectra.views import (
    as_matrix,
    conv_matrix,
    conv_transpose_matrix,
    parameter_matrix,
)

__all__ = [
    "RankKind",
    "SpectralProbe",
    "Spectrum",
    "as_matrix",
    "conv_matrix",
    "conv_transpose_matrix",
    "count90",
    "effective_rank",
    "gini",
    "parameter_matrix",
    "random_effective_rank",
    "read_snapshot",
    "singular_values",
    "snapshot_path",
    "snapshot_paths",
    "stable_rank",
    "write_snapshot",
]
