"""Importing the room loads no library that only some of its functions need."""

import subprocess
import sys


def test_what_is_loaded_on_first_use():
    code = "import sys, latewood.spectra; print({'pyarrow', 'scipy'} & sys.modules.keys())"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "set()"
