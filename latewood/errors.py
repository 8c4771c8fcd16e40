"""The errors that tell a user what was wrong with a request and what failed in the work."""

import difflib
from collections.abc import Collection, Iterable
from numbers import Real

__all__ = [
    "Diverged",
    "Interrupted",
    "LatewoodError",
    "RequestError",
    "WorkError",
    "invalid",
    "is_number",
    "listed",
    "nearest",
    "require_count",
    "require_seed",
]


class LatewoodError(Exception):
    """Base of all errors that Latewood raises on purpose."""


class RequestError(LatewoodError, ValueError):
    """The request was wrong; nothing was started. The command line exits with 2."""


class WorkError(LatewoodError, RuntimeError):
    """The request was right, the work failed. The command line exits with 1."""


class Diverged(WorkError):
    """The loss or the gradient of a training was not finite; the step was not taken."""


class Interrupted(LatewoodError):
    """The user stopped the work; what is on disk can be resumed. The command line exits with 1."""


def invalid(argument: str, value: object, expected: str) -> RequestError:
    """The error for an argument with a value that is not allowed, in the one form all rooms use.

    Args:
        argument: name (or key path) of the argument.
        value: what was given.
        expected: what would be accepted, in words.
    """
    return RequestError(f"{argument}: got {value!r}; expected {expected}")


def nearest(key: str, allowed: Collection[str]) -> str:
    """The clause that suggests the allowed key closest to ``key``; empty if none is close."""
    close = difflib.get_close_matches(key, list(allowed), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def listed(names: Iterable[str], *, most: int = 8) -> str:
    """Names for a message: the first of them, and how many more there are.

    Args:
        names: in the order to show them.
        most: how many are shown.
    """
    everything = list(names)
    shown = ", ".join(everything[:most])
    hidden = len(everything) - most
    return f"{shown} and {hidden} more" if hidden > 0 else shown


def require_count(name: str, value: int) -> None:
    """Refuses what is no whole number of 1 or more.

    Args:
        name: of the argument.
        value: what was given.

    Raises:
        RequestError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise invalid(name, value, "a whole number, 1 or more")


def is_number(value: object) -> bool:
    """Whether something is a plain number; true and false are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def require_seed(name: str, value: int) -> None:
    """Refuses what is no seed.

    Args:
        name: of the argument.
        value: what was given.

    Raises:
        RequestError: it is no whole number from 0 to :math:`2^{63} - 1`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise invalid(name, value, "a whole number from 0 to 2**63 - 1")
