"""Kernel or rich: what a start's scale does to training, exactly and for any model."""

from __future__ import annotations

from latewood.regimes.diagonal_flow import (
    Trained,
    diagonal_kernel,
    gradient_descent,
    gradient_flow,
)
from latewood.regimes.factored_completion import Completion, matrix_completion
from latewood.regimes.implicit_bias import Limit, biased_limit, limit
from latewood.regimes.interpolation import minimum_l1, minimum_l2
from latewood.regimes.kernel_change import KernelDistance, kernel_distance, target_alignment
from latewood.regimes.kernel_probe import KernelProbe
from latewood.regimes.kernels.example_gradients import ParameterMethod
from latewood.regimes.kernels.tangent_kernel import (
    layer_kernels,
    tangent_kernel,
    tangent_methods,
)
from latewood.regimes.potentials import potential, potential_gradient
from latewood.regimes.regime_placement import LayerChange, Regime, Standing, regime, verdict
from latewood.regimes.scale_bounds import escape_time, kernel_scale, rich_scale
from latewood.regimes.tangent_models import Linearized, Scaled, linearize
from latewood.regimes.weight_distance import explicit_regularization
from latewood.regimes.width import effective_scale, wide_start

__all__ = [
    "Completion",
    "KernelDistance",
    "KernelProbe",
    "LayerChange",
    "Limit",
    "Linearized",
    "ParameterMethod",
    "Regime",
    "Scaled",
    "Standing",
    "Trained",
    "biased_limit",
    "diagonal_kernel",
    "effective_scale",
    "escape_time",
    "explicit_regularization",
    "gradient_descent",
    "gradient_flow",
    "kernel_distance",
    "kernel_scale",
    "layer_kernels",
    "limit",
    "linearize",
    "matrix_completion",
    "minimum_l1",
    "minimum_l2",
    "potential",
    "potential_gradient",
    "regime",
    "rich_scale",
    "tangent_kernel",
    "tangent_methods",
    "target_alignment",
    "verdict",
    "wide_start",
]
