"""Checks of the optimizers' options; a refusal names the option, its value and what is allowed."""

from __future__ import annotations

from numbers import Real

from torch import Tensor

from latewood.errors import invalid

__all__ = ["at_least", "fraction", "positive", "switch", "two_fractions"]


def at_least(name: str, value: object, bound: float) -> float:
    """The value as a float; raises unless it is a finite number not below ``bound``."""
    expected = f"a finite number of at least {bound:g}"
    real = _real(name, value, expected)
    if not bound <= real < float("inf"):
        raise invalid(name, value, expected)
    return real


def positive(name: str, value: object) -> float:
    """The value as a float; raises unless it is a finite number above 0."""
    expected = "a finite number above 0"
    real = _real(name, value, expected)
    if not 0.0 < real < float("inf"):
        raise invalid(name, value, expected)
    return real


def fraction(name: str, value: object) -> float:
    """The value as a float; raises unless it is at least 0 and below 1."""
    expected = "at least 0 and below 1"
    real = _real(name, value, expected)
    if not 0.0 <= real < 1.0:
        raise invalid(name, value, expected)
    return real


def two_fractions(name: str, value: object) -> tuple[float, float]:
    """Both values as floats; raises unless there are two, each at least 0 and below 1."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise invalid(name, value, "two numbers, each at least 0 and below 1")
    return fraction(name, value[0]), fraction(name, value[1])


def switch(name: str, value: object, *, optional: bool = False) -> None:
    """Raises unless the value is True or False, or None where that means "as you like"."""
    if not isinstance(value, bool) and not (optional and value is None):
        raise invalid(name, value, "True, False or None" if optional else "True or False")


def _real(name: str, value: object, expected: str) -> float:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise invalid(name, value, expected)
    return float(value)
