"""Importing the room loads no library that only some of its functions need."""

from import_probe import imported_by


def test_what_is_loaded_on_first_use():
    imported = imported_by("latewood.spectra")
    assert not {"pyarrow", "scipy"} & (imported["torch"] | imported["latewood.spectra"])
