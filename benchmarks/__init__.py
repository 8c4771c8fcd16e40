"""Benchmarks: each module prints one table of interleaved minima and ratios."""
