"""What layers are given in a run."""

import torch
from torch import nn

from latewood.slim.layer_times import calls_of, given_to, heavy_layers


class Twice(nn.Module):
    """Calls one layer twice and changes what it gave in between; another it never calls."""

    def __init__(self):
        super().__init__()
        self.twice, self.never, self.norm = nn.Linear(3, 3), nn.Linear(3, 3), nn.LayerNorm(3)

    def forward(self, inputs):
        outputs = self.twice(input=inputs)
        inputs.zero_()
        return self.twice(self.norm(outputs))


def test_all_calls_of_a_layer_with_copies_of_their_arguments():
    model, inputs = Twice(), torch.randn(2, 3)
    before = inputs.clone()
    layers = heavy_layers(model)
    assert layers.keys() == {"twice", "never"}
    calls = calls_of(model, layers, inputs)
    assert calls.keys() == {"twice"}
    first, second = calls["twice"]
    assert first[0] == () and torch.equal(first[1]["input"], before)
    torch.testing.assert_close(second[0][0], model.norm(model.twice(before)))
    assert second[1] == {} and not second[0][0].requires_grad
    assert model.training


def test_the_last_call_of_a_layer():
    model = Twice()
    calls = calls_of(model, heavy_layers(model), torch.ones(2, 3))
    ((given,), named) = given_to(model, heavy_layers(model), torch.ones(2, 3))["twice"]
    assert named == {} and torch.equal(given, calls["twice"][-1][0][0])
