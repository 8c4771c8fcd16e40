"""Writing TOML is the inverse of reading it."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latewood.training.toml import to_toml

scalars = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
keys = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
)


@given(st.dictionaries(keys, values, max_size=6))
def test_what_is_written_reads_back_the_same(document):
    assert tomllib.loads(to_toml(document)) == document


def test_none_is_left_out_and_tables_come_after_scalars():
    document = {"task": {"name": "digits", "x": {"y": None, "z": 1}}, "epochs": 3, "steps": None}
    assert to_toml(document) == 'epochs = 3\n\n[task]\nname = "digits"\nx = {z = 1}\n'


def test_a_list_of_tables_is_an_array_of_tables():
    text = to_toml({"methods": [{"name": "a"}, {"name": "b", "k": [1, 2]}]})
    assert text == '[[methods]]\nname = "a"\n\n[[methods]]\nname = "b"\nk = [1, 2]\n'


def test_what_has_no_form_in_toml_is_refused():
    with pytest.raises(TypeError, match="complex"):
        to_toml({"a": 1j})
