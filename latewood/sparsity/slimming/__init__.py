"""Slim networks: channels that change nothing become a smaller ordinary module."""

from latewood.sparsity.slimming.files import load_slim, save_slim
from latewood.sparsity.slimming.removal import SlimRecipe, slim, slim_recipe

__all__ = ["SlimRecipe", "load_slim", "save_slim", "slim", "slim_recipe"]
