"""The sections of a report, in the order in which it shows them."""

from __future__ import annotations

from latewood.training.report.section import SectionBuilder
from latewood.training.report.sections.alignment import alignment
from latewood.training.report.sections.budget import budget
from latewood.training.report.sections.comparison import comparison
from latewood.training.report.sections.density import density
from latewood.training.report.sections.effective_rank import effective_rank
from latewood.training.report.sections.learning import learning
from latewood.training.report.sections.recipe import recipe
from latewood.training.report.sections.schedules import schedules
from latewood.training.report.sections.singular_values import singular_values

__all__ = ["SECTIONS"]

SECTIONS: tuple[SectionBuilder, ...] = (
    comparison,
    learning,
    schedules,
    density,
    budget,
    effective_rank,
    singular_values,
    alignment,
    recipe,
)
