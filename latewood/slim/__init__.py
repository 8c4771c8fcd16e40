"""Slim networks: channels that change nothing become a smaller ordinary module."""

from latewood.slim.compressed_linear import LinearChoice, export_linear
from latewood.slim.csr_linear import CsrLinear
from latewood.slim.edits import SlimRecipe, slim_recipe
from latewood.slim.fastest_form import ExportReport, LayerChoice, Mode, export
from latewood.slim.head_attention import HeadAttention
from latewood.slim.idle_blocks import Skip, Zeros
from latewood.slim.removal import slim
from latewood.slim.residual_branches import Scatter
from latewood.slim.saved_files import load_slim, save_slim

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
