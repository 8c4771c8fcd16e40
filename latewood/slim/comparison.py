"""Whether a module that was made computes what the model it was made of does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from latewood.core.coupling.trace import outputs_of, run_model
from latewood.core.modes import undisturbed
from latewood.core.parameter_uses import parameter_uses
from latewood.core.transforms import MASK, bake, detach, transformations
from latewood.errors import WorkError

__all__ = ["Examples", "bake_masks", "compare", "mapped"]

_TOLERANCES: Final = {torch.float64: 1e-12, torch.float32: 1e-5}
_COARSE: Final = 2e-2
"""For half precision, where the kernels' own rounding is of this size."""
_TRIALS: Final = 3

Examples = Tensor | Sequence[Any] | dict[str, Any]


def bake_masks(model: nn.Module) -> None:
    """Folds the masks on a model's weights into them, in all uses; other transformations stay.

    Raises:
        RequestError: a number format inside a mask is not baked yet.
    """
    for uses in parameter_uses(model).values():
        first, *others = [(use.module, use.parameter_name) for use in uses]
        for transformation in transformations(*first):
            if getattr(transformation, "order", None) == MASK:
                bake(*first, transformation)
                for use in others:  # they share the tensor, which is masked by now
                    if transformation in transformations(*use):
                        detach(*use, transformation)


def compare(
    model: nn.Module, twin: nn.Module, examples: Examples, tolerance: float | None
) -> float:
    """Compares two models on an example and on random inputs.

    Args:
        model: what the other was made of.
        twin: what was made.
        examples: what both are called with; random inputs of the same kind follow.
        tolerance: largest difference allowed, relative to the largest output; None is 1e-12 in
            float64, 1e-5 in float32, 2e-2 in half precision.

    Returns:
        The largest difference, relative to the largest output.

    Raises:
        WorkError: they differ by more.
    """
    difference = 0.0
    generator = torch.Generator().manual_seed(0)
    with undisturbed(model), undisturbed(twin):
        for trial in range(_TRIALS):
            inputs = examples if trial == 0 else mapped(examples, _Redraw(generator))
            exact = filter(_compared, outputs_of(run_model(model, inputs)))
            derived = filter(_compared, outputs_of(run_model(twin, inputs)))
            for one, other in zip(exact, derived, strict=True):
                allowed = _TOLERANCES.get(one.dtype, _COARSE) if tolerance is None else tolerance
                # Drawn inputs may lie where the model itself is not finite, which is no difference.
                same = ((one == other) | (one.isnan() & other.isnan())) & (trial > 0)
                largest = float(one.abs().nan_to_num(posinf=0.0).max()) or 1.0
                error = float((one - other).masked_fill(same, 0.0).abs().max()) / largest
                if not error <= allowed:
                    raise WorkError(
                        f"the module that was made differs by {error:.1e} of the largest output; "
                        f"allowed are {allowed:.1e}"
                    )
                difference = max(difference, error)
    return difference


def _compared(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0


class _Redraw:
    """Other inputs of the same kind: normal values, or the integers of the example shuffled."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def __call__(self, tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=self._generator, dtype=torch.float64)
            return drawn.to(tensor)
        if tensor.ndim < 2:
            # Lengths, steps or labels: shuffled they may not be what the model takes.
            return tensor
        values = tensor.flatten()
        order = torch.randint(values.numel(), tensor.shape, generator=self._generator)
        return values[order.to(values.device)]


def mapped(tree: Any, change: Any) -> Any:
    """Nested tuples, lists and dicts with a function of each of their tensors in its place."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(mapped(item, change) for item in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(mapped(item, change) for item in tree)
    if isinstance(tree, dict):
        return {name: mapped(item, change) for name, item in tree.items()}
    return cast(Any, tree)
