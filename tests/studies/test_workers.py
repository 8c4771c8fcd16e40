"""Calls in processes of their own: one that dies takes no other with it, and runs once more."""

from __future__ import annotations

import os
import signal
import time
import warnings
from pathlib import Path

import pytest

from latewood.errors import Interrupted, WorkError
from latewood.studies.workers import completed


def square(number: int) -> int:
    return number * number


def dies_at_first(marker: Path) -> str:
    """Is killed the first time that it is called with a marker."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def dies_or_waits(word: str) -> str:
    if word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)
    return word


def own_number() -> int:
    return os.getpid()


def raises(error: type[Exception]) -> None:
    raise error("as it is")


def test_every_call_is_made_once_whatever_the_order() -> None:
    calls = [(number,) for number in range(7)]
    assert dict(completed(square, calls, jobs=2)) == {n: n * n for n in range(7)}
    assert list(completed(square, [], jobs=2)) == []


def test_what_dies_once_is_called_again(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"a process died \(SIGKILL.*too little memory\); once"):
        assert dict(completed(dies_at_first, [(tmp_path / "m",)], jobs=1)) == {0: "survived"}


def test_what_dies_again_is_recorded_and_takes_nothing_with_it() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        calls = [("first",), ("die",), ("second",), ("third",)]
        done = dict(completed(dies_or_waits, calls, jobs=2))
    assert [done[n] for n in (0, 2, 3)] == ["first", "second", "third"]
    assert isinstance(done[1], WorkError)
    assert str(done[1]).startswith("its process died twice (SIGKILL")
    assert len(caught) == 1, "the others were made once"


def test_an_error_of_the_call_is_no_death() -> None:
    with pytest.raises(Interrupted, match="as it is"):
        list(completed(raises, [(Interrupted,)], jobs=1))
    with pytest.raises(WorkError, match="ZeroDivisionError: as it is"):
        list(completed(raises, [(ZeroDivisionError,)], jobs=1))


def test_a_process_that_died_while_idle_is_replaced() -> None:
    (first,) = (number for _, number in completed(own_number, [()], jobs=1))
    (same,) = (number for _, number in completed(own_number, [()], jobs=1))
    assert isinstance(first, int) and first == same, "processes wait for later calls"
    os.kill(first, signal.SIGKILL)
    time.sleep(0.5)
    (other,) = (number for _, number in completed(own_number, [()], jobs=1))
    assert other != first
