"""Labels in little memory move as full ones do."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from latewood.core.coupling.label_layout import compact, joined, repeated, reshaped

SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def labels(shape, constant):
    """Distinct numbers, but for the dimensions that an expansion repeats."""
    narrow = [1 if repeat else size for size, repeat in zip(shape, constant, strict=True)]
    return torch.arange(math.prod(narrow)).view(narrow).expand(shape)


@given(SHAPES, st.lists(st.booleans(), min_size=4, max_size=4), st.data())
def test_moves_are_those_of_torch(shape, constant, data):
    own = labels(shape, constant[: len(shape)])
    flat = own.numel()
    divisors = [size for size in range(1, flat + 1) if flat % size == 0]
    first = data.draw(st.sampled_from(divisors))
    second = data.draw(st.sampled_from([d for d in divisors if (flat // first) % d == 0]))
    for target in ([first, flat // first], [first, second, flat // first // second], [flat]):
        assert torch.equal(reshaped(own, target), own.reshape(target))
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    assert torch.equal(joined([own, own + 100], dim), torch.cat([own, own + 100], dim))
    tiles = data.draw(st.lists(st.integers(1, 3), min_size=len(shape), max_size=len(shape) + 1))
    assert torch.equal(repeated(own, tiles), own.repeat(tiles))
    assert compact(own).numel() == len(own.unique())
