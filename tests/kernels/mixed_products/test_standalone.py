"""The products of codes as a program without Python: plain, AVX2, and NEON in an emulator."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[3] / "native"
COMPILER = shutil.which("g++") or shutil.which("c++")
CROSS_COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64")
OPTIONS = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-fno-math-errno", "-fno-trapping-math")
NUMBERS = ("-ffp-contract=off", "-fwrapv")  # as in CMakeLists.txt
KERNELS = ("kernels/mixed_products.cpp", "kernels/integer_network.cpp", "tests/vectors.cpp")
LAYOUTS = ("mixed_weights.cpp", "lane_products.cpp")
WHAT_RUNS = {
    "a code out of range",
    "numbers",
    "outputs: bytes",
    "outputs: lookup 1 planes 1",
    "outputs: lookup 1 planes 2",
    "outputs: lookup 2 planes 2",
    "outputs: words",
    "positions: bytes",
    "positions: lookup of 2",
    "positions: lookup of 4",
    "positions: words",
}


def call(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def compiled(compiler: str, target: Path, sources: tuple[str, ...], *options: str) -> list[Path]:
    target.mkdir()
    objects = []
    for source in sources:
        objects.append(target / f"{Path(source).stem}.o")
        call(
            compiler, *OPTIONS, *NUMBERS, *options, "-DLATEWOOD_ISA=isa_baseline",
            "-I", SOURCES, "-c", SOURCES / source, "-o", objects[-1],
        )  # fmt: skip
    return objects


def program_objects(compiler: str, target: Path, *options: str) -> list[Path]:
    """Those that no instruction set changes, compiled as one for the sake of time."""
    before = [word for name in LAYOUTS for word in ("-include", str(SOURCES / name))]
    return compiled(compiler, target, ("tests/products.cpp",), *options, *before)


def check(output: str, vectors: str) -> None:
    first, *forms = output.splitlines()
    assert first.endswith(f"products equal, vectors: {vectors}")
    assert set(forms) == WHAT_RUNS


def has_avx2() -> bool:
    try:
        return "avx2" in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False


@pytest.fixture(scope="module")
def native_test(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    return program_objects(COMPILER, tmp_path_factory.mktemp("native") / "test", "-O0")


@pytest.mark.parametrize("vectors", ["plain", "AVX2"])
def test_products_of_this_machine(native_test: list[Path], tmp_path: Path, vectors: str) -> None:
    if vectors == "AVX2" and not has_avx2():
        pytest.skip("this machine has no AVX2")
    options = ("-mavx2", "-mfma", "-mf16c") if vectors == "AVX2" else ()
    kernels = compiled(str(COMPILER), tmp_path / "kernels", KERNELS, "-O0", *options)
    call(str(COMPILER), *native_test, *kernels, "-o", tmp_path / "products")
    host = call(str(COMPILER), "-dumpmachine")
    plain = "NEON" if host.startswith("aarch64") else "none"
    check(call(tmp_path / "products"), "AVX2" if vectors == "AVX2" else plain)


@pytest.mark.skipif(
    CROSS_COMPILER is None or EMULATOR is None,
    reason="no cross compiler for aarch64 or no emulator (g++-aarch64-linux-gnu, qemu-user)",
)
def test_products_with_neon(tmp_path: Path) -> None:
    compiler = str(CROSS_COMPILER)
    objects = program_objects(compiler, tmp_path / "test", "-O1")
    objects += compiled(compiler, tmp_path / "kernels", KERNELS, "-O1")
    call(compiler, "-static", *objects, "-o", tmp_path / "products")
    check(call(str(EMULATOR), tmp_path / "products"), "NEON")
