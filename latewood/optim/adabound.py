"""AdaBound and AMSBound: Adam whose elementwise step sizes are clipped ever more tightly."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.optim.optimizer import ParamsT

from latewood.core import StateRule, register_state_rule
from latewood.errors import invalid
from latewood.kernels.optimizers import Number, Scalars, UpdateRule
from latewood.optim.base import Optimizer, number
from latewood.optim.bounds import Bounds, HyperbolicBounds
from latewood.optim.options import at_least, positive, switch

__all__ = ["AMSBound", "AdaBound"]

_DECAYS = ("l2", "decoupled", "decoupled_unscaled")


class AdaBound(Optimizer):
    r"""Adam with its elementwise step size clipped between two bounds that close in on SGD.

    .. math::
        x_{t+1} = x_t - \mathrm{clip}\Big( \frac{\alpha \sqrt{1-\beta_2^t}}
        {(1-\beta_1^t)(\sqrt{v_t} + \epsilon)},\; \alpha^* l(t),\; \alpha^* u(t) \Big) m_t

    The final rate alpha* follows the learning rate: it is ``final_lr`` times what a schedule has
    made of the group's first learning rate above 0. ``bounds`` gives l and u; by default
    1 - 1/(gamma t + 1) and 1 + 1/(gamma t).

    Args:
        params: tensors, (name, tensor) pairs, or groups.
        lr: learning rate (alpha), a float or a tensor with one element.
        betas: decay of the first and second moment, each in [0, 1).
        final_lr: the rate of the SGD it approaches (alpha*).
        gamma: speed of the default bounds, at least 0; 0 never clips, which is Adam.
        eps: added to the root of the second moment, above 0.
        weight_decay: decay of the parameters.
        amsbound: use the running maximum of v.
        weight_decay_mode: "l2" adds it to the gradient, "decoupled" shrinks by lr * weight_decay,
            "decoupled_unscaled" by weight_decay whatever the learning rate, as the first released
            decoupled variant did.
        bias_correction: the corrections of m and v in the step size, as in the released code; the
            paper's algorithm has none.
        bounds: other bound functions, for all groups. A copy of the optimizer keeps them, its state
            dict does not.
        foreach, fused: how the step runs; by default the fastest way there is.
        maximize: climb instead of descend.
        capturable: keep counts on the device, so that a CUDA graph can hold the step.
        differentiable: refused if True.
        stochastic_rounding: round bfloat16 parameters up or down at random, right on average, so
            that steps smaller than half their spacing are not lost.
        rounding_seed: of the noise, which follows from it, the step and the parameter's position.

    Raises:
        RequestError: if an argument is out of its range.

    Source: Luo et al., "Adaptive Gradient Methods with Dynamic Bound of Learning Rate", and its
    released code; analysed in arXiv 1908.04457, which also gives the paper's algorithm.
    """

    rule: ClassVar[UpdateRule] = "bounded"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        final_lr: float = 0.1,
        gamma: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        amsbound: bool = False,
        weight_decay_mode: Literal["l2", "decoupled", "decoupled_unscaled"] = "l2",
        bias_correction: bool = True,
        bounds: Bounds | None = None,
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
            "final_lr": final_lr,
            "gamma": gamma,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsbound": amsbound,
            "weight_decay_mode": weight_decay_mode,
            "bias_correction": bias_correction,
        }
        functions = [getattr(bounds, name, None) for name in ("lower", "upper")]
        if bounds is not None and not all(map(callable, functions)):
            raise invalid("bounds", bounds, "None, or an object with the functions lower and upper")
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
        self.bounds = bounds

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "bounds": self.bounds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Checkpoints of the released code have no such entry.
        for group in self.param_groups:
            _place_base_lr(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        _place_base_lr(self.param_groups[-1])

    add_param_group.__doc__ = Optimizer.add_param_group.__doc__

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        group["eps"] = positive("eps", group["eps"])
        group["final_lr"] = at_least("final_lr", group["final_lr"], 0.0)
        group["gamma"] = at_least("gamma", group["gamma"], 0.0)
        switch("amsbound", group["amsbound"])
        switch("bias_correction", group["bias_correction"])
        if group["weight_decay_mode"] not in _DECAYS:
            raise invalid(
                "weight_decay_mode", group["weight_decay_mode"], f"one of {', '.join(_DECAYS)}"
            )

    def _moments(self, group: dict[str, Any]) -> tuple[str, ...]:
        peak = ("max_exp_avg_sq",) if group["amsbound"] else ()
        return ("exp_avg", "exp_avg_sq", *peak)

    def _scalars(self, group: dict[str, Any], step: Number) -> Scalars:
        lr, decay, mode = number(group["lr"]), group["weight_decay"], group["weight_decay_mode"]
        beta1, beta2 = group["betas"]
        size: Number = lr
        if group["bias_correction"]:
            size = lr * (1.0 - beta2**step) ** 0.5 / (1.0 - beta1**step)
        bounds = self.bounds or HyperbolicBounds(group["gamma"])
        final = group["final_lr"] * (lr / self._base_lr(group))
        return Scalars(
            size=size,
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            keep=1.0 - {"l2": 0.0, "decoupled": lr * decay, "decoupled_unscaled": decay}[mode],
            l2=decay if mode == "l2" else 0.0,
            factor=self._factor(group),
            lower=final * bounds.lower(step),
            upper=final * bounds.upper(step),
        )

    def _base_lr(self, group: dict[str, Any]) -> float:
        # A warm-up may start at 0: the first rate above it is then the one to compare with.
        if group["base_lr"] == 0.0:
            group["base_lr"] = float(group["lr"])
        base: float = group["base_lr"]
        return base or 1.0


class AMSBound(AdaBound):
    """`AdaBound` with the running maximum of the second moment; its arguments are explained there.

    Source: as `AdaBound`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        final_lr: float = 0.1,
        gamma: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        weight_decay_mode: Literal["l2", "decoupled", "decoupled_unscaled"] = "l2",
        bias_correction: bool = True,
        bounds: Bounds | None = None,
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
            lr,
            betas,
            final_lr,
            gamma,
            eps,
            weight_decay,
            amsbound=True,
            weight_decay_mode=weight_decay_mode,
            bias_correction=bias_correction,
            bounds=bounds,
            foreach=foreach,
            fused=fused,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            stochastic_rounding=stochastic_rounding,
            rounding_seed=rounding_seed,
        )


def _place_base_lr(group: dict[str, Any]) -> None:
    group.setdefault("base_lr", float(group.get("initial_lr", group["lr"])))


register_state_rule(
    AdaBound,
    StateRule(
        {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2},
        filled=("exp_avg_sq", "max_exp_avg_sq"),
        counted=True,
    ),
)
