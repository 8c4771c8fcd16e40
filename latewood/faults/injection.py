"""A network that computes with what is read of its weights on a device with stuck cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType

import torch
from torch import Tensor, nn

from latewood.core import FAULTS, Selected, attach, detach, transformations
from latewood.core.integer_codes import integer_codes
from latewood.core.modes import evaluated
from latewood.errors import RequestError
from latewood.faults.crossbar import Crossbar
from latewood.faults.encoding import Encoded, encode_held
from latewood.faults.faultable_weights import Faultable, Part, faultable
from latewood.faults.placement import WeightAxes
from latewood.faults.simulation import read_codes, require_map
from latewood.faults.stuck_at import StuckAt, require_types, warn_of_misalignment
from latewood.kernels.faults import Stream

__all__ = ["Injection", "StuckCells", "injected"]


class StuckCells(nn.Module):
    """The weight transformation of a device: what is read of its cells stands for the weight.

    Gradients pass to the weight as if it had been used itself.

    Args:
        read: of the weight's shape and dtype.
    """

    order = FAULTS
    read: Tensor

    def __init__(self, read: Tensor) -> None:
        super().__init__()
        self.register_buffer("read", read, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """What is read."""
        if torch.is_grad_enabled() and weight.requires_grad:
            return self.read + (weight - weight.detach())
        return self.read


class Injection:
    """A model on crossbars, on one device after another; a context manager that takes it off.

    Stored weights are never written to, so that leaving restores the model to the bit. Number
    formats that are fixed give their integers; other weights are encoded.

    Args:
        model: transformed in place.
        crossbar: how its weights are held.
        faults: of the cells.
        include: patterns on layer or parameter names (``core.select_parameters``).
        exclude: patterns of the same form.

    Raises:
        RequestError: no weights to put on crossbars, or weights that are on some already; the model
            is as it was.
    """

    def __init__(
        self,
        model: nn.Module,
        crossbar: Crossbar,
        faults: StuckAt,
        *,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
    ) -> None:
        require_types(crossbar, faults)
        self._crossbar, self._faults = crossbar, faults
        self._layers: list[_HeldWeight] = []
        weights = faultable(model, include, exclude)
        for held in weights:
            _require_off(held.weight)
        with evaluated(model), torch.no_grad():
            self._layers = [_HeldWeight(held, crossbar) for held in weights]
        self._attached: list[tuple[Selected, StuckCells]] = []
        try:
            for layer in self._layers:
                for use in layer.held.uses:
                    attach(use.module, use.parameter_name, layer.cells)
                    self._attached.append((use, layer.cells))
        except BaseException:
            self.remove()
            raise

    def __enter__(self) -> Injection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    @property
    def weights(self) -> int:
        """Number of weights on crossbars."""
        return sum(layer.count for layer in self._layers)

    @torch.no_grad()
    def use_map(self, map: int | None, *, seed: int = 0) -> dict[str, float]:
        """Puts the model on another device.

        Args:
            map: number of the device; None has no faults, and so shows what rounding does.
            seed: of all maps.

        Returns:
            The share of weights that are read as another integer, by the name of their stream.

        Raises:
            RequestError: no whole number of 0 or more.
        """
        require_map(0 if map is None else map, seed)
        changed: dict[str, float] = {}
        for layer in self._layers:
            for part in layer.parts:
                stream = None if map is None else Stream(seed, map, part.name)
                changed[part.name] = layer.read(part, self._crossbar, self._faults, stream)
        return changed

    def effective_rate(self, changed: dict[str, float]) -> float:
        """The share of all weights that are read as another integer, from those of the parts."""
        counts = {part.name: len(part) for layer in self._layers for part in layer.parts}
        return sum(changed[name] * count for name, count in counts.items()) / self.weights

    def remove(self) -> None:
        """Takes the model off the crossbars."""
        with ExitStack() as stack:  # one that fails leaves the others their turn
            while self._attached:
                use, cells = self._attached.pop()
                stack.callback(detach, use.module, use.parameter_name, cells)


@contextmanager
def injected(
    model: nn.Module,
    crossbar: Crossbar,
    faults: StuckAt,
    *,
    map: int = 0,
    seed: int = 0,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> Iterator[nn.Module]:
    """Has a model compute with its weights as a device with stuck cells holds them.

    All weight matrices of linear (Hugging Face's ``Conv1D`` too), convolutional, recurrent and
    attention layers are on crossbars; a fused projection's queries, keys and values are apart.
    Biases, norms and embeddings are not. Weights with a fixed number format keep its integers;
    what masks have pruned are cells at rest, which may be stuck as others. The stored weights are
    not touched, and the model is the same to the bit afterwards, also after an exception.

    Args:
        model: in any mode; gradients pass straight through to the weights.
        crossbar: how its weights are held.
        faults: of the cells.
        map: number of the device, 0 or more.
        seed: of all maps. The faults of a layer depend on seed, map and its qualified name alone.
        include: patterns on layer or parameter names (``core.select_parameters``).
        exclude: patterns of the same form.

    Yields:
        The model.

    Raises:
        RequestError: no weights to put on crossbars, weights that are on some already, or arguments
            out of range.
    """
    require_types(crossbar, faults)
    require_map(map, seed)
    warn_of_misalignment(crossbar, faults)
    with Injection(model, crossbar, faults, include=include, exclude=exclude) as injection:
        injection.use_map(map, seed=seed)
        yield model


class _HeldPart:
    """Rows of a weight with their integers."""

    def __init__(self, part: Part, encoded: Encoded, bits: Tensor | None) -> None:
        self.name, self.rows = part.name, part.rows
        self.encoded, self.bits = encoded, bits

    def __len__(self) -> int:
        return self.encoded.codes.numel()


class _HeldWeight:
    """A weight as integers, and the transformation that shows what is read of them."""

    def __init__(self, held: Faultable, crossbar: Crossbar) -> None:
        self.held = held
        weight = held.weight.tensor.detach()
        self.count = weight.numel()
        self.cells = StuckCells(torch.empty_like(weight, memory_format=torch.contiguous_format))
        codes = integer_codes(held.weight.module, held.weight.parameter_name)
        self.parts: list[_HeldPart] = []
        for part in held.parts:
            rows = part.rows or slice(None)
            if codes is None:
                outputs = held.axes.outputs
                encoded = encode_held(weight[rows], crossbar, channel_axis=outputs)
                self.parts.append(_HeldPart(part, encoded, None))
            else:
                unit, bits = (_rows_of(t, rows, weight) for t in (codes.unit, codes.bits))
                self.parts.append(_HeldPart(part, Encoded(codes.codes[rows], unit), bits))
        for held_part in self.parts:
            self._write(held_part, held_part.encoded.codes)

    def read(
        self, part: _HeldPart, crossbar: Crossbar, faults: StuckAt, stream: Stream | None
    ) -> float:
        written = part.encoded.codes
        if stream is None:
            self._write(part, written)
            return 0.0
        axes: WeightAxes = self.held.axes
        read = read_codes(written, crossbar, faults, stream, bits=part.bits, axes=axes)
        self._write(part, read)
        return int((read != written).sum()) / len(part)

    def _write(self, part: _HeldPart, codes: Tensor) -> None:
        target = self.cells.read[part.rows or slice(None)]
        target.copy_(part.encoded.decoded(codes, target.dtype))


def _rows_of(tensor: Tensor, rows: slice, weight: Tensor) -> Tensor:
    """The rows of what broadcasts to a weight."""
    along = tensor.dim() == weight.dim() and tensor.shape[0] == weight.shape[0] > 1
    return tensor[rows] if along else tensor


def _require_off(weight: Selected) -> None:
    for transformation in transformations(weight.module, weight.parameter_name):
        if isinstance(transformation, StuckCells):
            raise RequestError(f"model: {weight.name} is on a crossbar already; leave that first")
