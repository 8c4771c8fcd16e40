"""Components of labels against dense linear algebra."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from latewood.core.coupling.label_components import NONE, Components

BATCHES = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)))),
    min_size=1,
    max_size=5,
)


@given(BATCHES)
def test_components_are_those_of_the_graph(batches):
    components, edges = Components(), []
    for count, pairs in batches:
        components.grow(count)
        pairs = [(left % components.count, right % components.count) for left, right in pairs]
        edges += pairs
        if pairs:
            components.join(*np.array(pairs).T)
        components.roots(torch.arange(components.count))  # merges what is known so far
    reach = torch.eye(components.count)
    for left, right in edges:
        reach[left, right] = reach[right, left] = 1
    reach = torch.linalg.matrix_power(reach.double(), components.count) > 0
    roots = components.roots(torch.arange(components.count))
    assert torch.equal(roots[:, None] == roots, reach)
    assert torch.equal(components.sizes(roots), reach.sum(1))
    assert components.roots(torch.tensor([NONE])).tolist() == [NONE]
