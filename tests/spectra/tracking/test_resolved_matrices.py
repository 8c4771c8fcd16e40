"""Found once, and again after every change that a training can make."""

import torch
from torch import nn
from torch.nn.utils import parametrize

from latewood.spectra.matrices.named_matrices import Views
from latewood.spectra.tracking.resolved_matrices import ResolvedMatrices


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def net():
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4))


def test_found_once_while_nothing_changes(monkeypatch):
    resolved = ResolvedMatrices(net(), Views(), "auto")
    views, operands = resolved.now()
    assert [view.name for view in views] == ["0.weight", "2.weight"]
    assert list(operands) == ["0.weight->2.weight"]
    monkeypatch.setattr(Views, "again", None)
    with torch.no_grad():
        resolved.model[0].weight.add_(1)
    again, _ = resolved.now()
    assert again is views
    assert torch.equal(again[0].read(), resolved.model[0].weight)


def test_every_change_is_seen():
    model = net()
    resolved = ResolvedMatrices(model, Views(), "auto")
    resolved.now()
    parametrize.register_parametrization(model[0], "weight", Doubled())
    assert torch.equal(resolved.now()[0][0].read(), model[0].weight)
    parametrize.remove_parametrizations(model[0], "weight")
    assert torch.equal(resolved.now()[0][0].read(), model[0].weight)
    model[2] = nn.Linear(6, 4)  # of the same shape
    assert torch.equal(resolved.now()[0][1].read(), model[2].weight)
    model.bfloat16()
    assert {view.dtype for view in resolved.now()[0]} == {torch.bfloat16}
    model[0].weight = nn.Parameter(torch.randn(7, 5))
    views, operands = resolved.now()
    assert views[0].read().shape == (7, 5)
    assert operands == {}
    del model[2]
    assert [view.name for view in resolved.now()[0]] == ["0.weight"]
