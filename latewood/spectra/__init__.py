"""Singular values of weights during training, and what they say about how a network learns."""

from __future__ import annotations

from latewood.spectra.agreement import Agreement, agreement, subspace_agreement
from latewood.spectra.alignment import (
    Alignment,
    alignment,
    attention_projections,
    gate_directions,
    query_key_alignment,
    tap_directions,
    value_output_alignment,
)
from latewood.spectra.analyze import analyze
from latewood.spectra.baselines import random_agreement, random_cosine, random_effective_rank
from latewood.spectra.connectivity.branched_states import branch
from latewood.spectra.connectivity.channel_matching import Matching, match_channels, matched
from latewood.spectra.connectivity.linear_path import (
    Connection,
    barrier,
    barrier_interior,
    connect,
    endpoint_agreement,
    endpoint_factors,
    interpolate,
)
from latewood.spectra.connectivity.symmetries import ChannelSymmetries
from latewood.spectra.interventions import (
    perturb_,
    perturbed,
    truncate_,
    truncated,
    truncation_scores,
    weight_matrices,
)
from latewood.spectra.layer_pairs import LayerPair
from latewood.spectra.matrices.convolution_operator import convolution_values
from latewood.spectra.matrices.matrix_views import (
    as_matrix,
    conv_matrix,
    conv_transpose_matrix,
    matrix_parameter,
    parameter_matrix,
)
from latewood.spectra.matrices.named_matrices import MatrixView, Views
from latewood.spectra.measures import (
    RankKind,
    count90,
    effective_rank,
    gini,
    singular_values,
    stable_rank,
)
from latewood.spectra.model_alignment import model_alignment
from latewood.spectra.output_heads import output_heads
from latewood.spectra.pair_inference import infer_pairs
from latewood.spectra.power_law import PowerLaw, power_law
from latewood.spectra.solvers.leading_vectors import Factors, factors
from latewood.spectra.tracking.agreement_over_time import AgreementOverTime, agreement_over_time
from latewood.spectra.tracking.observation_schedule import ObservationSettings
from latewood.spectra.tracking.probe import SpectralProbe
from latewood.spectra.tracking.snapshot_measurement import SnapshotSettings
from latewood.spectra.tracking.snapshots import (
    read_alignments,
    read_snapshot,
    snapshot_path,
    snapshot_paths,
    write_snapshot,
)
from latewood.spectra.tracking.spectrum import PairAlignment, Spectrum
from latewood.spectra.tracking.worker import WorkerSettings
from latewood.spectra.weight_masking import (
    apply_masks_,
    magnitude_masks,
    random_masks,
    reinitialize_,
)

__all__ = [
    "Agreement",
    "AgreementOverTime",
    "Alignment",
    "ChannelSymmetries",
    "Connection",
    "Factors",
    "LayerPair",
    "MatrixView",
    "Matching",
    "ObservationSettings",
    "PairAlignment",
    "PowerLaw",
    "RankKind",
    "SnapshotSettings",
    "SpectralProbe",
    "Spectrum",
    "Views",
    "WorkerSettings",
    "agreement",
    "agreement_over_time",
    "alignment",
    "analyze",
    "apply_masks_",
    "as_matrix",
    "attention_projections",
    "barrier",
    "barrier_interior",
    "branch",
    "connect",
    "conv_matrix",
    "conv_transpose_matrix",
    "convolution_values",
    "count90",
    "effective_rank",
    "endpoint_agreement",
    "endpoint_factors",
    "factors",
    "gate_directions",
    "gini",
    "infer_pairs",
    "interpolate",
    "magnitude_masks",
    "match_channels",
    "matched",
    "matrix_parameter",
    "model_alignment",
    "output_heads",
    "parameter_matrix",
    "perturb_",
    "perturbed",
    "power_law",
    "query_key_alignment",
    "random_agreement",
    "random_cosine",
    "random_effective_rank",
    "random_masks",
    "read_alignments",
    "read_snapshot",
    "reinitialize_",
    "singular_values",
    "snapshot_path",
    "snapshot_paths",
    "stable_rank",
    "subspace_agreement",
    "tap_directions",
    "truncate_",
    "truncated",
    "truncation_scores",
    "value_output_alignment",
    "weight_matrices",
    "write_snapshot",
]
