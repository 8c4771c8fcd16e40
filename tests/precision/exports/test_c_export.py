"""Packed networks as C headers: compiled strictly, they compute the same to the bit."""

from __future__ import annotations

import copy
import functools
import itertools
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from integer_networks import NETWORKS, disturbed
from packed_networks import finished, small_network
from torch import Tensor, nn

from latewood.errors import RequestError, WorkError
from latewood.precision import PackedModel, export_c, load_packed, pack
from latewood.precision.exports.c_export import header_text
from latewood.precision.exports.c_tables import placed_buffers
from latewood.precision.integer_network import (
    Buffer,
    Elementwise,
    Epilogue,
    Flatten,
    IntegerNetwork,
    step_buffers,
)
from latewood.precision.network_compilation import compile_network
from latewood.precision.network_reference import reference_run

COMPILER = shutil.which("gcc") or shutil.which("cc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")
IMAGES = 2 * torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(5))
STRICT = ("-std=c99", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
MAIN = """
#include <stdio.h>
#include "network.h"
int main(void) {
  static float input[NETWORK_INPUTS], output[NETWORK_OUTPUTS];
  while (fread(input, sizeof(float), NETWORK_INPUTS, stdin) == NETWORK_INPUTS) {
    if (network_run(input, output)) return 3;
    fwrite(output, sizeof(float), NETWORK_OUTPUTS, stdout);
  }
  return 0;
}
"""


def compiled(folder: Path, *options: str) -> Path:
    (folder / "main.c").write_text(MAIN)
    program = folder / "program"
    command = [str(COMPILER), *(options or STRICT), "main.c", "-o", program.name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def run(program: Path, inputs: Tensor) -> Tensor:
    done = subprocess.run([program], input=inputs.numpy().tobytes(), capture_output=True)
    assert done.returncode == 0
    numbers = torch.frombuffer(bytearray(done.stdout), dtype=torch.float32)
    return numbers.reshape(len(inputs), -1)


class Pools(nn.Module):
    """Averages with and without their padding, a mean, and the numbers of a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        two = torch.full((3,), 2)
        self.layer = finished(nn.Conv2d(3, 6, 3, padding=1), two, input_bits=two)
        self.norm = nn.BatchNorm2d(6)
        self.one = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
        self.two = nn.AvgPool2d((2, 3), stride=1, padding=(1, 1))
        self.three = nn.AvgPool2d(2, divisor_override=3)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.last = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.layer(images))
        hidden = self.norm(self.two(self.one(hidden)))
        return self.last(self.mean(self.three(hidden)).flatten(1))  # type: ignore[no-any-return]


class Streams(nn.Module):
    """A sum of two pooled values, a batch norm on it, and a convolution in groups."""

    def __init__(self) -> None:
        super().__init__()
        bits = torch.tensor([1, 2, 4])
        self.one = finished(nn.Conv2d(3, 6, 1), bits, input_bits=bits)
        self.two = nn.Conv2d(6, 6, 3, padding=1, groups=3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.one(images)
        return torch.relu(self.norm(self.pool(hidden) + self.pool(self.two(hidden))))


MAKES: dict[str, Callable[[], nn.Module]] = {
    **NETWORKS,
    "small": small_network,
    "streams": Streams,
    "pools": Pools,
}


@functools.cache
def packed_of(name: str) -> PackedModel:
    torch.manual_seed(1)
    return pack(disturbed(MAKES[name]()), IMAGES[:2])


@needs_compiler
@pytest.mark.parametrize("name", MAKES)
def test_the_header_computes_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    packed = packed_of(name)
    done = export_c(packed, tmp_path / "network.h")
    assert [entry.name for entry in tmp_path.iterdir()] == ["network.h"]
    network = compile_network(packed.graph, (3, 8, 8))
    assert isinstance(network, IntegerNetwork)
    expected = reference_run(network, IMAGES)
    outputs = run(compiled(tmp_path), IMAGES)
    assert torch.equal(outputs, expected.flatten(1))
    assert (done.inputs, done.outputs) == (192, expected[0].numel())
    assert done.function == "network_run"


@needs_compiler
@pytest.mark.parametrize("options", [("-std=gnu99", "-O3", "-march=native"), ("-O0",)])
def test_the_compiler_may_not_join_roundings(options: tuple[str, ...], tmp_path: Path) -> None:
    packed = packed_of("pre-activation")
    export_c(packed, tmp_path / "network.h")
    expected = packed.network(IMAGES).flatten(1)
    assert torch.equal(run(compiled(tmp_path, *options), IMAGES), expected)


@needs_compiler
def test_flash_and_ram_are_what_the_compiler_finds(tmp_path: Path) -> None:
    done = export_c(packed_of("residual"), tmp_path / "network.h")
    text = done.path.read_text()
    assert f"flash: {done.flash} bytes" in text and f"RAM:   {done.ram} bytes" in text
    source = '#include "network.h"\nint call(const float *x, float *y);\n'
    source += "int call(const float *x, float *y) { return network_run(x, y); }\n"
    (tmp_path / "unit.c").write_text(source)
    subprocess.run([str(COMPILER), "-std=c99", "-O0", "-c", "unit.c"], cwd=tmp_path, check=True)
    listed = subprocess.run(
        ["nm", "-S", "unit.o"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    sizes = {"r": 0, "b": 0}
    for size, kind in re.findall(r"^\w+ (\w+) ([rb]) network_\w+$", listed, re.MULTILINE):
        sizes[kind] += int(size, 16)
    assert sizes == {"r": done.flash, "b": done.ram}


def test_a_header_of_few_bits_is_small(tmp_path: Path) -> None:
    packed = packed_of("1 bit")
    done = export_c(packed, tmp_path / "network.h")
    weights = sum(layer.codes().numel() for layer in packed.layers.values())
    assert done.flash < weights / 8 * 1.1 + 4 * 3 * 70
    # The largest step: 35 channels of codes behind 18, and the inputs of one position.
    assert done.ram < 4096


@needs_compiler
def test_nan_ends_the_run(tmp_path: Path) -> None:
    export_c(packed_of("perceptron"), tmp_path / "network.h")
    program = compiled(tmp_path)
    images = IMAGES[:1].clone()
    images[0, 0, 0, 0] = float("inf")
    run(program, images)
    images[0, 0, 0, 0] = float("nan")
    assert subprocess.run([program], input=images.numpy().tobytes()).returncode == 3


def test_buffers_that_are_needed_together_lie_apart() -> None:
    for name in NETWORKS:
        network = compile_network(packed_of(name).graph, (3, 8, 8))
        assert isinstance(network, IntegerNetwork)
        places = placed_buffers(network, "memory")
        spans = {}
        for buffer, text in places.expressions.items():
            found = re.search(r"memory \+ (\d+)", text)
            if found:
                described = network.buffers[buffer]
                size = torch.Size(described.shape).numel() * (
                    1 if described.bits is not None else 4
                )
                spans[buffer] = (4 * int(found[1]), 4 * int(found[1]) + size)
                assert spans[buffer][1] <= places.bytes
        used = [set(itertools.chain(*step_buffers(step))) for step in network.steps]
        for place, step in enumerate(network.steps):
            if isinstance(step, Flatten):
                continue
            before = set().union(*used[:place], {network.source})
            later = set().union(*used[place:])
            alive = sorted(spans[b] for b in (before & later | used[place]) if b in spans)
            # A sum may take the place of its residual.
            residual = spans.get(step.epilogue.residual or -1)
            for (begin, end), (start, stop) in itertools.pairwise(alive):
                assert end <= start or (begin, end) == (start, stop) == residual


@needs_compiler
def test_a_network_of_no_steps_copies(tmp_path: Path) -> None:
    buffers = (Buffer((3, 1, 1)),)
    text, flash, ram = header_text(IntegerNetwork(buffers, (), 0, 0, 2), "network")
    (tmp_path / "network.h").write_text(text)
    assert (flash, ram) == (0, 0)
    images = torch.randn(2, 3)
    assert torch.equal(run(compiled(tmp_path), images), images)


def test_what_is_wrong_is_named_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, path = packed_of("1 bit"), tmp_path / "network.h"
    call: Any = export_c
    for name in ("", "1st", "a-b", "a" * 64, "naïve", "x*/", 3):
        with pytest.raises(RequestError, match="name: got"):
            call(packed, path, name)
    with pytest.raises(RequestError, match="packed: got 'Linear'"):
        call(nn.Linear(2, 2), path)
    with pytest.raises(RequestError, match="path: got None"):
        call(packed, None)
    with pytest.raises(RequestError, match="in a folder there is"):
        call(packed, tmp_path / "no" / "network.h")
    with pytest.raises(RequestError, match=r"float64.*one tensor of float32"):
        call(packed, path, example_inputs=IMAGES.double())
    with pytest.raises(RequestError, match="cannot be written in C; it has the layer"):
        call(packed, path, example_inputs=IMAGES[:, :2])
    strange = pack(nn.Sequential(NETWORKS["1 bit"](), nn.Softmax(1)).eval(), IMAGES[:2])
    with pytest.raises(RequestError, match=r"it has the operation aten\.softmax"):
        call(strange, path)
    wide = (Buffer((1, 1, 1)), Buffer((1, 1, 1)))
    step = Elementwise(0, Epilogue(low=float("nan"), target=1))
    with pytest.raises(RequestError, match="holds the number nan"):
        header_text(IntegerNetwork(wide, (step,), 0, 1, 2), "network")

    def full(self: Path, *_: Any, **__: Any) -> int:
        raise OSError(28, "no space")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(WorkError, match="no space"):
        call(packed, path)
    assert not list(tmp_path.iterdir())


def test_the_same_network_gives_the_same_header(tmp_path: Path) -> None:
    packed = packed_of("vgg")
    export_c(packed, tmp_path / "one.h")
    packed.save(tmp_path / "packed.safetensors")
    export_c(load_packed(tmp_path / "packed.safetensors"), str(tmp_path / "two.h"))
    assert (tmp_path / "one.h").read_text() == (tmp_path / "two.h").read_text()


def test_names_of_layers_cannot_end_the_comment() -> None:
    packed = copy.deepcopy(packed_of("1 bit"))
    layers = {f"{name}*/ evil \\": layer for name, layer in packed.graph.layers.items()}
    for node in packed.graph.nodes:
        if node[0] == "layer":
            node[1] += "*/ evil \\"
    packed.graph.layers = layers
    network = compile_network(packed.graph, (3, 8, 8))
    assert isinstance(network, IntegerNetwork)
    text, _, _ = header_text(network, "network")
    assert text.count("evil") == 3 and text.partition("#ifndef")[0].count("*/") == 1
