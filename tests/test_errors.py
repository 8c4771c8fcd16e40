"""The words of errors."""

from latewood.errors import invalid, listed


def test_names_of_a_message_are_cut():
    assert listed([]) == ""
    assert listed(["a", "b"], most=2) == "a, b"
    assert listed((name for name in "abcd"), most=2) == "a, b and 2 more"
    assert listed(map(str, range(10))) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"


def test_an_argument_its_value_and_what_is_allowed():
    assert str(invalid("lr", -1, "0 or more")) == "lr: got -1; expected 0 or more"
