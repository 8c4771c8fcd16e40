"""What others wrote is read or refused with a clear error, however damaged or hostile it is."""

from __future__ import annotations

import warnings

import pytest

from benchmarks._fuzz_files import SoundFiles
from benchmarks.fuzz import READERS, examine

CASES = 300


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SoundFiles:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SoundFiles(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", READERS)
def test_every_case_is_read_or_refused(name: str, files: SoundFiles) -> None:
    outcome = examine(name, files, cases=CASES, derandomize=True)
    assert not outcome.unforeseen
    assert outcome.counts.total() >= min(CASES, 100), "a reader without cases tells nothing"
