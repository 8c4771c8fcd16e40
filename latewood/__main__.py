"""``python -m latewood``: the command line as launchers of several processes call it."""

from __future__ import annotations

from latewood.cli import main

if __name__ == "__main__":
    main()
