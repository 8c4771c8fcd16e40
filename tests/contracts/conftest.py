"""Every registered entry as a parameter: a new one joins all contract tests by being registered.

A test asks for a ``method``, a ``probe``, an ``optimizer`` or any ``component``, and perhaps for a
``network`` to train it on.
"""

import warnings

import pytest
from entries import cases
from short_training import networks_of

ENTRIES = {
    "method": ("method",),
    "probe": ("probe",),
    "optimizer": ("optimizer",),
    "component": ("method", "probe", "optimizer"),
}


def pytest_generate_tests(metafunc):
    marks = metafunc.definition.iter_markers("parametrize")
    marked = {mark.args[0] for mark in marks if isinstance(mark.args[0], str)}
    for argument, kinds in ENTRIES.items():
        if argument not in metafunc.fixturenames or argument in marked:
            continue
        if "network" not in metafunc.fixturenames or "network" in marked:
            metafunc.parametrize(argument, cases(*kinds), ids=str)
            continue
        pairs = [(case, network) for case in cases(*kinds) for network in networks_of(case)]
        metafunc.parametrize((argument, "network"), pairs, ids=[f"{c}-{n}" for c, n in pairs])


@pytest.fixture(autouse=True)
def quiet_about_short_runs():
    """A run of twelve steps leaves soft masks undecided, and the methods rightly say so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*are undecided")
        warnings.filterwarnings("ignore", message=".*no logit is above 0")
        warnings.filterwarnings("ignore", message=".*clips many weights")
        warnings.filterwarnings("ignore", message="activations: inputs of .* stay in float")
        yield
