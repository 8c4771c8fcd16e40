"""Progress: silent when quick, lines in a pipe, a bar on a terminal."""

from __future__ import annotations

import io

import pytest

from latewood.terminal import progress as module
from latewood.terminal.progress import duration, progress, track


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.mark.parametrize("stream", [io.StringIO(), _Terminal()])
def test_quick_work_shows_nothing(clock: _Clock, stream: io.StringIO) -> None:
    with progress("train", 2, stream=stream) as advance:
        clock.now = 1.0
        advance(2)
    assert stream.getvalue() == ""


def test_lines_tell_what_is_done_and_what_is_left(clock: _Clock) -> None:
    stream = io.StringIO()
    with progress("train", 4, stream=stream) as advance:
        clock.now = 3.0
        advance(note="loss 0.5")
        clock.now = 4.0
        advance()
        clock.now = 8.0
        advance(2)
    assert stream.getvalue().splitlines() == [
        "train: 1/4, 3 s, about 9 s left  loss 0.5",
        "train: 4/4, 8 s  loss 0.5",
    ]


def test_steps_done_before_do_not_count_for_the_time_left(clock: _Clock) -> None:
    stream = io.StringIO()
    with progress("train", 100, done=90, stream=stream) as advance:
        clock.now = 4.0
        advance(2)
    assert stream.getvalue() == "train: 92/100, 4 s, about 16 s left\n"


def test_bar_begins_at_the_steps_done_before(clock: _Clock) -> None:
    stream = _Terminal()
    with progress("train", 100, done=90, stream=stream) as advance:
        clock.now = 4.0
        advance(2)
    assert "92/100" in stream.getvalue()


def test_bar_shows_title_and_note_as_text(clock: _Clock) -> None:
    stream = _Terminal()
    with progress("train", 4, stream=stream) as advance:
        clock.now = 3.0
        advance(4, note="[red]loss[/red] 0.5")
    assert "train" in stream.getvalue() and "[red]loss[/red] 0.5" in stream.getvalue()


def test_show_false_is_silent(clock: _Clock) -> None:
    stream = io.StringIO()
    with progress("train", 1, show=False, stream=stream) as advance:
        clock.now = 30.0
        advance()
    assert stream.getvalue() == ""


def test_track_yields_everything(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    for item in track("ab", "letters", 2):
        clock.now += 3.0
        seen.append(item)
    assert seen == ["a", "b"]
    assert capsys.readouterr().err.splitlines()[-1] == "letters: 2/2, 6 s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
