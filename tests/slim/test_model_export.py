"""Whole models in the form that runs fastest."""

import copy

import pytest
import torch
from torch import nn

from latewood import models
from latewood.errors import RequestError, WorkError
from latewood.slim import CsrLinear, compressed_linear, export, load_slim, model_export, save_slim
from latewood.sparsity import FixedMasks

ARGUMENTS = {"in_features": 6, "hidden": [16, 12], "num_classes": 3}


@pytest.fixture
def masked():
    """Half the units of the first layer are gone, and single weights of the second."""
    torch.manual_seed(0)
    model = models.mlp(**ARGUMENTS).double()
    columns = torch.zeros(12, 16, dtype=torch.bool)
    columns[:, 8:] = torch.rand(12, 8) < 0.3
    columns[:, 15] = True
    FixedMasks(model, {"linear2.weight": columns})
    return model, torch.randn(4, 6, dtype=torch.float64)


@pytest.fixture
def clock(monkeypatch):
    """Times by form, instead of measured ones; returns the table to fill in."""
    table = {"csr of a layer": 2.0}

    def whole(forms, device, **patience):
        return {form: table.get(form, 1.0) for form in forms}

    def layers(models, inputs):
        found = {}
        for form, model in models.items():
            for name in model_export.heavy_layers(model):
                found.setdefault(name, {})[form] = table.get(form, 1.0)
        return found

    monkeypatch.setattr(model_export, "least_times", whole)
    monkeypatch.setattr(model_export, "layer_times", layers)
    monkeypatch.setattr(compressed_linear, "_times", lambda *_: (1.0, table["csr of a layer"]))
    return table


def same(one, other, inputs):
    torch.testing.assert_close(one(inputs), other(inputs), rtol=1e-12, atol=1e-12)


def test_auto_makes_slim_first(masked, clock):
    model, inputs = masked
    before = copy.deepcopy(model.state_dict())
    clock.update({"1": 1.0, "full": 2.0, "auto": 1.0, "slim": 1.5, "dense": 2.0})
    exported, report = export(model, inputs)
    assert (report.mode, report.form) == ("auto", "auto")
    assert [each.choice for each in report.layers] == ["slim", "slim", "dense"]
    assert exported.linear1.out_features == 8 and not exported.training
    assert report.us == {"dense": 2.0, "slim": 1.5, "auto": 1.0}
    assert report.difference <= 1e-12
    same(exported, model, inputs)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_auto_keeps_the_channels_of_a_group_that_do_not_pay(masked, clock):
    model, inputs = masked
    clock.update({"1": 1.0, "full": 0.5})
    exported, report = export(model, inputs)
    # What is left to choose from is the exact slim form and the dense one.
    assert exported.linear1.out_features == 16
    assert "auto" in report.us


def test_auto_rounds_where_kernels_like_it(masked, clock):
    model, inputs = masked
    # Four units are left.
    model.linear2.parametrizations.weight.original.data[:, 8:12] = 0
    clock.update({"1": 1.0, "8": 0.8, "full": 1.0, "dense": 3.0, "slim": 2.0})
    exported, report = export(model, inputs)
    assert exported.linear1.out_features == 8
    assert report.layers[0].us["dense"] == 3.0


def test_auto_takes_compressed_rows_where_they_are_faster(masked, clock):
    model, inputs = masked
    clock.update({"1": 1.0, "full": 2.0, "csr of a layer": 0.4, "csr": 1.2, "dense": 2.0})
    exported, report = export(model, inputs)
    assert isinstance(exported.linear2, CsrLinear) and exported.linear2.in_features == 8
    assert [each.choice for each in report.layers] == ["slim", "csr", "dense"]
    assert set(report.us) == {"dense", "slim", "csr", "auto"}
    same(exported, model, inputs)


@pytest.mark.parametrize(
    ("times", "form"),
    [
        ({"dense": 1.0, "slim": 2.0, "auto": 2.0}, "dense"),
        ({"dense": 2.0, "slim": 1.0, "auto": 2.0}, "slim"),
        ({"dense": 1.0, "slim": 1.0, "auto": 1.015}, "auto"),
        ({"dense": 1.0, "slim": 1.01, "auto": 1.03}, "slim"),
    ],
)
def test_the_whole_is_never_slower_than_dense(times, form, masked, clock):
    model, inputs = masked
    clock.update(times)
    exported, report = export(model, inputs)
    assert report.form == form
    assert exported.linear1.out_features == (16 if form == "dense" else 8)
    same(exported, model, inputs)


def test_a_model_without_zeros_stays_dense(clock):
    torch.manual_seed(0)
    model, inputs = models.mlp(**ARGUMENTS), torch.randn(4, 6)
    exported, report = export(model, inputs)
    assert report.form == "dense" and set(report.us) == {"dense"}
    assert {each.choice for each in report.layers} == {"dense"}
    assert torch.equal(exported(inputs), model(inputs))


@pytest.mark.parametrize("mode", ["dense", "csr", "slim"])
def test_every_mode_computes_the_same_and_comes_back_from_disk(mode, masked, tmp_path):
    model, inputs = masked
    exported, report = export(model, inputs, mode=mode)
    assert report.form == mode and report.difference <= 1e-12
    assert not any("parametrizations" in name for name in exported.state_dict())
    assert all(each.us == {} for each in report.layers)
    kinds = {"dense": nn.Linear, "csr": CsrLinear, "slim": nn.Linear}
    assert type(exported.linear2) is kinds[mode]
    save_slim(exported, tmp_path / mode, arguments=ARGUMENTS)
    again = load_slim(tmp_path / mode, models.mlp)
    assert torch.equal(again(inputs), exported(inputs))
    assert type(again.linear2) is kinds[mode]


def test_slim_and_compressed_layers_come_back_together(masked, clock, tmp_path):
    model, inputs = masked
    clock.update({"1": 1.0, "full": 2.0, "csr of a layer": 0.4})
    exported, _ = export(model, inputs)
    save_slim(exported, tmp_path / "net", arguments=ARGUMENTS)
    again = load_slim(tmp_path / "net", models.mlp)
    assert torch.equal(again(inputs), exported(inputs))


def test_masked_keeps_the_masks_attached(masked):
    model, inputs = masked
    exported, report = export(model, inputs, mode="masked")
    assert any("parametrizations" in name for name in exported.state_dict())
    assert report.difference == 0 and exported is not model
    same(exported, model, inputs)


def test_auto_really_measures(masked):
    model, inputs = masked
    exported, report = export(model, inputs)
    assert all(value > 0 for value in report.us.values())
    # Measured beside compressed rows as well, but only where there are zeros.
    assert {"chosen", "dense", "csr"} <= set(report.layers[1].us)
    assert all(value > 0 for each in report.layers for value in each.us.values())
    same(exported, model, inputs)


def test_recurrent_layers_are_measured_with_their_states(zoo, off):
    model, inputs = zoo("lstm_language_model")
    off(model, inputs, side="made")
    _, report = export(model, inputs)
    assert [each.layer for each in report.layers] == ["lstm", "head"]
    assert all("dense" in each.us for each in report.layers)


def test_a_removed_block_is_reported(zoo):
    model, inputs = zoo("resnet20")
    model.layer1[1].bn2.weight.data.zero_()
    model.layer1[1].bn2.bias.data.zero_()
    choices = {each.layer: each.choice for each in export(model, inputs, mode="slim")[1].layers}
    assert choices["layer1.1.conv1"] == choices["layer1.1.conv2"] == "removed"
    assert choices["layer1.0.conv1"] == "dense"


def test_wrong_modes_and_other_results_are_refused(masked):
    model, inputs = masked
    with pytest.raises(RequestError, match="auto, dense, masked, csr, slim"):
        export(model, inputs, mode="fast")
    for mode in ("auto", "slim", "csr"):
        with pytest.raises(WorkError, match="differs"):
            export(model, inputs, mode=mode, tolerance=-1.0)
