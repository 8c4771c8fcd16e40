"""How channels pass through sums of products that are written with letters."""

from __future__ import annotations

import string
from typing import Any

import torch
from torch import Tensor

from latewood.core.coupling.elementwise_rules import merged
from latewood.core.coupling.labels import NONE
from latewood.core.coupling.layer_rules import read
from latewood.core.coupling.traced_call import Call, Result

__all__ = ["einsum_rule"]


def einsum_rule(call: Call) -> Result:
    """Treats a parameter among the operands as a weight, and other operands like a product."""
    equation, *operands = call.positional
    if not isinstance(equation, str):
        return call.unknown()
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = list(operands[0])
    terms, output = _letters(equation, operands)
    weights = [number for number, x in enumerate(operands) if call.labels.source(x) is not None]
    repeated = any(len(set(term)) < len(term) for term in terms)
    if repeated or len(weights) > 1 or (weights and len(operands) != 2):
        return call.unknown()
    if weights:
        number = weights[0]
        return _weighted(
            call, operands[1 - number], terms[1 - number], operands[number], terms[number], output
        )
    if call.labels.by_head_size and len(operands) == 2:
        _contract_entries(call, operands, terms, output)
    labels = [
        _summed(call, call.labels.of(x), term, output, [t for t in terms if t is not term])
        for x, term in zip(operands, terms, strict=True)
    ]
    shape = call.output.shape
    aligned = [_aligned(entries, term, output).expand(shape) for entries, term in labels]
    result = aligned[0]
    for other in aligned[1:]:
        result = call.labels.merge(result, other)
    return result


def _letters(equation: str, operands: list[Any]) -> tuple[list[str], str]:
    """The letters of each operand and of the output, with letters in the place of dots."""
    left, _, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if "->" not in equation:
        every = "".join(terms).replace(".", "")
        output = "".join(sorted(letter for letter in set(every) if every.count(letter) == 1))
        output = "..." + output if "..." in left else output
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    most = max(
        (
            x.ndim - len(term.replace(".", ""))
            for x, term in zip(operands, terms, strict=True)
            if "." in term
        ),
        default=0,
    )
    for number, (x, term) in enumerate(zip(operands, terms, strict=True)):
        if "." in term:
            count = x.ndim - len(term.replace(".", ""))
            terms[number] = term.replace("...", "".join(spare[most - count : most]))
    return terms, output.replace("...", "".join(spare[:most]))


def _contract_entries(call: Call, operands: list[Any], terms: list[str], output: str) -> None:
    """Where both operands have channels along what is summed over, they go entry by entry."""
    for letter in set(terms[0]) & set(terms[1]) - set(output):
        sides = [
            call.labels.of(x).movedim(term.index(letter), -1)
            for x, term in zip(operands, terms, strict=True)
        ]
        if all(call.labels.vary(labels, -1) for labels in sides):
            call.labels.contract_by_entry(sides[0], sides[1], call.where)


def _summed(
    call: Call, labels: Tensor, term: str, output: str, others: list[str]
) -> tuple[Tensor, str]:
    """Labels without the letters that the output lacks."""
    for letter in term:
        if letter in output:
            continue
        dim = term.index(letter)
        if any(letter in other for other in others):
            first = labels.narrow(dim, 0, 1)
            if call.labels.by_head_size and call.labels.vary(labels, dim):
                labels = torch.full((), NONE).expand(first.shape)
                continue
            # What is summed over vanishes from the output, so it can only go as a whole.
            if call.labels.vary(labels, dim) and bool((labels == NONE).any()):
                call.labels.bar(labels, "mixed", f"{call.where} sums channels against others")
            call.labels.couple(labels, first)
            labels = first
        else:
            labels = merged(call, labels, dim, "sums over channels")
    return labels, term


def _aligned(labels: Tensor, term: str, output: str) -> Tensor:
    """Labels with the output's dimensions, of size 1 where the operand has none."""
    shared = [letter for letter in output if letter in term]
    gone = [dim for dim, letter in enumerate(term) if letter not in output]
    labels = labels.squeeze(tuple(gone)) if gone else labels
    rest = [letter for letter in term if letter in output]
    labels = labels.permute([rest.index(letter) for letter in shared])
    for position, letter in enumerate(output):
        if letter not in term:
            labels = labels.unsqueeze(position)
    return labels


def _weighted(
    call: Call, inputs: Tensor, term: str, weight: Tensor, letters: str, output: str
) -> Result:
    labels = call.labels.of(inputs)
    summed = [letter for letter in letters if letter in term and letter not in output]
    made = [letter for letter in letters if letter not in term and letter in output]
    both = [letter for letter in letters if letter in term and letter in output]
    varying = [letter for letter in term if call.labels.vary(labels, term.index(letter))]
    if not summed or any(letter in both for letter in varying):
        return call.unknown()
    # A weight may have a dimension for heads and one for their size: one of them is followed.
    read_along = next((letter for letter in summed if letter in varying), summed[0])
    for letter in summed:
        if letter != read_along and letter in varying:
            return call.unknown()
    atoms_in = call.labels.axis(weight, letters.index(read_along), "consumer")
    others = tuple(term.index(letter) for letter in summed if letter != read_along)
    first = labels
    for dim in others:
        call.labels.couple(first, first.narrow(dim, 0, 1))
        first = first.narrow(dim, 0, 1)
    read(call, first.movedim(term.index(read_along), -1), atoms_in)
    for letter in {*summed, *made} - {read_along, *made[:1]}:
        entries = call.labels.axis(weight, letters.index(letter), "per_channel")
        call.labels.bar(entries, "fixed", f"{call.where} keeps a second dimension of its weight")
    if not made:
        return torch.full((), NONE).expand(call.output.shape)
    atoms_out = call.labels.axis(weight, letters.index(made[0]), "producer")
    shape = [-1 if letter == made[0] else 1 for letter in output]
    return atoms_out.view(shape)
