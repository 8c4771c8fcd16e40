"""The command about regimes, from a recipe, a run and a table of numbers."""

import json

import pytest

from latewood.cli import main


def run(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main(["regime", *map(str, words)])
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


RECIPE = """
steps = 4
batch_size = 16
device = "cpu"
[task]
name = "digits"
[model]
name = "mlp"
hidden = [8]
[optimizer]
name = "sgd"
lr = 0.1
[[probes]]
name = "tangent_kernel"
every = 2
examples = 32
"""


def test_a_recipe_is_predicted_and_its_run_measured(tmp_path, capsys):
    (tmp_path / "small.toml").write_text(RECIPE)
    table = tmp_path / "table.json"
    code, out, _ = run(
        capsys, tmp_path / "small.toml", "--examples", 16, "--alpha", 5, "--table", table
    )
    assert code == 0 and "predicted" in out and "note: 16 examples" in out
    assert [row["output scale"] for row in json.loads(table.read_text())] == [1.0, 5.0]
    with pytest.raises(SystemExit):
        main(["train", str(tmp_path / "small.toml"), "--out", str(tmp_path / "run")])
    capsys.readouterr()
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    probed = [row for row in rows if row["kind"] == "probe"]
    assert [row["step"] for row in probed] == [0, 2, 4]
    code, out, _ = run(capsys, tmp_path / "run", "--examples", 32, "--alpha", 5)
    assert code == 0 and "measured" in out
    # The probe of the run and the command look at the same samples.
    assert f"relK {probed[-1]['kernel_relative']:.2g}"[:8] in out
    assert "Tangent kernel" in (tmp_path / "run" / "report.html").read_text()


def test_a_table_of_numbers_has_exact_limits(tmp_path, capsys):
    (tmp_path / "xy.csv").write_text("a,b,y\n1,2,1\n")
    code, out, _ = run(capsys, tmp_path / "xy.csv", "--depth", 2, "--alpha", 0.1)
    assert code == 0 and "0.5334" in out and "least l1" in out


def test_wrong_requests(tmp_path, capsys):
    (tmp_path / "words.csv").write_text("a,b\n1,2\nx,3\n")
    (tmp_path / "ragged.csv").write_text("1,2\n1,2,3\n")
    for words, message in (
        ([tmp_path / "words.csv"], "row 3: got 'x,3'"),
        ([tmp_path / "ragged.csv"], "rows of equal length"),
        ([tmp_path / "none.csv"], "cannot be read"),
        (["digits-mlp", "--depth", 2], "--depth: got"),
        (["digits-mlp", "--examples", 1], "--examples: got 1"),
        (["no-such-recipe"], "recipe: got"),
    ):
        code, _, err = run(capsys, *words)
        assert code == 2 and message in err
