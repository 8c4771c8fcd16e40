"""How channels pass through operations that have weights: contractions, norms, embeddings."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from latewood.core.coupling.label_layout import compact
from latewood.core.coupling.labels import NONE, Alignment, varies_along
from latewood.core.coupling.traced_call import Call, Result, Rule, argument_names

__all__ = ["LAYER_RULES", "read", "write"]


def read(call: Call, inputs: Tensor, atoms: Tensor) -> None:
    """Couples labels along a last dimension with the axis of the weight that reads it.

    Args:
        call: the operation.
        inputs: labels (..., size).
        atoms: labels (size,) of the axis.
    """
    size = inputs.shape[-1]
    inputs = compact(inputs)
    inputs = inputs.expand(*inputs.shape[:-1], size)
    call.labels.couple(inputs, atoms)
    call.labels.boundaries.follow(atoms, inputs, moved=True)
    absent, unnamed = inputs == NONE, atoms == NONE
    if bool(absent.any()):
        fixed = absent.reshape(-1, size).any(0)
        call.labels.bar(atoms[fixed], "input", f"{call.where} reads data of fixed size")
    if bool(unnamed.any()):
        reason = f"{call.where} uses a weight computed on the way"
        call.labels.bar(inputs[unnamed.expand(inputs.shape)], "unknown", reason)


def write(call: Call, tensor: Tensor | None, atoms: Tensor) -> None:
    """Couples a bias or another vector with one entry a channel with labels (..., size)."""
    if tensor is None:
        return
    if call.labels.source(tensor) is not None:
        entries = call.labels.axis(tensor, 0, "per_channel")
        call.labels.couple(entries, atoms)
        bar_beside_data(call, entries, atoms)
        call.labels.boundaries.follow(entries, atoms)
        return
    labels = call.labels.of(tensor)
    call.labels.couple(labels, atoms)
    if bool((compact(labels) == NONE).any()):
        for dim in range(-tensor.ndim, 0):
            if tensor.shape[dim] > 1:
                reason = f"{call.where} adds data of fixed size"
                call.labels.must_not_vary(atoms, dim, "fixed", reason)


def bar_beside_data(call: Call, entries: Tensor, labels: Tensor) -> None:
    """Bars entries of a vector that meet what belongs to no channel.

    Args:
        call: the operation.
        entries: labels (size,) of the vector.
        labels: labels (..., size) that it meets.
    """
    few = compact(labels)
    absent = (few == NONE).expand(*few.shape[:-1], labels.shape[-1])
    alone = absent.reshape(-1, labels.shape[-1]).any(0) & (entries != NONE)
    call.labels.bar(entries[alone], "fixed", f"{call.where} meets data of fixed size")


def _linear(call: Call) -> Result:
    inputs, weight, bias = call.arguments("input", "weight", "bias")
    return _contract(call, call.labels.of(inputs), weight, 1, bias)


def _contract(
    call: Call, labels: Tensor, weight: Tensor, axis_in: int, bias: Tensor | None
) -> Tensor:
    """Labels of a product of activations, labels (..., size), with a matrix."""
    if call.labels.source(weight) is None:
        reason = f"{call.where} uses a weight computed on the way"
        call.labels.bar(call.labels.of(weight), "unknown", reason)
    atoms_in = call.labels.axis(weight, axis_in, "consumer")
    atoms_out = call.labels.axis(weight, 1 - axis_in, "producer")
    write(call, bias, atoms_out)
    across = any(call.labels.vary(labels, dim) for dim in range(labels.ndim - 1))
    if across and not call.labels.vary(labels, -1):
        # A product along positions, for each channel: the channels pass, the weight's axes stay.
        reason = f"{call.where} sums over positions"
        call.labels.bar(atoms_in, "fixed", reason)
        call.labels.bar(atoms_out, "fixed", reason)
        return labels[..., :1]
    read(call, labels, atoms_in)
    return atoms_out


def _product(call: Call, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Labels (..., rows, columns) of a product over the last dimension of two activations.

    Args:
        call: the operation.
        left: labels (..., rows, size).
        right: labels (..., columns, size).
        bias: what is added.
    """
    if call.labels.by_head_size and call.labels.vary(left, -1) and call.labels.vary(right, -1):
        call.labels.contract_by_entry(left, right, call.where)
        shape = torch.broadcast_shapes(left[..., :1].shape, right[..., :1].transpose(-1, -2).shape)
        return torch.full((), NONE).expand(shape)
    for one, other in ((left, right), (right, left)):
        if call.labels.vary(one, -1) and bool((compact(other) == NONE).any()):
            call.labels.bar(one, "mixed", f"{call.where} sums channels against data of fixed size")
        # What is summed over vanishes from the output, so it can only go as a whole.
        call.labels.couple(one, one[..., :1])
    first, second = torch.broadcast_tensors(left[..., :1], right[..., :1].transpose(-1, -2))
    result = _alongside(call, first, second)
    write(call, bias, result)
    return result


def _alongside(call: Call, first: Tensor, second: Tensor) -> Tensor:
    """Labels of one shape together; one channel beside many is no part of any of them."""
    for many, few in ((first, second), (second, first)):
        wide = [dim for dim in range(many.ndim) if call.labels.vary(many, dim)]
        if wide and not any(call.labels.vary(few, dim) for dim in range(few.ndim)):
            return call.labels.meet(many, few)
    if varies_along(second, -1) and not varies_along(first, -1):
        first, second = second, first
    return call.labels.merge(first, second)


def _matmul(call: Call) -> Result:
    left, right = call.positional[:2]
    if call.name == "rmatmul":
        left, right = right, left
    return _multiplied(call, left, right, None)


def _multiplied(call: Call, left: Tensor, right: Tensor, bias: Tensor | None) -> Result:
    labels = call.labels
    if labels.source(right) is not None and labels.source(left) is None:
        if right.ndim == 2:
            return _contract(call, labels.of(left), right, 0, bias)
        if right.ndim == 3 == left.ndim:
            return _batched(call, left, right, bias)
    if labels.source(left) is not None and left.ndim == 2 <= right.ndim:
        # W x is x' W', seen from the other side.
        result = _contract(call, labels.of(right).transpose(-1, -2), left, 1, None)
        column: Tensor = torch.atleast_2d(result).transpose(-1, -2)
        write(call, bias, column)
        return column
    if left.ndim < 2 or right.ndim < 2 or labels.source(left) or labels.source(right):
        return call.unknown()
    return _product(call, labels.of(left), labels.of(right).transpose(-1, -2), bias)


def _batched(call: Call, left: Tensor, right: Tensor, bias: Tensor | None) -> Result:
    """One matrix for each entry of the batch, such as a matrix for each expert or head."""
    inputs = call.labels.of(left)
    atoms_in = call.labels.axis(right, 1, "consumer")
    atoms_out = call.labels.axis(right, 2, "producer")
    if call.labels.vary(inputs, 0):
        reason = f"{call.where} has a matrix for each channel"
        for labels in (inputs, atoms_in, atoms_out):
            call.labels.bar(labels, "fixed", reason)
    read(call, inputs, atoms_in)
    if bias is not None and call.labels.source(bias) is not None and bias.ndim == 3:
        call.labels.couple(call.labels.axis(bias, 2, "per_channel"), atoms_out)
    else:
        write(call, bias, atoms_out)
    return atoms_out


def _grouped_product(call: Call) -> Result:
    """Rows in groups, a matrix for each group: (rows, in) with (groups, in, out)."""
    left, right = call.positional[:2]
    if left.ndim != 2 or right.ndim != 3 or call.labels.source(right) is None:
        return call.unknown()
    atoms_in = call.labels.axis(right, 1, "consumer")
    atoms_out = call.labels.axis(right, 2, "producer")
    read(call, call.labels.of(left), atoms_in)
    # Its kernels take rows of whole 16 bytes, forwards and backwards.
    multiple = max(1, 16 // right.element_size())
    for atoms in (atoms_in, atoms_out):
        call.labels.alignments.append(Alignment(atoms, multiple, call.where))
    return atoms_out


def _added_product(call: Call) -> Result:
    """``addmm`` and its kin: a bias plus a product."""
    pair = ("batch1", "batch2") if call.name.endswith("bmm") else ("mat1", "mat2")
    bias, left, right = call.arguments("input", *pair)
    return _multiplied(call, left, right, bias)


def _convolution(call: Call) -> Result:
    inputs, weight, bias = call.arguments("input", "weight", "bias")
    transposed = "transpose" in call.name
    groups = call.argument(6, "groups", 1)
    spatial = weight.ndim - 2
    labels = call.labels.of(inputs).movedim(-1 - spatial, -1)
    if groups == 1:
        atoms = call.labels.axis(weight, 1 if transposed else 0, "producer")
        read(call, labels, call.labels.axis(weight, 0 if transposed else 1, "consumer"))
    else:
        atoms = _grouped(call, labels, weight, groups, transposed)
    write(call, bias, atoms)
    return atoms.view(-1, *[1] * spatial)


def _grouped(call: Call, labels: Tensor, weight: Tensor, groups: int, transposed: bool) -> Tensor:
    """A grouped convolution can lose or gain whole groups: each is one channel."""
    atoms = call.labels.axis(weight, 0, "per_channel").view(groups, -1)
    call.labels.couple(atoms, atoms[:, :1])
    read(call, labels, atoms[:, :1].expand(-1, labels.shape[-1] // groups).flatten())
    return atoms[:, :1].expand(-1, weight.shape[1]).flatten() if transposed else atoms.flatten()


def _given(call: Call) -> dict[str, Any]:
    return argument_names(call.function, call.name, call.positional, call.named)


def _batch_norm(call: Call) -> Result:
    given = _given(call)
    labels = call.labels.of(given["input"])
    last = labels.movedim(1, -1)
    first = None
    for name in ("running_mean", "running_var", "weight", "bias"):
        vector = given.get(name)
        if vector is None:
            continue
        entries = call.labels.axis(vector, 0, "per_channel")
        if first is None or call.labels.name(vector) is None:
            read(call, last, entries)
            first = entries
        else:
            # As the first: what all read needs to be looked at once.
            call.labels.couple(first, entries)
            call.labels.boundaries.follow(entries, last, moved=True)
    return labels


def _group_norm(call: Call) -> Result:
    inputs, groups, weight, bias = call.arguments("input", "num_groups", "weight", "bias")
    labels = call.labels.of(inputs)
    last = labels.movedim(1, -1)
    if weight is None:
        call.labels.bar(labels, "fixed", f"{call.where} has no weights to size it by")
    # A group's statistics are its own, so whole groups can go.
    by_group = last.unflatten(-1, (groups, -1))
    call.labels.couple(by_group, by_group[..., :1])
    write(call, weight, last)
    write(call, bias, last)
    return labels


def _layer_norm(call: Call) -> Result:
    inputs, shape, weight, bias = call.arguments("input", "normalized_shape", "weight", "bias")
    if call.name == "rms_norm":
        # It has no bias: its fourth argument is eps.
        bias = None
    labels = call.labels.of(inputs)
    for dim in range(-len(shape), 0):
        call.labels.must_not_vary(
            labels, dim, "normalised", f"{call.where} averages over the channels"
        )
    for tensor in (weight, bias):
        if tensor is None:
            continue
        entries = call.labels.of(tensor)
        call.labels.couple(entries, labels)
        bar_beside_data(call, entries.flatten(), labels.flatten(-len(shape)))
    return labels


def _prelu(call: Call) -> Result:
    inputs, weight = call.arguments("input", "weight")
    labels = call.labels.of(inputs)
    if weight.numel() > 1:
        write(call, weight, labels.movedim(1, -1))
    return labels


def _embedding(call: Call) -> Result:
    weight = _given(call)["weight"]
    rows = call.labels.axis(weight, 0, "consumer")
    call.labels.bar(rows, "lookup", f"{call.where} looks up rows by index")
    return call.labels.axis(weight, 1, "producer")


LAYER_RULES: Final[dict[str, Rule]] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "rmatmul", "mm", "bmm"), _matmul),
    **dict.fromkeys(("addmm", "addmv", "baddbmm", "addbmm"), _added_product),
    **dict.fromkeys(("grouped_mm", "_grouped_mm"), _grouped_product),
    **dict.fromkeys(
        (f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)), _convolution
    ),
    "batch_norm": _batch_norm,
    "instance_norm": _batch_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "prelu": _prelu,
    "embedding": _embedding,
}
"""Rules by the name of the operation."""
