"""Smaller modules of ordinary layers: what changes nothing is removed, and the rest runs faster.

``slim`` removes channels, heads and blocks; ``export`` chooses the form that runs fastest, and
``export_linear`` that of linear layers alone. Both compare the result with the model. ``save_slim``
and ``load_slim`` write a result to files and make it again; ``slim_recipe`` says what was done. The
modules that a result may hold in place of the model's own are here too.
"""

from latewood.slim.compressed_linear import LinearChoice, export_linear
from latewood.slim.csr_linear import CsrLinear
from latewood.slim.edits import SlimRecipe, slim_recipe
from latewood.slim.head_attention import HeadAttention
from latewood.slim.idle_blocks import Skip, Zeros
from latewood.slim.model_export import ExportForm, ExportReport, LayerChoice, export
from latewood.slim.removal import Residual, slim
from latewood.slim.residual_branches import Scatter
from latewood.slim.saved_files import load_slim, save_slim

__all__ = [
    "CsrLinear",
    "ExportForm",
    "ExportReport",
    "HeadAttention",
    "LayerChoice",
    "LinearChoice",
    "Residual",
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
