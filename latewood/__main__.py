"""``python -m latewood``: the command line as launchers of several processes call it."""

from __future__ import annotations

import sys
from pathlib import Path

# ``-m`` puts the current folder first, where a folder called like a package would take its place.
if sys.path and sys.path[0] in ("", str(Path.cwd())):
    sys.path.append(sys.path.pop(0))

from latewood.cli import main

if __name__ == "__main__":
    main()
