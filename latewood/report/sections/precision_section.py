"""The bits of every layer over the steps, and what their average was asked to be."""

from __future__ import annotations

from collections.abc import Sequence

from latewood.precision.number_format import MOST_BITS
from latewood.report.layer_section import LayerValues, layer_section
from latewood.report.run_data import Run
from latewood.report.section import Section

__all__ = ["precision"]


def precision(runs: Sequence[Run]) -> Section | None:
    """Heat maps and curves for each run whose methods report bits; None if none does."""
    return layer_section(
        runs,
        LayerValues(key="bits", name="Bits", quantity=f"bits / {MOST_BITS}", unit=MOST_BITS),
        title="Bits by layer",
        lead="The average bits of each layer's weights: as learned while there is noise, and as "
        "fixed once they have snapped; from the first layer to the last.",
        missing="bits",
    )
