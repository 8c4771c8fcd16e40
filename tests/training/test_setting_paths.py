"""The settings of a recipe by their paths."""

from latewood.training import parse_recipe
from latewood.training.setting_paths import apply_setting, flat_settings


def test_flat_settings():
    document = {"a": {"b": 1, "c": [True, {"d": "x"}]}, "e": None, "f": [], "g": 0.5}
    assert flat_settings(document) == {
        "a.b": 1,
        "a.c.0": True,
        "a.c.1.d": "x",
        "f": "[]",
        "g": 0.5,
    }


def test_every_path_sets_its_value():
    methods = [{"name": "gradual_magnitude_pruning", "density": 0.25}]
    recipe = parse_recipe({"task": "digits", "epochs": 2, "methods": methods})
    settings = flat_settings(recipe.model_dump())
    assert settings["methods.0.density"] == 0.25
    document = {}
    for path, value in settings.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        apply_setting(document, f"{path}={text}")
    assert parse_recipe(document) == recipe
