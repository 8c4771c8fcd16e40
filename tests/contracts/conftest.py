"""Every registered entry as a fixture: a new one joins all contract tests by being registered."""

import warnings

import pytest
from entries import cases
from short_training import NETWORKS


@pytest.fixture(params=cases("method"), ids=str)
def method(request):
    return request.param


@pytest.fixture(params=cases("probe"), ids=str)
def probe(request):
    return request.param


@pytest.fixture(params=cases("optimizer"), ids=str)
def optimizer(request):
    return request.param


@pytest.fixture(params=cases("method", "probe", "optimizer"), ids=str)
def component(request):
    return request.param


@pytest.fixture(params=NETWORKS)
def network(request):
    return request.param


@pytest.fixture(autouse=True)
def quiet_about_short_runs():
    """A run of twelve steps leaves soft masks undecided, and the methods rightly say so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*are undecided")
        warnings.filterwarnings("ignore", message=".*no logit is above 0")
        yield
