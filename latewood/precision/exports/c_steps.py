"""Each step of an integer network as a function in C99, without a library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from latewood.kernels.mixed_products import Taps
from latewood.precision.exports.c_products import WidthRun, packed_runs
from latewood.precision.exports.c_tables import Tables, float_literal
from latewood.precision.integer_network import (
    Buffer,
    Elementwise,
    Epilogue,
    Flatten,
    FloatProduct,
    IntegerNetwork,
    PackedProduct,
    Pool,
    Step,
)

__all__ = ["StepWriter"]


class StepWriter:
    """Writes the functions of steps, and remembers what they need.

    Args:
        network: that they are of.
        name: prefix of all names.
    """

    def __init__(self, network: IntegerNetwork, name: str) -> None:
        self.network, self.name = network, name
        self.tables = Tables(name)
        self.functions: list[str] = []
        self.helpers: set[str] = set()
        self.patch = 0

    def add(self, step: Step, place: int) -> list[int]:
        """Adds the function of a step.

        Args:
            step: any but ``Flatten``, which is no work.
            place: its number.

        Returns:
            The buffers that it takes, in this order.
        """
        assert not isinstance(step, Flatten)
        epilogue = step.epilogue
        buffers = [step.source]
        codes = isinstance(step, PackedProduct)
        arguments = [f"const {'uint8_t' if codes else 'float'} *source"]
        if epilogue.residual is not None:
            buffers.append(epilogue.residual)
            arguments.append("const float *residual")
        if epilogue.target is not None:
            buffers.append(epilogue.target)
            arguments.append("float *numbers")
        for number, encoder in enumerate(epilogue.encoders):
            buffers.append(encoder.target)
            arguments.append(f"uint8_t *codes_{number}")
        arguments.append("int *nan")
        shape = self._output_shape(epilogue)
        if isinstance(step, PackedProduct):
            body = self._packed(step, shape)
        elif isinstance(step, FloatProduct):
            body = self._float(step, shape)
        elif isinstance(step, Pool):
            body = self._pool(step, shape)
        else:
            body = self._elementwise(step, shape)
        head = f"static void {self.name}_step_{place}({', '.join(arguments)}) {{"
        unused = [] if any("nan" in line for line in body) else ["  (void)nan;"]
        self.functions += ["", head, *unused, *body, "}"]
        return buffers

    def _shape(self, buffer: int) -> tuple[int, int, int]:
        return self.network.buffers[buffer].shape

    def _output_shape(self, epilogue: Epilogue) -> tuple[int, int, int]:
        target = epilogue.encoders[0].target if epilogue.target is None else epilogue.target
        return self._shape(target)

    def _packed(self, step: PackedProduct, shape: tuple[int, int, int]) -> list[str]:
        outputs, rows, columns = shape
        runs = packed_runs(step.weights, self.tables)
        patch = f"{self.name}_patch"
        self.patch = max(self.patch, sum(run.length for run in runs))
        lines = self._positions(rows, columns)
        if not runs:
            # No channel is read: all sums are 0.
            lines.append("    (void)source, (void)y, (void)x;")
        for number, run in enumerate(runs):
            lines += self._gathered(step, run, number, patch)
        lines += [f"    for (int n = 0; n < {outputs}; ++n) {{", "      uint32_t sum = 0;"]
        for number, run in enumerate(runs):
            self.helpers.add(f"dot_{run.bits}")
            where = f"{patch} + {run.begin}"
            kept = f"total_{number}"
            if run.mask:
                self.helpers.add("dot_1")
                mask = f"{run.mask} + n * {run.length // 8}"
                kept = f"{self.name}_dot_1({mask}, {where}, {run.length // 8})"
            dot = (
                f"{self.name}_dot_{run.bits}({run.weights} + n * {run.bytes}, {where}, {run.bytes})"
            )
            lines.append(f"      sum += {run.factor}u * (2u * {dot}")
            lines.append(f"                   - {run.top}u * {kept});")
        lines.append("      const int32_t whole = (int32_t)sum;")
        if _reads_numbers(step.epilogue):
            scale = self.tables.add(_array(step.scale))
            self.helpers.add("rounded")
            product = f"{self.name}_rounded((float)whole * {scale}[n])"
            value = product
            if bool(step.bias.any()):
                bias = self.tables.add(_array(step.bias))
                value = f"{self.name}_rounded({product} + {bias}[n])"
            lines.append(f"      float value = {value};")
        return [*lines, *self._epilogue(step.epilogue, rows * columns), "    }", "  }"]

    def _gathered(self, step: PackedProduct, run: WidthRun, number: int, patch: str) -> list[str]:
        _, height, width = self._shape(step.source)
        kernel = step.weights.codes.shape[2:]
        channel = f"{run.order}[k]" if run.order else "k"
        value = f"(2 * source[{channel} * {height * width} + row * {width} + column]"
        value += f" {'-' if run.base >= 0 else '+'} {abs(run.base)})"
        if run.gain > 1:
            value += f" * {run.gain}"
        total = f"total_{number}"
        lines = [] if run.mask else [f"    uint32_t {total} = 0;"]
        lines += ["    {", f"      int16_t *to = {patch} + {run.begin};"]
        lines += _taps(step.taps, kernel, (height, width))
        lines += [
            f"          for (int k = 0; k < {run.count}; ++k)",
            f"            *to++ = (int16_t)(inside ? {value} : 0);",
            "        }",
            "      }",
        ]
        for _ in range(run.length - run.filled):
            lines.append("      *to++ = 0;")
        if not run.mask:
            summed = f"{total} += (uint32_t){patch}[{run.begin} + k]"
            lines.append(f"      for (int k = 0; k < {run.filled}; ++k) {summed};")
        return [*lines, "    }"]

    def _float(self, step: FloatProduct, shape: tuple[int, int, int]) -> list[str]:
        outputs, rows, columns = shape
        _, height, width = self._shape(step.source)
        weight = self.tables.add(_array(step.weight))
        channels, *kernel = step.weight.shape[1:]
        self.helpers.add("rounded")
        first = f"n / {outputs // step.groups} * {channels}" if step.groups > 1 else "0"
        met = f"source[({first} + c) * {height * width} + row * {width} + column]"
        place = f"((n * {channels} + c) * {kernel[0]} + i) * {kernel[1]} + j"
        lines = [
            *self._positions(rows, columns),
            f"    for (int n = 0; n < {outputs}; ++n) {{",
            "      float value = 0;",
            f"      for (int c = 0; c < {channels}; ++c)",
            *_taps(step.taps, (kernel[0], kernel[1]), (height, width)),
            "          if (inside)",
            f"            value = {self.name}_rounded(value + {self.name}_rounded(",
            f"                {met} * {weight}[{place}]));",
            "        }",
            "      }",
        ]
        if step.bias is not None:
            bias = self.tables.add(_array(step.bias))
            lines.append(f"      value = {self.name}_rounded(value + {bias}[n]);")
        return [*lines, *self._epilogue(step.epilogue, rows * columns), "    }", "  }"]

    def _pool(self, step: Pool, shape: tuple[int, int, int]) -> list[str]:
        channels, rows, columns = shape
        _, height, width = self._shape(step.source)
        each = f"    for (int n = 0; n < {channels}; ++n) {{"
        lines = [*self._positions(rows, columns), each]
        self.helpers.add("rounded")
        if step.kind == "mean":
            lines = ["  {", "    const int at = 0;", each, *self._mean(height * width)]
            return [*lines, *self._pool_end(step, 1)]
        met = f"source[n * {height * width} + row * {width} + column]"
        taps = _taps(step.taps, step.kernel, (height, width))
        if step.kind == "max":
            lines += ["      float value = 0;", "      int count = 0;", *taps]
            lines += [
                "          if (inside) {",
                f"            const float met = {met};",
                # Also where one is NaN.
                "            if (count++ == 0 || met > value || met != met) value = met;",
                "          }",
                "        }",
                "      }",
            ]
            return [*lines, *self._pool_end(step, rows * columns)]
        lines += ["      float value = 0;", "      int count = 0;", *taps]
        lines += [
            "          if (inside) {",
            f"            value = {self.name}_rounded(value + {met});",
            "            ++count;",
            "          }",
            "        }",
            "      }",
            *self._divided(step, (height, width)),
        ]
        return [*lines, *self._pool_end(step, rows * columns)]

    def _divided(self, step: Pool, sizes: tuple[int, int]) -> list[str]:
        if step.divisor is not None:
            return ["      (void)count;", *self._quotient(str(step.divisor))]
        if not step.counts_padding:
            return self._quotient("count")
        # The window with the padding around the image, but not what is outside of that.
        taps, spans = step.taps, []
        for axis, at in enumerate("yx"):
            end = sizes[axis] + taps.after[axis]
            start = f"{at} * {taps.stride[axis]} - {taps.padding[axis]}"
            stop = f"{start} + {step.kernel[axis]}"
            spans.append(f"(({stop} < {end} ? {stop} : {end}) - ({start}))")
        return ["      (void)count;", *self._quotient(f"({' * '.join(spans)})")]

    def _quotient(self, divisor: str) -> list[str]:
        return [f"      value = {self.name}_rounded(value / (float){divisor});"]

    def _mean(self, count: int) -> list[str]:
        """Eight partial sums, which are then added in pairs."""
        add = f"{self.name}_rounded"
        return [
            "      float part[8] = {0, 0, 0, 0, 0, 0, 0, 0};",
            f"      for (int k = 0; k < {count}; ++k)",
            f"        part[k % 8] = k < 8 ? source[n * {count} + k]",
            f"                            : {add}(part[k % 8] + source[n * {count} + k]);",
            "      for (int half = 4; half > 0; half /= 2)",
            f"        for (int k = 0; k < half; ++k) part[k] = {add}(part[k] + part[half + k]);",
            "      float value = part[0];",
            *self._quotient(str(count)),
        ]

    def _pool_end(self, step: Pool, positions: int) -> list[str]:
        return [*self._epilogue(step.epilogue, positions), "    }", "  }"]

    def _elementwise(self, step: Elementwise, shape: tuple[int, int, int]) -> list[str]:
        channels, rows, columns = shape
        count = rows * columns
        return [
            f"  for (int at = 0; at < {count}; ++at) {{",
            f"    for (int n = 0; n < {channels}; ++n) {{",
            f"      float value = source[n * {count} + at];",
            *self._epilogue(step.epilogue, count),
            "    }",
            "  }",
        ]

    def _positions(self, rows: int, columns: int) -> list[str]:
        return [
            f"  for (int at = 0; at < {rows * columns}; ++at) {{",
            f"    const int y = at / {columns}, x = at % {columns};",
        ]

    def _epilogue(self, epilogue: Epilogue, positions: int) -> list[str]:
        where = f"n * {positions} + at"
        lines = self._changes(epilogue, where) if _reads_numbers(epilogue) else []
        if epilogue.target is not None:
            lines.append(f"      numbers[{where}] = value;")
        for number, encoder in enumerate(epilogue.encoders):
            bits = self._bits(self.network.buffers[encoder.target])
            if encoder.thresholds is not None and encoder.signs is not None:
                lines += self._counted(encoder.thresholds, encoder.signs, bits)
                lines += [f"      codes_{number}[{where}] = (uint8_t)code;", "      }"]
                continue
            self.helpers |= {"rounded", "code"}
            alpha, offset = (
                float_literal(float(np.float32(part))) for part in (encoder.alpha, encoder.offset)
            )
            code = f"{self.name}_code(value, {alpha}, {offset}, {bits}, nan)"
            lines.append(f"      codes_{number}[{where}] = {code};")
        return lines

    def _changes(self, epilogue: Epilogue, where: str) -> list[str]:
        lines = []
        if epilogue.factor is not None and epilogue.addend is not None:
            self.helpers |= {"rounded", "fused"}
            factor, addend = (
                self.tables.add(_array(part)) for part in (epilogue.factor, epilogue.addend)
            )
            lines.append(f"      value = {self.name}_fused(value, {factor}[n], {addend}[n]);")
        if epilogue.residual is not None:
            self.helpers.add("rounded")
            lines.append(f"      value = {self.name}_rounded(value + residual[{where}]);")
        for bound, sign in ((epilogue.low, "<"), (epilogue.high, ">")):
            if bound is not None:
                literal = float_literal(float(np.float32(bound)))
                lines.append(f"      if (value {sign} {literal}) value = {literal};")
        return lines

    def _counted(self, thresholds: Tensor, signs: Tensor, bits: str) -> list[str]:
        most = thresholds.shape[1]
        if not most:
            return ["      {", "      const int code = 0;", "      (void)whole;"]
        table = self.tables.add(_array(thresholds))
        sum_ = "whole"
        if bool((signs < 0).all()):
            sum_ = "-whole"
        elif bool((signs < 0).any()):
            sum_ = f"{self.tables.add(signs.numpy().astype(np.int8))}[n] * whole"
        return [
            "      {",
            f"      const int32_t reached = {sum_};",
            "      int code = 0;",
            f"      for (int k = 0; k < (1 << {bits}) - 1; ++k)",
            f"        code += reached >= {table}[n * {most} + k];",
        ]

    def _bits(self, buffer: Buffer) -> str:
        assert buffer.bits is not None
        values = buffer.bits.numpy()
        return str(values[0]) if (values == values[0]).all() else f"{self.tables.add(values)}[n]"


def _reads_numbers(epilogue: Epilogue) -> bool:
    """Whether anything needs the numbers and not only the sums."""
    return epilogue.target is not None or any(e.thresholds is None for e in epilogue.encoders)


def _taps(taps: Taps, kernel: Sequence[int], sizes: tuple[int, int]) -> list[str]:
    """Loops over the taps of a position, whether each is inside the image, and where."""
    return [
        f"      for (int i = 0; i < {kernel[0]}; ++i) {{",
        f"        const int row = y * {taps.stride[0]} + i * {taps.dilation[0]}"
        f" - {taps.padding[0]};",
        f"        for (int j = 0; j < {kernel[1]}; ++j) {{",
        f"          const int column = x * {taps.stride[1]} + j * {taps.dilation[1]}"
        f" - {taps.padding[1]};",
        f"          const int inside = row >= 0 && row < {sizes[0]} && column >= 0"
        f" && column < {sizes[1]};",
    ]


def _array(tensor: Tensor) -> NDArray[Any]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
