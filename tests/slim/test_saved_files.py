"""Slim modules on disk."""

import json

import pytest
import torch
from warm_python import run

from latewood import models
from latewood.errors import RequestError, WorkError
from latewood.slim import load_slim, save_slim, slim

SCRIPT = """
import sys, torch
from latewood.core.state import load_state, save_state
from latewood.slim import load_slim
torch.set_num_threads(1)
for name in sys.argv[2:]:
    model = load_slim(f"{sys.argv[1]}/{name}", trust=True)
    inputs = load_state(f"{sys.argv[1]}/{name}-inputs")
    with torch.no_grad():
        save_state(f"{sys.argv[1]}/{name}-outputs", model(*inputs))
"""
FACTORIES = {
    "convnet": ("latewood.models:convnet", {"channels": [8, 12, 12]}),
    "lstm_language_model": (
        "latewood.models:lstm_language_model",
        {"vocabulary": 11, "hidden": 12, "tied": False},
    ),
    "unet": (
        "latewood.models:unet",
        {"channels": [32, 32, 64, 64], "time_features": 8},
    ),
}


def test_a_fresh_process_rebuilds_the_same_module(tmp_path, zoo, off):
    from latewood.core.state import load_state, save_state

    expected = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, (factory, arguments) in FACTORIES.items():
        model, inputs = zoo(name)
        off(model, inputs, side="made")
        smaller = slim(model, inputs)
        save_slim(smaller, tmp_path / name, factory=factory, arguments=arguments)
        save_state(tmp_path / f"{name}-inputs", inputs)
        with torch.no_grad():
            expected[name] = smaller(*inputs)
    torch.set_num_threads(threads)
    done = run(["-c", SCRIPT, str(tmp_path), *FACTORIES])
    assert done.returncode == 0, done.stderr
    for name, outputs in expected.items():
        assert torch.equal(load_state(tmp_path / f"{name}-outputs"), outputs), name


@pytest.fixture
def saved(tmp_path, zoo, off):
    model, inputs = zoo("mlp")
    model, inputs = model.double(), tuple(each.double() for each in inputs)
    off(model, inputs, side="read")
    smaller = slim(model, inputs)
    arguments = {"in_features": 6, "hidden": [16, 12], "num_classes": 3, "norm": True}
    save_slim(smaller, tmp_path / "net", arguments=arguments)
    return smaller, inputs, tmp_path / "net"


def test_the_type_and_every_bit_come_back(saved):
    smaller, inputs, path = saved
    again = load_slim(path, models.mlp)
    assert torch.equal(again(*inputs), smaller(*inputs))
    for key, value in smaller.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
        assert again.state_dict()[key].dtype == value.dtype


def test_a_module_of_two_steps_and_one_that_was_loaded_can_be_saved(saved, tmp_path):
    _, inputs, path = saved
    again = load_slim(path, models.mlp)
    again.head.weight.data[:, 0] = 0
    twice = slim(again, inputs)
    arguments = {"in_features": 6, "hidden": [16, 12], "num_classes": 3, "norm": True}
    save_slim(twice, tmp_path / "twice", arguments=arguments)
    assert torch.equal(load_slim(tmp_path / "twice", models.mlp)(*inputs), twice(*inputs))


def test_tied_weights_stay_tied(tmp_path):
    arguments = {"vocabulary": 11, "hidden": 6, "layers": 1, "tied": True}
    model = models.lstm_language_model(**arguments).eval()
    tokens = torch.randint(0, 11, (2, 4))
    smaller = slim(model, (tokens,))
    save_slim(smaller, tmp_path / "net", arguments=arguments)
    again = load_slim(tmp_path / "net", models.lstm_language_model)
    assert again.head.weight is again.embedding.weight
    assert torch.equal(again(tokens), smaller(tokens))


def test_the_description_can_be_read(saved):
    content = json.loads((saved[2].parent / "net.json").read_text())
    (edit,) = content["edits"]
    assert (edit["kind"], sorted(edit["keep"])) == ("channels", ["linear1", "linear2"])


def test_what_a_file_names_is_only_called_when_trusted(saved, tmp_path):
    smaller, _, path = saved
    with pytest.raises(RequestError, match="names none"):
        load_slim(path, trust=True)
    save_slim(smaller, tmp_path / "other", factory="os:abort")
    with pytest.raises(RequestError, match="trust=True"):
        load_slim(tmp_path / "other")
    save_slim(smaller, tmp_path / "other", factory="latewood.nothing:here")
    with pytest.raises(RequestError, match=r"latewood\.nothing"):
        load_slim(tmp_path / "other", trust=True)


def test_a_file_of_an_earlier_version_finds_its_factory(saved, tmp_path):
    smaller, inputs, _ = saved
    arguments = {"in_features": 6, "hidden": [16, 12], "num_classes": 3, "norm": True}
    for former in ("latewood.training.models:mlp", "latewood.training.models.mlp:mlp"):
        save_slim(smaller, tmp_path / "before", factory=former, arguments=arguments)
        again = load_slim(tmp_path / "before", trust=True)
        assert torch.equal(again(*inputs), smaller(*inputs))


@pytest.mark.parametrize("factory", [3, "models.mlp", ".a:b", "a:", "a:b:c", ":b"])
def test_a_factory_of_another_form_is_refused_before_anything_is_written(saved, tmp_path, factory):
    with pytest.raises(RequestError, match=r"factory: got .*module:function"):
        save_slim(saved[0], tmp_path / "other", factory=factory)
    assert not (tmp_path / "other.json").exists()


def test_arguments_that_the_factory_does_not_take_are_named(saved, tmp_path):
    with pytest.raises(RequestError, match=r"arguments: got .*in_features"):
        load_slim(saved[2], lambda channels: models.mlp(in_features=6))
    with pytest.raises(RequestError, match=r"make_model: got 'int'; expected .* module"):
        load_slim(saved[2], lambda **_: 3)
    for wrong in (3, ["hidden"], {1: 2}):
        with pytest.raises(RequestError, match="arguments: got"):
            save_slim(saved[0], tmp_path / "other", arguments=wrong)


def test_another_model_is_refused(saved):
    def deeper(**arguments):
        return models.mlp(**{**arguments, "hidden": [16, 12, 12]})

    def narrower(**arguments):
        return models.mlp(**{**arguments, "hidden": [16, 8]})

    with pytest.raises(RequestError, match="do not fit"):
        load_slim(saved[2], deeper)
    with pytest.raises(RequestError):
        load_slim(saved[2], narrower)


def test_other_files_are_refused(saved, tmp_path):
    from latewood.core.state import save_state

    save_state(tmp_path / "headless", {"format": "latewood slim module 2"})
    with pytest.raises(WorkError, match="not a slim module"):
        load_slim(tmp_path / "headless", models.mlp)
    save_state(tmp_path / "plain", {"step": 3})
    with pytest.raises(WorkError, match="not a slim module"):
        load_slim(tmp_path / "plain", models.mlp)
    with pytest.raises(RequestError, match="slim"):
        save_slim(models.mlp(in_features=2), tmp_path / "other")
