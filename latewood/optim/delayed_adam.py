"""Delayed Adam: Adam whose per-coordinate rates do not see the current gradient."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from latewood.core import StateRule, register_state_rule
from latewood.errors import invalid
from latewood.kernels.optimizers import Number, Scalars, UpdateRule
from latewood.optim.base import Optimizer, number
from latewood.optim.options import positive, switch

__all__ = ["DelayedAdam", "delayed_scalars"]


class DelayedAdam(Optimizer):
    r"""Adam that divides by the second moment of the *past* gradients only.

    .. math::
        m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t, \qquad
        x_{t+1} = x_t - \alpha \frac{m_t}{\sqrt{v_{t-1}} + \epsilon}, \qquad
        v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2

    Rates that are independent of the current sample make it converge where Adam does not. With
    ``bias_correction`` m_t is divided by 1-beta1^t and v_{t-1} by 1-beta2^(t-1).

    Args:
        params: tensors, (name, tensor) pairs, or groups.
        lr: learning rate (alpha), a float or a tensor with one element.
        betas: decay of the first and second moment, each in [0, 1).
        eps: adaptability; added to the root of the second moment, above 0.
        weight_decay: L2 coefficient, or the decoupled decay times the learning rate.
        decoupled_weight_decay: shrink parameters by lr * weight_decay instead of adding L2.
        bias_correction: as above; the paper's algorithm has none.
        first_step: "skip" only fills the moments; "take" moves with v_0 = 0, by m/eps, as the
            paper's algorithm does.
        foreach, fused: how the step runs; by default the fastest way there is.
        maximize: climb instead of descend.
        capturable: keep counts on the device, so that a CUDA graph can hold the step.
        differentiable: refused if True.
        stochastic_rounding: round bfloat16 parameters up or down at random, right on average, so
            that steps smaller than half their spacing are not lost.
        rounding_seed: of the noise, which follows from it, the step and the parameter's position.

    Raises:
        RequestError: if an argument is out of its range.

    Source: Savarese, McAllester, Babu, Maire, "Domain-independent Dominance of Adaptive Methods"
    (arXiv 1912.01823).
    """

    rule: ClassVar[UpdateRule] = "delayed"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        bias_correction: bool = True,
        first_step: Literal["skip", "take"] = "skip",
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        stochastic_rounding: bool = False,
        rounding_seed: int = 0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "bias_correction": bias_correction,
            "first_step": first_step,
        }
        super().__init__(
            params,
            defaults,
            foreach=foreach,
            fused=fused,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            stochastic_rounding=stochastic_rounding,
            rounding_seed=rounding_seed,
        )

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        group["eps"] = positive("eps", group["eps"])
        switch("decoupled_weight_decay", group["decoupled_weight_decay"])
        switch("bias_correction", group["bias_correction"])
        if group["first_step"] not in ("skip", "take"):
            raise invalid("first_step", group["first_step"], "'skip' or 'take'")

    def _moments(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _scalars(self, group: dict[str, Any], step: Number) -> Scalars:
        return delayed_scalars(
            group,
            step,
            corrected=group["bias_correction"],
            skip_first=group["first_step"] == "skip",
            factor=self._factor(group),
        )


def delayed_scalars(
    group: dict[str, Any], step: Number, *, corrected: bool, skip_first: bool, factor: float
) -> Scalars:
    """The numbers of a delayed step, for an unnormalised rate.

    Args:
        group: a parameter group with lr, betas, eps and both kinds of weight decay.
        step: t, counted from 1.
        corrected: divide the moments by their bias corrections.
        skip_first: leave the parameter alone while t is 1.
        factor: what the gradient is multiplied with.
    """
    lr, decay, decoupled = (
        number(group["lr"]),
        group["weight_decay"],
        group["decoupled_weight_decay"],
    )
    beta1, beta2 = group["betas"]
    size: Number = lr
    keep: Number = 1.0 - lr * decay if decoupled else 1.0
    previous: Number = 1.0
    following: Number = 1.0
    if corrected:
        size = lr / (1.0 - beta1**step)
        previous, following = _inverse_root(beta2, step - 1.0), _inverse_root(beta2, step)
    if skip_first:
        size, keep = _after_first(step, size, 0.0), _after_first(step, keep, 1.0)
    return Scalars(
        size=size,
        beta1=beta1,
        beta2=beta2,
        eps=group["eps"],
        keep=keep,
        l2=0.0 if decoupled else decay,
        factor=factor,
        previous=previous,
        following=following,
    )


def _inverse_root(beta2: Number, step: Number) -> Number:
    # Before the first step v is 0, and any finite correction leaves it so.
    correction = 1.0 - beta2**step
    if isinstance(correction, Tensor):
        return torch.where(correction > 0.0, correction, 1.0).rsqrt()
    return 1.0 if correction <= 0.0 else correction**-0.5


def _after_first(step: Number, value: Number, instead: float) -> Number:
    if isinstance(step, Tensor):
        # Two plain numbers would be taken for float32.
        values = value if isinstance(value, Tensor) else torch.full_like(step, value)
        return torch.where(step > 1.0, values, instead)
    return value if step > 1.0 else instead


register_state_rule(
    DelayedAdam,
    StateRule({"exp_avg": 1, "exp_avg_sq": 2}, filled=("exp_avg_sq",), counted=True),
)
