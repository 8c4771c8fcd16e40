"""What all optimizers of this room share: the manners of ``torch.optim`` around an update rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from numbers import Real
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import ParamsT, StateDict

from latewood.errors import RequestError, WorkError, invalid
from latewood.kernels.optimizers import (
    Form,
    Number,
    Rates,
    Rule,
    Scalars,
    StepTensors,
    advance,
    fused_exists,
    run_step,
)

__all__ = [
    "Batch",
    "Optimizer",
    "at_least",
    "form_of",
    "fraction",
    "local",
    "number",
    "positive",
    "switch",
]


@dataclass(slots=True)
class Batch:
    """The parameters of one group that take part in this step, with their state, list by list."""

    group: dict[str, Any]
    parameters: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)
    exp_avgs: list[Tensor] = field(default_factory=list)
    exp_avg_sqs: list[Tensor] = field(default_factory=list)
    max_exp_avg_sqs: list[Tensor] = field(default_factory=list)


class Optimizer(torch.optim.Optimizer):
    """Base class: groups, state, checks, closures and loss scaling; a subclass adds its rule.

    A subclass names its ``rule``, says in ``_moments`` which moments a group keeps, and turns a
    group and a step count into the numbers of the rule in ``_scalars``.
    """

    rule: ClassVar[Rule]

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        *,
        foreach: bool | None,
        fused: bool | None,
        maximize: bool,
        capturable: bool,
        differentiable: bool,
    ) -> None:
        if differentiable:
            raise invalid(
                "differentiable",
                True,
                "False: these optimizers write parameters in place; to differentiate through "
                "updates, apply the functions of latewood.kernels.optimizers to copies",
            )
        if foreach and fused:
            raise invalid("foreach", True, "not together with fused=True; choose one")
        if capturable and fused:
            raise invalid("capturable", True, "not together with fused=True; choose one")
        switches = {
            "foreach": foreach,
            "fused": fused,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": False,
        }
        super().__init__(params, defaults | switches)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # GradScaler then hands over its scale instead of changing the gradients itself.
        return self.defaults.get("fused") is True

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A state saved before an option existed gets its default.
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters; options it does not give are the constructor's.

        Args:
            param_group: "params" (tensors, or (name, tensor) pairs) and options.

        Raises:
            RequestError: if an option is out of its range.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check(group)
        except RequestError:
            self.param_groups.pop()
            raise

    def _check(self, group: dict[str, Any]) -> None:
        """Refuses options out of range and makes betas plain numbers; a subclass extends it."""
        if "betas" in group:
            given = group["betas"]
            if not isinstance(given, tuple | list) or len(given) != 2:
                raise invalid("betas", given, "two numbers, each at least 0 and below 1")
            betas = [{"betas": beta} for beta in given]
            for beta in betas:
                fraction(beta, "betas")
            group["betas"] = tuple(float(beta["betas"]) for beta in betas)
        at_least(group, "lr", 0.0)
        at_least(group, "weight_decay", 0.0)
        for name in ("foreach", "fused"):
            switch(group, name, optional=True)
        for name in ("maximize", "capturable"):
            switch(group, name)
        for parameter in group["params"] if group["fused"] else ():
            dtype = parameter.dtype.to_real()
            if not fused_exists(parameter.device, dtype):
                raise invalid("fused", True, f"None or False for {dtype} on {parameter.device}")

    def _moments(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Names of the moments a parameter of this group keeps; () keeps no state at all."""
        raise NotImplementedError

    def _scalars(self, group: dict[str, Any], step: Number) -> Scalars:
        """The numbers of the rule for a parameter in its ``step``-th step, counted from 1."""
        raise NotImplementedError

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates every parameter that has a gradient; never changes a gradient.

        Args:
            closure: reevaluates the model and returns the loss; called with gradients enabled.

        Returns:
            What the closure returned, or None.

        Raises:
            WorkError: if a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.item() != 0.0:
            return loss
        batches = []
        for group in self.param_groups:
            batch = self._collect(group)
            if batch.parameters:
                batches.append(batch)
        self._update(batches)
        return loss

    def _collect(self, group: dict[str, Any]) -> Batch:
        # torch.compile runs a method of this name once, outside the graph, and reads the lists.
        parameters: list[Tensor] = []
        gradients: list[Tensor] = []
        steps: list[Tensor] = []
        first: list[Tensor] = []
        second: list[Tensor] = []
        peaks: list[Tensor] = []
        self._init_group(group, parameters, gradients, steps, first, second, peaks)
        return Batch(group, parameters, gradients, steps, first, second, peaks)

    def _init_group(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        gradients: list[Tensor],
        steps: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        max_exp_avg_sqs: list[Tensor],
    ) -> None:
        names = self._moments(group)
        lists = dict(zip(_MOMENTS, (exp_avgs, exp_avg_sqs, max_exp_avg_sqs), strict=True))
        for index, parameter in enumerate(group["params"]):
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.layout != torch.strided:
                raise WorkError(
                    f"{type(self).__name__}: the gradient of {_name(group, index)} is sparse; "
                    "only dense gradients are supported (embeddings: sparse=False)"
                )
            parameters.append(parameter)
            gradients.append(gradient)
            if not names:
                continue
            state = self.state[parameter]
            if not state:
                self._init_state(group, parameter, state)
            steps.append(state["step"])
            for name in names:
                if name not in state:
                    state[name] = _zeros(parameter)
                lists[name].append(state[name])

    def _init_state(self, group: dict[str, Any], parameter: Tensor, state: dict[str, Any]) -> None:
        on_device = group["capturable"] or torch.compiler.is_compiling()
        state["step"] = torch.zeros(
            (), dtype=torch.float32, device=parameter.device if on_device else "cpu"
        )
        for name in self._moments(group):
            state[name] = _zeros(parameter)

    def _update(self, batches: list[Batch]) -> None:
        self._apply(batches, [self._numbers(batch, self._advance(batch)) for batch in batches])

    def _advance(self, batch: Batch) -> list[Number]:
        """Counts this step for every parameter and returns the counts, tensors where they must."""
        if not batch.steps:
            return [1.0] * len(batch.parameters)
        if torch.compiler.is_compiling() or batch.group["capturable"]:
            torch._foreach_add_(batch.steps, 1.0)
            # Powers of beta in float32 would round the bias corrections.
            return [step.double() for step in batch.steps]
        return list(advance(batch.steps))

    def _numbers(self, batch: Batch, counts: list[Number]) -> list[Scalars]:
        """The numbers of every parameter; those with the same history share one object."""
        known: dict[Number, Scalars] = {}
        for count in counts:
            if count not in known:
                known[count] = self._scalars(batch.group, count)
        return [known[count] for count in counts]

    def _factor(self, group: dict[str, Any]) -> float:
        """What a gradient is multiplied with: its sign, and the inverse of the loss scale."""
        scale = getattr(self, "grad_scale", None)
        return (-1.0 if group["maximize"] else 1.0) / (1.0 if scale is None else scale.item())

    def _apply(
        self, batches: list[Batch], scalars: list[list[Scalars]], rates: Rates = "none"
    ) -> list[list[Number]]:
        """Runs the rule on all batches; returns the sums of squared rates, batch by batch."""
        shares = [_shares(batch, numbers) for batch, numbers in zip(batches, scalars, strict=True)]
        forms = [form_of(batch.group) for batch in batches]
        if len(set(forms)) <= 1:
            # One call for everything lets the native form spread all tensors over the threads.
            sums = iter(run_step(self.rule, list(chain.from_iterable(shares)), rates, *forms[:1]))
            return [[next(sums) for _ in batch] for batch in shares]
        return [run_step(self.rule, b, rates, f) for b, f in zip(shares, forms, strict=True)]

    @torch.compiler.disable
    def load_state_dict(self, state_dict: StateDict) -> None:
        """Restores a state, bit for bit: moments keep their own precision, not the parameters'.

        Args:
            state_dict: what ``state_dict()`` returned, possibly read with ``weights_only=True``.
        """
        seen: StateDict = {}

        def restore(_: torch.optim.Optimizer) -> None:
            saved = chain.from_iterable(group["params"] for group in seen["param_groups"])
            for group in self.param_groups:
                for parameter in group["params"]:
                    for name, value in seen["state"].get(next(saved), {}).items():
                        self.state[parameter][name] = _restored(group, parameter, name, value)

        # After the user's own hooks have changed the state, before they look at the result.
        handles = (
            self.register_load_state_dict_pre_hook(lambda _, state: seen.update(state)),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()


def at_least(group: dict[str, Any], name: str, bound: float) -> None:
    """Raises unless ``group[name]`` is a number not below ``bound``."""
    if not bound <= _real(group, name, f"a finite number of at least {bound:g}") < float("inf"):
        raise invalid(name, group[name], f"a finite number of at least {bound:g}")


def positive(group: dict[str, Any], name: str) -> None:
    """Raises unless ``group[name]`` is a number above 0."""
    if not 0.0 < _real(group, name, "a finite number above 0") < float("inf"):
        raise invalid(name, group[name], "a finite number above 0")


def fraction(group: dict[str, Any], name: str) -> None:
    """Raises unless ``group[name]`` is a number of at least 0 and below 1."""
    if not 0.0 <= _real(group, name, "at least 0 and below 1") < 1.0:
        raise invalid(name, group[name], "at least 0 and below 1")


def switch(group: dict[str, Any], name: str, *, optional: bool = False) -> None:
    """Raises unless ``group[name]`` is True or False, or None where that means "as you like"."""
    if not isinstance(group[name], bool) and not (optional and group[name] is None):
        raise invalid(name, group[name], "True, False or None" if optional else "True or False")


def _real(group: dict[str, Any], name: str, expected: str) -> float:
    """The value as a float; one given as a tensor becomes a float, but for the learning rate."""
    value = group[name]
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        value = float(value)
        if name != "lr":
            group[name] = value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise invalid(name, value, expected)
    return float(value)


def number(value: Number) -> Number:
    """A float; but a tensor stays one where reading it would wait for a GPU, or while compiling."""
    if isinstance(value, Tensor) and value.device.type == "cpu":
        return value if torch.compiler.is_compiling() else float(value.item())
    return value


def local(tensor: Tensor) -> Tensor:
    """The real numbers of a tensor that lie on this process; shares memory with it."""
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _shares(batch: Batch, scalars: list[Scalars]) -> list[StepTensors]:
    absent = [None] * len(batch.parameters)
    moments = (batch.exp_avgs, batch.exp_avg_sqs, batch.max_exp_avg_sqs)
    columns: list[Any] = [batch.parameters, batch.gradients, *(m or absent for m in moments)]
    if not all(type(p) in _PLAIN and not p.is_complex() for p in batch.parameters):
        columns = [[None if t is None else local(t) for t in column] for column in columns]
    return list(map(StepTensors, *columns, scalars))


def form_of(group: dict[str, Any]) -> Form:
    """Which form of the kernels a group asks for."""
    if torch.compiler.is_compiling() or group["capturable"]:
        return "single"
    if group["fused"]:
        return "fused"
    if group["foreach"]:
        return "foreach"
    return "auto" if group["fused"] is None and group["foreach"] is None else "single"


# Second moments of float16 gradients underflow in float16: 1e-4 squared is already 0.
_WIDER = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.complex32: torch.complex64,
}


def _zeros(parameter: Tensor) -> Tensor:
    dtype = _WIDER.get(parameter.dtype, parameter.dtype)
    return torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)


def _restored(group: dict[str, Any], parameter: Tensor, name: str, value: Any) -> Any:
    if name == "step":
        device = parameter.device if group["capturable"] else torch.device("cpu")
        return torch.as_tensor(value, dtype=torch.float32).detach().to(device, copy=True)
    if not isinstance(value, Tensor):
        return value
    dtype = value.dtype
    if name in _MOMENTS:
        dtype = _WIDER.get(parameter.dtype, parameter.dtype)
    return value.detach().to(parameter.device, dtype, copy=True)


def _name(group: dict[str, Any], index: int) -> str:
    if "param_names" in group:
        return f"parameter {group['param_names'][index]!r}"
    return f"parameter {index} of its group, of shape {tuple(group['params'][index].shape)}"


_PLAIN = (Tensor, torch.nn.Parameter)
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
