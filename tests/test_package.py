"""The package as others get it: typed, with its recipes; and what CI makes of a skipped test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from latewood.recipes import shipped_recipes

ROOT = Path(__file__).resolve().parent.parent

SKIPS = """
import pytest

@pytest.mark.skipif(True, reason="no CUDA device")
def test_hardware(): pass

@pytest.mark.skipif(True, reason="LATEWOOD_DATA is not set")
def test_real_data(): pass

@pytest.mark.xfail(reason="nothing_of_this_name is not installed")
def test_expected_failure(): raise ImportError

@pytest.mark.skipif(True, reason="nothing_of_this_name is not installed")
def test_condition(): pass

@pytest.fixture
def package(): return pytest.importorskip("nothing_of_this_name")

def test_fixture(package): pass

def test_body(): pytest.importorskip("nothing_of_this_name")
"""


def test_the_files_that_run_first_are_there(request: pytest.FixtureRequest) -> None:
    plugins = request.config.pluginmanager.get_plugins()
    (longest,) = (plugin.LONGEST for plugin in plugins if hasattr(plugin, "LONGEST"))
    assert all((ROOT / name).is_file() for name in longest)


@pytest.mark.parametrize(
    ("ci", "expected"),
    [
        ("true", "1 failed, 2 skipped, 1 xfailed, 3 errors"),
        ("", "6 skipped, 1 xfailed"),
    ],
)
def test_a_skip_for_a_missing_package_fails_ci(ci: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_skips.py").write_text(SKIPS)
    whole = 'import pytest\npytest.importorskip("nothing_of_this_name")\ndef test_nothing(): pass\n'
    (tmp_path / "test_whole_file.py").write_text(whole)
    options = ("-n", "1", "--continue-on-collection-errors", "-p", "no:cacheprovider", "-q")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--rootdir={tmp_path}", str(tmp_path)],
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.stdout.splitlines()[-1].startswith(f"{expected} in "), done.stdout
    assert (done.returncode == 0) == (ci == "")


def test_the_wheel_holds_recipes_and_types_and_its_page_no_dead_links(tmp_path: Path) -> None:
    pytest.importorskip("scikit_build_core")
    pytest.importorskip("hatch_fancy_pypi_readme")
    # Without the compiled kernels, which take longer than everything else.
    settings = {"wheel.cmake": "false", "build-dir": str(tmp_path / "build")}
    build = f"build_wheel({str(tmp_path)!r}, {settings})"
    code = f"from scikit_build_core.build import build_wheel; {build}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (metadata,) = (name for name in names if name.endswith("METADATA"))
        page = wheel.read(metadata).decode()
    shipped = {f"latewood/recipes/{recipe.name}.toml" for recipe in shipped_recipes()}
    assert shipped and names > {*shipped, "latewood/py.typed"}
    assert "# Latewood" in page and "`docs/optimizers.md`" in page
    assert not re.findall(r"\]\((?!https?://)", page)


def test_users_see_the_types(tmp_path: Path) -> None:
    # An installation that mypy can look into: editable ones are found by import hooks alone.
    venv.create(tmp_path / "venv", symlinks=True)
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (packages / "latewood").symlink_to(ROOT / "latewood")
    script = tmp_path / "script.py"
    script.write_text(
        "import latewood\n"
        "from latewood.recipes import shipped_recipes\n"
        "from latewood.training import load_recipe\n"
        "reveal_type(latewood.optim.AvaGrad)\n"
        "reveal_type(shipped_recipes()[0].task)\n"
        "reveal_type(load_recipe)\n"
        "latewood.no_room  # type: ignore[attr-defined]\n"
        "latewood.training.no_name  # type: ignore[attr-defined]\n"
    )
    python = tmp_path / "venv" / "bin" / "python"
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "script.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    revealed = [line.partition("Revealed type is ")[2] for line in done.stdout.splitlines()]
    assert "lr: float | Any =" in revealed[0] and "latewood.optim.avagrad.AvaGrad" in revealed[0]
    assert revealed[1] == '"str"'
    assert revealed[2].startswith('"def (recipe: str | pathlib.Path')


def test_torchvision_builds_its_networks() -> None:
    from torchvision.models import resnet18

    with torch.device("meta"):
        network = resnet18()
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 1000)
