"""Changes to trained weights that ask which part of a spectrum the network needs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latewood.core.batch_norm import recalibrate_batch_norm
from latewood.core.selection import Selected
from latewood.errors import RequestError, invalid
from latewood.spectra.matrices.matrix_views import matrix_parameter, parameter_matrix
from latewood.spectra.matrices.weights import spectral_parameters
from latewood.spectra.output_heads import ExampleInputs, output_heads
from latewood.spectra.solvers.leading_vectors import factors

__all__ = [
    "Batches",
    "Forward",
    "SpectrumPart",
    "chosen_weights",
    "perturb_",
    "perturbed",
    "remeasure",
    "replace_weights",
    "require_readable_twice",
    "truncate_",
    "truncated",
    "truncation_scores",
    "weight_matrices",
]

SpectrumPart = Literal["top", "bottom"]
Batches = Iterable[tuple[Tensor, ...]]
Forward = Callable[[nn.Module, tuple[Tensor, ...]], object]


def truncated(matrix: Tensor, *, keep: SpectrumPart = "top", fraction: float = 0.5) -> Tensor:
    r"""A matrix with only the first, or only the other, part of its singular components.

    .. math:: q = \lceil f R \rceil, \quad W_\text{top} = \sum_{i \le q} \sigma_i u_i v_i^T,
        \quad W_\text{bottom} = W - W_\text{top}

    Args:
        matrix: (..., m, n).
        keep: "top" for the q largest, "bottom" for the rest.
        fraction: f, in [0, 1].

    Returns:
        (..., m, n) of the matrix's dtype; NaN if the matrix is not finite.

    Raises:
        RequestError: an unknown ``keep`` or a fraction outside [0, 1].

    Source: arXiv 2408.11804, section 3 (f = 0.5).
    """
    if keep not in ("top", "bottom"):
        raise invalid("keep", keep, '"top" or "bottom"')
    if not 0 <= fraction <= 1:
        raise invalid("fraction", fraction, "a number from 0 to 1")
    # The tolerance keeps 0.07 * 100 from becoming 8.
    count = math.ceil(fraction * min(matrix.shape[-2:]) - 1e-9)
    whole = matrix.detach().double()
    top = torch.zeros_like(whole)
    if count:
        leading = factors(matrix, count)
        scaled = leading.left.double() * leading.values[..., None, : leading.count].double()
        top = scaled @ leading.right.double().mT
    part: Tensor = top if keep == "top" else whole - top
    return part.to(matrix.dtype)


def perturbed(
    weight: Tensor, strength: float, *, generator: torch.Generator, preserve_norm: bool = True
) -> Tensor:
    r"""A weight moved by a random direction of a length relative to its own.

    .. math:: W' = W + \eta \|W\| \epsilon / \|\epsilon\|, \quad \epsilon \sim N(0, I)

    With ``preserve_norm`` the result is scaled back to the norm of W, so that the cosine with W is
    about :math:`1 / \sqrt{1 + \eta^2}` for a large matrix.

    Args:
        weight: any shape.
        strength: :math:`\eta \ge 0`.
        generator: source of the direction, on the CPU.
        preserve_norm: whether to scale back, as the released code does.

    Returns:
        A tensor of the weight's shape and dtype.

    Raises:
        RequestError: a strength that is negative or not finite.

    Source: arXiv 2408.11804, section 5.
    """
    if not 0 <= strength < math.inf:
        raise invalid("strength", strength, "a finite number of at least 0")
    values = weight.detach().double()
    noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(values.device)
    norm = values.norm()
    moved: Tensor = values + strength * norm * noise / noise.norm().clamp_min(1e-300)
    if preserve_norm:
        moved = moved * norm / moved.norm().clamp_min(1e-300)
    return moved.to(weight.dtype)


def weight_matrices(
    model: nn.Module,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    skip_head: bool = True,
    example_inputs: ExampleInputs | None = None,
) -> dict[str, Tensor]:
    """The weights that interventions work on, by full name, in the shape of their parameters.

    Args:
        model: any module without transformations on these weights.
        include: globs on layer or parameter names to cover.
        exclude: globs on layer or parameter names to leave out.
        skip_head: leave out the weights that make the model's output, see ``output_heads``.
        example_inputs: what the model is called with, by which its output head is known for sure.

    Returns:
        The parameters' data, sharing their memory, in registration order.

    Raises:
        RequestError: a glob that matches nothing, or a weight under a transformation.
    """
    chosen = chosen_weights(model, include, exclude, skip_head, example_inputs)
    return {weight.name: weight.stored.detach() for weight in chosen}


def truncate_(
    model: nn.Module,
    *,
    keep: SpectrumPart = "top",
    fraction: float = 0.5,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    skip_head: bool = True,
    example_inputs: ExampleInputs | None = None,
    batches: Batches | None = None,
    forward: Forward | None = None,
) -> list[str]:
    """Truncates the spectrum of every weight matrix of a model, in place.

    Args:
        model: any module without transformations on these weights.
        keep: which part stays, see ``truncated``.
        fraction: share of the singular values in the top part.
        include: globs on layer or parameter names to cover.
        exclude: globs on layer or parameter names to leave out.
        skip_head: leave out the weights that make the model's output, see ``output_heads``.
        example_inputs: what the model is called with, by which its output head is known for sure.
        batches: training batches without augmentation, from which batch norms are measured anew;
            None leaves them as they are.
        forward: how to run the model on a batch, see ``recalibrate_batch_norm``.

    Returns:
        The names of the changed parameters.

    Raises:
        RequestError: see ``truncated`` and ``weight_matrices``.

    Source: arXiv 2408.11804, section 3.
    """

    def cut(selected: Selected) -> Tensor:
        module, name, weight = selected.module, selected.parameter_name, selected.stored
        part = truncated(parameter_matrix(module, name, weight), keep=keep, fraction=fraction)
        return matrix_parameter(module, name, part, weight.shape)

    chosen = chosen_weights(model, include, exclude, skip_head, example_inputs)
    return replace_weights(model, {weight: cut(weight) for weight in chosen}, batches, forward)


def truncation_scores(
    model: nn.Module,
    evaluate: Callable[[nn.Module], Mapping[str, float]],
    *,
    fraction: float = 0.5,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    skip_head: bool = True,
    example_inputs: ExampleInputs | None = None,
    batches: Batches | None = None,
    forward: Forward | None = None,
) -> dict[str, dict[str, float]]:
    """What a model scores whole, with the top and with the bottom of its spectra.

    With ``batches`` the batch norms of all three are measured anew, those of the whole model too,
    so that only the weights tell them apart.

    Args:
        model: left as it is; copies are truncated.
        evaluate: scores of a model by name.
        fraction: share of the singular values in the top part.
        include: see ``truncate_``.
        exclude: see ``truncate_``.
        skip_head: see ``truncate_``.
        example_inputs: see ``truncate_``.
        batches: see ``truncate_``; read once for each part, so no iterator.
        forward: see ``truncate_``.

    Returns:
        {"full": scores, "top": scores, "bottom": scores}.

    Raises:
        RequestError: see ``truncate_``.

    Source: arXiv 2408.11804, figures 4 and 14.
    """
    require_readable_twice(batches)
    parts: tuple[SpectrumPart, SpectrumPart] = ("top", "bottom")
    full = model if batches is None else copy.deepcopy(model)
    remeasure(full, batches, forward)
    scores = {"full": dict(evaluate(full))}
    for keep in parts:
        part = copy.deepcopy(model)
        truncate_(
            part,
            keep=keep,
            fraction=fraction,
            include=include,
            exclude=exclude,
            skip_head=skip_head,
            example_inputs=example_inputs,
            batches=batches,
            forward=forward,
        )
        scores[keep] = dict(evaluate(part))
    return scores


def perturb_(
    model: nn.Module,
    strength: float,
    *,
    seed: int,
    preserve_norm: bool = True,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    skip_head: bool = True,
    example_inputs: ExampleInputs | None = None,
    batches: Batches | None = None,
    forward: Forward | None = None,
) -> list[str]:
    """Moves every weight matrix of a model by a random direction, in place.

    Args:
        model: any module without transformations on these weights.
        strength: length of the step relative to the weight, see ``perturbed``.
        seed: of the directions.
        preserve_norm: whether every weight keeps its norm.
        include: globs on layer or parameter names to cover.
        exclude: globs on layer or parameter names to leave out.
        skip_head: leave out the weights that make the model's output, see ``output_heads``.
        example_inputs: what the model is called with, by which its output head is known for sure.
        batches: see ``truncate_``.
        forward: see ``truncate_``.

    Returns:
        The names of the changed parameters.

    Raises:
        RequestError: see ``perturbed`` and ``weight_matrices``.

    Source: arXiv 2408.11804, section 5.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = chosen_weights(model, include, exclude, skip_head, example_inputs)
    changed = {
        weight: perturbed(weight.stored, strength, generator=generator, preserve_norm=preserve_norm)
        for weight in chosen
    }
    return replace_weights(model, changed, batches, forward)


def require_readable_twice(batches: Batches | None) -> None:
    """Refuses batches that would be used up by their first reading.

    Raises:
        RequestError: an iterator.
    """
    if isinstance(batches, Iterator):
        raise invalid("batches", type(batches).__name__, "a list or a data loader, read repeatedly")


def chosen_weights(
    model: nn.Module,
    include: Sequence[str],
    exclude: Sequence[str],
    skip_head: bool,
    example_inputs: ExampleInputs | None = None,
) -> list[Selected]:
    """The weight matrices that an intervention changes.

    Args:
        model: any module without transformations on these weights.
        include: globs on layer or parameter names to cover.
        exclude: globs on layer or parameter names to leave out.
        skip_head: leave out the weights that make the model's output, see ``output_heads``.
        example_inputs: what the model is called with, by which its output head is known for sure.

    Raises:
        RequestError: a glob that matches nothing, or a weight under a transformation.
    """
    chosen = spectral_parameters(model, include=include, exclude=exclude)
    if skip_head:
        # Whoever called the intervention that called this is to see the warning.
        heads = {head.name for head in output_heads(model, example_inputs, stacklevel=3)}
        chosen = [weight for weight in chosen if weight.name not in heads]
    for weight in chosen:
        if parametrize.is_parametrized(weight.module, weight.parameter_name):
            raise RequestError(
                f"model: {weight.name} is under a transformation; expected plain weights: finalize "
                "the method that put it there first"
            )
    return chosen


def replace_weights(
    model: nn.Module,
    values: Mapping[Selected, Tensor],
    batches: Batches | None,
    forward: Forward | None,
) -> list[str]:
    """Puts other values into weights, then measures batch norms anew.

    Returns:
        The names of the changed parameters.
    """
    with torch.no_grad():
        for selected, value in values.items():
            selected.stored.copy_(value)
    remeasure(model, batches, forward)
    return [selected.name for selected in values]


def remeasure(model: nn.Module, batches: Batches | None, forward: Forward | None) -> None:
    """Measures a model's batch norms anew, unless there is nothing to do so on."""
    if batches is not None:
        recalibrate_batch_norm(model, batches, forward)
