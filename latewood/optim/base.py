"""What all optimizers of this room share: the manners of ``torch.optim`` around an update rule."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, islice
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT, StateDict

from latewood.errors import RequestError, WorkError, invalid
from latewood.kernels.optimizers import (
    Form,
    Number,
    Rates,
    Rule,
    Scalars,
    StepPlan,
    StepTensors,
    advance,
    fused_exists,
    plan_step,
    run_step,
    working_dtype,
)

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = [
    "Batch",
    "Optimizer",
    "at_least",
    "form_of",
    "fraction",
    "is_sharded",
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

    def local(self) -> StepTensors:
        """What of it the kernels work on: real numbers on this process, None for no moment."""
        absent = [None] * len(self.parameters)
        moments = (self.exp_avgs, self.exp_avg_sqs, self.max_exp_avg_sqs)
        columns: list[Any] = [self.parameters, self.gradients, *(m or absent for m in moments)]
        if not all(type(p) in _PLAIN and not p.is_complex() for p in self.parameters):
            # That a gradient is to be conjugated may only stand beside its values.
            columns[1] = [gradient.resolve_conj() for gradient in self.gradients]
            columns = [[None if t is None else local(t) for t in column] for column in columns]
        return StepTensors(*columns)


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
            RequestError: if a gradient or a state does not belong to its parameter any more, since
                one of them was replaced; nothing has changed then.
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
        plans = [self._plan(batch) for batch in batches]
        self._update(batches, plans)
        return loss

    def _plan(self, batch: Batch) -> StepPlan:
        return plan_step(
            batch.local(),
            form_of(batch.group),
            lambda index: self._name(batch.parameters[index]),
        )

    def _name(self, parameter: Tensor) -> str:
        """What errors call a parameter: its name, or its position as ``state_dict`` counts."""
        position = 0
        for group in self.param_groups:
            for index, other in enumerate(group["params"]):
                if other is parameter:
                    names = group.get("param_names")
                    return f"parameter {names[index]!r}" if names else f"parameter {position}"
                position += 1
        raise LookupError("not a parameter of this optimizer")

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
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.layout != torch.strided:
                raise WorkError(
                    f"{type(self).__name__}: the gradient of {self._name(parameter)} is sparse; "
                    "only dense gradients are supported (embeddings: sparse=False)"
                )
            parameters.append(parameter)
            gradients.append(gradient)
            if not names:
                continue
            state = self.state[parameter]
            if not state:
                self._init_state(group, parameter, state)
            # A state that came without one is refused where the steps are counted.
            steps.append(state.get("step"))
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

    def _update(self, batches: list[Batch], plans: list[StepPlan]) -> None:
        counts = self._advance(batches)
        self._apply(plans, [self._numbers(*pair) for pair in zip(batches, counts, strict=True)])

    def _advance(self, batches: list[Batch]) -> list[list[Number]]:
        """Counts this step for every parameter and returns the counts, tensors where they must."""
        if torch.compiler.is_compiling() or any(batch.group["capturable"] for batch in batches):
            return [self._advance_on_device(batch) for batch in batches]
        steps = list(chain.from_iterable(batch.steps for batch in batches))
        parameters = list(chain.from_iterable(b.parameters for b in batches if b.steps))
        counts = iter(advance(steps, lambda index: self._name(parameters[index])))
        return [list(islice(counts, len(b.steps))) or [1.0] * len(b.parameters) for b in batches]

    def _advance_on_device(self, batch: Batch) -> list[Number]:
        if not batch.steps:
            return [1.0] * len(batch.parameters)
        torch._foreach_add_(batch.steps, 1.0)
        # Powers of beta in float32 would round the bias corrections.
        return [step.double() for step in batch.steps]

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
        self, plans: list[StepPlan], scalars: list[list[Scalars]], rates: Rates = "none"
    ) -> list[list[Number]]:
        """Runs the rule on all batches; returns the sums of squared rates, batch by batch."""
        return run_step(self.rule, plans, scalars, rates) if plans else []

    @_disable_dynamo
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
    if is_sharded(tensor):
        tensor = tensor.to_local()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is a DTensor; does not import what defines them, which takes a second."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def form_of(group: dict[str, Any]) -> Form:
    """Which form of the kernels a group asks for."""
    if torch.compiler.is_compiling() or group["capturable"]:
        return "single"
    if group["fused"]:
        return "fused"
    if group["foreach"]:
        return "foreach"
    return "auto" if group["fused"] is None and group["foreach"] is None else "single"


def _zeros(parameter: Tensor) -> Tensor:
    dtype = working_dtype(parameter.dtype)
    return torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)


def _restored(group: dict[str, Any], parameter: Tensor, name: str, value: Any) -> Any:
    if name == "step":
        device = parameter.device if group["capturable"] else torch.device("cpu")
        return torch.as_tensor(value, dtype=torch.float32).detach().to(device, copy=True)
    if not isinstance(value, Tensor):
        return value
    dtype = value.dtype
    if name in _MOMENTS:
        dtype = working_dtype(parameter.dtype)
    return value.detach().to(parameter.device, dtype, copy=True)


_PLAIN = (Tensor, torch.nn.Parameter)
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
