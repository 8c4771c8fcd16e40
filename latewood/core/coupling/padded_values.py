"""What new channels of a stream hold, operation by operation, if it is padded with zeros or means.

Whatever makes channels of the stream is taken to make 0 in new ones, or the mean of the old ones.
Operations then keep that, turn a mean into something else, or, as norms do, into 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from torch import Tensor

from latewood.core.coupling.label_layout import compact
from latewood.core.coupling.labels import NONE, Labels, varies_along
from latewood.core.coupling.tensor_table import TensorTable
from latewood.core.coupling.traced_call import Call, Result, tensors_in

__all__ = ["SILENT", "Padded", "PaddedValues"]

Value = Literal["zero", "mean", "other"]


@dataclass(frozen=True)
class Padded:
    """What new channels of a tensor hold.

    Args:
        zeros: where the stream is padded with zeros.
        means: where it is padded with means.
        reason: the operation that made something else of them.
    """

    zeros: Value
    means: Value
    reason: str = ""


FRESH: Final = Padded("zero", "mean")
"""Of what makes channels."""
SILENT: Final = Padded("zero", "zero")
"""Behind a norm."""


class PaddedValues:
    """What new channels hold in every tensor of a run.

    Args:
        labels: those of the run.

    Attributes:
        factors: names of tensors that multiply channels entry by entry.
        summands: names of tensors that are added to channels.
        read: for the name of a weight, what it reads.
    """

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._of: TensorTable[Padded] = TensorTable()
        self.factors: set[str] = set()
        self.summands: set[str] = set()
        self.read: dict[str, list[Padded]] = {}

    def of(self, tensor: Tensor) -> Padded:
        """What new channels of a tensor hold; parameters are padded themselves."""
        value: Padded = self._of.get(tensor, FRESH)
        return value

    def put(self, output: Any, value: Padded) -> None:
        """Remembers what new channels of tensors hold."""
        for tensor in tensors_in(output):
            self._of[tensor] = value

    def forget(self, output: Any, where: str) -> None:
        """Notes that nobody knows what new channels of tensors hold."""
        self.put(output, _other(f"{where} has a rule that does not say"))

    def follow(self, call: Call, result: Result) -> None:
        """Works out what new channels of an operation's output hold.

        Args:
            call: the operation.
            result: what its rule gave.
        """
        name = call.name
        operands = [
            tensor for tensor in call.tensors if tensor.ndim and self._labels.touches(tensor)
        ]
        if name == "setitem":
            target = call.positional[0]
            self.put(target, _joined([self.of(tensor) for tensor in operands], call.where))
            return
        if name in _CONTRACTIONS:
            value = self._contracted(call, operands, result)
        elif name in _NORMS:
            value = SILENT
        elif name in _FACTORS:
            value = self._multiplied(call, operands)
        else:
            if name in _SUMS:
                self.summands |= self._names(operands)
            elif name == "prelu":
                self.factors |= self._names(operands)
            value = _transferred(call, [self.of(tensor) for tensor in operands])
        self.put(call.output, value)
        base = call.output._base if isinstance(call.output, Tensor) else None
        if base is not None and name in _WRITERS and base in self._of:
            self._of[base] = _joined([self.of(base), value], call.where)

    def _names(self, tensors: list[Tensor]) -> set[str]:
        names = (self._labels.source(tensor) for tensor in tensors)
        return {name for name in names if name is not None}

    def _contracted(self, call: Call, operands: list[Tensor], result: Result) -> Padded:
        """A weight makes new channels, unless it has one matrix a channel."""
        weights = [tensor for tensor in operands if self._labels.source(tensor) is not None]
        inputs = [tensor for tensor in operands if self._labels.source(tensor) is None]
        matrices = [tensor for tensor in weights if tensor.ndim > 1]
        values = [self.of(tensor) for tensor in inputs]
        for tensor in matrices:
            name = self._labels.source(tensor)
            if name is not None:
                self.read.setdefault(name, []).extend(values)
        if not matrices:
            return _other(f"{call.where} multiplies channels by each other")
        self.summands |= self._names([tensor for tensor in weights if tensor.ndim == 1])
        if "conv" in call.name and call.argument(6, "groups", 1) != 1:
            self.factors |= self._names(matrices)
            zeros: Value = values[0].zeros if values else "zero"
            return Padded(zeros, "other", f"{call.where} has a kernel for each channel")
        if call.name in _PRODUCTS and isinstance(result, Tensor) and not varies_along(result, -1):
            # The weight mixes positions, alike for every channel; a bias is one for every channel.
            return _transferred(call, values, shifted=len(weights) > len(matrices))
        return FRESH

    def _multiplied(self, call: Call, operands: list[Tensor]) -> Padded:
        values: list[Padded] = []
        for tensor in operands:
            name = self._labels.source(tensor)
            if name is not None:
                self.factors.add(name)
            # What is the same for all channels, such as a statistic, is a number here.
            labels = compact(self._labels.of(tensor))
            if labels.numel() > 1 and bool((labels != NONE).any()):
                value = self.of(tensor) if name is None else _other("")
                values.append(value)
        if len(values) < 2:
            return values[0] if values else _joined([self.of(each) for each in operands], "")
        numerator = values[:1] if "div" in call.name else values
        zeros = sum(value.zeros == "zero" for value in numerator)
        silent = sum(value.means == "zero" for value in numerator)
        if zeros > 1 or silent > 1:
            # The gradient of either is the other, so neither ever moves.
            return _other(f"{call.where} multiplies new channels by new channels, both 0 for ever")
        return Padded(
            "zero" if zeros else "other",
            "zero" if silent else "other",
            f"{call.where} multiplies each channel by a number of its own",
        )


def _shifted(value: Padded, call: Call) -> Padded:
    """What is left where the same number comes on top of every channel."""
    means: Value = "mean" if value.means == "mean" else "other"
    return Padded("other", means, value.reason or f"{call.where} adds a number to every channel")


def _transferred(call: Call, values: list[Padded], *, shifted: bool = False) -> Padded:
    if call.name in _PRODUCTS:
        joined = _joined(values, call.where)
        return _shifted(joined, call) if shifted else joined
    if not values or call.name == "zeros_like":
        return FRESH
    if call.name in _SUMS:
        joined = _joined(values, call.where)
        return _shifted(joined, call) if len(values) < 2 and _adds_number(call) else joined
    if call.name in ("masked_fill", "where") and len(values) < 2 and _fills_number(call):
        return _other(f"{call.where} puts a number into every channel")
    if call.name in _LINEAR:
        return _joined(values, call.where)
    if call.name in _ZERO_AT_ZERO:
        joined = _joined(values, call.where)
        silent: Value = "zero" if joined.means == "zero" else "other"
        return Padded(joined.zeros, silent, joined.reason or f"{call.where} is not linear")
    if call.name in _RECURRENCES:
        return Padded("zero", "other", f"{call.where} is not linear")
    return _other(f"{call.where} makes other values of them")


def _adds_number(call: Call) -> bool:
    """Whether something other than 0 is added that is the same for all channels."""
    return any(isinstance(item, Tensor) or item != 0 for item in call.positional[1:2])


def _fills_number(call: Call) -> bool:
    fillings = call.positional[1:3] if call.name == "where" else call.positional[2:3]
    numbers = [item for item in fillings if not isinstance(item, Tensor)]
    numbers += [call.named[key] for key in ("value", "other", "input") if key in call.named]
    return any(isinstance(item, Tensor) or item != 0 for item in numbers)


def _joined(values: list[Padded], where: str) -> Padded:
    def join(kinds: set[Value]) -> Value:
        return kinds.pop() if len(kinds) == 1 else "other"

    if not values:
        return FRESH
    zeros, means = join({value.zeros for value in values}), join({value.means for value in values})
    reason = next((value.reason for value in values if value.reason), "")
    if not reason and "other" in (zeros, means):
        reason = f"{where} joins what is padded in different ways"
    return Padded(zeros, means, reason)


def _other(reason: str) -> Padded:
    return Padded("other", "other", reason)


_CONTRACTIONS: Final = frozenset(
    """
    linear matmul rmatmul mm bmm addmm addmv baddbmm addbmm grouped_mm embedding conv1d conv2d
    conv3d conv_transpose1d conv_transpose2d conv_transpose3d
    """.split()  # noqa: SIM905
)
_PRODUCTS: Final = frozenset(("linear", "matmul", "rmatmul", "mm", "bmm", "addmm", "baddbmm"))
_NORMS: Final = frozenset({"layer_norm", "rms_norm"})
_RECURRENCES: Final = frozenset(("lstm", "gru", "lstm_cell", "gru_cell"))
_FACTORS: Final = frozenset(
    ("mul", "imul", "rmul", "multiply", "div", "idiv", "divide", "true_divide", "truediv")
)
_SUMS: Final = frozenset(("add", "iadd", "radd", "sub", "isub", "rsub", "subtract"))
_WRITERS: Final = frozenset(("iadd", "isub", "imul", "idiv", "copy", "add", "sub", "mul", "div"))
_LINEAR: Final = frozenset(
    """
    alias alpha_dropout atleast_1d atleast_2d atleast_3d avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d bfloat16 broadcast_to cat chunk
    clone concat concatenate contiguous copy cpu cuda cumsum detach double dropout dropout1d
    dropout2d dropout3d expand expand_as flatten flip float gather get getitem half index_add
    index_select interpolate masked_fill mean movedim moveaxis narrow neg negative pad permute
    ravel repeat repeat_interleave requires_grad reshape reshape_as roll select split
    split_with_sizes squeeze stack sum swapaxes swapdims t tile to transpose type type_as unbind
    unflatten unsqueeze upsample view view_as where
    """.split()  # noqa: SIM905
)
"""Sums over other axes with the same weights for every channel, and what only moves entries."""
_ZERO_AT_ZERO: Final = frozenset(
    """
    abs amax asin atan batch_norm celu elu erf expm1 gelu group_norm hardshrink hardswish hardtanh
    instance_norm leaky_relu log1p max max_pool1d max_pool2d max_pool3d mish pow prelu relu relu6
    rrelu selu sign silu sin sinh softshrink softsign sqrt square tan tanh tanhshrink
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    """.split()  # noqa: SIM905
)
"""Functions of each channel alone that are 0 at 0."""
