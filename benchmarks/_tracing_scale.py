"""Seconds and memory of tracing, and of preparing structured sparsification, as models grow."""
from __future__ import annotations
def main(arguments: list[str]) -> None:
    raise SystemExit("x")
