"""Slim networks: channels that change nothing become a smaller ordinary module."""

from latewood.sparsity.slimming.files import load_slim, save_slim
from latewood.sparsity.slimming.linear import CsrLinear, LinearChoice, export_linear
from latewood.sparsity.slimming.removal import SlimRecipe, slim, slim_recipe

__all__ = [
    "CsrLinear",
    "LinearChoice",
    "SlimRecipe",
    "export_linear",
    "load_slim",
    "save_slim",
    "slim",
    "slim_recipe",
]
