"""The recipe on digits, shortened: the budget is met, training is cheap, and it learns."""

import json

from latewood.training.recipe import load_recipe
from latewood.training.run import train


def test_the_recipe_meets_its_budget_at_a_fraction_of_the_cost(tmp_path):
    recipe = load_recipe("digits-grow-and-prune", ["epochs=14", "evaluate_every=133"])
    done = train(recipe, folder=tmp_path / "run", show_progress=False)
    rows = [json.loads(line) for line in done.folder.metrics_path.read_text().splitlines()]
    name = "structured_sparsification/"
    last = [row for row in rows if row["kind"] == "method"][-1]
    used = [row[f"{name}budget/used"] for row in rows if row["kind"] == "method"]
    assert max(used) <= 4 and used[-1] <= 1
    assert 0.19 <= last[f"{name}budget/share"] <= 0.2
    assert last[f"{name}undecided"] == 0
    assert last[f"{name}training/share"] <= 1.25 * 0.2 + 0.03
    size = done.summary["size"]
    assert size["macs"] == last[f"{name}macs"] and size["parameters"] == last[f"{name}parameters"]
    # Sixty epochs, as the recipe has them, end near 99 %.
    assert done.summary["evaluations"]["recalibrated"]["accuracy"] > 0.9
