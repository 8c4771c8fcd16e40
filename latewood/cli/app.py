"""The application that commands register with, and what their options share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cyclopts import App, Parameter

from latewood import __version__
from latewood.errors import RequestError

__all__ = ["Flag", "Many", "app", "require_endings"]


Many = Parameter(consume_multiple=True, negative=(), show_default=False)
Flag = Parameter(negative=(), show_default=False)

app = App(
    name="latewood",
    help="Grows, thins, quantises and hardens neural networks, and shows why it works.",
    help_epilogue="--debug with any command shows the full traceback of an error.",
    version=__version__,
    # Markdown would load its parser for every help text.
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)


def require_endings(paths: Mapping[str, Path | None]) -> None:
    """Refuses files that could not be written in the end, before any work is done for them."""
    for ending, path in paths.items():
        if path is None:
            continue
        if path.suffix != ending:
            raise RequestError(f"--{ending[1:]}: got '{path}'; expected a name ending in {ending}")
        if not path.parent.is_dir():
            raise RequestError(
                f"--{ending[1:]}: got '{path}'; expected a file in a folder there is"
            )
