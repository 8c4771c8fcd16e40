"""Linear layers as compressed rows."""

import copy

import pytest
import torch
from torch import nn

from latewood import models
from latewood.errors import RequestError, WorkError
from latewood.slim import CsrLinear, compressed_linear, export_linear
from latewood.sparsity import FixedMasks


def sparse(density, *, bias=True, dtype=torch.float64):
    torch.manual_seed(0)
    layer = nn.Linear(7, 5, bias=bias, dtype=dtype)
    layer.weight.data *= torch.rand(5, 7) < density
    return layer


@pytest.mark.parametrize("shape", [(7,), (1, 7), (4, 7), (2, 3, 7), (0, 7)])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("bias", [True, False])
def test_compressed_rows_compute_the_same(shape, density, bias):
    layer = sparse(density, bias=bias)
    inputs = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(CsrLinear.of(layer)(inputs), layer(inputs), rtol=1e-13, atol=1e-14)


def test_a_fresh_layer_takes_the_sizes_of_a_state():
    made = CsrLinear.of(sparse(0.3, dtype=torch.float32))
    fresh = CsrLinear(7, 5)
    fresh.load_state_dict(made.state_dict())
    inputs = torch.randn(3, 7)
    assert torch.equal(fresh(inputs), made(inputs))
    with pytest.raises(RuntimeError, match="Missing key"):
        fresh.load_state_dict({})


def masked_mlp():
    torch.manual_seed(0)
    model = models.mlp(in_features=6, hidden=(16, 12), num_classes=3)
    FixedMasks(model, {"linear2.weight": torch.rand(12, 16) < 0.2})
    return model, torch.randn(4, 6)


def test_csr_compresses_every_layer_and_keeps_the_model():
    model, inputs = masked_mlp()
    before = copy.deepcopy(model.state_dict())
    exported, report = export_linear(model, (inputs,), mode="csr")
    assert [each.chosen for each in report] == ["csr"] * 3
    assert [each.rows for each in report] == [4] * 3
    assert isinstance(exported.linear2, CsrLinear)
    assert exported.linear2.values.numel() == int(model.linear2.weight.count_nonzero())
    torch.testing.assert_close(exported(inputs), model(inputs))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_dense_folds_the_masks_in():
    model, inputs = masked_mlp()
    exported, report = export_linear(model, inputs, mode="dense")
    assert all(type(each) is not CsrLinear for each in exported.modules())
    assert not any("parametrizations" in name for name in exported.state_dict())
    assert {each.chosen for each in report} == {"dense"}


@pytest.mark.parametrize(("csr", "chosen"), [(0.5, "csr"), (0.97, "dense"), (2.0, "dense")])
def test_auto_takes_what_is_clearly_faster(csr, chosen, monkeypatch):
    monkeypatch.setattr(compressed_linear, "_times", lambda *_: (1.0, csr))
    model, inputs = masked_mlp()
    exported, report = export_linear(model, inputs)
    assert [each.chosen for each in report] == ["dense", chosen, "dense"]
    assert report[0].reason == "has no zeros"
    assert f"{csr:.2f} of the dense time" in report[1].reason
    assert isinstance(exported.linear2, CsrLinear) == (chosen == "csr")


def test_auto_measures_both_forms():
    model, inputs = masked_mlp()
    measured = export_linear(model, inputs)[1][1]
    assert measured.dense_ms > 0 and measured.csr_ms > 0


def test_layers_that_cannot_be_replaced_stay():
    tied = models.lstm_language_model(vocabulary=11, hidden=6, layers=1, tied=True)
    report = export_linear(tied, (torch.randint(0, 11, (2, 4)),), mode="csr")[1]
    assert report[0].reason == "shares its weight"
    attention = nn.MultiheadAttention(4, 2)
    stream = torch.randn(3, 1, 4)
    report = export_linear(attention, (stream, stream, stream), mode="csr")[1]
    assert report[0].reason == "not called in the example"


def test_where_torch_has_no_product_the_layer_stays_dense(monkeypatch):
    def missing(self, inputs):
        raise NotImplementedError("not implemented for 'Half'")

    monkeypatch.setattr(CsrLinear, "forward", missing)
    model, inputs = masked_mlp()
    for mode in ("auto", "csr"):
        choice = export_linear(model, inputs, mode=mode)[1][1]
        assert choice.chosen == "dense" and "'Half'" in choice.reason


def test_a_layer_alone_can_be_exported():
    layer = sparse(0.3)
    exported, _ = export_linear(layer, torch.randn(2, 7, dtype=torch.float64), mode="csr")
    assert isinstance(exported, CsrLinear)


def test_another_mode_and_another_result_are_refused(monkeypatch):
    model, inputs = masked_mlp()
    with pytest.raises(RequestError, match="auto, dense or csr"):
        export_linear(model, inputs, mode="sparse")
    monkeypatch.setattr(CsrLinear, "forward", lambda self, x: torch.ones(4, self.out_features))
    with pytest.raises(WorkError, match="differs"):
        export_linear(model, inputs, mode="csr")
