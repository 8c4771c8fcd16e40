"""Numbers and names in the words of a report."""

from __future__ import annotations

import math

__all__ = [
    "DASH",
    "MINUS",
    "SIGMA",
    "SPACE",
    "TIMES",
    "bytes_text",
    "count_text",
    "is_share",
    "label",
    "number",
    "percent",
    "plot_text",
    "metric_text",
]

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
SIGMA = "\N{GREEK SMALL LETTER SIGMA}"
TIMES = "\N{MULTIPLICATION SIGN}"
SPACE = "\N{NARROW NO-BREAK SPACE}"


def number(value: float, digits: int = 4) -> str:
    """A number with few significant digits and a typographer's minus."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else f"{MINUS}infinite"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", MINUS)
    text = f"{value:.{digits}g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        return f"{mantissa}{TIMES}10^{int(exponent)}".replace("-", MINUS)
    return text.replace("-", MINUS)


def percent(value: float, *, signed: bool = False) -> str:
    """A share in percent: one decimal, more for what is nearly nothing."""
    if not math.isfinite(value):
        return number(value)
    amount = 100 * value
    decimals = 1 if abs(amount) >= 1 or amount == 0 else 2 if abs(amount) >= 0.1 else 3
    sign = "+" if signed else ""
    return f"{amount:{sign}.{decimals}f}{SPACE}%".replace("-", MINUS)


def count_text(value: float) -> str:
    """A count as people say it: 12,345, 1.23 M, 4.56 G."""
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if abs(value) >= size:
            return f"{value / size:.3g}{SPACE}{unit}"
    return number(value)


def bytes_text(value: float) -> str:
    """A file's size in decimal units."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{SPACE}{unit}"
    return f"{number(value)}{SPACE}B"


def is_share(name: str) -> bool:
    """Whether a metric of this name is a share that is read in percent."""
    last = name.rsplit("/", 1)[-1]
    return any(word in last for word in ("accuracy", "error", "density"))


def metric_text(name: str, value: float) -> str:
    """A metric's value, in percent if its name says so."""
    return percent(value) if is_share(name) and 0 <= value <= 1 else number(value)


def label(name: str) -> str:
    """A metric's or method's name as running text."""
    return name.replace("_", " ")


def plot_text(text: str) -> str:
    """A text that Plotly shows as it is, rather than reading tags and entities in it."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
