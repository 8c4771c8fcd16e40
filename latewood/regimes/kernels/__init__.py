"""Tangent kernels of any model: per-example gradients of parameters, contracted in blocks."""
