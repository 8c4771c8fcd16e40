"""A file with what each map scored, a line each, so that an evaluation can go on later."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final, NamedTuple

from latewood.errors import RequestError, WorkError, invalid

__all__ = ["MapRecords", "MapScore"]

_BEGINNING: Final = '{"settings": '
"""Of every record, also of one whose first line a kill has cut off."""


class MapScore(NamedTuple):
    """What came of one map.

    Args:
        score: of the model on this device.
        changed: share of weights that are read as another integer.
    """

    score: float
    changed: float


class MapRecords:
    """Scores by map, kept in a file of JSON lines if there is one.

    The first line holds the settings; a file of other settings is refused, so that scores of two
    evaluations never mix. A line that a kill has cut off is dropped.

    Args:
        path: the file, made where there is none; None keeps the scores in memory alone.
        settings: plain values that decide about every score.

    Raises:
        RequestError: a file of other settings, or no such folder.
        WorkError: a file that is no record.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self._path = path
        self.scores: dict[int, MapScore] = {}
        if path is None:
            return
        if path.is_dir() or not path.parent.is_dir():
            raise invalid("record", str(path), "a file in a folder there is")
        header = json.dumps({"settings": settings}, sort_keys=True)
        try:
            text = path.read_text(encoding="utf-8") if path.exists() else ""
        except UnicodeDecodeError as error:
            raise WorkError(f"record: '{path}' is no record of maps ({error})") from error
        complete = text[: text.rfind("\n") + 1]
        lines = complete.splitlines()
        if not lines:
            if not _BEGINNING.startswith(text[: len(_BEGINNING)]):
                raise WorkError(f"record: '{path}' is no record of maps, and is left as it is")
            path.write_text(header + "\n", encoding="utf-8")
            return
        try:
            found = json.loads(lines[0])["settings"]
            for line in lines[1:]:
                entry = json.loads(line)
                score = MapScore(float(entry["score"]), float(entry["changed"]))
                number = entry["map"]
                if not all(map(math.isfinite, score)) or type(number) is not int or number < 0:
                    raise ValueError(line)
                self.scores[number] = score
        except (ValueError, KeyError, TypeError) as error:
            raise WorkError(f"record: '{path}' is no record of maps ({error})") from error
        settings = json.loads(header)["settings"]
        if not isinstance(found, dict) or found != settings:
            others = found if isinstance(found, dict) else {}
            differing = [key for key in settings if others.get(key) != settings[key]]
            raise RequestError(
                f"record: '{path}' is of another evaluation: {', '.join(differing)} differ; "
                "expected a new file, or the arguments that it was begun with"
            )
        if complete != text:
            path.write_text(complete, encoding="utf-8")

    def add(self, number: int, score: MapScore) -> None:
        """Notes the score of a map, on disk before it returns."""
        self.scores[number] = score
        if self._path is not None:
            line = json.dumps({"map": number, "score": score.score, "changed": score.changed})
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
