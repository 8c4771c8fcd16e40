"""The front of tasks and of models: what it offers, and that it drags nothing heavy in."""

from __future__ import annotations

import pytest
from import_probe import imported_by

from latewood import tasks


@pytest.mark.parametrize("package", ["latewood.tasks", "latewood.models"])
def test_a_front_loads_nothing_beyond_torch(package: str) -> None:
    added = {name.partition(".")[0] for name in imported_by(package)[package]}
    assert added == {"latewood"}


def test_every_name_of_the_front_is_there() -> None:
    assert all(hasattr(tasks, name) for name in tasks.__all__)
    assert tasks.__all__ == sorted(tasks.__all__)
