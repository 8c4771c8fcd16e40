"""The masks of every layer over the steps: what they keep, and what they have not decided."""

from __future__ import annotations

from collections.abc import Sequence

from latewood.report.layer_section import LayerValues, layer_section
from latewood.report.run_data import Run
from latewood.report.section import Section

__all__ = ["density"]


def density(runs: Sequence[Run]) -> Section | None:
    """Heat maps and curves for each run whose methods report densities; None if none does."""
    return layer_section(
        runs,
        LayerValues(key="density", name="Density", quantity="density", log=True),
        beside=[LayerValues(key="undecided", name="Undecided", quantity="undecided", log=True)],
        title="Masks by layer",
        lead="The share of each layer's weights that the method keeps and, for masks that are "
        "learned, the share still undecided between kept and pruned; from the first layer to the "
        "last.",
        missing="densities",
    )
