"""A sweep over weight decay on random labels with the probe on, and the report that compares it."""

from latewood.recipes import recipe_path
from latewood.report import write_report
from latewood.studies.sweeps.sweep import sweep
from latewood.training.run_folder import RunFolder


def test_weight_decays_are_compared_by_their_ranks(tmp_path):
    changes = [
        "steps=60",
        "evaluate_every=60",
        "model.hidden=[16, 16]",
        "optimizer.name=adamw",
        "task.label_noise=1.0",
        'probes=[{name="spectral", every=60}]',
    ]
    text = recipe_path("digits-mlp").read_text().replace("momentum = 0.9\nnesterov = true\n", "")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    grid = {"optimizer.weight_decay": [0.0, 10.0]}
    result = sweep(
        recipe, grid, overrides=changes, folder=tmp_path / "sweep", jobs=1, show_progress=False
    )
    assert not result.failed
    runs = {
        row["optimizer.weight_decay"]: RunFolder(result.folder / row["run"]) for row in result.rows
    }
    ranks = {
        decay: [row for row in run.read_metrics() if row["kind"] == "probe"][-1]
        for decay, run in runs.items()
    }
    name = "effective_rank/linear2.weight"
    assert ranks[10.0][name] < ranks[0.0][name] - 0.1
    page = write_report([runs[0.0], runs[10.0]], tmp_path / "report.html").read_text()
    assert "Effective rank" in page
    assert "No spectral probe took part" not in page
