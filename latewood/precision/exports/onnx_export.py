"""Packed networks as ONNX files, with weights of few bits or as floating numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

from torch import Tensor

from latewood.core.whole_files import write_whole
from latewood.errors import RequestError, WorkError, invalid
from latewood.precision.exports.example_inputs import example_tensors
from latewood.precision.exports.onnx_layers import MICROSOFT, QONNX, OnnxForm, add_layer
from latewood.precision.exports.onnx_nodes import OnnxNodes
from latewood.precision.exports.onnx_outline import PLACE_DOMAIN, onnx_outline
from latewood.precision.packed_graph import NetworkGraph
from latewood.precision.packed_model import PackedModel

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["ONNX_FORMS", "OnnxFile", "export_onnx", "filled_outline"]

ONNX_FORMS: Final[tuple[OnnxForm, ...]] = get_args(OnnxForm)


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file of a packed network.

    Args:
        path: where it is.
        form: of its weights.
        bytes: its size.
        weights: by layer, how its weights are stored.
    """

    path: Path
    form: OnnxForm
    bytes: int
    weights: dict[str, str] = field(default_factory=dict)


def export_onnx(
    packed: PackedModel,
    path: str | Path,
    form: OnnxForm = "low_bit",
    *,
    example_inputs: Tensor | tuple[Tensor, ...] | None = None,
) -> OnnxFile:
    """Writes a packed network as an ONNX file, all or nothing.

    Inputs are quantised by ordinary operations. "low_bit" keeps the weights of linear layers as
    MatMulNBits of com.microsoft (2, 4 or 8 bits, the widest of the layer, blocks of 32) and those
    of convolutions as int4 or int8 behind DequantizeLinear; "dequantized" keeps all as float32;
    "qonnx" has Quant nodes of qonnx.custom_op.general, which onnxruntime alone does not run. NaN
    among the inputs, which the packed network refuses, is not noticed.

    Args:
        packed: of ``pack`` or ``load_packed``.
        path: of the file, in an existing folder; what is there is replaced.
        form: of the weights of packed layers.
        example_inputs: what the network is called with; None for shapes like those of ``pack``. The
            first axis may have any length where the network allows it.

    Raises:
        RequestError: another form, a folder that is not there, inputs that do not fit, operations
            without a form in ONNX, or the packages onnx and onnxscript are not installed.
        WorkError: the file cannot be written.
    """
    if not isinstance(packed, PackedModel):
        raise invalid("packed", type(packed).__name__, "a PackedModel")
    if form not in ONNX_FORMS:
        raise invalid("form", form, f"one of {', '.join(ONNX_FORMS)}")
    if not isinstance(path, (str, Path)):
        raise invalid("path", path, "a path")
    target = Path(path)
    if target.is_dir() or not target.parent.is_dir():
        raise invalid("path", str(path), "a file in a folder there is")
    _require_packages()
    examples = example_tensors(packed.graph, example_inputs)
    model, weights = filled_outline(onnx_outline(packed.graph, examples), packed.graph, form)
    contents = model.SerializeToString(deterministic=True)
    write_whole(target, lambda temporary: temporary.write_bytes(contents))
    return OnnxFile(target, form, len(contents), weights)


def filled_outline(
    outline: ModelProto, graph: NetworkGraph, form: OnnxForm
) -> tuple[ModelProto, dict[str, str]]:
    """Puts the nodes of packed layers into their places.

    Args:
        outline: of ``onnx_outline``; it stays as it is.
        graph: that it is of.
        form: of the weights.

    Returns:
        The model, and by layer how its weights are stored.

    Raises:
        WorkError: what came out is no valid model.
    """
    import onnx

    model = type(outline)()
    model.CopyFrom(outline)
    layers = list(graph.layers.items())
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, str] = {}
    for count, node in enumerate(model.graph.node):
        if node.domain != PLACE_DOMAIN:
            nodes.append(node)
            continue
        place = next(entry.i for entry in node.attribute if entry.name == "place")
        name, layer = layers[place]
        made = OnnxNodes(f"packed_{count}.{name}")
        output, weights[name] = add_layer(made, layer, name, node.input[0], form)
        made.rename(output, node.output[0])
        nodes.extend(made.nodes)
        model.graph.initializer.extend(made.tensors)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    domains = {node.domain for node in nodes}
    kept = [entry for entry in model.opset_import if entry.domain != PLACE_DOMAIN]
    known = {entry.domain for entry in kept}
    del model.opset_import[:]
    model.opset_import.extend(kept)
    for domain in (MICROSOFT, QONNX):
        if domain in domains - known:
            model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise WorkError(f"the ONNX model is not valid ({error}); nothing was written") from error
    return model, weights


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RequestError(
            f"export_onnx: the package {error.name!r} is missing; pip install 'latewood[onnx]'"
        ) from error
