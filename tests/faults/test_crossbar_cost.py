"""Arrays, energy and latency against worked figures."""

import pytest
import torch
from torch import nn

from latewood.errors import RequestError
from latewood.faults import ISAAC, Crossbar, cost
from latewood.models import resnet20

DIFFERENTIAL, OFFSET = Crossbar(8, 2), Crossbar(8, 2, "offset")


def image(channels, side):
    return (torch.zeros(1, channels, side, side),)


def test_the_constants_add_up():
    assert ISAAC.energy_pj(128, 128) == pytest.approx(285.00416, rel=1e-12)
    assert ISAAC.area_mm2(128, 128) == pytest.approx(2.5e-5 + 128 * 1.67e-7 + 1.2e-3 + 6e-5)
    # ISAAC's own numbers: 16 bits a weight and an input, one full product.
    layer = nn.Linear(128, 128, bias=False)
    found = cost(layer, (torch.zeros(1, 128),), Crossbar(16, 2, "offset"), input_bits=16)
    assert found.crossbars == 8 and found.energy_nj == pytest.approx(36.48053248, rel=1e-12)


@pytest.mark.parametrize(
    ("layer", "side", "rows", "columns", "crossbars", "utilisation", "energy", "latency"),
    [
        (nn.Conv2d(16, 32, 3, padding=1), 16, 144, 256, 4, 0.5625, 2334.75407872, 204.8),
        (nn.Conv2d(3, 16, 3, padding=1), 32, 27, 128, 1, 0.2109375, 2334.75407872, 819.2),
    ],
)
def test_single_layers(layer, side, rows, columns, crossbars, utilisation, energy, latency):
    (found,) = cost(layer, image(layer.in_channels, side), DIFFERENTIAL).layers
    assert (found.rows, found.columns, found.crossbars) == (rows, columns, crossbars)
    assert found.utilisation == utilisation and found.adc_bits == 9
    assert found.energy_nj == pytest.approx(energy, rel=1e-12)
    assert found.latency_us == pytest.approx(latency, rel=1e-12)


@pytest.mark.parametrize(
    ("shortcut", "crossbars", "energies", "latency"),
    [
        ("pad", (160, 87), (66542.771, 48448.427), 7271.2),
        ("conv", (166, 90), (68293.837, 49323.960), 7527.2),
        ("conv3x3", (176, 95), (70628.591, 50491.337), 7527.2),
    ],
)
def test_a_residual_network(shortcut, crossbars, energies, latency):
    model = resnet20(num_classes=10, in_channels=3, shortcut=shortcut)
    for crossbar, count, energy in zip((DIFFERENTIAL, OFFSET), crossbars, energies, strict=True):
        found = cost(model, image(3, 32), crossbar)
        assert found.crossbars == count
        assert found.energy_nj == pytest.approx(energy, abs=6e-4)
        assert found.latency_us == pytest.approx(latency, rel=1e-9)
        assert found.area_mm2 == pytest.approx(count * ISAAC.area_mm2(128, 128))


def test_adc_bits_of_other_arrays():
    layer, x = nn.Linear(10, 10), (torch.zeros(1, 10),)
    for tile, bits, expected in (((128, 128), 1, 8), ((256, 128), 1, 9), ((128, 128), 2, 9)):
        (found,) = cost(layer, x, Crossbar(7, bits, tile=tile)).layers
        assert found.adc_bits == expected


def test_recurrent_and_attention_layers():
    lstm = nn.LSTM(5, 6, num_layers=2, batch_first=True)
    found = cost(lstm, (torch.zeros(2, 7, 5),))
    assert [layer.products for layer in found.layers] == [14] * 4
    names = [layer.name for layer in found.layers]
    assert names == ["weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"]

    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x, y):
            return self.attention(x, y, y)[0]

    found = cost(Cross(), (torch.zeros(1, 3, 8), torch.zeros(1, 5, 8)))
    products = {layer.name.rpartition(".")[2]: layer.products for layer in found.layers}
    assert products == {
        "q_proj_weight": 3, "k_proj_weight": 5, "v_proj_weight": 5, "out_proj": 3,
    }  # fmt: skip


def test_groups_share_arrays_on_the_diagonal():
    layer = nn.Conv2d(64, 64, 3, padding=1, groups=64)
    (found,) = cost(layer, image(64, 8), Crossbar(7, 2, "offset", (128, 128))).layers
    # 576 rows and 256 columns along a diagonal: five arrays down, two across, not ten.
    assert found.crossbars == 6 and found.products == 64


def test_a_layer_that_is_called_twice_counts_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x))

    (found,) = cost(Twice(), (torch.zeros(3, 4),)).layers
    assert found.products == 6 and found.crossbars == 1


def test_bad_requests():
    with pytest.raises(RequestError, match="input_bits: got 0"):
        cost(nn.Linear(2, 2), (torch.zeros(1, 2),), input_bits=0)
    with pytest.raises(RequestError, match="model"):
        cost(nn.ReLU(), (torch.zeros(1, 2),))
    with pytest.raises(RequestError, match="example_inputs: got Tensor"):
        cost(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(RequestError, match="crossbar: got int"):
        cost(nn.Linear(2, 2), (torch.zeros(1, 2),), 7)
    with pytest.raises(RequestError, match="constants: got str"):
        cost(nn.Linear(2, 2), (torch.zeros(1, 2),), constants="ISAAC")


def test_products_that_are_not_seen_are_warned_of():
    class Borrowed(nn.Module):
        def __init__(self):
            super().__init__()
            self.own, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return nn.functional.linear(self.own(x), self.other.weight)

    with pytest.warns(UserWarning, match="no products of other were seen"):
        own, other = cost(Borrowed(), (torch.zeros(1, 4),)).layers
    assert own.products == 1 and other.products == 0 and other.crossbars == 1
