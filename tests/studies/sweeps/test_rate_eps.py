"""The study that a sweep over learning rate and eps ends with."""

import pytest

from latewood.studies.sweeps.rate_eps import rate_eps_study
from latewood.studies.sweeps.sweep import sweep

KEYS = ["optimizer.eps", "optimizer.lr"]


def rows(results):
    return [
        {"optimizer.eps": eps, "optimizer.lr": lr, "accuracy": value}
        for (eps, lr), value in results.items()
    ]


def test_the_best_rate_of_each_row_with_failed_and_missing_points():
    table = rows({(0.1, 0.1): 0.9, (0.1, 1): None, (1.0, 0.1): 0.2, (1.0, 1): 0.8, (10, 1): 0.5})
    study = rate_eps_study(table, KEYS, "accuracy", higher_is_better=True)
    assert study.eps == (0.1, 1.0, 10.0)
    assert study.best == (0.1, 1.0, 1.0)
    assert study.slope == pytest.approx(0.5)


@pytest.mark.parametrize("keys", [["optimizer.lr"], ["optimizer.lr", "seed"], [*KEYS, "seed"]])
def test_other_sweeps_have_none(keys):
    table = rows({(0.1, 0.1): 0.9})
    assert rate_eps_study(table, keys, "accuracy", higher_is_better=True) is None


def test_a_sweep_over_both_reports_it(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'task = "digits"\nsteps = 2\nbatch_size = 32\n[model]\nname = "mlp"\nhidden = [4]\n'
        '[optimizer]\nname = "avagrad"\n'
    )
    grid = {"optimizer.eps": [0.1, 1.0], "optimizer.lr": [0.1, 1.0]}
    done = sweep(recipe, grid, folder=tmp_path / "sweep", jobs=1)
    assert not done.failed
    assert done.study.eps == (0.1, 1.0)
    assert "coupling slope" in (tmp_path / "sweep" / "sweep.html").read_text()
