"""Variance transfer: what a growth event multiplies old weights by, and how far that reaches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from torch import Tensor, nn

from latewood.core import ChannelPlan
from latewood.core.coupling.layer import Layer, LayerUse
from latewood.core.coupling.trace import layer_tensors, run_model
from latewood.core.modes import attributes_restored, undisturbed
from latewood.core.parameter_uses import parameter_uses
from latewood.growth.whole_tensors import whole_tensors

__all__ = [
    "RESCALES",
    "Rescale",
    "Rescaling",
    "new_deviation",
    "output_learning_rates",
    "rescaling",
]

Rescale = Literal["none", "vt", "vt_exact", "vt_constraint_old", "vt_constraint_new"]
"""How old weights are rescaled at a growth event."""
RESCALES: Final = get_args(Rescale)

_HOMOGENEOUS: Final = frozenset([None, "relu", "leaky_relu", "prelu", "rrelu", "abs"])
"""Activations that a positive factor passes through."""
_RECTIFIERS: Final = (
    *("relu", "leaky_relu", "prelu", "rrelu", "relu6", "elu", "celu", "selu", "gelu", "silu"),
    *("mish", "hardswish", "softplus"),
)
_STATISTICS: Final = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_NORMS: Final = (*_STATISTICS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Rescaling:
    """What multiplies which tensors of a model, before it becomes wider.

    Args:
        factors: c of every weight whose fan-in grows, by name.
        compensated: names of the weights behind which 1 / c stands, so that they compute what they
            did.
        biases: factors of biases: of their own weight, and in nets without norms of all before it.
        statistics: factors of what norms read, by name of the norm: running means are multiplied by
            it, running variances by its square.
        undone: factors by which the gradients of weights and biases become less, since a norm or a
            compensation undoes them.
    """

    factors: dict[str, float] = field(default_factory=dict)
    compensated: frozenset[str] = frozenset()
    biases: dict[str, float] = field(default_factory=dict)
    statistics: dict[str, float] = field(default_factory=dict)
    undone: dict[str, float] = field(default_factory=dict)


def rescaling(
    model: nn.Module,
    plan: ChannelPlan,
    widths: Mapping[str, int],
    example_inputs: Any,
    mode: Rescale,
) -> Rescaling:
    r"""The factors of a growth event.

    .. math::
        W^{hidden} \leftarrow \sqrt{C_t / C_{t+1}}\, W^{hidden}, \qquad
        W^{out} \leftarrow (C_t / C_{t+1})\, W^{out}

    with C the size of the axis that is summed over; weights whose fan-in stays keep their values.
    So that the result differs from the old function by nothing but one factor on the outputs, "vt"
    compensates weights whose factor would not pass through as one: what is added to a residual
    stream that nothing normalises, and what activations follow that are not positively homogeneous.
    "vt_exact" compensates all. The two constraints divide every weight that makes or reads growing
    channels by the deviation that its entries have times the root of its fan-in, before or after
    the event, and compensate none.

    Args:
        model: as it is.
        plan: its plan, with ``layers``.
        widths: new widths by group.
        example_inputs: what the model is called with, to see what feeds its norms.
        mode: of rescaling.

    Returns:
        Nothing, if mode is "none".

    Source: table 1 of Yuan, Savarese and Maire (arXiv 2306.12700): the hidden rule from a secondary
    source, the output rule recalled; the constraints are its theorem 1 as a secondary source gives
    it. What is compensated is ours.
    """
    if mode == "none":
        return Rescaling()
    sizes = _Sizes(model, plan, widths)
    if mode.startswith("vt_constraint"):
        return Rescaling(_constrained(sizes, plan, after=mode == "vt_constraint_new"))
    factors = {name: c for name, layer in plan.layers.items() if (c := sizes.factor(layer)) != 1.0}
    fed = norm_inputs(model, plan, example_inputs)
    exact = frozenset(factors) if mode == "vt_exact" else _to_compensate(plan, factors, fed)
    while True:
        scales, disagreeing = _propagated(plan, factors, exact, fed)
        if not disagreeing:
            break
        exact |= disagreeing
    biases: dict[str, float] = {}
    statistics: dict[str, float] = {}
    undone = {name: factors[name] for name in exact}
    tensors = dict(layer_tensors(model))
    for name, scale in scales.items():
        bias, layer = sizes.bias_of(name), plan.layers[name]
        if scale != 1.0 and bias in tensors:
            biases[bias] = scale
        if layer.normalised:
            if name in factors and name not in exact:
                undone[name] = factors[name]
            if bias in biases:
                undone[bias] = scale
            statistics |= {norm: scale for norm in fed.get(name, ()) if scale != 1.0}
    return Rescaling(factors, exact, biases, statistics, undone)


def new_deviation(
    layer: Layer | None, growth: Mapping[int, float], gain: float | None = None
) -> float | None:
    r"""Standard deviation of new entries: that of a weight initialised at the new width.

    .. math:: g / \sqrt{fan\_in} \text{ (input, hidden)}, \qquad 1 / fan\_in \text{ (output)}

    Args:
        layer: what the plan says of the weight, before it grows.
        growth: by axis, new size over old size.
        gain: g; None takes sqrt(2) in front of rectifiers and 1 elsewhere.

    Returns:
        None where the role is not known, for lookups, and for a weight with several uses.
    """
    if layer is None or len(layer.uses) != 1 or layer.role is None:
        return None
    use = layer.uses[0]
    if use.fan_in <= 1:
        return None
    fan_in = use.fan_in * (1.0 if use.inputs is None else growth.get(use.inputs, 1.0))
    if use.role == "output":
        return 1.0 / fan_in
    if gain is None:
        gain = math.sqrt(2.0) if layer.activation in _RECTIFIERS else 1.0
    return gain / math.sqrt(fan_in)


def output_learning_rates(
    plan: ChannelPlan, mode: Literal["relative", "absolute"] = "relative"
) -> dict[str, float]:
    """What the learning rates of output layers are multiplied by, for an optimizer's groups.

    Args:
        plan: of the network at its first width.
        mode: "relative" leaves the rate that was tuned for this width, "absolute" divides it by the
            fan-in, as the paper's table does for SGD.

    Returns:
        The factor by name of the weight.
    """
    return {
        name: 1.0 if mode == "relative" or not layer.fan_in else 1.0 / layer.fan_in
        for name, layer in plan.layers.items()
        if layer.role == "output"
    }


def norm_inputs(model: nn.Module, plan: ChannelPlan, example_inputs: Any) -> dict[str, list[str]]:
    """The norms that read just what a layer makes, by name of the layer's weight.

    Args:
        model: any; it is run once, undisturbed.
        plan: its plan.
        example_inputs: what it is called with.
    """
    weights = {name.rpartition(".")[0]: name for name in plan.layers}
    made: dict[int, tuple[str, Tensor, int]] = {}
    fed: dict[str, list[str]] = {}

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, _NORMS) and inputs and isinstance(inputs[0], Tensor):
            maker = made.get(inputs[0].data_ptr())
            # The version tells an activation in place, which leaves the memory the same.
            if maker is not None and (maker[1].numel(), maker[2]) == (
                inputs[0].numel(),
                inputs[0]._version,
            ):
                fed.setdefault(maker[0], []).append(name)
        elif name in weights and isinstance(output, Tensor):
            made[output.data_ptr()] = (weights[name], output, output._version)

    with attributes_restored(model), undisturbed(model):
        for name, module in model.named_modules():
            if isinstance(module, _NORMS) or name in weights:
                module.register_forward_hook(
                    lambda module, inputs, output, name=name: note(name, module, inputs, output)
                )
        run_model(model, example_inputs)
    return fed


class _Sizes:
    """Sizes of axes before and after an event."""

    def __init__(self, model: nn.Module, plan: ChannelPlan, widths: Mapping[str, int]) -> None:
        self.tensors = whole_tensors(model)
        uses = parameter_uses(model)
        self.shared = {n for n, tensor in self.tensors.items() if len(uses.get(id(tensor), ())) > 1}
        self.added: dict[tuple[str, int], int] = {}
        for name, width in widths.items():
            group = plan[name]
            axes = {(m.tensor, m.axis): m.multiplicity for m in group.members}
            for key, multiplicity in axes.items():
                more = (width - group.width) * multiplicity
                self.added[key] = self.added.get(key, 0) + more

    def growth(self, name: str) -> dict[int, float]:
        """New size over old size by axis; none of what is stored in pieces, which cannot grow."""
        shape = self.tensors[name].shape if name in self.tensors else ()
        return {
            axis: 1.0 + self.added.get((name, axis), 0) / size
            for axis, size in enumerate(shape)
            if size
        }

    def factor(self, layer: Layer) -> float:
        use = _only_use(layer)
        if use is None or use.inputs is None or use.role is None or layer.weight in self.shared:
            return 1.0
        ratio = 1.0 / self.growth(layer.weight).get(use.inputs, 1.0)
        return {"input": 1.0, "hidden": math.sqrt(ratio), "output": ratio}[use.role]

    def bias_of(self, weight: str) -> str:
        layer, _, own = weight.rpartition(".")
        return (
            f"{layer}.{own.replace('weight', 'bias')}" if layer else own.replace("weight", "bias")
        )


def _only_use(layer: Layer) -> LayerUse | None:
    return layer.uses[0] if len(layer.uses) == 1 else None


def _constrained(sizes: _Sizes, plan: ChannelPlan, *, after: bool) -> dict[str, float]:
    factors = {}
    for name, layer in plan.layers.items():
        use = _only_use(layer)
        touched = any(key[0] == name for key in sizes.added)
        if use is None or not touched or name in sizes.shared or use.fan_in <= 1:
            continue
        grown = 1.0 if use.inputs is None or not after else sizes.growth(name)[use.inputs]
        variance = float(sizes.tensors[name].detach().double().var(correction=0))
        product = use.fan_in * grown * variance
        factors[name] = product**-0.5 if 0.0 < product < math.inf else 1.0
    return factors


def _to_compensate(
    plan: ChannelPlan, factors: Mapping[str, float], fed: Mapping[str, Sequence[str]]
) -> frozenset[str]:
    """Weights whose factor would not reach the output, or a norm, as one factor."""
    statistics = {
        member.tensor.rpartition(".")[0]
        for group in plan
        for member in group.members
        if member.tensor.endswith("running_var")
    }
    matched = {norm for norms in fed.values() for norm in norms}
    exact = set()
    for name in factors:
        layer = plan.layers[name]
        free = statistics - matched
        beside = {
            member.tensor.rpartition(".")[0]
            for group in plan
            if any(m.tensor == name and m.role == "producer" for m in group.members)
            for member in group.members
        }
        unknown = layer.normalised is None or (layer.normalised and beside & free)
        # A norm undoes a factor only if nothing bends it on the way there.
        passes = name in fed or layer.activation in _HOMOGENEOUS
        if layer.writes_stream or unknown or not passes:
            exact.add(name)
    return frozenset(exact)


def _propagated(
    plan: ChannelPlan,
    factors: Mapping[str, float],
    exact: frozenset[str],
    fed: Mapping[str, Sequence[str]],
) -> tuple[dict[str, float], frozenset[str]]:
    """The factor on what each layer makes, and weights whose factors contradict each other."""
    read = _readings(plan)
    scales = dict.fromkeys(plan.layers, 1.0)
    for _ in plan.layers:
        before = dict(scales)
        for name, layer in plan.layers.items():
            arriving = sorted(_passed(plan.layers[maker], scales[maker]) for maker in read[name])
            scale = arriving[0] if arriving else 1.0
            several = bool(arriving) and arriving[-1] - scale > 1e-9 * arriving[-1]
            passes = name in fed or layer.activation in _HOMOGENEOUS
            # A tied weight makes what it reads elsewhere: a factor on its input would come back.
            lost = scale != 1.0 and (layer.writes_stream or not passes or len(layer.uses) > 1)
            responsible = _upstream(read[name], read) & set(factors) - exact
            if (several or lost) and responsible:
                return scales, frozenset(responsible)
            own = 1.0 if name in exact else factors.get(name, 1.0)
            scales[name] = scale * own
        if scales == before:
            return scales, frozenset()
    return scales, frozenset(factors) - exact


def _readings(plan: ChannelPlan) -> dict[str, set[str]]:
    """By layer, those that make what it reads; what works channel by channel does both."""
    read: dict[str, set[str]] = {name: set() for name in plan.layers}
    for group in plan:
        held = [member for member in group.members if member.tensor in plan.layers]
        makers = {member.tensor for member in held if member.role != "consumer"}
        made = {member.tensor for member in held if member.role == "producer"}
        for member in held:
            if member.role == "consumer":
                read[member.tensor] |= makers
            elif member.role == "per_channel":
                read[member.tensor] |= made
    return {name: makers - {name} for name, makers in read.items()}


def _passed(layer: Layer, scale: float) -> float:
    return 1.0 if layer.normalised else scale


def _upstream(layers: set[str], read: Mapping[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = list(layers)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(read[name])
    return reached
