"""Uses of a parameter: tied ones have several, in the model's order, whatever lies on them."""

import torch
from torch import nn

from latewood.core import attach
from latewood.core.parameter_uses import parameter_uses


def test_every_layer_that_holds_a_parameter(mask):
    model = nn.ModuleDict({"in": nn.Embedding(5, 4), "mid": nn.LSTM(4, 4), "out": nn.Linear(4, 5)})
    model["out"].weight = model["in"].weight
    weight, bias, hidden = model["in"].weight, model["out"].bias, model["mid"].weight_hh_l0
    for _ in range(2):
        uses = parameter_uses(model)
        assert [use.name for use in uses[id(weight)]] == ["in.weight", "out.weight"]
        assert [use.name for use in uses[id(bias)]] == ["out.bias"]
        assert [use.name for use in uses[id(hidden)]] == ["mid.weight_hh_l0"]
        assert all(use.stored is weight for use in uses[id(weight)])
        # The second time with masks, whose own parameters are no layer's.
        attach(model["out"], "weight", mask(weight.shape))
        attach(model["mid"], "weight_hh_l0", mask(hidden.shape))
        model["mid"].flatten_parameters()
    logits = model["out"].parametrizations.weight[0].logits
    assert id(logits) not in parameter_uses(model)


def test_a_model_is_a_layer_too():
    layer = nn.Linear(2, 3, bias=False)
    ((use,),) = [uses for key, uses in parameter_uses(layer).items() if key == id(layer.weight)]
    assert (use.module, use.module_name, use.name) == (layer, "", "weight")
    assert torch.equal(use.tensor, layer.weight)
