"""Packed recurrent layers: torch's own layers on the grid, and products of codes to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latewood.errors import RequestError
from latewood.kernels.mixed_products import mixed_matmul
from latewood.precision import PackedGRU, PackedLinear, PackedLSTM, RecurrentFormat, pack, quantize
from latewood.precision.formats import leave_weight_format, quantize_input
from latewood.precision.number_format import code

KINDS: dict[str, tuple[Any, Any]] = {"lstm": (nn.LSTM, PackedLSTM), "gru": (nn.GRU, PackedGRU)}
WIDTHS = torch.tensor([1, 2, 4, 2, 0, 4], dtype=torch.uint8)


def finished(layer: nn.RNNBase, *, pruned: bool = False) -> nn.RNNBase:
    for name, weight in list(layer.named_parameters()):
        if not name.startswith("weight"):
            continue
        bits = WIDTHS.repeat(9)[: weight.shape[1]].reshape(1, -1)
        scale = weight.detach().abs().amax(1, keepdim=True) / 1.875
        with torch.no_grad():
            weight.copy_(scale * quantize(weight / scale, bits.clamp(min=1)) * (bits > 0))
            if pruned:
                weight.mul_(torch.rand(weight.shape) < 0.6)
        leave_weight_format(layer, bits, scale, parameter_name=name)
    return layer.eval()  # type: ignore[return-value]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "bidirectional": True, "batch_first": True},
        {"bias": False, "num_layers": 2},
        {"bidirectional": True},
    ],
)
def test_weights_alone_are_those_of_the_layer(kind: str, options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    plain, packed_kind = KINDS[kind]
    layer = finished(plain(6, 8, **options), pruned="bias" in options)
    packed = packed_kind.of(layer)
    sequence = torch.randn(3, 5, 6)
    with torch.no_grad():
        for inputs in (sequence, sequence[:, 0]):
            outputs, state = packed(inputs)
            expected, ends = layer(inputs)
            assert torch.allclose(outputs, expected, atol=1e-5)
            again, last = packed(inputs, state), layer(inputs, ends)
            assert torch.allclose(again[0], last[0], atol=1e-5)
            for one, other in zip(flat(again[1]), flat(last[1]), strict=True):
                assert one.shape == other.shape and torch.allclose(one, other, atol=1e-5)
    assert packed.stored_bits < 8 * sum(w.numel() for w in layer.parameters())


def flat(state: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else list(state)


def test_quantised_inputs_and_states_are_those_of_the_float_cell() -> None:
    """Step by step with plain matrices; the grid's numbers are small, so the sums are exact."""
    torch.manual_seed(2)
    layer = finished(nn.LSTM(6, 7))
    forms = RecurrentFormat(4, 0.5), RecurrentFormat(2, 0.5)
    packed = PackedLSTM.of(layer, *forms)  # type: ignore[arg-type]
    sequence = torch.randn(9, 2, 6)

    def placed(numbers: Tensor, form: RecurrentFormat) -> Tensor:
        bits = torch.tensor(form.bits, dtype=torch.uint8)
        return quantize_input(numbers, bits, torch.tensor(form.scale), torch.tensor(True), -1)

    h, c = torch.zeros(2, 7), torch.zeros(2, 7)
    expected = []
    with torch.no_grad():
        for x in sequence:
            gates = nn.functional.linear(placed(x, forms[0]), layer.weight_ih_l0, layer.bias_ih_l0)
            gates = gates + nn.functional.linear(
                placed(h, forms[1]), layer.weight_hh_l0, layer.bias_hh_l0
            )
            i, f, g, o = gates.chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            expected.append(h)
    outputs, (hidden, cell) = packed(sequence)
    assert torch.allclose(outputs, torch.stack(expected), atol=1e-6)
    assert torch.allclose(hidden[0], h, atol=1e-6) and torch.allclose(cell[0], c, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_products_are_those_of_codes_to_the_bit(kind: str, bits: int) -> None:
    torch.manual_seed(3)
    plain, packed_kind = KINDS[kind]
    layer = plain(6, 8)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        weight, width = getattr(layer, name), torch.full((1, 1), bits, dtype=torch.uint8)
        scale = weight.detach().abs().max().reshape(1, 1) / 1.875
        with torch.no_grad():
            weight.copy_(scale * quantize(weight / scale, width))
        leave_weight_format(layer, width, scale, parameter_name=name)
    form = RecurrentFormat(bits, 0.4)
    packed = packed_kind.of(layer, form, form)
    for product, numbers in (
        (packed.of_inputs[0], torch.randn(4, 6)),
        (packed.of_states[0], torch.randn(4, 8)),
    ):
        assert isinstance(product, PackedLinear)
        sums = mixed_matmul(product.codes(), code(numbers / 0.4, bits), bits)
        unit = 2.0 ** (2 - 2 * bits) * float(product.input_scale)
        scale = (product.weight_scale.double() * unit).float()
        assert torch.equal(product(numbers), sums.float() * scale + product.bias)


def test_what_has_no_packed_form_is_named() -> None:
    of: Any = PackedLSTM.of
    with pytest.raises(RequestError, match="weight_ih_l0 has no number format"):
        of(nn.LSTM(6, 8))
    with pytest.raises(RequestError, match="projection"):
        of(nn.LSTM(6, 8, proj_size=3))
    layer = finished(nn.LSTM(6, 8))
    for bits in (0, 9, 2.0, True):
        with pytest.raises(RequestError, match=r"inputs\.bits: got"):
            of(layer, RecurrentFormat(bits, 1.0))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="input_scale: got 0"):
        of(layer, RecurrentFormat(2, 0))
    packed = of(layer, RecurrentFormat(2, 1.0))
    with pytest.raises(RequestError, match=r"inputs: got \(3, 5, 7\)"):
        packed(torch.ones(3, 5, 7))
    with pytest.raises(RequestError, match=r"inputs: got \(3,\)"):
        packed(torch.ones(3))
    with pytest.raises(RequestError, match=r"state\[1\]: got \(1, 5, 7\); expected \(1, 5, 8\)"):
        packed(torch.ones(3, 5, 6), (torch.ones(1, 5, 8), torch.ones(1, 5, 7)))
    with pytest.raises(RequestError, match="NaN"):
        packed(torch.full((3, 5, 6), torch.nan))
    call: Any = PackedLSTM
    with pytest.raises(RequestError, match="cells: got '0 pairs'"):
        call([])
    with pytest.raises(RequestError, match="cells: got"):
        call([(packed.of_states[0], packed.of_inputs[0])])
    with torch.no_grad():
        layer.weight_hh_l0[0, 0] *= 1.3  # type: ignore[index,operator]
    with pytest.raises(RequestError, match="weight_hh_l0 has left the grid"):
        of(layer)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = finished(nn.LSTM(6, 8, batch_first=True))
        self.head = nn.Linear(8, 2)
        bits = torch.full((8,), 2, dtype=torch.uint8).reshape(1, -1)
        scale = self.head.weight.detach().abs().max() / 1.875
        with torch.no_grad():
            self.head.weight.copy_(scale * quantize(self.head.weight / scale, bits))
        leave_weight_format(self.head, bits, scale)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.lstm(inputs)[0][:, -1])  # type: ignore[no-any-return]


def test_in_a_whole_network_they_are_left_listed_and_counted() -> None:
    inputs = torch.randn(2, 4, 6)
    packed = pack(Reader().eval(), inputs)
    (left,) = packed.left
    assert (left.name, left.weights) == ("lstm", 4 * 8 * (6 + 8))
    assert "PackedLSTM" in left.reason and list(packed.layers) == ["head"]
