"""Which weights are masked unless told otherwise, and when that is said."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from latewood.errors import RequestError
from latewood.sparsity import ContinuousSparsification, GradualMagnitudePruning, maskable


class Mixer(nn.Module):
    """A matrix beside a layer, under a name that says nothing."""

    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.state = nn.Parameter(torch.ones(4, width))


def names(chosen):
    return [weight.name for weight in chosen]


def silently(model, **patterns):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return names(maskable(model, **patterns))


@pytest.mark.parametrize("method", [ContinuousSparsification, GradualMagnitudePruning])
def test_a_method_that_masks_under_half_says_what_it_left_out_and_why(method):
    model = nn.Sequential(nn.Embedding(100, 4), Mixer(20), nn.Linear(4, 4), nn.Linear(4, 3))
    with pytest.warns(UserWarning) as caught:
        method(model, total_steps=4)
    (warning,) = caught
    assert warning.filename == __file__
    assert str(warning.message) == (
        "model: only 32 of the 124 entries of its matrices are masked (26%); left out: 3.weight "
        "(the last layer, dense unless exclude=()); 0.weight (an embedding); 1.state (beside "
        "layers in one module, which does not say what it is for)"
    )


def test_half_is_enough_and_embeddings_do_not_count():
    halves = nn.Sequential(nn.Embedding(100, 4), Mixer(4), nn.Linear(4, 4), nn.Linear(4, 4))
    assert silently(halves) == ["1.inner.weight", "2.weight"]
    less = nn.Sequential(nn.Embedding(100, 4), Mixer(5), nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.warns(UserWarning, match=r"only 32 of the 68"):
        maskable(less)


def test_patterns_are_wishes_and_no_reason_to_warn():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 40), nn.Linear(40, 4))
    assert silently(model, include=["0"]) == ["0.weight"]
    assert silently(model, exclude=["1", "2"]) == ["0.weight"]
    assert silently(model, exclude=()) == silently(model, exclude=[])
    assert silently(model, exclude=()) == ["0.weight", "1.weight", "2.weight"]


def test_what_an_embedding_shares_stays_dense_beside_the_last_layer():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 5))
    model[1].weight = model[0].weight
    assert silently(model) == ["2.weight"]
    assert silently(model, exclude=()) == ["1.weight", "2.weight", "3.weight"]
    assert silently(model, include=["1", "2"]) == ["1.weight", "2.weight"]
    head = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5))
    head[2].weight = head[0].weight  # a tied head costs no other layer
    assert silently(head) == ["1.weight"]


def test_a_model_of_nothing_else_is_masked_after_all():
    assert silently(nn.Linear(3, 4)) == ["weight"]
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    model[1].weight = model[0].weight
    assert silently(model) == ["1.weight"]


def test_a_weight_in_pieces_is_refused_by_name():
    model = nn.Sequential(weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    with pytest.raises(RequestError, match=r"0\.weight has the parametrization"):
        maskable(model)
    assert silently(model, exclude=["0"]) == ["1.weight"]
