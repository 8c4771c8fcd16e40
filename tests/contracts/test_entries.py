"""The table of arguments and the registries name the same entries."""

import pytest
from entries import ARGUMENTS, Case, cases

from latewood.training.components import METHODS, OPTIMIZERS, PROBES, REGISTRIES


def test_every_registered_entry_is_a_case_and_no_other():
    names = {"method": set(METHODS), "probe": set(PROBES), "optimizer": set(OPTIMIZERS)}
    for kind, registered in names.items():
        assert {case.name for case in cases(kind)} == registered
        assert set(ARGUMENTS[kind]) <= registered, f"{kind}: the table has an entry that is gone"


@pytest.mark.parametrize("kind", ["method", "probe", "optimizer"])
def test_an_entry_without_arguments_says_what_to_do(kind, monkeypatch):
    monkeypatch.setitem(REGISTRIES[kind], "newcomer", "latewood.somewhere:Newcomer")
    (newcomer,) = [case for case in cases(kind) if case.name == "newcomer"]
    assert newcomer == Case(kind, "newcomer")
    with pytest.raises(pytest.fail.Exception) as caught:
        newcomer.section
    assert str(caught.value) == (
        f"{kind.upper()}S has 'newcomer' without an entry in tests/contracts/entries.py; "
        "add its smallest valid arguments"
    )
