"""The papers whose statements are checked, as the page of claims names them."""

from __future__ import annotations

from typing import Final

__all__ = [
    "CONTINUOUS_SPARSIFICATION",
    "GROWTH",
    "INPAINTING",
    "LEARNED_PRECISION",
    "SPECTRAL_DYNAMICS",
    "STRUCTURED_SPARSIFICATION",
]

CONTINUOUS_SPARSIFICATION: Final = (
    "Savarese, Silva, Maire: Winning the Lottery with Continuous Sparsification, 2020, "
    "arXiv:1912.04427"
)
GROWTH: Final = (
    "Yuan, Savarese, Maire: Accelerated Training via Incrementally Growing Neural Networks using "
    "Variance Transfer and Learning Rate Adaptation, 2023, arXiv:2306.12700"
)
INPAINTING: Final = (
    "Savarese, Kim, Maire, Shakhnarovich, McAllester: Information-Theoretic Segmentation by "
    "Inpainting Error Maximization, 2021, arXiv:2012.07287"
)
LEARNED_PRECISION: Final = (
    "Savarese, Yuan, Li, Maire: Not All Bits have Equal Value, NeurIPS 2022; SySMOL and SONIQ, "
    "arXiv:2311.14114"
)
SPECTRAL_DYNAMICS: Final = (
    "Yunis et al.: Approaching Deep Learning through the Spectral Dynamics of Weights, 2024, "
    "arXiv:2408.11804"
)
STRUCTURED_SPARSIFICATION: Final = (
    "Yuan, Savarese, Maire: Growing Efficient Deep Networks by Structured Continuous "
    "Sparsification, 2021, arXiv:2007.15353"
)
