"""The page of claims: failures stay visible, and no text can break a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from latewood.errors import WorkError
from latewood.experiments import Claim, Experiment, Results, experiments
from latewood.experiments.claims import render_claims, write_claims
from latewood.experiments.runner import Record, load_records

CLAIMS = (
    Claim("good", "A > B", "[P] abstract", "3 %", lambda r: r.text("a"), lambda r: True),
    Claim("bad", "A | B\nworse", "[R] table 2", "figure only", lambda r: "0.1", lambda r: False),
    Claim("open", "D > 1", "[I] ours", "none", lambda r: "1.5", lambda r: r.mean("d") > 1),
    Claim("absent", "C", "[R] table 3", "1", lambda r: r.text("c"), lambda r: True),
)
EXPERIMENT = Experiment("ab", "A against B", "Somebody 2020", lambda s, b: Results({}), CLAIMS)
RECORD = Record(
    experiment="ab",
    scale="cpu",
    results=Results({"a": [1.0], "d": [1.0, 2.0]}, {"epochs": 40}),
    error="",
    command="latewood reproduce ab --scale cpu",
    date="2026-01-02",
    seconds=61.0,
    environment={"torch": "2.13.0"},
)


def test_every_verdict_is_on_the_page() -> None:
    page = render_claims([RECORD], {"ab": EXPERIMENT})
    assert "| good | A > B | [P] abstract | 3 % | 1.00 (1 seed) | holds |" in page
    assert "| bad | A \\| B worse | [R] table 2 | figure only | 0.1 | **does not hold** |" in page
    assert "| absent | C | [R] table 3 | 1 | not measured in this run: c | not measured |" in page
    assert "| open | D > 1 | [I] ours | none | 1.5 | undecided (0.5 ± 6.4 from the bound) |" in page
    assert "| [ab](#ab) | cpu | 1 | 1 | 1 | 1 |" in page
    assert "`latewood reproduce ab --scale cpu`, 2026-01-02, 61 s; torch 2.13.0." in page
    assert "Settings: epochs = 40." in page


def test_a_failed_run_is_on_the_page() -> None:
    failed = replace(RECORD, results=None, error="WorkError: the disk is full")
    page = render_claims([failed], {"ab": EXPERIMENT})
    assert "**The run failed**: WorkError: the disk is full" in page
    assert "| [ab](#ab) | cpu | 0 | 0 | 0 | 4 |" in page


def test_experiments_of_several_runs_are_merged() -> None:
    other = replace(EXPERIMENT, name="cd")
    waiting = replace(EXPERIMENT, name="ef")
    records = [RECORD, replace(RECORD, scale="quick"), replace(RECORD, experiment="cd")]
    page = render_claims(records, {"ab": EXPERIMENT, "cd": other, "ef": waiting})
    headings = [line for line in page.splitlines() if line.startswith("##")]
    assert headings == [
        "## ab",
        "### ab, scale cpu",
        "### ab, scale quick",
        "## cd",
        "### cd, scale cpu",
    ]
    assert "Without results so far: ef." in page


def test_a_removed_experiment_is_said_to_be_removed() -> None:
    assert "| ab (no longer there) | cpu | - | - | - | - |" in render_claims([RECORD], {})


def test_an_unwritable_page_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match=r"claims\.md"):
        write_claims(tmp_path / "file" / "claims.md", tmp_path, {"ab": EXPERIMENT})


def test_the_page_says_how_to_write_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    RECORD.save(Path("found"))
    page = write_claims(Path("claims.md"), Path("found"), {"ab": EXPERIMENT}).read_text()
    assert "`latewood reproduce --no-run --out found --claims claims.md`" in page
    assert "### ab, scale cpu" in page


def test_the_published_page_is_what_its_records_say_today() -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = render_claims(load_records(docs / "claims"), experiments())
    assert page == (docs / "claims.md").read_text(encoding="utf-8")
    assert "no longer there" not in page
