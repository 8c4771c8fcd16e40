"""The errors that tell a user what was wrong with a request and what failed in the work."""

from collections.abc import Iterable

__all__ = ["Interrupted", "LatewoodError", "RequestError", "WorkError", "invalid", "listed"]


class LatewoodError(Exception):
    """Base of all errors that Latewood raises on purpose."""


class RequestError(LatewoodError, ValueError):
    """The request was wrong; nothing was started. The command line exits with 2."""


class WorkError(LatewoodError, RuntimeError):
    """The request was right, the work failed. The command line exits with 1."""


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
