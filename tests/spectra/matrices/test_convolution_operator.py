"""Singular values of circular convolutions against those of their dense matrices."""

import pytest
import torch
from torch.nn import functional as F

from latewood.errors import RequestError
from latewood.spectra import convolution_values


def dense(weight, size, stride, dilation, groups):
    """The matrix of the convolution with periodic padding, column by column."""
    axes = weight.ndim - 2
    inputs = weight.shape[1] * groups
    unit = torch.eye(inputs * torch.Size(size).numel(), dtype=torch.float64)
    image = unit.unflatten(1, (inputs, *size))
    reach = [(k - 1) * dilation for k in weight.shape[2:]]
    # Shifting the output changes no singular value, so that padding on one side serves.
    for axis, width in enumerate(reach):
        repeats = [1] * image.ndim
        length = image.shape[2 + axis]
        repeats[2 + axis] = 1 + -(-width // length)
        image = image.repeat(repeats).narrow(2 + axis, 0, length + width)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    return convolve(image, weight, stride=stride, dilation=dilation, groups=groups).flatten(1).mT


@pytest.mark.parametrize(
    ("shape", "size", "stride", "dilation", "groups"),
    [
        ((3, 2, 3), (8,), 1, 1, 1),
        ((4, 3, 3, 3), (6, 5), 1, 1, 1),
        ((4, 3, 3, 3), (6, 6), 2, 1, 1),
        ((4, 2, 3, 3), (4, 4), 2, 1, 2),
        ((4, 1, 3, 2), (4, 5), 1, 1, 4),
        ((2, 3, 3), (8,), 1, 2, 1),
        ((2, 2, 2, 2, 3), (3, 4, 3), 1, 1, 1),
        ((2, 2, 5), (3,), 1, 1, 1),
    ],
)
def test_against_the_dense_matrix(shape, size, stride, dilation, groups):
    noise = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=noise, dtype=torch.float64)
    exact = torch.linalg.svdvals(dense(weight, size, stride, dilation, groups))
    found = convolution_values(weight, size, stride=stride, dilation=dilation, groups=groups)
    assert found.shape == exact.shape
    assert torch.allclose(found, exact, atol=1e-12)


def test_a_single_tap_is_a_linear_layer_at_every_place():
    weight = torch.randn(5, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    values = convolution_values(weight, (4, 4)).reshape(3, 16)
    exact = torch.linalg.svdvals(weight[..., 0, 0].double())
    assert torch.allclose(values, exact[:, None].expand(3, 16), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"size": (4,)}, "size"),
        ({"size": (4, 0)}, "size"),
        ({"size": (5, 5), "stride": 2}, "size"),
        ({"size": (4, 4), "stride": 0}, "stride"),
        ({"size": (4, 4), "dilation": (1, 1, 1)}, "dilation"),
        ({"size": (4, 4), "groups": 3}, "groups"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, named):
    with pytest.raises(RequestError, match=named):
        convolution_values(torch.ones(4, 2, 3, 3), **options)


def test_a_vector_is_no_kernel():
    with pytest.raises(RequestError, match="weight"):
        convolution_values(torch.ones(4, 2), ())
