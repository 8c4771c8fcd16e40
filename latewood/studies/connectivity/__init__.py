"""Networks of one recipe connected by a line: branches of a run, two ends, and their page."""
