"""Numbers of a configuration: found by what they do, and refused where none does it."""

import pytest
import torch
from torch import nn

from latewood.studies.configuration_numbers import Indescribable, fitted_configuration


class Heads(nn.Module):
    """Heads and their size are two numbers, of which the shapes only show the product."""

    def __init__(self, width, heads, size, inner, depth):
        super().__init__()
        self.heads, self.size = heads, size
        self.into = nn.Linear(width, heads * size)
        self.out = nn.Linear(heads * size, width)
        self.layers = nn.ModuleList(nn.Linear(width, inner or 2 * width) for _ in range(depth))


CONFIGURATION = {
    "width": 8,
    "attention": {"heads": 2, "size": 4},
    "inner": None,
    "depth": 2,
    "name": "plain",
    "flag": True,
}


def make(values):
    if values["attention"]["heads"] > 100:
        raise ValueError("too many heads")
    sizes = [*values["attention"].values(), values["inner"], values["depth"]]
    return Heads(values["width"], *sizes)


@pytest.mark.parametrize(
    "sizes",
    [
        {"heads": 6},
        {"size": 8},
        {"heads": 4, "size": 6},
        {"inner": 20},
        {"width": 16, "inner": 16},
    ],
)
def test_the_numbers_are_found(sizes):
    wanted = {**CONFIGURATION, **{k: v for k, v in sizes.items() if k in CONFIGURATION}}
    wanted["attention"] = {**CONFIGURATION["attention"]} | {
        key: value for key, value in sizes.items() if key in CONFIGURATION["attention"]
    }
    before = torch.get_default_device()
    fitted = fitted_configuration(make, CONFIGURATION, make(wanted))
    assert fitted == wanted
    assert CONFIGURATION["attention"] == {"heads": 2, "size": 4}
    assert torch.get_default_device() == before


def test_what_no_number_describes_is_refused_with_its_tensors():
    model = make(CONFIGURATION)
    model.layers[1] = nn.Linear(8, 30)
    with pytest.raises(Indescribable, match=r"they differ in layers.1.bias, layers.1.weight") as e:
        fitted_configuration(make, CONFIGURATION, model)
    assert e.value.tensors == {"layers.1.bias", "layers.1.weight"}


def test_an_attribute_that_no_number_sets_does_not_stand_in_the_way():
    model = make({**CONFIGURATION, "inner": 20})
    model.note = 7
    assert fitted_configuration(make, CONFIGURATION, model)["inner"] == 20
