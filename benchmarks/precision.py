"""Products of packed low-bit layers over torch in float32 and the 8-bit and low-bit peers."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._packed_networks import network_candidates, packed_resnet
from benchmarks._timing import interleaved_minima, print_table
from latewood.kernels.dispatch import native
from latewood.kernels.mixed_products import Affine, CodeWeights, PreparedProduct, Taps

__all__ = ["main"]

SIZE = 1024
ROWS = (1, 16, 256)
MIXTURE = (0.125, 0.25)
"""Fractions of channels of 4 and of 2 bits; the others have 1."""
NETWORKS = ("1 bit", "mixed", "4 bit")
"""Bits of the hidden layers of whole networks; mixed is 12.5/25/62.5 % of 4/2/1 bit."""


def main(arguments: list[str]) -> None:
    """Prints matrix products, a convolution, odd sizes and a whole ResNet-20, on one thread.

    Float inputs are quantised, packed, multiplied and scaled within each timed call.

    Args:
        arguments: rounds without a faster time after which a table ends, 8 if left out.
    """
    rounds = int(arguments[0]) if arguments else 8
    compiled = native()
    name = "reference" if compiled is None else compiled.instruction_set()
    print(f"kernels: {name}")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        for rows in ROWS:
            _print("K = N = 1024, M = " + str(rows), _matrices(rows), rounds)
        _print("Convolution 64 -> 64, 3x3, on 32x32", _convolutions(), rounds)
        _print("1-bit products, K = N, M = 64, per multiple of 64", _odd_sizes(), rounds)
        packed = {name: packed_resnet(partial(_width, name)) for name in NETWORKS}
        for images in (1, 16):
            title = f"ResNet-20, float in and out, {images} image(s)"
            _print(title, network_candidates(packed, images), rounds)
    torch.set_num_threads(before)


def _print(title: str, candidates: dict[str, Callable[[], object]], rounds: int) -> None:
    # Long turns: the first calls of one find in the cache what the form before left there.
    seconds = interleaved_minima(
        candidates, rounds=rounds, turn_seconds=5e-3, clock=time.thread_time
    )
    first = next(iter(seconds.values()))
    rows = [[name, f"{1e6 * best:.1f}", f"{first / best:.2f}"] for name, best in seconds.items()]
    print_table(title, ["form", "us", "first over it"], rows)


def _widths(channels: int) -> dict[str, Tensor]:
    order = torch.randperm(channels, generator=torch.Generator().manual_seed(0))
    wide, middle = (round(fraction * channels) for fraction in MIXTURE)
    mixed = torch.tensor([4] * wide + [2] * middle + [1] * (channels - wide - middle))[order]
    uniform = {f"{bits} bit": torch.full((channels,), bits) for bits in (1, 2, 4, 8)}
    return {name: x.to(torch.uint8) for name, x in (uniform | {"mixed": mixed}).items()}


def _width(name: str, channels: int) -> Tensor:
    return _widths(channels)[name]


def _product(outputs: int, bits: Tensor, kernel: int) -> tuple[PreparedProduct, Affine]:
    generator = torch.Generator().manual_seed(1)
    levels = (2.0 ** bits.float()).reshape(1, -1, 1, 1)
    shape = (outputs, len(bits), kernel, kernel)
    codes = (torch.rand(shape, generator=generator) * levels).to(torch.uint8)
    affine = Affine(1.0, 0.0, torch.ones(outputs), torch.zeros(outputs))
    return PreparedProduct(CodeWeights(codes, bits, bits)), affine


def _matrices(rows: int) -> dict[str, Callable[[], object]]:
    inputs, weight = torch.randn(rows, SIZE), torch.randn(SIZE, SIZE)
    candidates: dict[str, Callable[[], object]] = {
        "torch float32": lambda: F.linear(inputs, weight)
    }
    integers = torch.randint(-127, 127, (SIZE, SIZE), dtype=torch.int8)
    if rows == 1:
        # Without VNNI torch multiplies by a plain loop: seconds for more rows.
        row = torch.randint(-127, 127, (1, SIZE), dtype=torch.int8)
        candidates["torch _int_mm"] = lambda: torch._int_mm(row, integers)
    candidates |= _runtime_matrices(inputs, weight)
    for name, bits in _widths(SIZE).items():
        product, affine = _product(SIZE, bits, 1)
        folded = inputs[:, :, None, None]
        candidates[name] = partial(product.numbers, folded, Taps(), affine)
    return candidates


def _runtime_matrices(inputs: Tensor, weight: Tensor) -> dict[str, Callable[[], object]]:
    """onnxruntime's 8-bit and low-bit products, where it is installed."""
    try:
        import onnx
        import onnxruntime
    except ImportError:
        return {}
    given = {"x": inputs.numpy()}
    matrix = weight.t().contiguous().numpy()
    make = onnx.helper
    floats = onnx.TensorProto.FLOAT
    value = make.make_tensor_value_info
    candidates: dict[str, Callable[[], object]] = {}

    def session(nodes: list[Any], tensors: dict[str, Any], given: dict[str, Any]) -> Any:
        graph = make.make_graph(
            nodes,
            "product",
            [value("x", floats, list(inputs.shape))],
            [value("y", floats, [len(inputs), SIZE])],
            [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()],
        )
        opsets = [make.make_opsetid("", 21), make.make_opsetid("com.microsoft", 1)]
        model = make.make_model(graph, opset_imports=opsets, ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        made = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return lambda: made.run(None, given)

    candidates["onnxruntime float32"] = session(
        [make.make_node("MatMul", ["x", "w"], ["y"])], {"w": matrix}, given
    )
    scale = float(np.abs(matrix).max() / 127)
    bytes_ = np.clip(np.round(matrix / scale), -127, 127).astype(np.int8)
    nodes = [
        make.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        make.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
        make.make_node("Cast", ["i"], ["f"], to=floats),
        make.make_node("Mul", ["f", "s"], ["y"]),
    ]
    candidates["onnxruntime dynamic int8"] = session(nodes, {"w": bytes_}, given)
    for bits in (4, 2):
        block = 32
        packed = np.random.default_rng(0).integers(
            0, 256, (SIZE, SIZE // block, block * bits // 8), dtype=np.uint8
        )
        scales = np.ones(SIZE * SIZE // block, dtype=np.float32)
        node = make.make_node(
            "MatMulNBits",
            ["x", "w", "s"],
            ["y"],
            domain="com.microsoft",
            K=SIZE,
            N=SIZE,
            bits=bits,
            block_size=block,
            accuracy_level=4,
        )
        try:
            run = session([node], {"w": packed, "s": scales}, given)
            run()
        except Exception as error:
            print(f"onnxruntime MatMulNBits, {bits} bit: {str(error).splitlines()[0]}")
            continue
        candidates[f"onnxruntime MatMulNBits, {bits} bit, level 4, block 32"] = run
    return candidates


def _convolutions() -> dict[str, Callable[[], object]]:
    inputs, weight = torch.randn(1, 64, 32, 32), torch.randn(64, 64, 3, 3)
    last = inputs.contiguous(memory_format=torch.channels_last)
    candidates: dict[str, Callable[[], object]] = {
        "torch float32": lambda: F.conv2d(inputs, weight, padding=1)
    }
    taps = Taps(padding=(1, 1), after=(1, 1))
    for name, bits in _widths(64).items():
        product, affine = _product(64, bits, 3)
        candidates[name] = partial(product.numbers, inputs, taps, affine)
        candidates[f"{name}, channels last"] = partial(product.numbers, last, taps, affine)
    return candidates


def _odd_sizes() -> dict[str, Callable[[], object]]:
    candidates: dict[str, Callable[[], object]] = {}
    for size in (512, 511, 509, 480, 449):
        product, affine = _product(size, torch.ones(size, dtype=torch.uint8), 1)
        inputs = torch.randn(64, size, 1, 1)
        candidates[f"K = N = {size}"] = partial(product.numbers, inputs, Taps(), affine)
    return candidates
