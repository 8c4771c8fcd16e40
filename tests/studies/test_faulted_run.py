"""A run evaluated under faults, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from latewood.cli import main
from latewood.training.recipe import load_recipe
from latewood.training.run import train

RECIPE = """
task = "digits"
model = {name = "mlp", hidden = [24]}
steps = 60
batch_size = 64
optimizer = {name = "adam", lr = 0.01}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "small.toml").write_text(RECIPE)
    train(load_recipe(folder / "small.toml"), folder=folder / "small", show_progress=False)
    return folder / "small"


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def called(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([*map(str, words)])
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return called


def test_a_run_is_scored_at_several_rates(
    run: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    words = ("faults", run, "--rates", 0.3, 0.02, "--maps", 8, "--least", 0.8)
    code, out, _ = call(*words, "--json")
    rows = json.loads(out)
    assert code == 0 and [row["hrs"] for row in rows] == [0.02, 0.3]
    assert rows[0]["accuracy"] > rows[1]["accuracy"] and rows[0]["yield"] == 1.0
    written = json.loads((run / "faults.json").read_text())
    assert [len(rate["scores"]) for rate in written["rates"]] == [8, 8]
    assert written["rates"][0]["summary"]["mean"] == pytest.approx(rows[0]["accuracy"])
    code, out, _ = call(*words, "--table", run / "table.csv")
    assert (run / "table.csv").read_text().startswith("hrs,lrs,accuracy")
    assert code == 0 and "faults.json" in out and "on crossbars without faults" in out


def test_bad_requests_are_one_line(run: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    for words, message in (
        (("--rates", 1.5), "rate: got 1.5"),
        (("--weight-bits", 1), "weight_bits: got 1"),
        (("--include", "nothing"), "include: got 'nothing'"),
        (("--out", run / "no" / "x.json"), "--out: got"),
        (("--maps", 0), "maps: got 0"),
    ):
        code, _, err = call("faults", run, *words)
        assert code == 2 and message in err and err.count("\n") == 1, (words, err)
