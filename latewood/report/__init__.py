"""Reports: a self-contained HTML page about one run, or a comparison of several.

A later method adds a section with one function in ``sections`` that takes the runs and returns a
``Section`` or None, and its name in the list there.
"""

from __future__ import annotations

from latewood.report.report import write_report
from latewood.report.run_data import Run
from latewood.report.section import Figure, Group, Section

__all__ = ["Figure", "Group", "Run", "Section", "write_report"]
