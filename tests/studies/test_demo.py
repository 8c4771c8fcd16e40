"""The demo: its runs and their comparison, once; then only what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from latewood.errors import Interrupted, RequestError
from latewood.precision import load_packed
from latewood.studies.demo import BASELINE, COMPOSED, GROWN, PACKED, DemoResult, run_demo
from latewood.training.run_folder import RunFolder

# So short a run decides nothing, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:.*no logit is above 0:UserWarning")

SMALL = ("epochs=3", "model.channels=[2,2,2]")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoResult]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(folder, overrides=SMALL, show_progress=False)


def test_before_and_after(demo: tuple[Path, DemoResult]) -> None:
    folder, result = demo
    assert result.trained == 4
    table = {str(row[""]): row for row in result.rows}
    assert table["accuracy, trained"].keys() == {"", BASELINE, COMPOSED, GROWN, PACKED}
    assert BASELINE not in table["accuracy, finalized (hard)"]
    assert COMPOSED in table["accuracy, finalized, batch norms recalibrated"]
    assert table["Density of the weights"][BASELINE] == "100.0 %"
    assert table["Density of the weights"][COMPOSED] != "100.0 %"
    words = ("Parameters", "Nonzero parameters", "Bits per weight", "Multiply-accumulates", "File")
    assert {*words, "Latency"} <= table.keys()
    assert result.report == folder / "report.html"
    page = result.report.read_text()
    assert all(text in page for text in (BASELINE, COMPOSED, "continuous_sparsification"))


def test_one_run_grows_to_the_width_of_the_dense_one(demo: tuple[Path, DemoResult]) -> None:
    folder, result = demo
    rows = RunFolder(folder / COMPOSED).read_metrics()
    widths = [row["growth/width/conv3"] for row in rows if "growth/width/conv3" in row]
    assert (widths[0], widths[-1]) == (2.0, 8.0)
    sizes = {name: RunFolder(folder / name).summary["size"] for name in (BASELINE, COMPOSED)}
    assert sizes[COMPOSED]["parameters"] == sizes[BASELINE]["parameters"]
    assert 0 < sizes[COMPOSED]["training_share"] < 1
    (row,) = (row for row in result.rows if str(row[""]).startswith("Training cost"))
    assert row.keys() == {"", COMPOSED, GROWN}
    page = result.report.read_text()
    assert "Width of each layer" in page and "Training cost" in page


def test_one_run_grows_to_its_budget_and_the_report_shows_it(
    demo: tuple[Path, DemoResult],
) -> None:
    folder, result = demo
    rows = RunFolder(folder / GROWN).read_metrics()
    last = [row for row in rows if row["kind"] == "method"][-1]
    assert 0 < last["structured_sparsification/budget/used"] <= 1.0
    sizes = {name: RunFolder(folder / name).summary["size"] for name in (BASELINE, GROWN)}
    assert sizes[GROWN]["macs"] <= 0.2 * sizes[BASELINE]["macs"]
    assert sizes[GROWN]["parameters"] < sizes[BASELINE]["parameters"]
    assert "Budget over time" in result.report.read_text()


def test_the_last_run_is_packed_and_timed(demo: tuple[Path, DemoResult]) -> None:
    folder, result = demo
    table = {str(row[""]): row for row in result.rows}
    assert 1 <= float(str(table["Bits per weight"][PACKED]).split()[0]) <= 8
    packed = load_packed(folder / "packed.safetensors")
    assert packed.layers
    for name in ("File, packed", "Latency, packed", "Latency, the same unpacked"):
        assert table[name].keys() == {"", PACKED}
    # What was noted of it is read again, and measured anew where that cannot be.
    assert run_demo(folder, overrides=SMALL, show_progress=False).rows == result.rows
    note = folder / "packed.json"
    figures = note.read_text()
    note.write_text("{}")
    again = run_demo(folder, overrides=SMALL, show_progress=False)
    note.write_text(figures)
    assert [row[""] for row in again.rows] == [row[""] for row in result.rows]


def test_all_runs_are_the_packaged_recipe(demo: tuple[Path, DemoResult]) -> None:
    folder, _ = demo
    names = (BASELINE, COMPOSED, GROWN, PACKED)
    dense, composed, grown, packed = ((folder / name / "recipe.toml").read_text() for name in names)
    assert "structured_sparsification" in grown
    assert "learned_precision" in packed
    assert "continuous_sparsification" in composed and '"growth"' in composed
    assert "continuous_sparsification" not in dense
    assert all("spectral" in text for text in (dense, composed, grown, packed))
    assert all(list(RunFolder(folder / name).spectra_folder.iterdir()) for name in names)


def test_a_finished_demo_is_not_trained_again(demo: tuple[Path, DemoResult]) -> None:
    folder, first = demo
    first.report.unlink()
    again = run_demo(folder, overrides=SMALL, show_progress=False)
    assert (again.trained, again.rows) == (0, first.rows)
    assert again.report.exists()


def test_other_settings_need_another_folder(demo: tuple[Path, DemoResult]) -> None:
    with pytest.raises(RequestError, match=r"other settings.*--overwrite"):
        run_demo(demo[0], overrides=("epochs=4",), show_progress=False)


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: object, **more: object) -> None:
        raise Interrupted("go on with --resume somewhere")

    monkeypatch.setattr("latewood.studies.demo.train", stopped)
    with pytest.raises(Interrupted, match=r"^stopped; the same command goes on$"):
        run_demo(tmp_path, show_progress=False)
