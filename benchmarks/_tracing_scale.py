"""Seconds and memory of tracing, and of preparing structured sparsification, as models grow."""

from __future__ import annotations

import importlib
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Final

import torch
from torch import Tensor, nn

from benchmarks._architectures import declare_missing_operators
from benchmarks._timing import print_table
from latewood.core.coupling import trace_channels
from latewood.sparsity.structured import StructuredSparsification

__all__ = ["main", "measure"]

REPEATS: Final = 3
LONG_SECONDS: Final = 5.0
"""What takes longer is measured once."""


@dataclass(frozen=True)
class _Size:
    kind: str
    layers: int
    hidden: int
    tokens: int


DEPTHS: Final = [_Size("llama", layers, 256, 64) for layers in (6, 12, 18, 24)]
WIDTHS: Final = [_Size("llama", 6, hidden, 64) for hidden in (128, 256, 512, 1024)]
LENGTHS: Final = [_Size("llama", 12, 256, tokens) for tokens in (64, 128, 256, 512)]
LARGEST: Final = [_Size("llama", 32, 256, 2048)]
BERTS: Final = [_Size("bert", layers, 768, 32) for layers in (2, 4, 8, 12)]


def main(arguments: list[str]) -> None:
    """Prints seconds and memory by size, each size in a process of its own, and the exponents.

    Args:
        arguments: none; a size as JSON prints what ``measure`` gives for it.
    """
    if arguments:
        print(json.dumps(measure(_Size(**json.loads(arguments[0])))))
        return
    if find_spec("transformers") is None:
        raise SystemExit("transformers is not installed: the models that grow come from it")
    for title, sizes, axis in (
        ("Tracing a Llama, by layers", DEPTHS, "layers"),
        ("Tracing a Llama, by width", WIDTHS, "hidden"),
        ("Tracing a Llama, by tokens", LENGTHS, "tokens"),
        ("Tracing a Llama, the largest", LARGEST, ""),
        ("StructuredSparsification(...) of BERT-base, by layers", BERTS, "layers"),
    ):
        _print_growth(title, sizes, axis)


def measure(size: _Size) -> tuple[float, float]:
    """The least seconds of a few runs, and the megabytes by which the first raised the peak.

    Args:
        size: of the model.
    """
    torch.set_num_threads(1)
    model, small, inputs = _made(size)
    action = _action(size, model)
    with torch.no_grad():
        # What the first call of anything loads is not counted.
        model(**small)
    trace_channels(nn.Linear(2, 2), torch.zeros(1, 2))
    before = _resident_megabytes()
    times: list[float] = []
    peak = 0.0
    # Structured sparsification leaves its gates in the model.
    repeats = REPEATS if size.kind == "llama" else 1
    while len(times) < repeats and sum(times) < LONG_SECONDS:
        start = time.perf_counter()
        action(inputs)
        times.append(time.perf_counter() - start)
        # On Linux in kilobytes.
        peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return min(times), max(peak - before, 0.0)


def _made(size: _Size) -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    declare_missing_operators()
    package = importlib.import_module("transformers")
    torch.manual_seed(0)
    if size.kind == "llama":
        configuration = package.LlamaConfig(
            vocab_size=1000,
            hidden_size=size.hidden,
            intermediate_size=8 * size.hidden // 3,
            num_hidden_layers=size.layers,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=4096,
        )
        model = package.LlamaForCausalLM(configuration).eval()
    else:
        configuration = package.BertConfig(
            hidden_size=size.hidden,
            intermediate_size=4 * size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.hidden // 64,
        )
        model = package.BertModel(configuration).eval()
    tokens = torch.randint(3, 1000, (1, size.tokens))
    return model, {"input_ids": tokens[:, :4]}, tokens


def _action(size: _Size, model: nn.Module) -> Callable[[Tensor], object]:
    if size.kind == "llama":
        return lambda inputs: trace_channels(model, inputs)
    return lambda inputs: StructuredSparsification(
        model, inputs, budget={"macs": 0.5}, total_steps=20, steps_per_epoch=4
    )


def _resident_megabytes() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _print_growth(title: str, sizes: Sequence[_Size], axis: str) -> None:
    values, seconds, rows = [], [], []
    for size in sizes:
        print(f"{title}: {size}", file=sys.stderr)
        run = subprocess.run(
            [sys.executable, "-m", "benchmarks", "models", "--scale", json.dumps(asdict(size))],
            capture_output=True,
            text=True,
        )
        cells = [str(size.layers), str(size.hidden), str(size.tokens)]
        if run.returncode:
            reason = (run.stderr.strip().splitlines() or ["killed"])[-1]
            rows.append([*cells, "failed", reason[:80]])
            continue
        took, megabytes = json.loads(run.stdout)
        rows.append([*cells, f"{took:.2f}", f"{megabytes:.0f}"])
        values.append(getattr(size, axis) if axis else 0)
        seconds.append(took)
    print_table(title, ["layers", "hidden", "tokens", "seconds", "MB"], rows)
    if axis and len(values) > 1:
        slope = statistics.linear_regression(
            [math.log(value) for value in values], [math.log(took) for took in seconds]
        ).slope
        print(f"\nseconds grow as {axis} ** {slope:.2f}")
