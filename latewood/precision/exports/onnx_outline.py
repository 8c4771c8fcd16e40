"""The operations of a packed network in ONNX, with one node in the place of each packed layer.

torch's own exporter translates the operations; what stands in the places is not its business.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from latewood.errors import RequestError, invalid
from latewood.precision.packed_graph import NetworkGraph, graph_module
from latewood.precision.packed_layers import PackedLayer

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["PLACE_DOMAIN", "onnx_outline"]

PLACE_DOMAIN: Final = "latewood"
"""Of the nodes that stand for packed layers, whose attribute "place" counts these."""

_OPSET: Final = 21
"""The first one with integers of 4 bits."""


class _Place(nn.Module):
    """Stands for a packed layer: one node of ONNX that nothing knows."""

    def __init__(self, layer: PackedLayer, name: str, place: int) -> None:
        super().__init__()
        self.layer, self.name, self.place = layer, name, place
        self.dtypes: set[torch.dtype] = set()

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.dim() == len(self.layer.shape) - 1:
            return self.forward(inputs[None])[0]
        self.dtypes.add(inputs.dtype)
        outputs = self.layer(inputs)
        result: Tensor = torch.onnx.ops.symbolic(
            f"{PLACE_DOMAIN}::Packed",
            (inputs,),
            {"place": self.place},
            dtype=outputs.dtype,
            shape=outputs.shape,
        )
        return result


def onnx_outline(graph: NetworkGraph, examples: tuple[Tensor, ...]) -> ModelProto:
    """The operations of a network as an ONNX model.

    Its first axes may have any length where the network allows it.

    Args:
        graph: of a packed network.
        examples: what it is called with.

    Returns:
        A model in which nodes of ``PLACE_DOMAIN`` stand for packed layers, in the order of these.

    Raises:
        RequestError: the network does not take the examples, or has an operation that has no form
            in ONNX; the message names it.
    """
    network = graph_module(graph)
    places = [
        _Place(layer, name, place) for place, (name, layer) in enumerate(graph.layers.items())
    ]
    for place, stand_in in enumerate(places):
        network.set_submodule(f"layers.{place}", stand_in)
    program = _exported(network, examples)
    for stand_in in places:
        if not stand_in.dtypes <= {torch.float32}:
            found = ", ".join(str(dtype) for dtype in stand_in.dtypes)
            raise invalid("example_inputs", found, f"float32 at the layer {stand_in.name!r}")
    with _quiet():
        try:
            translated = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=_OPSET,
                input_names=[f"input_{place}" for place in range(len(examples))],
                output_names=[f"output_{place}" for place in range(len(graph.output[1]))],
                verbose=False,
            )
        except Exception as error:
            # The exporter specifies no errors.
            raise RequestError(
                f"packed: has no form in ONNX ({_reason(error)}); expected operations that "
                "torch.onnx.export knows"
            ) from error
    assert translated is not None
    model: ModelProto = translated.model_proto
    return model


def _exported(network: nn.Module, examples: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """With first axes of any length where that works, which an example of one alone hides."""
    two = tuple(
        torch.cat([example] * 2) if example.dim() and len(example) == 1 else example
        for example in examples
    )
    failure: Exception | None = None
    for inputs, free in ((two, True), (examples, True), (examples, False)):
        axes = tuple(
            {0: torch.export.Dim.AUTO} if free and x.dim() and len(x) > 1 else None for x in inputs
        )
        try:
            with torch.no_grad(), _quiet():
                return torch.export.export(network, inputs, dynamic_shapes=axes)
        except Exception as error:
            # Whatever the operators say of inputs that do not fit.
            failure = error
    raise invalid(
        "example_inputs",
        [tuple(x.shape) for x in examples],
        f"inputs that the network takes ({_reason(failure)})",
    ) from failure


def _reason(error: BaseException | None) -> str:
    """What the innermost of nested errors says, in a line."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__
    if not chain:
        return "no reason"
    for inner in reversed(chain):
        lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
        if lines:
            return f"{type(inner).__name__}: {lines[0]}"
    return type(chain[-1]).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch prints about its own insides."""
    logger: Any = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
