"""Every parameter's out x in matrix, against the linear map that its layer computes."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from latewood.spectra import matrix_parameter, parameter_matrix, singular_values


def view(module, name="weight"):
    return parameter_matrix(module, name, getattr(module, name))


@pytest.mark.parametrize(
    ("module", "name", "shape"),
    [
        (nn.Linear(5, 3), "weight", (3, 5)),
        (nn.Conv1d(4, 6, 3), "weight", (6, 12)),
        (nn.Conv2d(4, 6, (3, 5)), "weight", (6, 60)),
        (nn.Conv3d(2, 3, 2), "weight", (3, 16)),
        (nn.Conv2d(4, 6, 3, groups=2), "weight", (2, 3, 18)),
        (nn.Conv2d(4, 4, 3, groups=4), "weight", (4, 1, 9)),
        (nn.Conv2d(4, 1, 3), "weight", (1, 36)),
        (nn.ConvTranspose1d(4, 6, 3), "weight", (6, 12)),
        (nn.ConvTranspose2d(4, 6, 3), "weight", (6, 36)),
        (nn.ConvTranspose3d(4, 6, 2), "weight", (6, 32)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), "weight", (2, 3, 18)),
        (nn.LSTM(5, 3), "weight_ih_l0", (12, 5)),
        (nn.LSTM(5, 3), "weight_hh_l0", (12, 3)),
        (nn.GRU(5, 3), "weight_ih_l0", (9, 5)),
        (nn.MultiheadAttention(4, 2), "in_proj_weight", (12, 4)),
        (nn.Embedding(7, 4), "weight", (7, 4)),
        (nn.Bilinear(2, 3, 4), "weight", (4, 6)),
    ],
)
def test_shapes(module, name, shape):
    assert view(module, name).shape == shape
    weight = getattr(module, name)
    back = matrix_parameter(module, name, view(module, name), weight.shape)
    assert torch.equal(back, weight)


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_is_its_matrix_on_patches(groups):
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, groups=groups, bias=False, dtype=torch.float64)
    patch = torch.randn(1, 4, 3, 3, generator=generator, dtype=torch.float64)
    matrix = view(conv)
    inputs = patch.reshape(groups, -1, 1)
    expected = matrix.reshape(groups, 6 // groups, -1) @ inputs
    assert torch.allclose(conv(patch).flatten(), expected.flatten())


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution_has_outputs_first(groups):
    conv = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False, dtype=torch.float64)
    matrix = view(conv).reshape(groups, 6 // groups, 4 // groups, 3, 3)
    for channel in range(4):
        pixel = torch.zeros(1, 4, 1, 1, dtype=torch.float64)
        pixel[0, channel] = 1
        group, inner = divmod(channel, 4 // groups)
        expected = torch.zeros(groups, 6 // groups, 3, 3, dtype=torch.float64)
        expected[group] = matrix[group, :, inner]
        assert torch.equal(conv(pixel)[0], expected.flatten(0, 1))


def test_permuted_taps_leave_the_spectrum():
    conv = nn.Conv2d(4, 6, 3)
    before = singular_values(view(conv))
    conv.weight.data = conv.weight.data.flip(-1, -2)[:, [2, 0, 3, 1]]
    assert singular_values(view(conv)).tolist() == pytest.approx(before.tolist(), rel=1e-5)


def test_hugging_face_conv1d_is_transposed():
    class Conv1D(nn.Module):
        def __init__(self, nf, nx):
            super().__init__()
            self.nf = nf
            self.weight = nn.Parameter(torch.zeros(nx, nf))

    layer = Conv1D(6, 4)
    assert view(layer).shape == (6, 4)
    layer.weight.data = torch.arange(24.0).reshape(4, 6)
    assert torch.equal(matrix_parameter(layer, "weight", view(layer), (4, 6)), layer.weight)
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    assert view(layer).shape == (6, 4)


def test_leading_ones_of_free_parameters_are_dropped():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.zeros(1, 10, 4))

    assert view(Positions(), "table").shape == (10, 4)
