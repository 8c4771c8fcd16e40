"""Sizes counted by hand, files really written, and nothing changed by the measuring."""

import copy
import itertools

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import parametrizations

from latewood import models
from latewood.core import timing, transforms
from latewood.core.macs import macs
from latewood.core.measure import (
    bits,
    density,
    file_bytes,
    latency_ms,
    measure,
    nonzero_count,
    parameter_count,
)

KEYS = {"parameters", "nonzero", "density", "bits", "macs", "file_bytes", "latency_ms"}


class FixedMask(nn.Module):
    """Keeps the first column, and brings a parameter of its own."""

    order = transforms.MASK

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(100))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros_like(weight)
        mask[:, 0] = 1
        return weight * mask


class Nibbles(nn.Module):
    """Stands for a number format of four bits."""

    order = transforms.PRECISION

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight

    def stored_bits(self, weight: torch.Tensor) -> float:
        return 4.0 * weight.numel()


class Noisy(nn.Module):
    """Draws from the global generator whenever the weight is read."""

    order = transforms.FAULTS

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * torch.bernoulli(torch.full_like(weight, 0.5))


def two_layers() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    return model


def test_counts_of_a_plain_model() -> None:
    model = two_layers()
    with torch.no_grad():
        model[0].weight[:, 1] = 0
        model[2].bias[0] = 0
    assert parameter_count(model) == 34
    assert nonzero_count(model) == 34 - 4 - 1
    assert density(model) == 24 / 28
    assert bits(model) == 32


def test_counts_see_through_an_attached_mask() -> None:
    model = two_layers()
    transforms.attach(model[0], "weight", FixedMask())
    assert parameter_count(model) == 34
    assert nonzero_count(model) == 34 - 16
    assert density(model) == 12 / 28


def test_counts_of_a_masked_recurrent_layer() -> None:
    model = nn.LSTM(3, 2)
    transforms.attach(model, "weight_ih_l0", FixedMask())
    assert parameter_count(model) == 24 + 16 + 16
    assert nonzero_count(model) == 8 + 16 + 16
    assert density(model) == 24 / 40


def test_tied_and_split_tensors_count_once() -> None:
    tied = models.lstm_language_model(vocabulary=7, hidden=3, layers=1, tied=True)
    assert parameter_count(tied) == 7 * 3 + 2 * 36 + 2 * 12 + 7
    split = nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 4)))
    assert parameter_count(split) == 24


def test_bits_are_those_of_the_dtype_or_of_the_number_format() -> None:
    model = two_layers()
    model[2].to(torch.float16)
    assert bits(model) == (20 * 32 + 8 * 16) / 28
    transforms.attach(model[0], "weight", Nibbles())
    transforms.attach(model[0], "weight", FixedMask())
    assert bits(model) == (20 * 4 + 8 * 16) / 28


def test_model_without_weight_matrices() -> None:
    model = nn.BatchNorm1d(3)
    assert (density(model), bits(model)) == (1.0, 0.0)
    assert parameter_count(model) == 6
    assert parameter_count(nn.ReLU()) == 0


class TwoProducts(nn.Module):
    """Attention's two products alone, causal or with a mask, which take different operators."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool) if self.masked else None
        attend = nn.functional.scaled_dot_product_attention
        return attend(query, key, key, attn_mask=mask, is_causal=not self.masked)


class MatrixTimesVector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, 3))

    def forward(self, vector: torch.Tensor) -> torch.Tensor:
        return self.weight @ vector


@pytest.mark.parametrize(
    ("model", "shapes", "expected"),
    [
        (nn.Linear(5, 4), [(1, 5)], 20),
        (nn.Linear(5, 4), [(3, 7, 5)], 3 * 7 * 20),
        (nn.Conv2d(4, 8, 3, padding=1, groups=2), [(1, 4, 6, 6)], 36 * 8 * 2 * 9),
        (nn.Conv2d(4, 8, 3, stride=2), [(1, 4, 7, 7)], 9 * 8 * 4 * 9),
        # A transposed convolution uses each input once per tap and output channel.
        (nn.ConvTranspose2d(8, 4, 3, stride=2, output_padding=1), [(1, 8, 5, 5)], 25 * 8 * 4 * 9),
        (nn.LSTM(3, 2), [(6, 1, 3)], 6 * 8 * 5),
        (nn.LSTM(3, 2, batch_first=True), [(2, 6, 3)], 2 * 6 * 8 * 5),
        (nn.LSTM(3, 2, num_layers=2, bidirectional=True), [(6, 1, 3)], 6 * 2 * (8 * 5 + 8 * 6)),
        (nn.GRU(3, 2), [(6, 1, 3)], 6 * 6 * 5),
        (nn.RNN(3, 2), [(6, 1, 3)], 6 * 2 * 5),
        (nn.LSTMCell(3, 2), [(1, 3)], 8 * 5),
        # Four heads of two: 4 matrices 8x8 at 5 positions, two products of 5x5x8.
        (nn.MultiheadAttention(8, 4, batch_first=True), [(1, 5, 8)] * 3, 5 * 256 + 400),
        (
            nn.TransformerEncoderLayer(8, 4, 16, batch_first=True),
            [(1, 5, 8)],
            5 * (256 + 2 * 8 * 16) + 400,
        ),
        (TwoProducts(masked=False), [(1, 4, 5, 2), (1, 4, 5, 2)], 400),
        (TwoProducts(masked=True), [(1, 4, 5, 2), (1, 4, 5, 2)], 400),
        (MatrixTimesVector(), [(3,)], 15),
        (nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()), [(1, 4)], 0),
    ],
)
def test_multiply_accumulates_by_hand(model, shapes, expected) -> None:
    assert macs(model, [torch.randn(shape) for shape in shapes]) == expected


def test_recurrent_operator_of_a_gpu_counts_all_its_layers() -> None:
    class OneCall(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            layer = nn.LSTM(3, 2, num_layers=2, bidirectional=True, device="meta")
            state = torch.zeros(4, 1, 2, device="meta")
            weights = list(layer.parameters())
            return torch.ops.aten._cudnn_rnn(
                *(inputs, weights, 4, None, state, state),
                *(2, 2, 0, 2, False, 0.0, False, True, [], None),
            )[0]

    inputs = torch.zeros(6, 1, 3, device="meta")
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 3, bias=False), OneCall())
    assert macs(model, (inputs,)) == 6 * 9 + 6 * 2 * (8 * 5 + 8 * 6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_multiply_accumulates_do_not_depend_on_the_dtype(dtype) -> None:
    model = models.transformer(vocabulary=11, context=8, width=16, layers=1)
    tokens = (torch.zeros(1, 8, dtype=torch.long),)
    expected = 8 * (12 * 16 * 16 + 11 * 16) + 2 * 8 * 8 * 16
    assert macs(model, tokens) == expected
    assert macs(model.to(dtype), tokens) == expected


@pytest.mark.parametrize(
    "build",
    [
        lambda: models.mlp(in_features=6, hidden=[5], norm=True),
        lambda: models.resnet20(width=0.25),
        lambda: models.transformer(vocabulary=11, width=16),
        lambda: models.mlp(in_features=6, hidden=[5], norm=True).half(),
    ],
)
def test_file_has_the_size_that_was_told(build, tmp_path) -> None:
    model = build()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert file_bytes(model) == (tmp_path / "model.safetensors").stat().st_size


def test_file_holds_tied_tensors_once(tmp_path) -> None:
    arguments = {"vocabulary": 50, "hidden": 8}
    tied = models.lstm_language_model(**arguments, tied=True)
    free = models.lstm_language_model(**arguments)
    assert 50 * 8 * 4 <= file_bytes(free) - file_bytes(tied) <= 50 * 8 * 4 + 100


def test_latency_counts_what_runs() -> None:
    calls = 0

    class Counting(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            assert torch.get_num_threads() == 1
            assert torch.is_inference_mode_enabled()
            assert not self.training
            return inputs

    model = Counting()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert latency_ms(model, (torch.zeros(1),)) > 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert calls >= 2 + 4
    assert model.training


def test_latency_is_the_least_time_in_milliseconds(monkeypatch) -> None:
    now, seconds = [0.0], itertools.chain([9.0, 9.0, 0.4, 0.2], itertools.repeat(0.3))
    monkeypatch.setattr(timing.time, "thread_time", lambda: now[0])

    class Slow(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            now[0] += next(seconds)
            return inputs

    assert latency_ms(Slow(), (torch.zeros(1),)) == pytest.approx(200.0)


def test_measure_gives_every_figure_as_a_float() -> None:
    figures = measure(two_layers(), (torch.zeros(1, 5),))
    assert set(figures) == KEYS
    assert all(type(value) is float for value in figures.values())
    assert figures["parameters"] == figures["nonzero"] == 34
    assert figures["macs"] == 28


def test_measuring_changes_nothing() -> None:
    model = models.convnet()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            transforms.attach(module, "weight", Noisy())
    model.train()
    model.conv2.eval()
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    state = copy.deepcopy(model.state_dict())
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    generator = torch.get_rng_state()
    fused = torch.backends.mha.get_fastpath_enabled()

    measure(model, (torch.randn(1, 1, 8, 8, generator=torch.Generator()),))

    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert torch.backends.mha.get_fastpath_enabled() == fused
    assert torch.is_grad_enabled()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)
        assert parameter.requires_grad


def test_modes_come_back_when_the_model_fails() -> None:
    model = models.resnet20(width=0.25).train()
    fused = torch.backends.mha.get_fastpath_enabled()
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError):
        macs(model, (torch.zeros(1, 5, 8, 8),))
    with pytest.raises(RuntimeError):
        latency_ms(model, (torch.zeros(1, 5, 8, 8),))
    assert all(module.training for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled() == fused
    assert torch.get_num_threads() == threads


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_figures_on_a_gpu_are_those_of_the_cpu() -> None:
    for model, inputs in (
        (models.lstm_classifier(features=5, layers=2, bidirectional=True), torch.randn(1, 7, 5)),
        (models.resnet20(width=0.25), torch.randn(1, 3, 16, 16)),
        (models.transformer(vocabulary=11, width=16), torch.zeros(1, 7, dtype=torch.long)),
    ):
        on_cpu = measure(model, (inputs,))
        on_gpu = measure(model.cuda(), (inputs,))
        for key in KEYS - {"latency_ms"}:
            assert on_gpu[key] == on_cpu[key], key


def test_modules_that_turn_gradients_on_are_counted():
    class Insistent(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            hidden = self.a(x).requires_grad_()[None]
            with torch.enable_grad():
                return self.b(hidden)

    assert macs(Insistent(), (torch.randn(1, 3),)) == 3 * 4 + 4 * 2
