"""Character-level language modelling of one text."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from latewood.errors import RequestError, WorkError, invalid
from latewood.tasks.data.datasets import Batch
from latewood.tasks.data.locate import find_folder
from latewood.tasks.objectives import LanguageModelling
from latewood.tasks.task import Task

__all__ = ["TextWindows", "shakespeare"]

FILE = "input.txt"


class TextWindows:
    """Windows of a text and, one character later, what follows each of their characters.

    Args:
        characters: int64 codes of shape (length,), more than ``context``.
        context: characters per window.
        stride: characters from the start of one window to that of the next.
    """

    def __init__(self, characters: Tensor, *, context: int, stride: int) -> None:
        self.characters = characters
        # A view: windows are cut out when they are gathered.
        self._windows = characters.unfold(0, context + 1, stride)

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._windows)

    def gather(self, indices: Tensor) -> Batch:
        """Inputs and targets, each int64 (n, context), of the windows at ``indices`` (n,)."""
        rows = self._windows[indices]
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def shakespeare(
    *, folder: str | None = None, context: int = 128, stride: int | None = None
) -> Task:
    """Prediction of the next character of a text, given up to ``context`` before it.

    The vocabulary is the sorted set of the text's characters. The first 90 % are learned from,
    the next 5 % scored on; the last 5 % are left for a final test.

    Args:
        folder: folder with the text in input.txt (UTF-8); None looks in $LATEWOOD_DATA and data
            for shakespeare and tinyshakespeare.
        context: characters per sequence.
        stride: characters from one training sequence to the next; None is ``context``, so that
            every character is learned once an epoch.

    Returns:
        task with int64 inputs and targets (n, context).

    Raises:
        RequestError: no text, or one with fewer characters than a sequence needs.
        WorkError: the text cannot be read.
    """
    if context < 1:
        raise invalid("context", context, "1 or more characters")
    stride = context if stride is None else stride
    if stride < 1:
        raise invalid("stride", stride, "1 or more characters")
    text = _read(folder)
    vocabulary = sorted(set(text))
    codes = {character: code for code, character in enumerate(vocabulary)}
    characters = torch.tensor([codes[character] for character in text], dtype=torch.int64)
    n = len(characters)
    parts = characters[: n * 90 // 100], characters[n * 90 // 100 : n * 95 // 100]
    if len(parts[1]) <= context:
        raise invalid(
            "context", context, f"at most {max(len(parts[1]) - 1, 0)}, as 5 % of the text is short"
        )
    return Task(
        name="shakespeare",
        train=TextWindows(parts[0], context=context, stride=stride),
        validation=TextWindows(parts[1], context=context, stride=context),
        objective=LanguageModelling(),
        headline="bits_per_character",
        higher_is_better=False,
        model="transformer",
        model_arguments={
            "vocabulary": len(vocabulary),
            "num_classes": len(vocabulary),
            "context": context,
        },
        example_inputs=(torch.zeros(1, context, dtype=torch.int64),),
    )


def _read(folder: str | None) -> str:
    home = find_folder(
        "shakespeare",
        folder,
        names=("shakespeare", "tinyshakespeare"),
        layout=f"{FILE}, a plain text (the one of github.com/karpathy/char-rnn, or any other)",
    )
    path: Path = home / FILE
    if not path.is_file():
        raise RequestError(f"folder: {home} has no {FILE}; expected a plain text of that name")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise WorkError(f"{path}: is not UTF-8 text at byte {error.start}") from error
    except OSError as error:
        raise WorkError(f"{path}: cannot be read: {error.strerror}") from error
    if not text:
        raise RequestError(f"{path}: is empty; expected a text")
    return text
