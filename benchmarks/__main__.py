"""Runs a benchmark by name: ``python -m benchmarks NAME [ARGUMENT ...]``; without a name, all."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import benchmarks

NAMES = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name[0] != "_")


def main(arguments: list[str]) -> int:
    """Runs one benchmark, or every one in turn.

    Args:
        arguments: the benchmark's name and its own arguments; empty for all.

    Returns:
        Exit code: 0, or 2 for an unknown name.
    """
    if arguments and arguments[0] not in NAMES:
        about = {name: importlib.import_module(f"benchmarks.{name}").__doc__ for name in NAMES}
        listing = "\n".join(
            f"  {name}: {(text or '').splitlines()[0]}" for name, text in about.items()
        )
        print(f"unknown benchmark {arguments[0]!r}; known are\n{listing}", file=sys.stderr)
        return 2
    for name in arguments[:1] or NAMES:
        importlib.import_module(f"benchmarks.{name}").main(arguments[1:])
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
