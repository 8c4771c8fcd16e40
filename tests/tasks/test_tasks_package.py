"""The front of tasks and of models: what it offers, and that it drags nothing heavy in."""

from __future__ import annotations

import subprocess
import sys

import pytest

from latewood import tasks


@pytest.mark.parametrize("package", ["latewood.tasks", "latewood.models"])
def test_a_front_loads_nothing_beyond_torch(package: str) -> None:
    code = (
        "import sys, numpy, torch\n"
        "before = set(sys.modules)\n"
        f"import {package}\n"
        "added = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert added == {'latewood'}, added\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_name_of_the_front_is_there() -> None:
    assert all(hasattr(tasks, name) for name in tasks.__all__)
    assert tasks.__all__ == sorted(tasks.__all__)
