"""The sections of a report, in the order in which it shows them."""

from __future__ import annotations

from latewood.report.section import SectionBuilder
from latewood.report.sections.alignment_section import alignment
from latewood.report.sections.budget_section import budget
from latewood.report.sections.comparison_section import comparison
from latewood.report.sections.density_section import density
from latewood.report.sections.effective_rank_section import effective_rank
from latewood.report.sections.faults_section import faults
from latewood.report.sections.growth_section import growth
from latewood.report.sections.kernel_section import tangent_kernel
from latewood.report.sections.learning_section import learning
from latewood.report.sections.precision_section import precision
from latewood.report.sections.recipe_section import recipe
from latewood.report.sections.schedules_section import schedules
from latewood.report.sections.singular_values_section import singular_values

__all__ = ["SECTIONS"]

SECTIONS: tuple[SectionBuilder, ...] = (
    comparison,
    learning,
    schedules,
    density,
    precision,
    budget,
    growth,
    faults,
    tangent_kernel,
    effective_rank,
    singular_values,
    alignment,
    recipe,
)
