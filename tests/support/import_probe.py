"""What importing a module brings with it, beyond torch."""

from __future__ import annotations

import json
import subprocess
import sys

__all__ = ["imported_by"]

# A fork a module: each comes after torch and nothing else, and torch is imported once.
_CODE = """
import json, os, sys
import numpy, torch
before = set(sys.modules)
print(json.dumps(["torch", sorted(before)]), flush=True)
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            __import__(name)
            print(json.dumps([name, sorted(set(sys.modules) - before)]), flush=True)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{name} cannot be imported")
"""


def imported_by(*modules: str) -> dict[str, set[str]]:
    """Runs ``import`` of each module in a process that has imported numpy and torch.

    Args:
        modules: names.

    Returns:
        By module, the names of all that was imported with it; by "torch", those before.
    """
    command = [sys.executable, "-c", _CODE, *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name: set(added) for name, added in map(json.loads, done.stdout.splitlines())}
