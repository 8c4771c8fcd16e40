"""Slim networks: channels that change nothing become a smaller ordinary module."""

from latewood.sparsity.slimming.blocks import Skip, Zeros
from latewood.sparsity.slimming.csr import CsrLinear
from latewood.sparsity.slimming.edits import SlimRecipe, slim_recipe
from latewood.sparsity.slimming.exporting import ExportReport, LayerChoice, Mode, export
from latewood.sparsity.slimming.files import load_slim, save_slim
from latewood.sparsity.slimming.heads import HeadAttention
from latewood.sparsity.slimming.linear import LinearChoice, export_linear
from latewood.sparsity.slimming.removal import slim
from latewood.sparsity.slimming.residual import Scatter

__all__ = [
    "CsrLinear",
    "ExportReport",
    "HeadAttention",
    "LayerChoice",
    "LinearChoice",
    "Mode",
    "Scatter",
    "Skip",
    "SlimRecipe",
    "Zeros",
    "export",
    "export_linear",
    "load_slim",
    "save_slim",
    "slim",
    "slim_recipe",
]
