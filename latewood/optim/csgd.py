"""CSGD: stochastic gradient descent with dampened, bias-corrected momentum."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from latewood.core import StateRule, register_state_rule
from latewood.kernels.optimizers import Number, Scalars, UpdateRule
from latewood.optim.base import Optimizer, number
from latewood.optim.options import fraction

__all__ = ["CSGD"]


class CSGD(Optimizer):
    r"""SGD whose momentum is an average of gradients, corrected for starting at zero.

    .. math::
        m_t = \mu m_{t-1} + (1-\mu) g_t, \qquad
        x_{t+1} = x_t - \frac{\alpha}{1-\mu^t} m_t

    With a constant gradient every step has the same length, from the first on. Unlike
    ``torch.optim.SGD(momentum=mu, dampening=mu)``, whose average starts at the first gradient.
    With ``momentum=0`` it is plain SGD and keeps no state.

    Args:
        params: tensors, (name, tensor) pairs, or groups.
        lr: learning rate (alpha), a float or a tensor with one element.
        momentum: decay of the average (mu) in [0, 1); the paper uses 0.9.
        weight_decay: L2 coefficient, added to the gradient times the parameter.
        foreach, fused: how the step runs; by default the fastest way there is.
        maximize: climb instead of descend.
        capturable: keep counts on the device, so that a CUDA graph can hold the step.
        differentiable: refused if True.
        stochastic_rounding: round bfloat16 parameters up or down at random, right on average, so
            that steps smaller than half their spacing are not lost.
        rounding_seed: of the noise, which follows from it, the step and the parameter's position.

    Raises:
        RequestError: if an argument is out of its range.

    Source: Savarese, "On the Convergence of AdaBound and its Connection to SGD"
    (arXiv 1908.04457), section 4.
    """

    rule: ClassVar[UpdateRule] = "momentum"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        stochastic_rounding: bool = False,
        rounding_seed: int = 0,
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay},
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
        group["momentum"] = fraction("momentum", group["momentum"])

    def _moments(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg",) if group["momentum"] != 0.0 else ()

    def _scalars(self, group: dict[str, Any], step: Number) -> Scalars:
        momentum = group["momentum"]
        return Scalars(
            size=number(group["lr"]) / (1.0 - momentum**step),
            beta1=momentum,
            l2=group["weight_decay"],
            factor=self._factor(group),
        )


register_state_rule(CSGD, StateRule({"exp_avg": 1}, counted=True))
