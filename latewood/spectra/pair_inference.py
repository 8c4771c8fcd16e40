"""Which layers of a model feed which: watched while it runs, or guessed from their names."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from latewood.spectra.layer_flow import watched_pairs
from latewood.spectra.layer_pairs import LayerPair
from latewood.spectra.layer_stages import chained, model_stages, runs_as_registered
from latewood.spectra.matrices.weights import unwrapped
from latewood.spectra.pair_operands import fits

__all__ = ["infer_pairs"]


def infer_pairs(
    model: nn.Module, example_inputs: Tensor | Sequence[Any] | dict[str, Any] | None = None
) -> list[LayerPair]:
    """The pairs of layers of a model of which the second reads what the first writes.

    With an example the model is run once: a pair is two weights with no other between them, ways
    around layers (residual connections) left out: of what meets in an addition, a weight that
    another one there has read before it does not count. Without one, layers are taken to run in
    the order in which they are registered; attention, gates and experts are known by their names.
    That is certain for ``nn.Sequential``; for other models a warning says that it is a guess.

    Attention gives pairs of queries and keys, and of values and output; a recurrent layer gives
    input-to-state, and input- and state-to-next-layer in each direction. Layers that do not fit
    each other, and grouped convolutions, are left out.

    Args:
        model: any module.
        example_inputs: what the model is called with, see ``core.coupling.trace_channels``.

    Returns:
        The pairs, in order of the run.

    Raises:
        RequestError: the example does not reach any weight.

    Source: arXiv 2408.11804, section 3, and its released code.
    """
    if example_inputs is not None:
        return _fitting(model, watched_pairs(model, example_inputs))
    if not runs_as_registered(unwrapped(model)):
        warnings.warn(
            "pairs of layers: taken from the order in which layers are registered, and from their "
            "names, as there are no example_inputs to run the model on",
            stacklevel=2,
        )
    return _fitting(model, chained(model_stages(model)).inner)


def _fitting(model: nn.Module, pairs: Iterable[LayerPair]) -> list[LayerPair]:
    return [pair for pair in dict.fromkeys(map(_plain(model), pairs)) if fits(model, pair)]


def _plain(model: nn.Module) -> Callable[[LayerPair], LayerPair]:
    """Takes values that no heads share, in a layer of their own, for what any layer writes."""

    def plain(pair: LayerPair) -> LayerPair:
        whole = replace(pair, part="")
        return whole if pair.part == "value" and fits(model, whole) else pair

    return plain
