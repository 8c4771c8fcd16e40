"""A network as a list of operations around its packed layers, which needs no code of its maker.

``torch.export`` gives the operations; what is kept of them are names of torch's own operators and
plain arguments, so that a file can hold them and loading it runs nothing but these operators.
"""

from __future__ import annotations

import keyword
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from latewood.core.modes import unfused
from latewood.errors import RequestError, WorkError
from latewood.precision.packed_layers import BUFFERS, PackedLayer

__all__ = ["NetworkGraph", "export_graph", "graph_module"]

_PLAIN: Final[dict[str, Callable[..., Any]]] = {
    name: getattr(operator, name)
    for name in (
        *("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow"),
        *("eq", "ne", "lt", "le", "gt", "ge"),
    )
}
_NAMES: Final = {function: name for name, function in _PLAIN.items()}
_CHECKS: Final = ("_assert", "sym_constrain", "_guards")
_NOT_OPERATIONS: Final = ("from_file", "set_", "resize", "_resize", "_print", "storage")
"""Of torch's operators those that read files, or memory that nothing was written to."""
_BATCH_NORM: Final = "aten.batch_norm.default"


@dataclass
class NetworkGraph:
    """Operations in order, and what they work on.

    Args:
        nodes: each ``[kind, target, arguments, keyword arguments]``; arguments name nodes by place.
        layers: packed layers by name.
        tensors: everything else by name.
        output: the form of what is returned.
        channels_last: whether images go in with adjacent channels.
        inputs: of the example that it was made with, ``[dtype, shape]`` of each; empty if unknown.
        lengths: the only length of the first axis of each input, None for any; empty for any.
    """

    nodes: list[list[Any]] = field(default_factory=list)
    layers: dict[str, PackedLayer] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    output: Any = None
    channels_last: bool = False
    inputs: list[list[Any]] = field(default_factory=list)
    lengths: list[int | None] = field(default_factory=list)


def export_graph(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> NetworkGraph:
    """The operations of a network with packed layers, batch norms behind these folded in.

    Args:
        model: in evaluation mode, with packed layers.
        example_inputs: what it is called with. The first axis may have another length later, where
            the network allows it.

    Raises:
        RequestError: the network cannot be exported, or has an operation that cannot be kept; the
            message names it.
    """
    program = _exported(model, example_inputs)
    graph = NetworkGraph(
        inputs=[
            [str(example.dtype).removeprefix("torch."), list(example.shape)]
            for example in example_inputs
        ]
    )
    signature = program.graph_signature
    held = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
        **program.constants,
    }
    sources = {spec.arg.name: spec for spec in signature.input_specs if hasattr(spec.arg, "name")}
    places: dict[fx.Node, int] = {}
    folded = _foldable(program, sources, held)
    for node in program.graph_module.graph.nodes:
        if node.op == "placeholder":
            target = sources[node.name].target
            if target is None:
                _append(graph, places, node, ["input", "", [], {}])
                graph.lengths.append(_only_length(node.meta.get("val")))
            else:
                # Added where an operation needs it: packed layers and norms take theirs along.
                node.meta["held"] = target
        elif node.op == "call_function":
            _add_call(graph, places, node, model, held, folded)
        elif node.op == "output":
            leaves = [_argument(graph, places, leaf, held) for leaf in node.args[0]]
            graph.output = [_form(program.call_spec.out_spec), leaves]
        else:
            raise RequestError(f"model: has the part {node.target!r}; expected plain operations")
    return graph


def graph_module(graph: NetworkGraph) -> fx.GraphModule:
    """The network that a graph describes, to be called like the one it was exported from.

    Args:
        graph: of ``export_graph``, or read from a file.

    Raises:
        WorkError: names that torch does not know, or arguments that are none.
    """
    root = nn.Module()
    layers = nn.ModuleList(graph.layers.values())
    root.add_module("layers", layers)
    places = {name: place for place, name in enumerate(graph.layers)}
    for place, tensor in enumerate(graph.tensors.values()):
        root.register_buffer(f"tensor_{place}", tensor)
    tensors = {name: f"tensor_{place}" for place, name in enumerate(graph.tensors)}
    made = fx.Graph()
    nodes: list[fx.Node] = []
    for entry in graph.nodes:
        _require_operation(entry)
        kind, target, args, kwargs = entry
        arguments = tuple(_value(argument, nodes) for argument in args)
        named = {name: _value(argument, nodes) for name, argument in kwargs.items()}
        if kind == "input":
            nodes.append(made.placeholder(f"input_{len(nodes)}"))
        elif kind == "tensor":
            nodes.append(made.get_attr(tensors[target]))
        elif kind == "layer":
            nodes.append(made.call_module(f"layers.{places[target]}", arguments))
        elif kind == "call":
            nodes.append(made.call_function(_function(target), arguments, named))
        else:
            raise WorkError(f"packed network: an operation of the kind {kind!r}")
    form, leaves = graph.output
    made.output(_filled(form, iter([_value(leaf, nodes) for leaf in leaves])))
    module = fx.GraphModule(root, made)
    return module.eval()


def _require_operation(entry: Any) -> None:
    """Refuses what is no operation. Names of arguments become source code, which must be theirs."""
    if not isinstance(entry, (list, tuple)) or len(entry) != 4:
        raise WorkError(f"packed network: {entry!r} in place of an operation")
    kind, target, args, kwargs = entry
    fits = isinstance(kind, str) and isinstance(target, str) and isinstance(args, (list, tuple))
    if not fits or not isinstance(kwargs, dict):
        raise WorkError(f"packed network: {entry!r} in place of an operation")
    for name in kwargs:
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise WorkError(f"packed network: an argument of the name {name!r}")
    if kind == "layer" and len(args) != 1:
        raise WorkError(f"packed network: the layer {target!r} with {len(args)} inputs")


def _exported(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    batch = tuple(
        {0: torch.export.Dim.AUTO} if example.dim() and len(example) > 1 else None
        for example in example_inputs
    )
    # Fused, attention layers would take the weights out of packed layers and not call these.
    with torch.no_grad(), unfused():
        try:
            return torch.export.export(model, example_inputs, dynamic_shapes=batch)
        except Exception as error:
            # torch.export specifies no errors: anything that the model's code meets.
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = lines[0] if lines else type(error).__name__
            raise RequestError(
                f"model: torch.export refuses it ({type(error).__name__}: {reason}); expected a "
                "model whose operations do not depend on values"
            ) from error


def _add_call(
    graph: NetworkGraph,
    places: dict[fx.Node, int],
    node: fx.Node,
    model: nn.Module,
    held: Mapping[str, Any],
    folded: Mapping[fx.Node, tuple[fx.Node, PackedLayer]],
) -> None:
    name = _function_name(node)
    if name == "latewood.packed_product.default":
        layer_name = _layer_name(node)
        layer = model.get_submodule(layer_name)
        assert isinstance(layer, PackedLayer)
        for norm, (product, with_norm) in folded.items():
            if product is node:
                layer, layer_name = with_norm, f"{layer_name}+{norm.name}"
        graph.layers[layer_name] = layer
        inputs = _argument(graph, places, node.args[0], held)
        _append(graph, places, node, ["layer", layer_name, [inputs], {}])
    elif node in folded:
        places[node] = places[folded[node][0]]
    elif not node.users and any(part in name for part in _CHECKS):
        return
    else:
        arguments = [_argument(graph, places, argument, held) for argument in node.args]
        named = {key: _argument(graph, places, x, held) for key, x in node.kwargs.items()}
        _append(graph, places, node, ["call", name, arguments, named])


def _only_length(example: Any) -> int | None:
    """Of the first axis, if the model's code read it as a number: its operations hold it then."""
    if not isinstance(example, Tensor) or not example.dim():
        return None
    shape: Any = example.shape
    length: int | None = shape[0] if isinstance(shape[0], int) else shape[0].node.maybe_as_int()
    return length


def _append(
    graph: NetworkGraph, places: dict[fx.Node, int], node: fx.Node, entry: list[Any]
) -> None:
    places[node] = len(graph.nodes)
    graph.nodes.append(entry)


def _argument(
    graph: NetworkGraph, places: dict[fx.Node, int], argument: Any, held: Mapping[str, Any]
) -> Any:
    if isinstance(argument, fx.Node):
        if argument not in places:
            target: str | None = argument.meta.get("held")
            tensor = None if target is None else held.get(target)
            if target is None or not isinstance(tensor, Tensor):
                raise RequestError(f"model: {argument.name!r} is no tensor; expected tensors alone")
            graph.tensors[target] = tensor.detach().cpu()
            _append(graph, places, argument, ["tensor", target, [], {}])
        return {"node": places[argument]}
    if isinstance(argument, (list, tuple)):
        return [_argument(graph, places, item, held) for item in argument]
    if isinstance(argument, float) and not math.isfinite(argument):
        return {"float": str(argument)}
    if argument is None or isinstance(argument, (bool, int, float, str)):
        return argument
    if isinstance(argument, torch.device):
        return {"device": argument.type}
    for kind in (torch.dtype, torch.layout, torch.memory_format):
        if isinstance(argument, kind):
            return {"torch": str(argument).removeprefix("torch.")}
    raise RequestError(
        f"model: an operation takes a {type(argument).__name__}; expected tensors and numbers"
    )


def _value(argument: Any, nodes: list[fx.Node]) -> Any:
    if isinstance(argument, list):
        return [_value(item, nodes) for item in argument]
    if not isinstance(argument, dict):
        return argument
    try:
        ((kind, content),) = argument.items()
        if kind == "node":
            if content < 0:
                raise IndexError(content)
            return nodes[content]
        if kind == "float":
            return float(content)
        if kind == "device":
            return torch.device(content)
        if kind == "torch":
            known = getattr(torch, content)
            if isinstance(known, (torch.dtype, torch.layout, torch.memory_format)):
                return known
    except (ValueError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        raise WorkError(f"packed network: the argument {argument!r}") from error
    raise WorkError(f"packed network: the argument {argument!r}")


def _function_name(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = str(target)
        if target.namespace in ("aten", "latewood"):
            return name
    elif target in _NAMES:
        return f"operator.{_NAMES[target]}"
    stack = (node.meta.get("nn_module_stack") or {}).values()
    where = next((path for path, _ in reversed(list(stack))), "")
    at = f" in {where!r}" if where else ""
    raise RequestError(f"model: has the operation {target}{at}; expected operators of torch alone")


def _function(name: str) -> Callable[..., Any]:
    """One of torch's own operators by name: no other function can be meant."""
    namespace, _, rest = name.partition(".")
    if namespace == "operator" and rest in _PLAIN:
        return _PLAIN[rest]
    packet, _, overload = rest.partition(".")
    if packet.startswith(_NOT_OPERATIONS):
        raise WorkError(f"packed network: the operation {name!r}, which is none of a network")
    if namespace == "aten" and packet.isidentifier() and overload.isidentifier():
        try:
            found = getattr(getattr(torch.ops.aten, packet), overload)
        except AttributeError:
            found = None
        if isinstance(found, torch._ops.OpOverload):
            return found
    raise WorkError(f"packed network: the operation {name!r}, which this version of torch has not")


def _layer_name(node: fx.Node) -> str:
    buffers = node.args[1]
    assert isinstance(buffers, (list, tuple))
    first = buffers[0]
    assert isinstance(first, fx.Node)
    return str(first.meta["held"]).rpartition(".")[0]


def _foldable(
    program: torch.export.ExportedProgram, sources: Mapping[str, Any], held: Mapping[str, Any]
) -> dict[fx.Node, tuple[fx.Node, PackedLayer]]:
    """Batch norms of packed products that nothing else reads, with the layer of both."""
    folded: dict[fx.Node, tuple[fx.Node, PackedLayer]] = {}
    for node in program.graph_module.graph.nodes:
        if node.op != "call_function" or str(node.target) != _BATCH_NORM:
            continue
        product, *rest = node.args
        if not isinstance(product, fx.Node) or len(product.users) != 1 or rest[4]:
            continue
        if str(product.target) != "latewood.packed_product.default":
            continue
        if product.args[6] == "linear" and len(node.meta["val"].shape) != 2:
            continue
        names = [
            None if entry is None else sources[entry.name].target if entry.name in sources else ""
            for entry in rest[:4]
        ]
        tensors = [None if name is None else held.get(name) for name in names]
        if "" in names or tensors[2] is None or tensors[3] is None:
            continue
        buffers = product.args[1]
        assert isinstance(buffers, (list, tuple))
        values = {
            name: held[sources[buffer.name].target]
            for name, buffer in zip(BUFFERS, buffers, strict=True)
        }
        folded[node] = (product, _with_norm(product, values, tensors, float(rest[6])))
    return folded


def _with_norm(
    product: fx.Node, buffers: Mapping[str, Tensor], norm: list[Any], eps: float
) -> PackedLayer:
    weight, bias, mean, variance = (
        None if tensor is None else tensor.detach().cpu().double() for tensor in norm
    )
    assert mean is not None and variance is not None
    gain = torch.rsqrt(variance + eps)
    if weight is not None:
        gain = gain * weight
    scale = buffers["weight_scale"].cpu().double() * gain
    addend = (buffers["bias"].cpu().double() - mean) * gain
    if bias is not None:
        addend = addend + bias
    shape, never_negative, masked, taps, _ = _plain_arguments(product)
    return PackedLayer.of_buffers(
        {**buffers, "weight_scale": scale.float(), "bias": addend.float()},
        shape,
        never_negative,
        masked,
        taps,
    )


def _plain_arguments(product: fx.Node) -> tuple[Any, ...]:
    """What the operator of a packed layer takes besides tensors."""
    return product.args[2:]


def _form(spec: Any) -> Any:
    """The nesting of an output in lists and dicts; "*" for a tensor."""
    if spec.is_leaf():
        return "*"
    children = [_form(child) for child in spec.children()]
    if spec.type in (list, tuple):
        return {spec.type.__name__: children}
    if spec.type is dict:
        return {
            "dict": [[str(key), child] for key, child in zip(spec.context, children, strict=True)]
        }
    # A class of somebody else: its parts in order.
    return {"tuple": children}


def _filled(form: Any, leaves: Any) -> Any:
    if form == "*":
        return next(leaves)
    if not isinstance(form, dict) or len(form) != 1:
        raise WorkError(f"packed network: outputs of the form {form!r}")
    ((kind, children),) = form.items()
    if kind == "dict":
        return {key: _filled(child, leaves) for key, child in children}
    filled = [_filled(child, leaves) for child in children]
    return tuple(filled) if kind == "tuple" else filled
