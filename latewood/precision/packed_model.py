"""A whole network of packed layers: made of a finished one, run, truncated and kept in a file."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from latewood.errors import LatewoodError, RequestError, WorkError, invalid, listed
from latewood.precision.formats import quantized_layers, weight_format
from latewood.precision.integer_network import IntegerNetwork
from latewood.precision.layer_packing import packed_layer
from latewood.precision.network_compilation import compile_network
from latewood.precision.network_runner import NetworkRunner
from latewood.precision.packed_file import read_graph, write_graph
from latewood.precision.packed_graph import NetworkGraph, export_graph, graph_module
from latewood.precision.packed_layers import PackedLayer

__all__ = ["LeftLayer", "PackedModel", "load_packed", "pack"]

_LARGEST_DIFFERENCE: Final = 0.25
"""Of the size of the outputs: more than numbers make that round to the other side of a border."""


@dataclass(frozen=True)
class LeftLayer:
    """A layer that stayed as it was.

    Args:
        name: its name.
        reason: why it has no packed form.
        weights: how many it has.
    """

    name: str
    reason: str
    weights: int


class PackedModel(nn.Module):
    """A network of packed layers, which needs no code of the network that it was made of.

    Args:
        graph: its operations, layers and tensors.
        left: layers that stayed in floating point.
        difference: of the outputs for the example from those of the network that was packed,
            relative to their size (both root mean square); None if unknown.

    Attributes:
        execution: how the last ``run`` was computed: "one native call", or "operation by operation"
            with the reason; None before.
    """

    def __init__(
        self,
        graph: NetworkGraph,
        left: tuple[LeftLayer, ...] = (),
        difference: float | None = None,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.left = left
        self.difference = difference
        self.network = graph_module(graph)
        self.execution: str | None = None
        self._runner = NetworkRunner()
        self.eval()

    def _placed(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Images with adjacent channels, which packed convolutions read faster."""
        if not self.graph.channels_last:
            return inputs
        return tuple(
            x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs
        )

    @property
    def layers(self) -> dict[str, PackedLayer]:
        """Packed layers by name; a batch norm that was folded in follows a "+"."""
        return dict(self.graph.layers)

    @property
    def stored_bits(self) -> int:
        """Bits of all packed codes and masks."""
        return sum(layer.stored_bits for layer in self.graph.layers.values())

    def forward(self, *inputs: Tensor) -> Any:
        """What the network returns.

        Args:
            inputs: as in the example that it was packed with, the first axis of any length where
                the network allows it.

        Raises:
            RequestError: a first axis of a length that it does not allow.
        """
        self._require_lengths(inputs)
        return self.network(*self._placed(inputs))

    def run(self, *inputs: Tensor) -> Any:
        """What the network returns, without anything that training would need.

        One call of compiled code runs the whole network where ``integer_network`` has its steps and
        the inputs are float32 on the CPU; else torch runs it operation by operation. Both give the
        same numbers, up to roundings of layers that stayed in floating point and of means.

        Args:
            inputs: as for ``forward``.

        Raises:
            RequestError: inputs of another number, type or shape than the network takes, or NaN
                where inputs of packed layers are quantised.
            WorkError: an operation fails on inputs like those that it was packed with.
        """
        self._require_tensors(inputs)
        self._require_lengths(inputs)
        try:
            outputs, self.execution = self._runner.run(self.graph, self.network, inputs)
            if outputs is not None:
                return outputs
            with torch.inference_mode():
                return self.network(*self._placed(inputs))
        except Exception as error:
            # Operators specify no errors, and a file may hold any of them in any order.
            if isinstance(error, LatewoodError) and _hold_nan(inputs):
                raise
            raise self._failure(inputs, error) from error

    def _require_tensors(self, inputs: tuple[Tensor, ...]) -> None:
        takes = sum(kind == "input" for kind, *_ in self.graph.nodes)
        wrong = [type(x).__name__ for x in inputs if not isinstance(x, Tensor)]
        if wrong or len(inputs) != takes:
            given = wrong or f"{len(inputs)} tensors"
            raise invalid("inputs", given, f"{takes} tensors, as the network takes")

    def _require_lengths(self, inputs: tuple[Tensor, ...]) -> None:
        for place, (given, length) in enumerate(zip(inputs, self.graph.lengths, strict=False)):
            if length is not None and given.dim() and len(given) != length:
                raise invalid(
                    f"inputs[{place}]",
                    list(given.shape),
                    f"{length} along the first axis, a number that the operations of the network "
                    "contain (a model that views by x.size(0) is packed for any if the example "
                    "has two or more)",
                )

    def _failure(self, inputs: tuple[Tensor, ...], error: Exception) -> LatewoodError:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        given = [[str(x.dtype).removeprefix("torch."), list(x.shape)] for x in inputs]
        known = self.graph.inputs
        alike = not known or all(
            [dtype, shape[1:]] == [other, sizes[1:]]
            for (dtype, shape), (other, sizes) in zip(given, known, strict=False)
        )
        if alike:
            return WorkError(f"the packed network cannot be run on {given} ({lines[0]})")
        return invalid("inputs", given, f"inputs like {known}, as it was packed with ({lines[0]})")

    def integer_network(self, shape: Sequence[int]) -> IntegerNetwork | str:
        """The steps of the whole network over buffers of codes and numbers.

        Args:
            shape: of one image or vector of the input, without the axis of the images.

        Returns:
            The steps, or the reason why there are none: an operation or a form that they have not.
        """
        return compile_network(self.graph, tuple(shape))

    def truncate(self, bits: int) -> PackedModel:
        """The same network with at most so many bits a weight and input.

        Codes nest: the lowest bits are dropped. How much accuracy that costs depends on whether
        the network was trained for it.

        Args:
            bits: 1 to 8.

        Returns:
            A new model; this one stays as it is.

        Raises:
            RequestError: another number of bits.
        """
        layers = copy.deepcopy(self.graph.layers)
        for layer in layers.values():
            layer.truncate(bits)
        graph = replace(self.graph, layers=layers)
        return PackedModel(graph, self.left)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, all or nothing.

        Args:
            path: of the file, in an existing folder; what is there is replaced.

        Raises:
            RequestError: something else than a path.
            WorkError: it cannot be written.
        """
        if not isinstance(path, (str, Path)):
            raise invalid("path", path, "a path")
        left = [[layer.name, layer.reason, layer.weights] for layer in self.left]
        write_graph(self.graph, Path(path), left)


def pack(model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]) -> PackedModel:
    """Packs the layers of a finished network that have number formats.

    Weights become codes, inputs are quantised on the way, products are sums of integers; a batch
    norm directly behind a packed layer becomes part of its scale and bias. Layers without a packed
    form stay in floating point and are listed in ``left``.

    Args:
        model: after its methods were finalized; it stays as it is.
        example_inputs: what it is called with.

    Returns:
        The packed network on the CPU, compared with the model on the example.

    Raises:
        RequestError: no layer has a format that can be packed, or ``torch.export`` refuses the
            model.
        WorkError: the packed network differs from the model.
    """
    if not isinstance(model, nn.Module):
        raise invalid("model", type(model).__name__, "a module")
    inputs = _examples(example_inputs)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise invalid("model", "on the meta device", "one with values")
    try:
        twin = copy.deepcopy(model).cpu().eval()
    except RuntimeError as error:
        # A tensor with a graph behind it, say, that a forward pass left on a layer.
        raise RequestError(f"model: cannot be copied ({error})") from error
    inputs = tuple(example.detach().cpu() for example in inputs)
    expected = _expected(twin, inputs)
    if weight_format(twin) is not None:
        twin = nn.Sequential(twin)  # a single layer, which has a place in it then
    left = _replace_layers(twin)
    graph = export_graph(twin, inputs)
    if not graph.layers:
        reasons = listed(f"{layer.name}: {layer.reason}" for layer in left)
        raise invalid("model", type(model).__name__, f"a layer that can be packed ({reasons})")
    packed = _packed(graph, left, inputs, expected)
    difference = _difference(_outputs(packed.run(*inputs)), expected)
    if not difference <= _LARGEST_DIFFERENCE:
        raise WorkError(
            f"the packed network's outputs differ from the model's by {difference:.3g} of their "
            "size; nothing was packed"
        )
    lengths = _freed_lengths(twin, packed, inputs)
    return PackedModel(replace(packed.graph, lengths=lengths), left, difference)


def _freed_lengths(
    model: nn.Module, packed: PackedModel, inputs: tuple[Tensor, ...]
) -> list[int | None]:
    """The lengths of first axes that are fixed indeed: twice as much makes another network of it.

    An example of one image has its length in the operations, whether these depend on it or not.
    """
    lengths = packed.graph.lengths
    fixed = [place for place, length in enumerate(lengths) if length is not None]
    free = PackedModel(replace(packed.graph, lengths=[]))
    for places in [fixed, *([place] for place in fixed if len(fixed) > 1)]:
        longer = tuple(torch.cat([x, x]) if k in places else x for k, x in enumerate(inputs))
        if not places:
            break
        try:
            with torch.inference_mode():
                pair = [_outputs(of(*(x.clone() for x in longer))) for of in (free, model)]
        except Exception:
            # Either may fail in any way: then it is for the length of the example alone.
            continue
        if _difference(*pair) <= _LARGEST_DIFFERENCE:
            lengths = [None if k in places else length for k, length in enumerate(lengths)]
            if len(places) == len(fixed):
                break
    return lengths


def load_packed(path: str | Path) -> PackedModel:
    """Reads a packed network. Nothing is unpickled and no code of its maker runs.

    Args:
        path: what ``PackedModel.save`` wrote.

    Raises:
        RequestError: no file there, or one of a newer format.
        WorkError: the file is cut, changed or something else.
    """
    if not isinstance(path, (str, Path)):
        raise invalid("path", path, "a path")
    graph, left = read_graph(Path(path))
    try:
        return PackedModel(graph, tuple(LeftLayer(*entry) for entry in left))
    except LatewoodError:
        raise
    except Exception as error:
        # A file that somebody made on purpose may hold any operations in any order.
        raise WorkError(f"{path}: not a packed network ({error})") from error


def _examples(given: object) -> tuple[Tensor, ...]:
    inputs = (given,) if isinstance(given, Tensor) else given
    tensors = isinstance(inputs, Sequence) and all(isinstance(x, Tensor) for x in inputs)
    if not tensors or not inputs:
        raise invalid("example_inputs", type(given).__name__, "tensors, one or more")
    assert isinstance(inputs, Sequence)
    for example in inputs:
        if not example.numel():
            shape = tuple(example.shape)
            raise invalid("example_inputs", f"a tensor {shape}", "tensors that hold something")
    return tuple(inputs)


def _expected(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """What the model returns; refuses one that changes a buffer or its inputs as it runs."""
    copies = tuple(example.clone() for example in inputs)

    def marks() -> dict[str, tuple[int, int]]:
        tensors = dict(model.named_buffers())
        tensors |= {f"input {place}": example for place, example in enumerate(copies)}
        return {name: (id(tensor), tensor._version) for name, tensor in tensors.items()}

    with torch.no_grad():
        buffers, before = list(model.buffers()), marks()
        outputs = _outputs(model(*copies))
    after = marks()
    changed = [name for name, mark in before.items() if after.get(name) != mark]
    del buffers  # held until here, so that no new tensor has the identity of an old one
    if changed:
        raise RequestError(
            f"model: changes {changed[0]} as it runs; expected one that changes nothing"
        )
    return outputs


def _packed(
    graph: NetworkGraph,
    left: tuple[LeftLayer, ...],
    inputs: tuple[Tensor, ...],
    expected: list[Tensor],
) -> PackedModel:
    """With adjacent channels if there are convolutions and nothing needs another order."""
    if any(len(layer.shape) == 4 for layer in graph.layers.values()):
        packed = PackedModel(replace(graph, channels_last=True), left)
        try:
            # Operation by operation: compiled code has an order of its own.
            with torch.inference_mode():
                outputs = _outputs(packed(*inputs))
        except (RuntimeError, LatewoodError):
            # A view, say, of what is no longer contiguous.
            return PackedModel(graph, left)
        if _difference(outputs, expected) <= _LARGEST_DIFFERENCE:
            return packed
    return PackedModel(graph, left)


def _replace_layers(model: nn.Module) -> tuple[LeftLayer, ...]:
    left: list[LeftLayer] = []
    made: dict[nn.Module, nn.Module] = {}
    formatted = {name: layer for name, layer, _ in quantized_layers(model)}
    candidates = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if name in formatted or isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d))
    }
    for name, layer in candidates.items():
        try:
            if layer not in made:
                made[layer] = packed_layer(layer)
        except RequestError as error:
            # Matrices, however they are called; biases and scales stay in float anyway.
            count = sum(p.numel() for p in layer.parameters(recurse=False) if p.dim() > 1)
            left.append(LeftLayer(name, str(error), count))
            continue
        model.set_submodule(name, made[layer])
    return tuple(left)


def _hold_nan(inputs: tuple[Tensor, ...]) -> bool:
    return any(x.is_floating_point() and bool(x.isnan().any()) for x in inputs)


def _outputs(result: Any) -> list[Tensor]:
    leaves, _ = torch.utils._pytree.tree_flatten(result)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return [x.detach().clone() for x in tensors if x.is_floating_point()]


def _difference(outputs: list[Tensor], expected: list[Tensor]) -> float:
    if [x.shape for x in outputs] != [x.shape for x in expected]:
        return float("inf")
    if not outputs:
        return 0.0
    one, other = (torch.cat([x.double().flatten() for x in part]) for part in (outputs, expected))
    size = float(other.norm())
    gap = float((one - other).norm())
    return gap / size if size else gap
