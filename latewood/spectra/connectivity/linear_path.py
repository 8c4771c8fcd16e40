"""Whether the straight line between two trained networks stays as good as its ends."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latewood.core.batch_norm import recalibrate_batch_norm
from latewood.errors import invalid
from latewood.spectra.agreement import Agreement, agreement
from latewood.spectra.connectivity.channel_matching import Matching, matched
from latewood.spectra.interventions import SpectrumPart, require_readable_twice, truncate_
from latewood.spectra.matrices.weights import current_matrix, spectral_parameters
from latewood.spectra.solvers.leading_vectors import Factors, factors

__all__ = [
    "Connection",
    "barrier",
    "barrier_interior",
    "connect",
    "endpoint_agreement",
    "endpoint_factors",
    "interpolate",
]

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Connection:
    """Scores on the line between two networks.

    Args:
        alphas: positions, equally spaced from 0 (the first network) to 1 (the second).
        scores: by name, the value at each position.
        matching: how the second network's channels were put into the first's order; None if they
            were left as they are.
    """

    alphas: tuple[float, ...]
    scores: dict[str, tuple[float, ...]]
    matching: Matching | None = None

    def barrier(self, name: str = "loss") -> float:
        """The barrier of a score, ends included, see ``barrier``."""
        return barrier(self._curve(name))

    def barrier_interior(self, name: str = "loss") -> float:
        """The barrier of a score between the ends, see ``barrier_interior``."""
        return barrier_interior(self._curve(name))

    def _curve(self, name: str) -> tuple[float, ...]:
        if name not in self.scores:
            raise invalid("name", name, f"one of {', '.join(self.scores)}")
        return self.scores[name]


def barrier(values: Sequence[float]) -> float:
    r"""How far a curve rises above the straight line between its ends.

    .. math:: \max_\alpha \, L(\alpha) - ((1 - \alpha) L(0) + \alpha L(1))

    Args:
        values: the curve at equally spaced positions, both ends included.

    Returns:
        The height, at least 0; NaN if a value is.

    Raises:
        RequestError: fewer than two values.

    Source: arXiv 2408.11804, equation 6.
    """
    return _rise(values, least=2).max().item()


def barrier_interior(values: Sequence[float]) -> float:
    """The barrier over the positions between the ends only; negative for a curve that sags.

    Args:
        values: the curve at equally spaced positions, both ends included.

    Returns:
        The height; NaN if a value is.

    Raises:
        RequestError: fewer than three values.

    Source: released code of arXiv 2408.11804.
    """
    return _rise(values, least=3)[1:-1].max().item()


def interpolate(first: State, second: State, alpha: float) -> dict[str, Tensor]:
    r"""The state at a position on the line between two states.

    .. math:: (1 - \alpha) \theta_1 + \alpha \theta_2

    Every floating-point entry is interpolated, running statistics included; integers are rounded;
    truth values are those of the nearer end.

    Args:
        first: entries by name, a state dict.
        second: entries of the same names and shapes.
        alpha: position, in [0, 1].

    Returns:
        New tensors with the first state's dtypes and devices; exactly the ends at 0 and 1.

    Raises:
        RequestError: states that do not match, or a position outside [0, 1].

    Source: arXiv 2408.11804, section 5.1.
    """
    if not 0 <= alpha <= 1:
        raise invalid("alpha", alpha, "a number from 0 to 1")
    _require_entries_of(first, second, "second", "first")
    return {name: _between(entry, second[name], alpha) for name, entry in first.items()}


def connect(
    model: nn.Module,
    first: State,
    second: State,
    evaluate: Callable[[nn.Module], Mapping[str, float]],
    *,
    points: int = 11,
    batches: Iterable[tuple[Tensor, ...]] | None = None,
    forward: Callable[[nn.Module, tuple[Tensor, ...]], object] | None = None,
    permute: bool = False,
    example_inputs: Tensor | Sequence[Any] | dict[str, Any] | None = None,
    truncate: float | None = None,
    keep: SpectrumPart = "top",
) -> Connection:
    """Scores networks on the line between two states of a model.

    Args:
        model: the network of these states; it is left as it is.
        first: state dict of one end.
        second: state dict of the other.
        evaluate: scores of a model by name, such as {"loss": ..., "error": ...}.
        points: number of equally spaced positions, the ends included.
        batches: training batches without augmentation, from which batch norms are measured anew at
            every position, the ends too; without them interpolated statistics make barriers that
            are none. A list or a data loader, since it is read repeatedly.
        forward: how to run the model on a batch, see ``recalibrate_batch_norm``.
        permute: whether to bring the second network's channels into the order that is closest to
            the first's before walking, see ``match_channels``.
        example_inputs: what the model is called with, needed to find its channels; the inputs of
            the first of ``batches`` if left out.
        truncate: share of the singular values in the top part of each matrix but the head's; every
            network on the line keeps one part only, see ``truncate_``. None leaves them whole. For
            the line between truncated ends, pass those as ends.
        keep: which part.

    Returns:
        The curve of every score.

    Raises:
        RequestError: states that do not match, fewer than two points, batches that can be read
            only once, ``permute`` without anything to call the model with, or see ``truncate_``.

    Source: arXiv 2408.11804, section 5.1, truncation as in its released code; permutations arXiv
    2209.04836.
    """
    if points < 2:
        raise invalid("points", points, "an integer of at least 2")
    require_readable_twice(batches)
    _require_same_entries(model, first, second)
    matching = None
    if permute:
        example = _example(example_inputs, batches, forward)
        second, matching = matched(model, first, second, example)
    walker = copy.deepcopy(model)
    alphas = tuple(position / (points - 1) for position in range(points))
    scores = []
    for alpha in alphas:
        walker.load_state_dict(interpolate(first, second, alpha))
        if truncate is not None:
            truncate_(walker, keep=keep, fraction=truncate)
        if batches is not None:
            recalibrate_batch_norm(walker, batches, forward)
        scores.append(evaluate(walker))
    curves = {name: tuple(float(position[name]) for position in scores) for name in scores[0]}
    return Connection(alphas, curves, matching)


def endpoint_agreement(
    model: nn.Module,
    first: State,
    second: State,
    *,
    k: int | None = 100,
    top: int = 10,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> dict[str, Agreement]:
    """The agreement of the singular vectors of each matrix in two states of a model.

    Args:
        model: the network of these states; it is left as it is.
        first: state dict of one network.
        second: state dict of the other.
        k: number of vectors; None for all.
        top: entries of the diagonal that the score averages.
        include: globs on layer or parameter names to cover.
        exclude: globs on layer or parameter names to leave out.

    Returns:
        Agreements by full name of the parameter, in registration order.

    Raises:
        RequestError: a glob that matches nothing, or states that do not match.

    Source: arXiv 2408.11804, section 5.1.
    """
    _require_same_entries(model, first, second)
    one, other = (
        endpoint_factors(model, state, k=k, include=include, exclude=exclude)
        for state in (first, second)
    )
    return {name: agreement(vectors, other[name], top=top) for name, vectors in one.items()}


def endpoint_factors(
    model: nn.Module,
    state: State,
    *,
    k: int | None = 100,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> dict[str, Factors]:
    """The singular vectors of each matrix in a state, for agreements with several others.

    Args:
        model: the network of this state; it is left as it is.
        state: its state dict.
        k: number of vectors; None for all.
        include: globs on layer or parameter names to cover.
        exclude: globs on layer or parameter names to leave out.

    Returns:
        Factors by full name of the parameter, in registration order.

    Raises:
        RequestError: a glob that matches nothing, or a state that does not match.
    """
    _require_entries_of(model.state_dict(), state, "state", "the model")
    network = copy.deepcopy(model)
    network.load_state_dict(state)
    chosen = spectral_parameters(network, include=include, exclude=exclude)
    return {s.name: factors(current_matrix(s.module, s.parameter_name), k) for s in chosen}


def _require_same_entries(model: nn.Module, first: State, second: State) -> None:
    _require_entries_of(first, second, "second", "first")
    _require_entries_of(model.state_dict(), first, "first", "the model")


def _require_entries_of(given: State, state: State, name: str, origin: str) -> None:
    if given.keys() != state.keys():
        unmatched = sorted(given.keys() ^ state.keys())
        raise invalid(name, unmatched, f"the same entries as in {origin}; these are in one only")
    for entry, tensor in given.items():
        if tensor.shape != state[entry].shape:
            entry_shape = (entry, tuple(state[entry].shape))
            raise invalid(name, entry_shape, f"the shape {tuple(tensor.shape)} of {origin}")


def _example(
    given: Any, batches: Iterable[tuple[Tensor, ...]] | None, forward: object
) -> Tensor | Sequence[Any] | dict[str, Any]:
    if given is not None:
        return given  # type: ignore[no-any-return]
    if batches is None or forward is not None:
        raise invalid("example_inputs", None, "what the model is called with, to permute channels")
    return next(iter(batches))[0]


def _rise(values: Sequence[float], *, least: int) -> Tensor:
    if len(values) < least:
        raise invalid("values", len(values), f"at least {least} values")
    curve = torch.tensor(list(values), dtype=torch.float64)
    steps = torch.arange(len(curve), dtype=torch.float64) / (len(curve) - 1)
    rise = curve - ((1 - steps) * curve[0] + steps * curve[-1])
    # An infinite end would make NaN of itself; the ends are on the line by definition.
    rise[[0, -1]] = torch.where(curve[[0, -1]].isnan(), torch.nan, 0.0).double()
    return rise


def _between(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    one, other = first.detach(), second.detach().to(first)
    if alpha in (0, 1):
        return (other if alpha else one).clone()
    if one.is_floating_point() or one.is_complex():
        return torch.lerp(one, other, alpha)
    if one.dtype == torch.bool:
        return (one if alpha <= 0.5 else other).clone()
    mixed: Tensor = (1 - alpha) * one.double() + alpha * other.double()
    return mixed.round().to(one.dtype)
