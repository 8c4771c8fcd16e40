"""Linear and convolutional layers that hold packed codes and multiply them as integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.errors import invalid
from latewood.kernels.dispatch import tensors_are_virtual
from latewood.kernels.mixed_products import (
    Affine,
    CodeWeights,
    PreparedProduct,
    Taps,
    taps_of,
)
from latewood.precision.code_streams import from_stream, to_stream
from latewood.precision.number_format import MOST_BITS, code

__all__ = ["PackedConv2d", "PackedLayer", "PackedLinear", "grouped_kind"]


BUFFERS: Final = (
    *("packed_codes", "packed_mask", "weight_bits", "weight_scale", "input_bits"),
    *("input_scale", "bias"),
)


class PackedLayer(nn.Module):
    """What packed layers share: their buffers, and the products prepared from them.

    The state dict holds packed bytes. A layer is for inference: no gradient passes through.

    Args:
        codes: of the weights, uint8, (outputs, channels) or (outputs, channels, rows, columns).
        bits: uint8, (channels,), 0 for channels that the layer does not read.
        scale: (alpha) floating, (outputs,).
        input_bits: uint8, (channels,), 0 where ``bits`` is; None for inputs as they are, which are
            then multiplied with the weights as floating numbers.
        input_scale: (alpha of the inputs) positive.
        never_negative: inputs lie on the grid of (2u + 1) 2^(1 - p) from 0 to 4 in place of that
            around 0.
        mask: which weights are there, bool; None: all.
        bias: floating, (outputs,); None: none.
        groups: of a convolution, whose codes are then (outputs / groups, channels, ...).

    Raises:
        RequestError: shapes, types or bits that do not fit, sums that might not fit into int32.
    """

    taps: Taps
    packed_codes: Tensor
    packed_mask: Tensor
    weight_bits: Tensor
    weight_scale: Tensor
    input_bits: Tensor
    input_scale: Tensor
    bias: Tensor

    def __init__(
        self,
        codes: Tensor,
        bits: Tensor,
        scale: Tensor,
        *,
        input_bits: Tensor | None = None,
        input_scale: float = 1.0,
        never_negative: bool = False,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.groups = groups
        outputs, channels = codes.shape[0] * groups, codes.shape[1]
        _require("codes", codes, codes.shape, (torch.uint8,))
        _require("bits", bits, (channels,), (torch.uint8,))
        _require("scale", scale, (outputs,), (torch.float32, torch.float64))
        if bits.numel() and int(bits.max()) > MOST_BITS:
            raise invalid("bits", int(bits.max()), f"0 to {MOST_BITS}")
        if mask is not None:
            _require("mask", mask, codes.shape, (torch.bool,))
        if input_bits is not None:
            _require("input_bits", input_bits, (channels,), (torch.uint8,))
            if not torch.equal(input_bits == 0, bits == 0):
                raise invalid("input_bits", input_bits.tolist(), "0 exactly where bits are")
        if not input_scale > 0:
            raise invalid("input_scale", input_scale, "a positive number")
        self.shape = tuple(codes.shape)
        self.never_negative = never_negative
        self.quantises_inputs = input_bits is not None
        self.masked = mask is not None and not bool(mask[:, bits > 0].all())
        none = torch.zeros(0, dtype=torch.uint8)  # a clone for each buffer: graphs merge tensors
        self.register_buffer("packed_codes", to_stream(codes.cpu(), bits.cpu()))
        kept = (bits > 0).to(torch.uint8).cpu()
        self.register_buffer(
            "packed_mask",
            to_stream(mask.cpu().to(torch.uint8), kept)
            if mask is not None and self.masked
            else none.clone(),
        )
        self.register_buffer("weight_bits", bits.cpu().clone())
        self.register_buffer("weight_scale", scale.detach().cpu().float().clone())
        self.register_buffer("input_bits", none if input_bits is None else input_bits.cpu().clone())
        self.register_buffer("input_scale", torch.tensor(float(input_scale)))
        self.register_buffer(
            "bias", torch.zeros(outputs) if bias is None else bias.detach().cpu().float().clone()
        )
        self._cache: tuple[Any, ...] | None = None
        self._float_cache: tuple[Any, ...] | None = None
        self.make_ready()

    @staticmethod
    def of_buffers(
        buffers: Mapping[str, Tensor],
        shape: Sequence[int],
        never_negative: bool,
        masked: bool,
        taps: Sequence[int] = (),
    ) -> PackedLayer:
        """A layer around buffers that are there already.

        Args:
            buffers: by the names that they have in a layer.
            shape: of the weight: two sizes make a linear layer, four a convolution.
            never_negative: as for the constructor.
            masked: whether there is a mask.
            taps: strides, padding before and after, dilation: 8 numbers, and the groups if there
                are several; none for a linear layer.
        """
        kind: type[PackedLayer] = PackedConv2d if len(shape) == 4 else PackedLinear
        if len(taps) > 8:
            kind = grouped_kind()
        made = kind.__new__(kind)
        nn.Module.__init__(made)
        made.shape, made.never_negative, made.masked = tuple(shape), never_negative, masked
        made.quantises_inputs = bool(buffers["input_bits"].numel())
        made._cache = made._float_cache = None
        for name in BUFFERS:
            made.register_buffer(name, buffers[name])
        made.groups = taps[8] if len(taps) > 8 else 1
        if taps:
            t = list(taps)
            made.taps = Taps((t[0], t[1]), (t[2], t[3]), (t[4], t[5]), (t[6], t[7]))
        return made.eval()

    def make_ready(self) -> None:
        """Prepares the products of integers, as the first call would.

        Raises:
            RequestError: the sums might not fit into int32.
        """
        if self.quantises_inputs:
            self._prepared()

    @property
    def tap_numbers(self) -> list[int]:
        """The ``taps`` of ``of_buffers``."""
        return []

    @property
    def stored_bits(self) -> int:
        """Bits of codes and of the mask."""
        taps = self.packed_codes.new_zeros(self.shape[2:]).numel()
        codes = int(self.weight_bits.sum()) * self.shape[0] * taps
        return codes + (int((self.weight_bits > 0).sum()) * self.shape[0] * taps) * self.masked

    def codes(self) -> Tensor:
        """The codes of the weights: uint8, (outputs, channels, ...); 0 at channels of 0 bits."""
        return self._laid_out(from_stream(self.packed_codes, self.weight_bits, self.shape))

    def mask(self) -> Tensor | None:
        """Which weights are there: bool; None if all of channels with bits are."""
        if not self.masked:
            return None
        kept = (self.weight_bits > 0).to(torch.uint8)
        return self._laid_out(from_stream(self.packed_mask, kept, self.shape) != 0)

    def _laid_out(self, weights: Tensor) -> Tensor:
        """In the shape that the weights of such a layer have, not that of the stream."""
        return weights

    def dequantized(self) -> Tensor:
        """The weight as floating numbers, 0 where there is none."""
        return self._float_weight().clone()

    def truncate(self, bits: int) -> None:
        """Drops the lowest bits of weights and inputs that have more than so many.

        Codes nest, so these are the codes that quantising to fewer bits gives.

        Args:
            bits: 1 to 8.

        Raises:
            RequestError: another number.
        """
        if not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= MOST_BITS:
            raise invalid("bits", bits, f"a whole number from 1 to {MOST_BITS}")
        codes = from_stream(self.packed_codes, self.weight_bits, self.shape)
        fewer = self.weight_bits.clamp(max=bits)
        axes = (1, -1, *(1,) * (len(self.shape) - 2))
        self.packed_codes = to_stream(codes >> (self.weight_bits - fewer).reshape(axes), fewer)
        self.weight_bits = fewer
        self.input_bits = self.input_bits.clamp(max=bits)

    def extra_repr(self) -> str:
        widths = ", ".join(
            f"{int((self.weight_bits == w).sum())} of {w}"
            for w in range(MOST_BITS, -1, -1)
            if bool((self.weight_bits == w).any())
        )
        return f"{self.shape[1]} -> {self.shape[0]}, channels by bits: {widths}"

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLayer:
        # Codes and scales have one type each; .half() of a model is about its other layers.
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def _marks(self) -> tuple[list[Tensor], list[int]]:
        """What tells whether a buffer was replaced or written to."""
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.is_inference():
                # Such a tensor does not count what is written to it.
                with torch.inference_mode(False):
                    self._buffers[name] = buffer.clone()
        buffers = self._buffers_of_call()
        return buffers, [buffer._version for buffer in buffers]

    def _current(self, cache: tuple[Any, ...] | None) -> bool:
        if cache is None:
            return False
        buffers, versions = cache[0]
        known: list[tuple[Tensor, int]] = list(zip(buffers, versions, strict=True))
        now = self._buffers.values()
        return all(
            one is other and one._version == version
            for one, (other, version) in zip(now, known, strict=True)
            if one is not None
        )

    def _prepared(self) -> tuple[PreparedProduct, Affine]:
        """The product and the numbers around it, made anew when a buffer has changed."""
        if not self._current(self._cache):
            shape = (*self.shape, *(1,) * (4 - len(self.shape)))
            mask = self.mask()
            weights = CodeWeights(
                self.codes().reshape(shape),
                self.weight_bits.cpu(),
                self.input_bits.cpu(),
                None if mask is None else mask.reshape(shape),
                self.never_negative,
            )
            # In double precision: one rounding, whatever the bits.
            unit = weights.unit * float(self.input_scale)
            scale = (self.weight_scale.cpu().double() * unit).float()
            affine = Affine(
                float(self.input_scale),
                2.0 if self.never_negative else 0.0,
                scale.contiguous(),
                self.bias.cpu().contiguous(),
            )
            self._cache = (self._marks(), PreparedProduct(weights), affine)
        assert self._cache is not None
        return self._cache[1], self._cache[2]

    def _float_weight(self) -> Tensor:
        if not self._current(self._float_cache):
            bits = self.weight_bits.cpu().to(torch.int64)
            axes = (1, -1, *(1,) * (len(self.shape) - 2))
            levels = (torch.ones_like(bits) << bits).reshape(axes)
            codes = from_stream(self.packed_codes, self.weight_bits, self.shape)
            grid = (2 * codes.to(torch.int64) - (levels - 1)).float() * (2.0 / levels)
            grid = self._laid_out(torch.where(bits.reshape(axes) > 0, grid, 0.0))
            mask = self.mask()
            if mask is not None:
                grid = torch.where(mask, grid, 0.0)
            outputs = self.weight_scale.cpu().reshape(-1, *(1,) * (len(self.shape) - 1))
            self._float_cache = (self._marks(), (grid * outputs).to(self.bias.device))
        assert self._float_cache is not None
        weight: Tensor = self._float_cache[1]
        return weight

    def _product(self, inputs: Tensor) -> Tensor:
        """The outputs, whatever computes them."""
        raise NotImplementedError

    def _multiply(self, inputs: Tensor, taps: Taps) -> Tensor:
        """Integer products of numbers (images, channels, height, width)."""
        product, affine = self._prepared()
        result = product.numbers(inputs, taps, affine)
        if result is not None:
            return result
        return self._scaled(product.sums(self._input_codes(inputs), taps), affine, inputs)

    def _scaled(self, sums: Tensor, affine: Affine, inputs: Tensor) -> Tensor:
        shape = (-1, 1, 1)
        scale, bias = affine.scale.to(inputs.device), affine.bias.to(inputs.device)
        return (sums.float() * scale.reshape(shape) + bias.reshape(shape)).to(inputs.dtype)

    def _input_codes(self, inputs: Tensor, bits: Tensor | None = None) -> Tensor:
        """Codes of inputs whose channels have these bits; those of the layer if None."""
        numbers = inputs.detach() / self.input_scale.to(inputs.device, inputs.dtype)
        if self.never_negative:
            numbers = numbers - 2
        width = self.input_bits if bits is None else bits
        return code(numbers, width.to(inputs.device).clamp(min=1).reshape(-1, 1, 1))

    def _buffers_of_call(self) -> list[Tensor]:
        return [getattr(self, name) for name in BUFFERS]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None, "_float_cache": None}


class PackedLinear(PackedLayer):
    """A linear layer of packed codes: ``y = alpha * Q(w) @ Q(x) + bias``, in integers.

    Float inputs are quantised and packed on the way. Arguments are those of ``PackedLayer``, with
    codes (outputs, inputs).
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs, of the dtype of the inputs.

        Args:
            inputs: floating, (..., channels).

        Raises:
            RequestError: another number of channels, or NaN.
        """
        if inputs.shape[-1:] != self.shape[1:2]:
            raise invalid("inputs", tuple(inputs.shape), f"(..., {self.shape[1]})")
        if tensors_are_virtual():
            result: Tensor = packed_product(
                *(inputs, self._buffers_of_call(), list(self.shape), self.never_negative),
                *(self.masked, [], "linear"),
            )
            return result
        return self._product(inputs)

    def _product(self, inputs: Tensor) -> Tensor:
        if not self.quantises_inputs:
            weight = self._float_weight().to(inputs.dtype)
            return F.linear(inputs, weight, self.bias.to(inputs.dtype))
        rows = inputs.reshape(-1, self.shape[1], 1, 1)
        return self._multiply(rows, Taps()).reshape(*inputs.shape[:-1], self.shape[0])


class PackedImageLayer(PackedLayer):
    """What convolutions of packed codes share: how they are called."""

    kind: ClassVar[str]
    """Of ``packed_product``."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs, of the dtype of the inputs.

        Args:
            inputs: floating, (images, channels, height, width), or one image without its axis.

        Raises:
            RequestError: another number of channels, a kernel that is larger than the image, NaN.
        """
        if inputs.dim() == 3:
            return self.forward(inputs[None])[0]
        if inputs.dim() != 4 or inputs.shape[1] != self.shape[1]:
            raise invalid(
                "inputs", tuple(inputs.shape), f"(images, {self.shape[1]}, rows, columns)"
            )
        if tensors_are_virtual():
            result: Tensor = packed_product(
                *(inputs, self._buffers_of_call(), list(self.shape), self.never_negative),
                *(self.masked, self.tap_numbers, self.kind),
            )
            return result
        return self._product(inputs)


class PackedConv2d(PackedImageLayer):
    """A two-dimensional convolution of packed codes, with zeros around the image.

    Args:
        codes: uint8, (outputs, channels, rows, columns).
        bits: as for ``PackedLayer``, like the other arguments.
        scale: (outputs,).
        stride: as of ``nn.Conv2d``.
        padding: likewise.
        dilation: likewise.
        others: of ``PackedLayer``.
    """

    kind = "conv2d"

    def __init__(
        self,
        codes: Tensor,
        bits: Tensor,
        scale: Tensor,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | str | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        **others: Any,
    ) -> None:
        if codes.dim() != 4 or 0 in codes.shape[2:]:
            raise invalid("codes", tuple(codes.shape), "(outputs, channels, rows, columns)")
        super().__init__(codes, bits, scale, **others)
        self.taps = taps_of((codes.shape[2], codes.shape[3]), padding, stride, dilation)

    @property
    def tap_numbers(self) -> list[int]:
        """The ``taps`` of ``of_buffers``."""
        taps = self.taps
        return [*taps.stride, *taps.padding, *taps.after, *taps.dilation]

    def _product(self, inputs: Tensor) -> Tensor:
        taps = self.taps
        if not self.quantises_inputs:
            padding = taps.padding
            if padding != taps.after:
                around = (padding[1], taps.after[1], padding[0], taps.after[0])
                inputs, padding = F.pad(inputs, around), (0, 0)
            weight, bias = self._float_weight().to(inputs.dtype), self.bias.to(inputs.dtype)
            return F.conv2d(inputs, weight, bias, taps.stride, padding, taps.dilation)
        return self._multiply(inputs, taps)


@torch.library.custom_op("latewood::packed_product", mutates_args=())
def packed_product(
    inputs: Tensor,
    buffers: Sequence[Tensor],
    shape: Sequence[int],
    never_negative: bool,
    masked: bool,
    taps: Sequence[int],
    kind: str,
) -> Tensor:
    """The product of a packed layer, for graphs: its buffers are inputs of the graph."""
    layer = _layer_of(buffers, shape, never_negative, masked, taps, kind)
    # Custom operators may not return what the fake kernel does not promise.
    return layer._product(inputs).contiguous()


@packed_product.register_fake
def _(
    inputs: Tensor,
    buffers: Sequence[Tensor],
    shape: Sequence[int],
    never_negative: bool,
    masked: bool,
    taps: Sequence[int],
    kind: str,
) -> Tensor:
    if kind == "linear":
        return inputs.new_empty((*inputs.shape[:-1], shape[0]))
    sizes = [
        (
            inputs.shape[2 + axis]
            + taps[2 + axis]
            + taps[4 + axis]
            - taps[6 + axis] * (shape[2 + axis] - 1)
            - 1
        )
        // taps[axis]
        + 1
        for axis in range(2)
    ]
    groups = taps[8] if len(taps) > 8 else 1
    return inputs.new_empty((inputs.shape[0], shape[0] * groups, *sizes))


_LAYERS: dict[tuple[object, ...], PackedLayer] = {}
"""Layers that graphs call, by where their codes lie, which they hold: the place stays theirs."""
_MOST_LAYERS: Final = 256


def _layer_of(
    buffers: Sequence[Tensor],
    shape: Sequence[int],
    never_negative: bool,
    masked: bool,
    taps: Sequence[int],
    kind: str,
) -> PackedLayer:
    """A layer with these buffers; the one of the last call if they are the same."""
    key = (buffers[0].data_ptr(), *shape, *taps, never_negative, masked)
    layer = _LAYERS.get(key)
    if layer is not None and all(
        _same_memory(layer._buffers[name], buffer)
        for name, buffer in zip(BUFFERS, buffers, strict=True)
    ):
        return layer
    made = PackedLayer.of_buffers(
        dict(zip(BUFFERS, buffers, strict=True)), shape, never_negative, masked, taps
    )
    if len(_LAYERS) >= _MOST_LAYERS:
        _LAYERS.pop(next(iter(_LAYERS)))
    _LAYERS[key] = made
    return made


def grouped_kind() -> type[PackedLayer]:
    """The class of convolutions in groups, whose file needs this one."""
    from latewood.precision.packed_groups import PackedGroupedConv2d

    return PackedGroupedConv2d


def _same_memory(one: Tensor | None, other: Tensor) -> bool:
    return one is other or (
        one is not None
        and one.shape == other.shape
        and one.dtype == other.dtype
        and one.device == other.device
        and one.data_ptr() == other.data_ptr()
    )


def _require(
    name: str, tensor: object, shape: Sequence[int], dtypes: tuple[torch.dtype, ...]
) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype not in dtypes:
        allowed = " or ".join(str(dtype) for dtype in dtypes)
        raise invalid(name, getattr(tensor, "dtype", tensor), f"a tensor of {allowed}")
    if tuple(tensor.shape) != tuple(shape):
        raise invalid(name, f"shape {tuple(tensor.shape)}", f"{tuple(shape)}")
    if tensor.is_meta:
        raise invalid(name, "a meta tensor", "one with values")
