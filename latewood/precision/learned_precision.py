"""Learned precision: noise finds how many bits each weight needs, then a grid takes its place."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from latewood.core import PRECISION, EndsOnce, recalibrate_batch_norm
from latewood.errors import RequestError, invalid, is_number, listed, require_count, require_seed
from latewood.precision.attached_precisions import AttachedPrecisions
from latewood.precision.distillation import Distillation
from latewood.precision.noise_training import NoiseSettings, Penalty, move_s, noise_rate
from latewood.precision.number_format import bits_of
from latewood.precision.patterns import pattern_set
from latewood.precision.precision_metrics import precision_metrics
from latewood.precision.precision_warnings import warn_of_traps
from latewood.precision.quantizable_weights import quantizable
from latewood.precision.snapping import candidate_levels, checked_palette, require_reachable
from latewood.precision.weight_precision import Sharing

__all__ = ["LearnedPrecision"]

_SHARINGS: Final = ("input_channel", "weight", "layer")


class LearnedPrecision(EndsOnce):
    r"""Learns how many bits each weight needs, fixes them, and trains on with rounded weights.

    In the noise phase a weight acts as :math:`W + \alpha \sigma(s) \epsilon`, with fresh noise
    :math:`\epsilon` of [-1, 1] every step; :math:`\sigma(s) = 2^{1-p}` is the largest error of p
    bits, and s is trained with the weights. The loss gains the mean of :math:`p - 1` times a
    penalty. Then bits snap to a palette, and the rest of the run trains what is left through
    :math:`\alpha Q_p(W / \alpha)` by straight-through gradients. Evaluation is always of the
    rounded network.

    Args:
        model: its weights are changed in place: of linear layers (Hugging Face's ``Conv1D`` too),
            convolutions, recurrent layers and attention. Others stay in float, with one warning. A
            tied tensor has one format in all its uses; one that an embedding looks up has none.
        total_steps: optimizer steps of the run.
        target_bits: average over the weights whose bits are learned, met from below (what
            ``patterns`` promote comes on top). The penalty
            follows from a closed form of the curvature that the noise meets, so that nobody has to
            search for it (ours, after [I]).
        penalty: (lambda) instead of it, fixed, 0 or more: factor of the mean bits beyond the first.
        per: what shares one number of bits: "input_channel" (SySMOL and SONIQ, [P]), "weight"
            (SMOL, [P]) or "layer".
        activations: quantise what linear and convolutional layers read as well, each input channel
            with the bits of its weights ([P]); inputs of other layers stay in float.
        palette: bits to choose from, 0 to 8. A channel of 0 bits leaves its layer (ours).
            "three_levels" is (1, 2, 4); "two_levels" finds the pair for the network, one of 1 to 4
            bits and one of 4 to 8 ([P]; how it is found is ours).
        patterns: of 128-bit registers that the channels of each layer must fit (``PATTERNS``), so
            that some are promoted: 4, 8, 45 or a list; None for any. For palettes up to 4 bits.
        snap_at: fraction of the run, in (0, 1), after which bits are fixed. 350 of 650 epochs is
            the paper's, 0.54 [P].
        nested: draw the bits of every channel anew at each step after that, from those learned,
            half of them and 1, so that lower bits of the same codes work too (ours).
        noise: how the noise phase learns.
        distill_from: the float network, to be learned from as well (``Distillation``; ours).
        include: patterns on layer or parameter names (``core.select_parameters``).
        exclude: what has 8 bits instead of learned ones: "first" and "last" for these layers in
            registration order (as far as others remain), or patterns.
        seed: of the noise, the same on all processes. One draw serves all parts of a step.

    Raises:
        RequestError: an argument out of range, an average out of reach of the palette, or weights
            that cannot have a format.

    Source: Savarese, Yuan, Li, Maire, "Not All Bits have Equal Value: Heterogeneous Precisions via
    Trainable Noise", NeurIPS 2022; SySMOL and SONIQ, arXiv 2311.14114. Only abstracts and records
    were at hand: the grid, the noise and the penalty are reconstructed [R].
    """

    order = PRECISION

    def __init__(
        self,
        model: nn.Module,
        *,
        total_steps: int,
        target_bits: float | None = None,
        penalty: float | None = None,
        per: Sharing = "input_channel",
        activations: bool = False,
        palette: tuple[int, ...] | Literal["two_levels", "three_levels"] = (1, 2, 4),
        patterns: int | list[int | tuple[int, int, int]] | None = None,
        snap_at: float = 0.55,
        nested: bool = False,
        noise: NoiseSettings | None = None,
        distill_from: nn.Module | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = ("first", "last"),
        seed: int = 0,
    ) -> None:
        require_count("total_steps", total_steps)
        _require_aim(target_bits, penalty)
        if not is_number(snap_at) or not 0.0 < snap_at < 1.0:
            raise invalid("snap_at", snap_at, "a fraction of the run in (0, 1)")
        if per not in _SHARINGS:
            raise invalid("per", per, f"one of {', '.join(map(repr, _SHARINGS))}")
        if activations and per == "weight":
            raise invalid("activations", True, "per='input_channel' or 'layer': an input has one "
                          "width, which all weights that it meets must share")  # fmt: skip
        if noise is not None and not isinstance(noise, NoiseSettings):
            raise invalid("noise", noise, "NoiseSettings, or None")
        require_seed("seed", seed)
        noise = noise or NoiseSettings()
        self._palette = checked_palette(palette)
        self.levels = candidate_levels(self._palette)
        """The widths that weights may end with."""
        if target_bits is not None:
            require_reachable(target_bits, self._palette)
        self._patterns = None if patterns is None else pattern_set(patterns)
        if self._patterns is not None and (per == "weight" or self.levels[-1] > 4):
            raise invalid("patterns", patterns, "a palette of 4 bits at most, and channels that "
                          "share them (per='input_channel' or 'layer')")  # fmt: skip
        chosen = quantizable(model, include, exclude)
        self.total_steps = total_steps
        self.snap_step = min(max(1, round(snap_at * total_steps)), total_steps)
        """Steps of the noise phase."""
        self.lr = noise_rate(noise.lr, self.snap_step)
        """Learning rate of s."""
        self.target_bits = target_bits
        self._penalty = Penalty(
            fixed=penalty, target=target_bits, start=noise.initial_bits, steps=self.snap_step
        )
        self._model, self._seed = model, seed
        self._step, self._snapped = 0, False
        self._final_metrics: dict[str, float] | None = None
        # Before anything is attached: what is refused leaves the model as it was.
        self._distillation = (
            None if distill_from is None else Distillation(model, distill_from, weight=1.0)
        )
        self._attached = AttachedPrecisions(
            model,
            chosen,
            per=per,
            levels=self.levels,
            noise=noise,
            nested=nested,
            activations=activations,
        )
        unread = self._attached.unread_inputs() if activations else []
        if unread:
            warnings.warn(
                f"activations: inputs of {listed(unread)} stay in float", UserWarning, stacklevel=2
            )
        learning = self._attached.learning
        warn_of_traps(
            chosen.left,
            {name: (p, self._attached.stored(name)) for name, p in learning.items()},
            noise,
            lr=self.lr,
            steps=self.snap_step,
        )
        self._renew()

    @property
    def snapped(self) -> bool:
        """Whether the bits are fixed."""
        return self._snapped

    def bits(self) -> dict[str, Tensor]:
        """Bits of every weight by its name: uint8 that broadcast to it; once learned, as fixed."""
        return dict(self._attached.bits())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The noise parameters s as one group without weight decay.

        The method moves them itself, by Adam, and undoes what the loop's optimizer does to them;
        the group is there for its ``zero_grad`` and for fp16's scaler.

        Raises:
            RequestError: after ``finalize``.
        """
        self.require_active("parameter_groups")
        return [{"params": self._attached.noise_parameters(), "weight_decay": 0.0, "lr": self.lr}]

    def penalty(self) -> Tensor:
        """The price of the bits in the noise phase, and the divergence from a teacher.

        Returns:
            0-dim tensor, differentiable in s.

        Raises:
            RequestError: after ``finalize``, or masks that become hard too late.
        """
        self.require_active("penalty")
        first = next(iter(self._attached.weights.values())).scale
        total = torch.zeros((), dtype=first.dtype, device=first.device)
        if not self._snapped:
            if self._step == 0:
                self._attached.require_early_masks(self.snap_step)
            for precision in self._attached.learning.values():
                assert precision.s is not None
                bits = (bits_of(precision.s) - 1).mean() * precision.weights
                total = total + bits.to(total)
            total = total * (self._penalty.weight / self._attached.learned_weights)
        if self._distillation is not None:
            total = total + self._distillation.loss(total)
        return total

    @torch.no_grad()
    def step(self) -> None:
        """Moves s, keeps weights in range, snaps when it is time; call it after every step.

        Raises:
            RequestError: after ``finalize``; the gradients of s are gone already; shapes changed
                after snapping; masks that are still soft at snapping.
        """
        self.require_active("step")
        attached = self._attached
        if self._snapped:
            attached.require_shapes()
        else:
            if self._step == 0:
                attached.require_early_masks(self.snap_step)
            if all(s.grad is None for s in attached.noise_parameters()):
                raise RequestError(
                    "step: no noise parameter has a gradient; call it after optimizer.step() and "
                    "before zero_grad(), with penalty() in the loss"
                )
            attached.count_weights()
            price = self._penalty.weight / attached.learned_weights
            for precision in attached.learning.values():
                move_s(precision, lr=self.lr, taken=self._step, price=price)
            self._penalty.update(attached.learning.values(), self._step + 1)
            attached.fit_scales()
        attached.clip(snapped=self._snapped)
        self._step += 1
        if self._step == self.snap_step and not self._snapped:
            self._snap(together=True)
        self._renew()

    def snap(self) -> None:
        """Fixes bits and scales now; the weights train on, rounded.

        Raises:
            RequestError: after ``finalize``, or a mask is still soft.
        """
        self.require_active("snap")
        if not self._snapped:
            self._snap(together=False)
            self._renew()

    def reestimate_batch_norm(
        self,
        batches: Iterable[tuple[Tensor, ...]],
        forward: Callable[[nn.Module, tuple[Tensor, ...]], object] | None = None,
    ) -> int:
        """Measures batch-norm statistics anew on the rounded network, as its inputs change them.

        ``latewood train`` does so at the end of a run.

        Args:
            batches: as ``core.recalibrate_batch_norm``.
            forward: as there.

        Returns:
            Number of batch norms.
        """
        return recalibrate_batch_norm(self._model, batches, forward)

    def finalize(self) -> nn.Module:
        """Puts the rounded numbers in the weights, and what grid they lie on beside them.

        Bits snap first if they have not. Layers are plain again, with the buffers of
        ``weight_format`` and, for inputs, ``input_format`` and its hook.

        Returns:
            The model.

        Raises:
            RequestError: a second call, a soft mask, or a foreign transformation inside.
        """
        self.require_active("finalize")
        self._attached.require_finishable()
        if not self._snapped:
            if 0 < self._step < self.total_steps:
                warnings.warn(
                    f"finalize: after {self._step} steps the bits were not fixed yet "
                    f"(after {self.snap_step}); they are now, without training on, which costs "
                    "accuracy",
                    UserWarning,
                    stacklevel=2,
                )
            self._snap(together=False)
        self._final_metrics = self.metrics()
        self._attached.finish()
        if self._distillation is not None:
            self._distillation.remove()
        self.finalized = True
        return self._model

    def metrics(self) -> dict[str, float]:
        """Bits and what they cost.

        Returns:
            "bits" (average of the learned ones, as real numbers until they snap), "rounded_bits"
            (their average as rounded by the palette), "all_bits" (with the layers of 8 bits),
            "bytes" (of all these weights), "price" (lambda), "snapped" (0 or 1), "share/<bits>" (of
            the weights whose bits are learned) and "bits/<layer>"; after ``finalize`` the last.
        """
        if self._final_metrics is not None:
            return dict(self._final_metrics)
        return precision_metrics(
            self._attached.weights,
            self._attached.layers,
            self.levels,
            price=0.0 if self._snapped else self._penalty.weight,
            snapped=self._snapped,
        )

    def state_dict(self) -> dict[str, Any]:
        """What the model's state does not hold: the step, the price, whether bits are fixed."""
        return {"step": self._step, "price": self._penalty.weight, "snapped": self._snapped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned; the model's own state is loaded before.

        Raises:
            RequestError: a state of another kind, or after ``finalize``.
        """
        self.require_active("load_state_dict")
        fits = isinstance(state, dict) and set(state) == set(self.state_dict())
        step, price = (state["step"], state["price"]) if fits else (-1, -1.0)
        numbers = isinstance(step, int) and isinstance(price, int | float)
        if not numbers or step < 0 or not 0 <= price < math.inf:
            raise invalid("state", state, "what LearnedPrecision.state_dict() returned")
        self._step, self._snapped = step, bool(state["snapped"])
        self._penalty.weight = float(price)
        self._attached.set_snapped(self._snapped)
        self._attached.count_weights()
        self._renew()

    def _snap(self, *, together: bool) -> None:
        self._attached.snap(
            self._palette,
            self._patterns,
            target=self.target_bits,
            penalty=self._penalty.weight,
            together=together,
        )
        self._snapped = True
        unseen = self._attached.unseen_inputs()
        if unseen and self._step:
            warnings.warn(
                f"{listed(unseen)}: read nothing in training, so that their inputs stay in float",
                UserWarning,
                stacklevel=3,
            )

    def _renew(self) -> None:
        self._attached.renew(self._seed, self._step, snapped=self._snapped)


def _require_aim(target_bits: float | None, penalty: float | None) -> None:
    if target_bits is not None and not (is_number(target_bits) and math.isfinite(target_bits)):
        raise invalid("target_bits", target_bits, "a finite number of bits")
    if penalty is not None and not (is_number(penalty) and 0.0 <= penalty < math.inf):
        raise invalid("penalty", penalty, "a finite number, 0 or more")
    if (target_bits is None) == (penalty is None):
        given = "neither" if penalty is None else "both"
        raise invalid("target_bits", given, "either target_bits or penalty, and not both")
