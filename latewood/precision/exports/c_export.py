"""Packed networks as one C99 header: constant tables, static scratch memory, one function."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from latewood.core.whole_files import write_whole
from latewood.errors import RequestError, invalid
from latewood.precision.exports.c_steps import StepWriter
from latewood.precision.exports.c_tables import placed_buffers
from latewood.precision.exports.example_inputs import example_tensors
from latewood.precision.integer_network import Flatten, IntegerNetwork
from latewood.precision.network_compilation import compile_network
from latewood.precision.packed_model import PackedModel

__all__ = ["CHeader", "export_c", "header_text"]

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}", re.ASCII)


@dataclass(frozen=True)
class CHeader:
    """A C header of a packed network.

    Args:
        path: where it is.
        function: that runs the network.
        flash: bytes of its constant tables, without its code.
        ram: bytes of its static memory; the stack takes less than 256 more.
        inputs: floats that it reads.
        outputs: floats that it writes.
    """

    path: Path
    function: str
    flash: int
    ram: int
    inputs: int
    outputs: int


def export_c(
    packed: PackedModel,
    path: str | Path,
    name: str = "network",
    *,
    example_inputs: Tensor | tuple[Tensor, ...] | None = None,
) -> CHeader:
    """Writes a packed network as one C99 header that needs nothing but <stdint.h>.

    It has one function, ``int NAME_run(const float *input, float *output)``, for one image: numbers
    in the order of channels, rows and columns. It returns 0, or 1 where NaN has no code. Nothing is
    allocated: weights are constant tables, what lies between layers is static, so that two threads
    must not run it at once. Outputs equal those of the packed network's steps to the bit
    (``reference_run``), with any compiler that rounds floats as IEEE 754 says: without -ffast-math.

    Args:
        packed: of ``pack`` or ``load_packed``.
        path: of the file, in an existing folder; what is there is replaced.
        name: prefix of everything in it.
        example_inputs: what the network is called with; None for shapes like those of ``pack``.

    Raises:
        RequestError: a name that C does not allow, a folder that is not there, or a network with
            something that has no step; the message names it.
        WorkError: the file cannot be written.
    """
    if not isinstance(packed, PackedModel):
        raise invalid("packed", type(packed).__name__, "a PackedModel")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise invalid("name", name, "letters, digits and _, a letter first, at most 63")
    if not isinstance(path, (str, Path)):
        raise invalid("path", path, "a path")
    target = Path(path)
    if target.is_dir() or not target.parent.is_dir():
        raise invalid("path", str(path), "a file in a folder there is")
    network = _network(packed, example_inputs)
    text, flash, ram = header_text(network, name)
    write_whole(target, lambda temporary: temporary.write_text(text, encoding="ascii"))
    counts = [
        torch.Size(network.buffers[buffer].shape).numel()
        for buffer in (network.source, network.target)
    ]
    return CHeader(target, f"{name}_run", flash, ram, counts[0], counts[1])


def header_text(network: IntegerNetwork, name: str) -> tuple[str, int, int]:
    """The header of a network, and the bytes of its tables and of its static memory.

    Args:
        network: whose steps are written.
        name: prefix of everything in it.

    Raises:
        RequestError: numbers in it that are not finite.
    """
    writer = StepWriter(network, name)
    places = placed_buffers(network, f"{name}_memory")
    calls = []
    for place, step in enumerate(network.steps):
        if isinstance(step, Flatten):
            continue
        arguments = [places.expressions[buffer] for buffer in writer.add(step, place)]
        calls.append(f"  {name}_step_{place}({', '.join(arguments)}, &nan);")
    if places.copied:
        count = torch.Size(network.buffers[network.target].shape).numel()
        calls.append(f"  for (int k = 0; k < {count}; ++k) output[k] = input[k];")
    memory, patch = -(-places.bytes // 4), writer.patch
    flash, ram = writer.tables.bytes, 4 * memory + 2 * patch
    guard = f"{name.upper()}_H"
    arrays = [f"static float {name}_memory[{memory}];"] if memory else []
    arrays += [f"static int16_t {name}_patch[{patch}];"] if patch else []
    lines = [
        *_comment(network, name, flash, ram),
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        "#include <stdint.h>",
        "",
        f"#define {name.upper()}_INPUTS {_numbers(network, network.source)}",
        f"#define {name.upper()}_OUTPUTS {_numbers(network, network.target)}",
        "",
        *writer.tables.lines,
        "",
        *arrays,
        *(line for helper in _ORDER if helper in writer.helpers for line in _helper(helper, name)),
        *writer.functions,
        "",
        f"static inline int {name}_run(const float *input, float *output) {{",
        "  int nan = 0;",
        *calls,
        "  return nan;",
        "}",
        "",
        "#endif",
        "",
    ]
    return "\n".join(lines), flash, ram


def _network(
    packed: PackedModel, example_inputs: Tensor | tuple[Tensor, ...] | None
) -> IntegerNetwork:
    examples = example_tensors(packed.graph, example_inputs)
    if len(examples) != 1 or examples[0].dtype != torch.float32 or not examples[0].dim():
        found = [f"{x.dtype} {tuple(x.shape)}" for x in examples]
        raise invalid("example_inputs", found, "one tensor of float32 with an axis of images")
    network = compile_network(packed.graph, tuple(examples[0].shape[1:]))
    if isinstance(network, str):
        raise RequestError(f"packed: cannot be written in C; it has {network}")
    if network.batch not in (None, 1):
        raise RequestError(
            f"packed: cannot be written in C; it takes {network.batch} images at once alone"
        )
    return network


def _numbers(network: IntegerNetwork, buffer: int) -> int:
    return torch.Size(network.buffers[buffer].shape).numel()


def _comment(network: IntegerNetwork, name: str, flash: int, ram: int) -> list[str]:
    source, target = (
        " x ".join(map(str, network.buffers[buffer].shape))
        for buffer in (network.source, network.target)
    )
    # Names of layers come from a file of anybody, and must not end the comment.
    steps = re.sub(r"[^ -~\n]|[*\\]", "?", network.describe()).splitlines()
    return [
        f"/* {name}: a packed network, written by latewood. C99, no allocation, no library.",
        " *",
        f" * int {name}_run(const float *input, float *output)",
        f" *   input:  {source} numbers (channels x rows x columns), one image",
        f" *   output: {target} numbers, which must not overlap the input",
        " *   returns 0, or 1 if a number is NaN where it has to become a code",
        " *",
        f" * flash: {flash} bytes of tables, and the code",
        f" * RAM:   {ram} bytes, static: not for two threads at once",
        " *",
        *(f" * {line}" for line in steps),
        " */",
    ]


_ORDER: Final = ("rounded", "fused", "code", "dot_1", "dot_2", "dot_4", "dot_8")


def _helper(helper: str, name: str) -> list[str]:
    if helper.startswith("dot_"):
        return ["", *_dot(int(helper[4:]), name)]
    return ["", *(_HELPERS[helper].replace("NAME", name).strip("\n").splitlines())]


def _dot(bits: int, name: str) -> list[str]:
    each = 8 // bits
    code = "packed[i]" if bits == 8 else f"(packed[i] >> ({bits} * k) & {(1 << bits) - 1})"
    return [
        f"/* Sum of codes of {bits} bits times numbers; it wraps around on the way. */",
        f"static uint32_t {name}_dot_{bits}(const uint8_t *packed, const int16_t *numbers, "
        "int bytes) {",
        "  uint32_t sum = 0;",
        f"  for (int i = 0; i < bytes; ++i, numbers += {each})",
        f"    for (int k = 0; k < {each}; ++k)",
        f"      sum += (uint32_t){code} * (uint32_t)(int32_t)numbers[k];",
        "  return sum;",
        "}",
    ]


_HELPERS: Final = {
    "rounded": """
/* A number rounded to float, which no compiler may then join with what follows. */
#if defined(__GNUC__) && !defined(__FP_FAST_FMAF) && __FLT_EVAL_METHOD__ == 0
#define NAME_rounded(number) (number)
#else
static float NAME_rounded(float number) {
  volatile float rounded = number;
  return rounded;
}
#endif
""",
    "fused": """
/* number * factor + addend with one rounding: the sum in double, made odd where it is not exact. */
static float NAME_fused(float number, float factor, float addend) {
  union { double number; uint64_t bits; } total;
  volatile double product = (double)number * (double)factor;
  volatile double sum = product + (double)addend;
  volatile double back = sum - product;
  volatile double away = sum - back;
  volatile double left = product - away;
  volatile double right = (double)addend - back;
  volatile double lost = left + right;
  total.number = sum;
  if ((lost > 0 || lost < 0) && !(total.bits & 1)) {
    if ((lost > 0) == (sum > 0)) ++total.bits;
    else --total.bits;
  }
  return (float)total.number;
}
""",
    "code": """
/* The code of a number: its cell on the grid of so many bits. */
static uint8_t NAME_code(float number, float alpha, float offset, int bits, int *nan) {
  const int levels = 1 << bits, half = levels / 2;
  const float divided = NAME_rounded(number / alpha);
  const float shifted = NAME_rounded(divided - offset);
  const float cells = NAME_rounded(shifted * ((float)levels / 4));
  int cell;
  if (bits == 0) return 0;
  if (cells != cells) *nan = 1;
  if (!(cells >= (float)-half)) return 0;
  if (cells >= (float)(half - 1)) return (uint8_t)(levels - 1);
  cell = (int)cells;
  if ((float)cell > cells) --cell;
  return (uint8_t)(cell + half);
}
""",
}
