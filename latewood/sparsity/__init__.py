"""Learned sparsity: which weights a network can do without, found while it trains."""

from latewood.core.masks import keep_largest, shuffled_masks
from latewood.sparsity.continuous import ContinuousSparsification
from latewood.sparsity.fixed import FixedMasks
from latewood.sparsity.places import maskable
from latewood.sparsity.pruning import (
    GradualMagnitudePruning,
    prune_smallest,
    random_masks,
)
from latewood.sparsity.readings import Readings, readings
from latewood.sparsity.slimming import (
    CsrLinear,
    ExportReport,
    HeadAttention,
    LayerChoice,
    LinearChoice,
    Scatter,
    SlimRecipe,
    export,
    export_linear,
    load_slim,
    save_slim,
    slim,
    slim_recipe,
)
from latewood.sparsity.structured import StructuredSparsification
from latewood.sparsity.tickets import Ticket, restore, snapshot

__all__ = [
    "ContinuousSparsification",
    "CsrLinear",
    "ExportReport",
    "FixedMasks",
    "GradualMagnitudePruning",
    "HeadAttention",
    "LayerChoice",
    "LinearChoice",
    "Readings",
    "Scatter",
    "SlimRecipe",
    "StructuredSparsification",
    "Ticket",
    "export",
    "export_linear",
    "keep_largest",
    "load_slim",
    "maskable",
    "prune_smallest",
    "random_masks",
    "readings",
    "restore",
    "save_slim",
    "shuffled_masks",
    "slim",
    "slim_recipe",
    "snapshot",
]
