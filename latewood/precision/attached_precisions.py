"""The formats of a network in training: every weight's and every input's, on their layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import torch
from torch import Tensor, nn

from latewood.core import Selected, attach
from latewood.core.parameter_uses import parameter_uses
from latewood.errors import RequestError
from latewood.precision.finished_weights import (
    finish_weight,
    require_early_masks,
    require_finishable,
    squares_of,
)
from latewood.precision.formats import channel_axis, leave_input_format
from latewood.precision.input_precision import (
    InputPrecision,
    attach_input,
    can_read,
    detach_input,
)
from latewood.precision.network_snapping import chosen_bits, fitted_bits, taps_of
from latewood.precision.noise import noise_key
from latewood.precision.noise_training import NoiseSettings
from latewood.precision.quantizable_weights import Quantizable, axes_of
from latewood.precision.weight_precision import Sharing, WeightPrecision

__all__ = ["AttachedPrecisions"]

_POSITIVE: Final = 2**63 - 1


class AttachedPrecisions:
    """Attaches formats to weights and inputs of a network, and does to all what one needs.

    Args:
        model: changed in place.
        chosen: its weights that get a format.
        per: what shares one number of bits.
        levels: the widths that weights may end with.
        noise: how the noise phase starts.
        nested: whether bits are drawn anew at each step once they are fixed.
        activations: whether what the layers read gets a format too.

    Attributes:
        weights: the format of every weight by its name.
        uses: where each of these weights is used, by its name.
        inputs: the layer, its input's format and its weight's, by the layer's name.
    """

    def __init__(
        self,
        model: nn.Module,
        chosen: Quantizable,
        *,
        per: Sharing,
        levels: tuple[int, ...],
        noise: NoiseSettings,
        nested: bool,
        activations: bool,
    ) -> None:
        self.weights: dict[str, WeightPrecision] = {}
        self.uses: dict[str, list[Selected]] = {}
        self.inputs: dict[str, tuple[nn.Module, InputPrecision, WeightPrecision]] = {}
        uses = parameter_uses(model)
        learned = {weight.name for weight in chosen.learned}
        for weight in [*chosen.learned, *chosen.fixed]:
            axes = axes_of(weight.module)
            assert axes is not None
            precision = WeightPrecision(
                weight.stored,
                axes,
                per=per,
                levels=tuple(level for level in levels if level),
                initial_bits=noise.initial_bits if weight.name in learned else None,
                scale=noise.scale,
                nested=nested,
            ).train(weight.module.training)
            self.weights[weight.name] = precision
            self.uses[weight.name] = uses[id(weight.stored)]
            for use in self.uses[weight.name]:
                attach(use.module, use.parameter_name, precision)
                if activations and can_read(use.module):
                    inputs = attach_input(
                        use.module, channel_axis(use.module), learned=weight.name in learned
                    )
                    self.inputs[use.layer] = (use.module, inputs, precision)

    @property
    def learning(self) -> dict[str, WeightPrecision]:
        """The formats whose bits are learned, by the name of the weight."""
        return {name: p for name, p in self.weights.items() if p.s is not None}

    @property
    def learned_weights(self) -> int:
        """How many weights have learned bits."""
        return sum(precision.weights for precision in self.learning.values())

    @property
    def layers(self) -> dict[str, str]:
        """Name of the weight -> name of its layer."""
        return {name: uses[0].layer or name for name, uses in self.uses.items()}

    def noise_parameters(self) -> list[nn.Parameter]:
        """The s of everything whose bits are learned."""
        return [p.s for p in self.weights.values() if p.s is not None]

    def stored(self, name: str) -> Tensor:
        """A weight as it is stored, without its format."""
        return self.uses[name][0].stored

    def unread_inputs(self) -> list[str]:
        """Names of the layers whose weights have a format and whose inputs have none."""
        names = (use.layer for uses in self.uses.values() for use in uses)
        return list(dict.fromkeys(name for name in names if name not in self.inputs))

    def unseen_inputs(self) -> list[str]:
        """Names of the layers whose inputs have a format and that have read nothing yet."""
        return [name for name, (_, inputs, _) in self.inputs.items() if not inputs.seen]

    def renew(self, seed: int, step: int, *, snapped: bool) -> None:
        """Gives every weight and input the noise of the step to come.

        Args:
            seed: of the run.
            step: updates so far.
            snapped: whether bits are fixed; those that are nested are then drawn.
        """
        for name, precision in self.weights.items():
            key = noise_key(seed, step, name)
            precision.key.copy_(key)
            if precision.is_nested and snapped:
                precision.draw(torch.Generator().manual_seed(int(key) & _POSITIVE))
        for name, (_, inputs, _) in self.inputs.items():
            inputs.key.copy_(noise_key(seed, step, f"{name}/input"))

    def fit_scales(self) -> None:
        """Has the grids of fixed bits reach as far as their weights."""
        for name, precision in self.weights.items():
            precision.fit_scale(self.stored(name))

    def clip(self, *, snapped: bool) -> None:
        """Keeps the stored weights within their grids.

        Args:
            snapped: whether bits are fixed; before, weights of 8 fixed bits may go anywhere.
        """
        for name, precision in self.weights.items():
            stored = self.stored(name)
            if stored.requires_grad and (precision.s is not None or snapped):
                bound = precision.bound().to(stored.dtype)
                stored.copy_(torch.minimum(torch.maximum(stored, -bound), bound))

    def count_weights(self) -> None:
        """Takes up the sizes that weights have by now: they may have grown."""
        for name, precision in self.weights.items():
            precision.weights = self.stored(name).numel()

    def require_shapes(self) -> None:
        """Refuses weights that changed their size after their format was fixed."""
        for name, precision in self.weights.items():
            now = self.stored(name).numel()
            if now != precision.weights:
                raise RequestError(
                    f"step: {name} went from {precision.weights} to {now} weights after its format "
                    "was fixed; expected shapes to change before (a larger snap_at)"
                )

    def require_early_masks(self, snap_step: int) -> None:
        """Refuses masks whose schedule fixes them only after the formats are fixed."""
        for uses in self.uses.values():
            require_early_masks(uses, snap_step)

    def require_finishable(self) -> None:
        """Refuses what ``finish`` cannot do, before anything is changed."""
        for name, precision in self.weights.items():
            require_finishable(self.uses[name], precision)

    def snap(
        self,
        palette: tuple[int, ...] | Literal["two_levels"],
        patterns: tuple[int, ...] | None,
        *,
        target: float | None,
        penalty: float,
        together: bool,
    ) -> None:
        """Fixes bits and scales.

        Args:
            palette: as ``chosen_bits`` takes it.
            patterns: of registers that channels must fit (``pattern_set``); None for any.
            target: average over the weights whose bits are learned.
            penalty: (lambda) the factor of the mean bits.
            together: all processes of a run do so now.

        Raises:
            RequestError: what ``finish`` cannot do.
        """
        self.count_weights()
        self.require_finishable()
        learning = self.learning
        squares = {name: squares_of(p, self.stored(name)) for name, p in learning.items()}
        price = penalty / self.learned_weights
        chosen = chosen_bits(learning, squares, palette, target=target, price=price)
        for name, precision in learning.items():
            bits, stored = chosen[name], self.stored(name)
            if patterns is not None:
                bits = fitted_bits(
                    bits, precision.real_bits(), taps_of(stored, precision), patterns
                )
            precision.snap(bits, stored)
        for name, precision in self.weights.items():
            if precision.s is None:
                precision.snap(None, self.stored(name))
        for _, inputs, _ in self.inputs.values():
            inputs.snap(together=together)

    def set_snapped(self, snapped: bool) -> None:
        """Says whether bits are fixed, as a state says that was loaded."""
        for precision in self.weights.values():
            (precision.fix if snapped else precision.release)()
        for _, inputs, _ in self.inputs.values():
            inputs.is_snapped = snapped

    def finish(self) -> None:
        """Makes the layers plain: weights on their grids, with their formats beside them."""
        for name, precision in self.weights.items():
            finish_weight(self.uses[name], precision)
        for layer, inputs, precision in self.inputs.values():
            detach_input(layer)
            if inputs.seen:
                bits = inputs.bits(precision)
                leave_input_format(layer, bits, inputs.scale, inputs.signed)

    def bits(self) -> Iterator[tuple[str, Tensor]]:
        """The name of every weight, and uint8 bits that broadcast to it."""
        for name, precision in self.weights.items():
            yield name, precision.expanded(precision.current_bits()).clone()
