"""AvaGrad: adaptive rates, normalised so that learning rate and adaptability are two knobs."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from latewood.core import StateRule, register_state_rule
from latewood.errors import invalid
from latewood.kernels.misfits import require_memory
from latewood.kernels.optimizers import Number, Rates, Scalars, UpdateRule, plan_step, rate_sums
from latewood.optim.base import Optimizer, form_of, number
from latewood.optim.call_site import call_level
from latewood.optim.delayed_adam import delayed_scalars
from latewood.optim.gamma import normaliser, over_shards, untouched_dominate
from latewood.optim.options import positive, switch
from latewood.optim.parameter_batch import ParameterBatch, local
from latewood.optim.rate_origin import RateOrigin, places

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["AvaGrad", "AvaGradW"]

_MODES = ("aligned", "official", "paper")
_SCOPES = ("global", "group", "tensor")


class AvaGrad(Optimizer):
    r"""Delayed Adam whose vector of rates is divided by its own root mean square.

    .. math::
        \eta_t = \frac{1}{\sqrt{v_{t-1}} + \epsilon}, \qquad
        \gamma_t = \frac{1}{\mathrm{RMS}(\eta_t)}, \qquad
        x_{t+1} = x_t - \alpha \, \gamma_t \, \eta_t \, m_t

    alpha alone says how far to move and eps alone how strongly to equalise coordinates, so the
    best learning rate does not move with eps.

    The modes differ in bias correction and in the rates that gamma is made of:

    - "aligned": m and v are corrected, the first step only fills them, gamma comes from the very
      rates that are applied; a parameter counts from its second step on.
    - "official": as the authors' code. gamma comes from the rates one step earlier, with the bias
      correction of this one, over all parameters with a gradient; it warms up by itself.
    - "paper": no correction, the first step is taken and is -alpha m_1.

    Args:
        params: tensors, (name, tensor) pairs, or groups.
        lr: learning rate (alpha), a float or a tensor with one element.
        betas: decay of the first and second moment, each in [0, 1).
        eps: adaptability, above 0; large values approach SGD with the same learning rate.
        weight_decay: L2 coefficient, or the decoupled decay times the learning rate.
        decoupled_weight_decay: shrink parameters by lr * weight_decay, except in a skipped first
            step, instead of adding L2.
        gamma_mode: as above.
        gamma_scope: one gamma for all parameters, per group, or per tensor. By default "global",
            and "group" in official mode.
        foreach, fused: how the step runs; by default the fastest way there is.
        maximize: climb instead of descend.
        capturable: keep counts on the device, so that a CUDA graph can hold the step.
        differentiable: refused if True.
        stochastic_rounding: round bfloat16 parameters up or down at random, right on average, so
            that steps smaller than half their spacing are not lost.
        rounding_seed: of the noise, which follows from it, the step and the parameter's position.
        process_group: processes that hold other parameters of the same model (pipeline stages,
            whole-parameter sharding); their rates count into the global gamma. DTensors need none.
            Copies and pickles of the optimizer do not keep it.

    Raises:
        RequestError: if an argument is out of its range.

    Source: Savarese, McAllester, Babu, Maire, "Domain-independent Dominance of Adaptive Methods"
    (arXiv 1912.01823), Algorithm 2, and its released code.
    """

    rule: ClassVar[UpdateRule] = "delayed"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 0.1,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        gamma_mode: Literal["aligned", "official", "paper"] = "aligned",
        gamma_scope: Literal["global", "group", "tensor"] | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        stochastic_rounding: bool = False,
        rounding_seed: int = 0,
        process_group: ProcessGroup | None = None,
    ) -> None:
        if gamma_mode not in _MODES:
            raise invalid("gamma_mode", gamma_mode, f"one of {', '.join(_MODES)}")
        if gamma_scope is None:
            gamma_scope = "group" if gamma_mode == "official" else "global"
        if gamma_scope not in _SCOPES:
            raise invalid("gamma_scope", gamma_scope, f"one of {', '.join(_SCOPES)}")
        if process_group is not None and gamma_scope != "global":
            raise invalid("process_group", process_group, "None unless gamma_scope is 'global'")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "gamma_mode": gamma_mode,
            "gamma_scope": gamma_scope,
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
        self._process_group = process_group
        self._forget()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A state brings its mode along: groups that are added later follow it.
        of_state = {
            name: {group[name] for group in state["param_groups"] if name in group}
            for name in ("gamma_mode", "gamma_scope")
        }
        for name, values in of_state.items():
            if len(values) > 1:
                raise invalid(name, sorted(values), "the same in all groups of a state")
        super().__setstate__(state)
        for name, values in of_state.items():
            for value in values:
                self.defaults[name] = value
        self.__dict__.setdefault("_process_group", None)
        self._forget()
        for group in self.param_groups:
            _place_gamma(group)

    def _forget(self) -> None:
        # Sums of squared rates that a step left behind for the next one; never part of the state,
        # since the second moments say the same.
        self._sums_left: list[tuple[RateOrigin, list[Number]]] = []
        self._may_warn = True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        _place_gamma(self.param_groups[-1])

    add_param_group.__doc__ = Optimizer.add_param_group.__doc__

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        group["eps"] = positive("eps", group["eps"])
        switch("decoupled_weight_decay", group["decoupled_weight_decay"])
        for name in ("gamma_mode", "gamma_scope"):
            if group[name] != self.defaults[name]:
                raise invalid(name, group[name], "the same in all groups")

    def _moments(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _init_state(self, group: dict[str, Any], parameter: Tensor, state: dict[str, Any]) -> None:
        super()._init_state(group, parameter, state)
        if group["gamma_scope"] == "tensor":
            with torch.inference_mode(parameter.is_inference()):
                state["gamma"] = group["gamma"].detach().clone()

    def _scalars(self, group: dict[str, Any], step: Number) -> Scalars:
        return delayed_scalars(
            group,
            step,
            corrected=group["gamma_mode"] != "paper",
            skip_first=group["gamma_mode"] != "paper",
            factor=self._factor(group),
        )

    def _update(self, batches: list[ParameterBatch]) -> None:
        if not batches and self._process_group is None:
            return
        mode = self.param_groups[0]["gamma_mode"]
        counts = self._counts(batches)
        scalars = [self._numbers(b, c) for b, c in zip(batches, counts, strict=True)]
        if mode == "official":
            gammas = [self._read_gammas(batch) for batch in batches]
        else:
            origins = [self._origin(b, n) for b, n in zip(batches, scalars, strict=True)]
            sums = self._sums_of_rates(batches, origins)
            gammas, kept = self._normalise(batches, counts, sums)
            self._look_for_untouched(batches, counts, sums)
        scaled = [_scaled(s, g) for s, g in zip(scalars, gammas, strict=True)]
        sums = self._apply(batches, counts, scaled, self._rates(mode))
        sums = [over_shards(b.parameters, s) for b, s in zip(batches, sums, strict=True)]
        if mode == "official":
            _, kept = self._normalise(batches, counts, sums)
            self._look_for_untouched(batches, counts, sums)
        else:
            self._leave(origins, scalars, sums)
        for stored, gamma in kept:
            stored.copy_(torch.as_tensor(gamma, dtype=torch.float64))

    def _normalise(
        self, batches: list[ParameterBatch], counts: list[list[Number]], sums: list[list[Number]]
    ) -> tuple[list[list[Number]], list[tuple[Tensor, Number]]]:
        """One gamma for every parameter, by mode and scope, and where each is to be kept."""
        mode, scope = (self.param_groups[0][name] for name in ("gamma_mode", "gamma_scope"))
        sizes = [_sizes(batch.parameters) for batch in batches]
        # In aligned mode a parameter in its first step does not move, so its rates do not count.
        active = [[step > 1.0 if mode == "aligned" else True for step in c] for c in counts]
        if scope == "global":
            gamma = normaliser(
                list(chain.from_iterable(sums)),
                list(chain.from_iterable(sizes)),
                list(chain.from_iterable(active)),
                self._process_group,
            )
            kept = [(group["gamma"], gamma) for group in self.param_groups]
            return [[gamma] * len(of_batch) for of_batch in sums], kept
        gammas: list[list[Number]] = []
        kept = []
        for batch, totals, numels, on in zip(batches, sums, sizes, active, strict=True):
            if scope == "group":
                gammas.append([normaliser(totals, numels, on)] * len(batch.parameters))
                kept.append((batch.group["gamma"], gammas[-1][0]))
            else:
                rows = zip(totals, numels, on, strict=True)
                gammas.append([normaliser([s], [n], [moves]) for s, n, moves in rows])
                kept += zip(self._stored(batch), gammas[-1], strict=True)
        return gammas, kept

    def _stored(self, batch: ParameterBatch) -> list[Tensor]:
        if batch.group["gamma_scope"] == "tensor":
            return [self.state[parameter]["gamma"] for parameter in batch.parameters]
        return [batch.group["gamma"]] * len(batch.parameters)

    def _read_gammas(self, batch: ParameterBatch) -> list[Number]:
        stored = self._stored(batch)
        if torch.compiler.is_compiling():
            return [number(gamma) for gamma in stored]
        names, known = self._names(batch), dict[int, Number]()
        for index, gamma in enumerate(stored):
            if id(gamma) not in known:
                require_memory(**{f"gamma of {names(index)}": gamma})
                known[id(gamma)] = number(gamma)
        return [known[id(gamma)] for gamma in stored]

    def _rates(self, mode: str) -> Rates:
        if mode == "official":
            return "old"
        # Without a place to keep the sums between steps, the next step makes them itself.
        return "none" if self._on_device() else "new"

    def _sums_of_rates(
        self, batches: list[ParameterBatch], origins: list[RateOrigin]
    ) -> list[list[Number]]:
        """Sums of the squared rates about to be applied: left by the last step, or computed."""
        sums = []
        for index, (batch, origin) in enumerate(zip(batches, origins, strict=True)):
            if index < len(self._sums_left) and not self._on_device():
                of_these, totals = self._sums_left[index]
                if of_these == origin:
                    sums.append(totals)
                    continue
            # The step looks at what it is given, but only after these are read.
            plan_step(batch.tensors(), form_of(batch.group), self._names(batch))
            moments = [local(moment) for moment in batch.moments["exp_avg_sq"]]
            totals = rate_sums(moments, origin.corrections, origin.eps, form_of(batch.group))
            sums.append(over_shards(batch.parameters, totals))
        return sums

    def _origin(self, batch: ParameterBatch, numbers: list[Scalars]) -> RateOrigin:
        moments = batch.moments["exp_avg_sq"]
        where = () if self._on_device() else places(moments)
        return RateOrigin(moments, where, [n.previous for n in numbers], [n.eps for n in numbers])

    def _leave(
        self,
        origins: list[RateOrigin],
        scalars: list[list[Scalars]],
        sums: list[list[Number]],
    ) -> None:
        """Keeps the sums for the next step, with what they were made of."""
        self._sums_left = []
        if self._on_device():
            return
        for origin, numbers, totals in zip(origins, scalars, sums, strict=True):
            after = replace(
                origin,
                places=places(origin.moments),
                corrections=[n.following for n in numbers],
            )
            self._sums_left.append((after, totals))

    def _look_for_untouched(
        self, batches: list[ParameterBatch], counts: list[list[Number]], sums: list[list[Number]]
    ) -> None:
        # Only at a few steps: early enough to help, rarely enough to cost nothing.
        first = counts[0][0] if counts else 0.0
        if not self._may_warn or self._on_device() or first not in (2.0, 10.0, 100.0):
            return
        if self.param_groups[0]["gamma_scope"] == "tensor":
            return
        parts = [
            ([local(v) for v in b.moments["exp_avg_sq"]], s, [b.group["eps"]] * len(s))
            for b, s in zip(batches, sums, strict=True)
        ]
        if self.param_groups[0]["gamma_scope"] == "global":
            moments, totals, eps = map(list, map(chain.from_iterable, zip(*parts, strict=True)))
            parts = [(moments, totals, eps)]
        if any(untouched_dominate(*part) for part in parts):
            self._may_warn = False
            warnings.warn(
                f"{type(self).__name__}: coordinates that never had a gradient dominate gamma and "
                "shrink every step more than tenfold; use eps >= 1e-3 or gamma_scope='tensor'",
                RuntimeWarning,
                stacklevel=call_level(),
            )


class AvaGradW(AvaGrad):
    """`AvaGrad` with decoupled weight decay; the other arguments are explained there.

    Args:
        weight_decay: decoupled decay, times the learning rate.

    Source: released code of arXiv 1912.01823.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 0.1,
        weight_decay: float = 0.0,
        *,
        gamma_mode: Literal["aligned", "official", "paper"] = "aligned",
        gamma_scope: Literal["global", "group", "tensor"] | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        stochastic_rounding: bool = False,
        rounding_seed: int = 0,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            decoupled_weight_decay=True,
            gamma_mode=gamma_mode,
            gamma_scope=gamma_scope,
            foreach=foreach,
            fused=fused,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            stochastic_rounding=stochastic_rounding,
            rounding_seed=rounding_seed,
            process_group=process_group,
        )


def _scaled(scalars: list[Scalars], gammas: list[Number]) -> list[Scalars]:
    pairs = list(zip(map(id, scalars), map(id, gammas), strict=True))
    known = {
        pair: s._replace(size=s.size * gamma)
        for pair, (s, gamma) in dict(
            zip(pairs, zip(scalars, gammas, strict=True), strict=True)
        ).items()
    }
    return [known[pair] for pair in pairs]


def _sizes(parameters: list[Tensor]) -> list[int]:
    sizes = list(map(Tensor.numel, parameters))
    if not any(map(Tensor.is_complex, parameters)):
        return sizes
    return [n * (2 if p.is_complex() else 1) for n, p in zip(sizes, parameters, strict=True)]


def _place_gamma(group: dict[str, Any]) -> None:
    # Before any step all rates are 1/eps. A checkpoint of the released code holds None or a float.
    gamma = group.get("gamma")
    device = group["params"][0].device if group["params"] else torch.device("cpu")
    group["gamma"] = torch.as_tensor(
        group["eps"] if gamma is None else gamma, dtype=torch.float64, device=device
    )


# The normaliser makes every entry's rate depend on all the others.
register_state_rule(
    AvaGrad,
    StateRule({"exp_avg": 1, "exp_avg_sq": 2}, filled=("exp_avg_sq",), entrywise=False),
)
