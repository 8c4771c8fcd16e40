"""The application that commands register with, and what their options share."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App, Parameter

from latewood import __version__
from latewood.errors import invalid

__all__ = ["Flag", "Many", "Trust", "app", "require_table"]


Many = Parameter(consume_multiple=True, negative=(), show_default=False)
Flag = Parameter(negative=(), show_default=False)
Trust = Parameter(
    negative=(),
    show_default=False,
    help="Import and call modules that the recipe of a run names: only for runs whose maker you "
    "trust. Without it, opening a run executes nothing of its maker.",
)

app = App(
    name="latewood",
    help="Grows, thins, quantises and hardens neural networks, and shows why it works.",
    help_epilogue="--debug with any command shows the full traceback of an error.",
    version=__version__,
    # Markdown would load its parser for every help text.
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)


def require_table(path: Path | None) -> None:
    """Refuses a table that could not be written in the end, before any work is done for it."""
    if path is None:
        return
    from latewood.terminal.tables import FORMATS

    if path.suffix not in FORMATS:
        raise invalid("--table", str(path), f"a name that ends in one of {', '.join(FORMATS)}")
    if not path.parent.is_dir() or path.is_dir():
        raise invalid("--table", str(path), "a file in a folder there is")
