"""AvaGrad: adaptive rates, normalised so that learning rate and adaptability are two knobs."""

from __future__ import annotations

import operator
import warnings
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from latewood.core import StateRule, register_state_rule
from latewood.errors import invalid
from latewood.kernels.misfits import is_plain
from latewood.kernels.optimizers import Number, Rates, Scalars, StepPlan, UpdateRule, rate_sums
from latewood.optim.base import Optimizer, ParameterBatch, form_of, local, number, positive, switch
from latewood.optim.delayed_adam import delayed_scalars
from latewood.optim.gamma import normaliser, over_shards, untouched_dominate

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
        )
        self._process_group = process_group
        self._forget()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_process_group", None)
        self._forget()
        for group in self.param_groups:
            _place_gamma(group)

    def _forget(self) -> None:
        # Sums of squared rates that a step left behind for the next one; never part of the state,
        # since the second moments say the same.
        self._known_sums: dict[int, _KnownSums] = {}
        self._may_warn = True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        _place_gamma(self.param_groups[-1])

    add_param_group.__doc__ = Optimizer.add_param_group.__doc__

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        positive(group, "eps")
        switch(group, "decoupled_weight_decay")
        for name in ("gamma_mode", "gamma_scope"):
            if group[name] != self.defaults[name]:
                raise invalid(name, group[name], "the same in all groups")

    def _moments(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _init_state(self, group: dict[str, Any], parameter: Tensor, state: dict[str, Any]) -> None:
        super()._init_state(group, parameter, state)
        if group["gamma_scope"] == "tensor":
            state["gamma"] = group["gamma"].detach().clone()

    def _scalars(self, group: dict[str, Any], step: Number) -> Scalars:
        return delayed_scalars(
            group,
            step,
            corrected=group["gamma_mode"] != "paper",
            skip_first=group["gamma_mode"] != "paper",
            factor=self._factor(group),
        )

    def _update(self, batches: list[ParameterBatch], plans: list[StepPlan]) -> None:
        if not batches and self._process_group is None:
            return
        mode = self.param_groups[0]["gamma_mode"]
        counts = self._advance(batches)
        scalars = [self._numbers(b, c) for b, c in zip(batches, counts, strict=True)]
        if mode == "official":
            gammas = [[number(gamma) for gamma in self._stored(batch)] for batch in batches]
        else:
            sums = self._sums_of_rates(batches, scalars)
            gammas = self._normalise(batches, counts, sums)
            self._look_for_untouched(batches, counts, sums)
        scaled = [_scaled(s, g) for s, g in zip(scalars, gammas, strict=True)]
        sums = self._apply(plans, scaled, self._rates(mode))
        sums = [over_shards(b.parameters, s) for b, s in zip(batches, sums, strict=True)]
        if mode == "official":
            self._normalise(batches, counts, sums)
            self._look_for_untouched(batches, counts, sums)
        else:
            self._remember(batches, scalars, sums)

    def _normalise(
        self, batches: list[ParameterBatch], counts: list[list[Number]], sums: list[list[Number]]
    ) -> list[list[Number]]:
        """One gamma for every parameter, by mode and scope; kept in the groups or the state."""
        mode, scope = (self.param_groups[0][name] for name in ("gamma_mode", "gamma_scope"))
        sizes = [[_size(parameter) for parameter in batch.parameters] for batch in batches]
        # In aligned mode a parameter in its first step does not move, so its rates do not count.
        active = [[step > 1.0 if mode == "aligned" else True for step in c] for c in counts]
        if scope == "global":
            gamma = normaliser(
                list(chain.from_iterable(sums)),
                list(chain.from_iterable(sizes)),
                list(chain.from_iterable(active)),
                self._process_group,
            )
            for group in self.param_groups:
                _store(group["gamma"], gamma)
            return [[gamma] * len(batch) for batch in sums]
        gammas = []
        for batch, columns in zip(batches, zip(sums, sizes, active, strict=True), strict=True):
            if scope == "group":
                gammas.append([normaliser(*columns)] * len(batch.parameters))
                _store(batch.group["gamma"], gammas[-1][0])
            else:
                rows = zip(*columns, strict=True)
                gammas.append([normaliser([total], [size], [on]) for total, size, on in rows])
                for stored, gamma in zip(self._stored(batch), gammas[-1], strict=True):
                    _store(stored, gamma)
        return gammas

    def _stored(self, batch: ParameterBatch) -> list[Tensor]:
        if batch.group["gamma_scope"] == "tensor":
            return [self.state[parameter]["gamma"] for parameter in batch.parameters]
        return [batch.group["gamma"]] * len(batch.parameters)

    def _rates(self, mode: str) -> Rates:
        if mode == "official":
            return "old"
        # Without a place to keep the sums between steps, the next step makes them itself.
        return "none" if self._on_device() else "new"

    def _on_device(self) -> bool:
        return torch.compiler.is_compiling() or any(g["capturable"] for g in self.param_groups)

    def _sums_of_rates(
        self, batches: list[ParameterBatch], scalars: list[list[Scalars]]
    ) -> list[list[Number]]:
        """Sums of the squared rates about to be applied: left by the last step, or computed."""
        sums = []
        for index, (batch, numbers) in enumerate(zip(batches, scalars, strict=True)):
            known = None if self._on_device() else self._known_sums.get(index)
            corrections = [n.previous for n in numbers]
            eps = [n.eps for n in numbers]
            if known is not None and known.still_holds(batch.exp_avg_sqs, corrections, eps):
                sums.append(known.totals)
                continue
            moments = [local(moment) for moment in batch.exp_avg_sqs]
            totals = rate_sums(moments, corrections, eps, form_of(batch.group))
            sums.append(over_shards(batch.parameters, totals))
        return sums

    def _remember(
        self, batches: list[ParameterBatch], scalars: list[list[Scalars]], sums: list[list[Number]]
    ) -> None:
        self._known_sums = {}
        if self._on_device():
            return
        for index, (batch, numbers, totals) in enumerate(zip(batches, scalars, sums, strict=True)):
            self._known_sums[index] = _KnownSums(
                batch.exp_avg_sqs,
                [moment._version for moment in batch.exp_avg_sqs],
                _addresses(batch.exp_avg_sqs),
                [n.following for n in numbers],
                [n.eps for n in numbers],
                totals,
            )

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
            ([local(v) for v in b.exp_avg_sqs], s, [b.group["eps"]] * len(s))
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
                stacklevel=6,
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
            process_group=process_group,
        )


class _KnownSums(NamedTuple):
    """Sums of squared rates of one batch, and what they were made of."""

    moments: list[Tensor]
    versions: list[int]
    addresses: list[int]
    corrections: list[Number]
    eps: list[float]
    totals: list[Number]

    def still_holds(
        self, moments: list[Tensor], corrections: list[Number], eps: list[float]
    ) -> bool:
        return (
            len(moments) == len(self.moments)
            and all(map(operator.is_, moments, self.moments))
            and [moment._version for moment in moments] == self.versions
            and _addresses(moments) == self.addresses
            and corrections == self.corrections
            and eps == self.eps
        )


def _addresses(moments: list[Tensor]) -> list[int]:
    """Where moments lie: data that was replaced under a tensor, as growth does, has no version."""
    return list(map(Tensor.data_ptr, moments)) if is_plain(*moments) else []


def _scaled(scalars: list[Scalars], gammas: list[Number]) -> list[Scalars]:
    pairs = list(zip(map(id, scalars), map(id, gammas), strict=True))
    known = {
        pair: s._replace(size=s.size * gamma)
        for pair, (s, gamma) in dict(
            zip(pairs, zip(scalars, gammas, strict=True), strict=True)
        ).items()
    }
    return [known[pair] for pair in pairs]


def _size(parameter: Tensor) -> int:
    return parameter.numel() * (2 if parameter.is_complex() else 1)


def _store(stored: Tensor, gamma: Number) -> None:
    stored.copy_(torch.as_tensor(gamma, dtype=torch.float64))


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
