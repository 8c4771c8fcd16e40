"""Settings in groups: the constructor's keywords reach them, and presets fill in the rest."""

import inspect
from dataclasses import MISSING, asdict, fields

import pytest
import torch
from torch import nn

from latewood.errors import RequestError
from latewood.sparsity.structured import StructuredSparsification
from latewood.sparsity.structured.presets import PRESETS, settings_of
from latewood.sparsity.structured.structured_settings import StructuredSettings

OTHERS = {
    "estimator": "ste",
    "temperature": "global",
    "final_temperature": 50.0,
    "penalty": 0.25,
    "layer_penalty": 0.75,
    "normalised": False,
    "logit_lr": 0.3,
    "logit_decay": 1e-3,
    "seed_width": 2,
    "seed_logit": 2.0,
    "growth_logit": -1.0,
    "growth_time": 0.2,
    "overshoot": 3.0,
    "capped": False,
    "birth": "kaiming",
    "freeze": 0.5,
    "ranking": "logits",
    "floor": 0.25,
}
"""A value for each setting that is not the recommended one."""


def flat(settings):
    return {name: value for group in asdict(settings).values() for name, value in group.items()}


def all_fields():
    return [
        field
        for group in fields(StructuredSettings)
        for field in fields(getattr(PRESETS["paper"], group.name))
    ]


def test_every_keyword_reaches_its_group():
    recommended = flat(PRESETS["recommended"])
    assert recommended.keys() == OTHERS.keys()
    assert not any(recommended[name] == value for name, value in OTHERS.items())
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    method = StructuredSparsification(
        model, torch.randn(1, 4), budget={"macs": 0.5}, total_steps=9, steps_per_epoch=3, **OTHERS
    )
    assert flat(method.settings) == OTHERS


def test_the_constructors_defaults_are_those_of_the_groups():
    parameters = inspect.signature(StructuredSparsification).parameters
    for field in all_fields():
        default = None if field.default is MISSING else field.default
        assert parameters[field.name].default == default


@pytest.mark.parametrize("preset", PRESETS)
def test_none_keeps_what_the_preset_decides(preset):
    decided = {field.name: None for field in all_fields() if field.default is MISSING}
    assert len(decided) == 10
    assert settings_of(preset, **decided) == settings_of(preset) == PRESETS[preset]


def test_without_a_freeze_there_is_no_overshoot_unless_it_is_given():
    assert settings_of("recommended", freeze=1.0).growth.overshoot == 1.0
    assert settings_of("recommended", freeze=1.0, overshoot=None).growth.overshoot == 1.0
    assert settings_of("recommended", freeze=1.0, overshoot=2.0).growth.overshoot == 2.0
    assert settings_of("recommended", freeze=0.9).growth.overshoot == 4.0


def test_blocks_take_the_penalty_of_channels_unless_they_have_their_own():
    assert settings_of("paper", penalty=0.3).penalty.block_penalty == 0.3
    assert settings_of("paper", penalty=0.3, layer_penalty=0.0).penalty.block_penalty == 0.0


@pytest.mark.parametrize("name", ["seed_logit", "estimator", "seed_width"])
def test_none_is_refused_where_no_preset_decides(name):
    with pytest.raises(RequestError, match=f"{name}: got None"):
        settings_of("recommended", **{name: None})
