"""What all optimizers of this room share: the manners of ``torch.optim`` around an update rule."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT, StateDict

from latewood.errors import RequestError, invalid
from latewood.kernels.optimizers import (
    Form,
    Number,
    Rates,
    Scalars,
    StepRequest,
    UpdateRule,
    count_steps,
    fused_exists,
    noise_key,
    run_step,
)
from latewood.optim.options import at_least, switch, two_fractions
from latewood.optim.parameter_batch import ParameterBatch, new_state, restored, with_gradients

__all__ = ["Optimizer", "form_of", "number"]


class Optimizer(torch.optim.Optimizer):
    """Base class: groups, state, checks, closures and loss scaling; a subclass adds its rule.

    A subclass names its ``rule``, says in ``_moments`` which moments a group keeps, and turns a
    group and a step count into the numbers of the rule in ``_scalars``.
    """

    rule: ClassVar[UpdateRule]

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
        stochastic_rounding: bool,
        rounding_seed: int,
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
            "stochastic_rounding": stochastic_rounding,
            "rounding_seed": rounding_seed,
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
            group["betas"] = two_fractions("betas", group["betas"])
        at_least("lr", group["lr"], 0.0)  # which may stay a tensor
        group["weight_decay"] = at_least("weight_decay", group["weight_decay"], 0.0)
        for name in ("foreach", "fused"):
            switch(name, group[name], optional=True)
        for name in ("maximize", "capturable", "stochastic_rounding"):
            switch(name, group[name])
        seed = group["rounding_seed"]
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise invalid("rounding_seed", seed, "a whole number of at least 0, below 2**32")
        for parameter in group["params"]:
            dtype = parameter.dtype.to_real()
            if group["fused"] and not fused_exists(parameter.device, dtype):
                raise invalid("fused", True, f"None or False for {dtype} on {parameter.device}")
            if group["stochastic_rounding"] and dtype is torch.float16:
                raise invalid(
                    "stochastic_rounding", True, "False for float16; bfloat16 can be rounded so"
                )

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
        self._update(batches)
        return loss

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

    def _collect(self, group: dict[str, Any]) -> ParameterBatch:
        # torch.compile runs a method of this name once, outside the graph, and reads the lists.
        names = self._moments(group)
        parameters: list[Tensor] = []
        gradients: list[Tensor] = []
        steps: list[Tensor] = []
        moments: list[list[Tensor]] = [[] for _ in names]
        self._init_group(group, parameters, gradients, steps, *moments)
        columns = dict(zip(names, moments, strict=True))
        return ParameterBatch(group, parameters, gradients, steps, columns)

    def _init_group(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        gradients: list[Tensor],
        steps: list[Tensor],
        *moments: list[Tensor],
    ) -> None:
        def describe(parameter: Tensor) -> str:
            return f"{type(self).__name__}: the gradient of {self._name(parameter)}"

        chosen, their_gradients = with_gradients(group["params"], describe)
        parameters += chosen
        gradients += their_gradients
        # Plain SGD needs no count, but noise is a function of it.
        if not moments and not group["stochastic_rounding"]:
            return
        known = self.state
        states = [known[parameter] for parameter in chosen]
        names = self._moments(group)
        wanted = frozenset(("step", *names))
        for index in [k for k, state in enumerate(states) if not wanted <= state.keys()]:
            parameter, state = chosen[index], states[index]
            if not state:
                self._init_state(group, parameter, state)
            else:
                # An option that asks for one more was switched on meanwhile.
                fresh = new_state(parameter, names, on_device=False)
                state.update({name: fresh[name] for name in names if name not in state})
        # A state that came without one is refused where the steps are counted.
        steps += [state.get("step") for state in states]
        for name, column in zip(names, moments, strict=True):
            column += [state[name] for state in states]

    def _init_state(self, group: dict[str, Any], parameter: Tensor, state: dict[str, Any]) -> None:
        on_device = group["capturable"] or torch.compiler.is_compiling()
        state.update(new_state(parameter, self._moments(group), on_device=on_device))

    def _update(self, batches: list[ParameterBatch]) -> None:
        counts = self._counts(batches)
        scalars = [self._numbers(*pair) for pair in zip(batches, counts, strict=True)]
        self._apply(batches, counts, scalars)

    def _on_device(self) -> bool:
        """Whether counts, and what follows from them, are tensors."""
        return torch.compiler.is_compiling() or any(g["capturable"] for g in self.param_groups)

    def _counts(self, batches: list[ParameterBatch]) -> list[list[Number]]:
        """Which step this is for every parameter, from 1; tensors where they must."""
        # Powers of beta in float32 would round the bias corrections.
        on_device = self._on_device()
        counts: list[list[Number]] = []
        for batch in batches:
            if not batch.steps:
                counts.append([1.0] * len(batch.parameters))
            elif on_device:
                counts.append([step.double() + 1.0 for step in batch.steps])
            else:
                said = count_steps(batch.steps, self._names(batch))
                counts.append([count + 1.0 for count in said])
        return counts

    def _names(self, batch: ParameterBatch) -> Callable[[int], str]:
        return lambda index: self._name(batch.parameters[index])

    def _numbers(self, batch: ParameterBatch, counts: list[Number]) -> list[Scalars]:
        """The numbers of every parameter; those with the same history share one object."""
        known = {count: self._scalars(batch.group, count) for count in dict.fromkeys(counts)}
        return [known[count] for count in counts]

    def _factor(self, group: dict[str, Any]) -> float:
        """What a gradient is multiplied with: its sign, and the inverse of the loss scale."""
        scale = getattr(self, "grad_scale", None)
        return (-1.0 if group["maximize"] else 1.0) / (1.0 if scale is None else scale.item())

    def _apply(
        self,
        batches: list[ParameterBatch],
        counts: list[list[Number]],
        scalars: list[list[Scalars]],
        rates: Rates = "none",
    ) -> list[list[Number]]:
        """Runs the rule on all batches and counts the step; returns the sums of squared rates."""
        if not batches:
            return []
        on_device = self._on_device()
        requests = []
        for batch in batches:
            request = StepRequest(batch.tensors(), form_of(batch.group), self._names(batch))
            request.counts = [] if on_device else batch.steps
            requests.append(request)
        self._draw_noise(batches, counts, requests)
        sums = run_step(self.rule, requests, scalars, rates)
        for batch in batches if on_device else ():
            if batch.steps:
                torch._foreach_add_(batch.steps, 1.0)
        return sums

    def _draw_noise(
        self,
        batches: list[ParameterBatch],
        counts: list[list[Number]],
        requests: list[StepRequest],
    ) -> None:
        position = 0
        for batch, of_batch, request in zip(batches, counts, requests, strict=True):
            if batch.group["stochastic_rounding"]:
                seed = batch.group["rounding_seed"]
                request.tensors.noise_keys = [
                    noise_key(seed, count, position + index) for index, count in enumerate(of_batch)
                ]
            position += len(batch.parameters)

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
                        self.state[parameter][name] = restored(
                            parameter, name, value, on_device=group["capturable"]
                        )

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


def number(value: Number) -> Number:
    """A float, or a tensor of float64 where reading it would wait for a GPU, or while compiling."""
    if isinstance(value, Tensor):
        waits = value.device.type != "cpu" or torch.compiler.is_compiling()
        return value.double() if waits else float(value.item())
    return value


def form_of(group: dict[str, Any]) -> Form:
    """Which form of the kernels a group asks for."""
    if torch.compiler.is_compiling() or group["capturable"]:
        return "single"
    if group["fused"]:
        return "fused"
    if group["foreach"]:
        return "foreach"
    return "auto" if group["fused"] is None and group["foreach"] is None else "single"
