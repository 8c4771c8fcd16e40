"""`latewood spectra`: the table, the page and the long table of a run's agreement."""

import json

import pytest

from latewood.cli import main
from latewood.spectra import agreement_over_time
from latewood.training import train
from latewood.training.recipe import load_recipe

RECIPE = """
task = "digits"
model = "mlp"
steps = 6
batch_size = 32
optimizer = {name = "sgd", lr = 0.1}
probes = [{name = "spectral", every = 2}]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    recipe = folder / "small.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    return train(load_recipe(recipe), folder=folder / "one", show_progress=False).folder


@pytest.fixture
def call(capsys):
    def start(*words):
        with pytest.raises(SystemExit) as ended:
            main(["spectra", *map(str, words)])
        shown = capsys.readouterr()
        return ended.value.code, shown.out + shown.err

    return start


def test_table_page_and_long_table(run, call, tmp_path):
    code, shown = call(run.path, "--table", tmp_path / "all.json", "--out", tmp_path / "page.html")
    assert code == 0
    found = agreement_over_time(run.spectra_folder)
    assert "Agreement with the final snapshot" in shown
    for name, scores in found.scores.items():
        assert name in shown
        assert f"{scores[0].item():.4g}"[:5] in shown
    assert all(f"step {step}" in shown for step in (0, 2, 4, 6))
    rows = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert len(rows) == sum(diagonals.numel() for diagonals in found.diagonals.values())
    last = [row for row in rows if row["step"] == 6]
    assert all(row["reference"] == 6 and abs(row["agreement"] - 1) < 2e-3 for row in last)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Agreement of singular vectors" in page
    assert "linear1.weight" in page


def test_references(run, call):
    for reference, words in (("2", "step 2"), ("previous", "the previous snapshot")):
        code, shown = call(run.path, "--reference", reference)
        assert code == 0
        assert f"Agreement with {words}" in shown
    assert run.path.joinpath("agreement.html").exists()
    code, shown = call(run.path, "--reference", "same", "--against", run.path)
    assert code == 0
    assert "the same snapshot of one" in shown


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--reference", "last"], "reference"),
        (["--reference", "3"], "reference"),
        (["--reference", "same"], "against"),
        (["--against", "missing"], "against"),
        (["--table", "all.txt"], "--table"),
    ],
)
def test_wrong_requests_exit_with_2(run, call, words, named):
    code, shown = call(run.path, *words)
    assert code == 2
    assert named in shown
    assert len(shown.splitlines()) == 1


def test_a_folder_without_a_run_or_snapshots(run, call, tmp_path):
    assert call(tmp_path)[0] == 2
    (tmp_path / "recipe.toml").write_text(run.recipe_path.read_text(encoding="utf-8"))
    code, shown = call(tmp_path)
    assert code == 1
    assert "no snapshots" in shown


def test_a_table_that_could_not_be_written_is_refused_before_the_work(run, call, tmp_path):
    page = tmp_path / "page.html"
    code, shown = call(run.path, "--out", page, "--table", tmp_path / "missing" / "all.csv")
    assert code == 2
    assert "--table" in shown
    assert not page.exists()
