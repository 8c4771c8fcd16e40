"""What new channels start with: ways to compare with the pairs of the paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn

from latewood.core import ChannelGroup, ChannelPlan
from latewood.core.coupling.additions import Addition
from latewood.core.coupling.preserving_fill import normal
from latewood.core.modes import undisturbed
from latewood.errors import RequestError, invalid

__all__ = ["INITS", "Init", "Loss", "NewValues", "gradmax_directions", "sources_of"]

Init = Literal["pair", "net2net", "replicate", "zero_out", "random", "gradmax", "firefly"]
"""How new channels are made."""
INITS: Final = get_args(Init)
Loss = Callable[[], Tensor]
"""Runs the model on a batch and returns the loss, differentiable."""

_FLAT_AT_ZERO: Final = ("relu", "relu6", "hardtanh", "abs")
_NORM_STARTS: Final = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


def sources_of(
    init: Init, group: ChannelGroup, width: int, generator: torch.Generator
) -> list[int]:
    """The channel that each new one copies, before other values may be written over it.

    Args:
        init: the initialisation.
        group: that becomes wider.
        width: its new width.
        generator: draws the sources for "net2net".

    Raises:
        RequestError: "replicate" to a width that is no multiple; copies of channels that one tensor
            makes and reads.
    """
    count = width - group.width
    if init in ("net2net", "replicate"):
        roles: dict[tuple[str, int], set[str]] = {}
        for member in group.members:
            roles.setdefault((member.tensor, member.axis), set()).add(member.role)
        for (tensor, _), several in roles.items():
            if {"consumer", "producer"} <= several:
                raise RequestError(
                    f"init: got {init!r} for {group.name}, whose channels {tensor} both makes and "
                    "reads: a copy would be divided where it is made; expected 'pair'"
                )
    if init == "net2net":
        return torch.randint(group.width, (count,), generator=generator).tolist()
    if init == "replicate" and width % group.width:
        below = width // group.width * group.width
        raise invalid(
            f"widths[{group.name!r}]",
            width,
            f"{below} or {below + group.width}, multiples of {group.width}, for init='replicate'",
        )
    return [number % group.width for number in range(count)]


@dataclass(frozen=True)
class NewValues:
    """Fills new channels of a model that was widened by copies.

    Args:
        init: the initialisation; not "pair", which the widening itself makes.
        sources: for a group's name, the channel that each new one copies.
        deviations: of random entries, by tensor; None for that of the old entries.
        directions: for "gradmax", what reads the new channels of each group, (outputs, new).
        generator: of random numbers.
    """

    init: Init
    sources: Mapping[str, Sequence[int]]
    deviations: Mapping[str, float | None]
    directions: Mapping[str, Tensor]
    generator: torch.Generator

    def fill(
        self,
        name: str,
        tensors: Sequence[tuple[nn.Module, Tensor]],
        added: Sequence[Addition],
        usual: float,
    ) -> None:
        """Writes the new entries of one tensor, the same into every copy of the model.

        Args:
            name: the tensor's own name in its module.
            tensors: the module and the wider tensor, in each copy of the model.
            added: its axes with new channels.
            usual: deviation of random entries where none was given.
        """
        if self.init in ("net2net", "replicate"):
            for addition in added:
                if "consumer" in addition.roles:
                    for _, tensor in tensors:
                        _multiply(tensor, addition, 1.0 / self.shares(addition))
            return
        deviation = self.deviations.get(added[0].tensor) or usual
        for addition in sorted(added, key=lambda each: "consumer" not in each.roles):
            positions = addition.new.flatten()
            if "consumer" in addition.roles:
                if self.init == "gradmax":
                    self._put(tensors, addition, self.directions[addition.group])
                elif self.init == "zero_out":
                    self._put(tensors, addition, 0.0)
                else:
                    self._put(tensors, addition, self._drawn(tensors, addition, deviation))
            elif "producer" in addition.roles:
                zero = self.init == "gradmax"
                drawn = 0.0 if zero else self._drawn(tensors, addition, deviation)
                self._put(tensors, addition, drawn)
            elif (start := _start(tensors[0][0], name)) is not None:
                for _, tensor in tensors:
                    tensor.index_fill_(addition.axis, positions.to(tensor.device), start)

    def shares(self, addition: Addition) -> Tensor:
        """How many channels do together what one did before, by position on the axis."""
        counts = torch.ones(len(addition.old), dtype=torch.float64)
        sources = torch.tensor(list(self.sources[addition.group]), dtype=torch.long)
        counts.index_add_(0, sources, torch.ones(len(sources), dtype=torch.float64))
        both = torch.cat([addition.old, addition.new])
        size = int(both.max()) + 1
        shares = torch.ones(size, dtype=torch.float64)
        of_channel = torch.cat([counts, counts[sources]])
        shares[both.flatten()] = of_channel.repeat_interleave(both.shape[1])
        return shares

    def _drawn(
        self, tensors: Sequence[tuple[nn.Module, Tensor]], addition: Addition, deviation: float
    ) -> Tensor:
        shape = list(tensors[0][1].shape)
        shape[addition.axis] = addition.new.numel()
        return normal(shape, [tensor for _, tensor in tensors], deviation, self.generator)

    def _put(
        self,
        tensors: Sequence[tuple[nn.Module, Tensor]],
        addition: Addition,
        values: Tensor | float,
    ) -> None:
        for _, tensor in tensors:
            positions = addition.new.flatten().to(tensor.device)
            if isinstance(values, Tensor):
                tensor.index_copy_(addition.axis, positions, values.to(tensor))
            else:
                tensor.index_fill_(addition.axis, positions, values)


def gradmax_directions(
    model: nn.Module, plan: ChannelPlan, widths: Mapping[str, int], loss: Loss | None
) -> dict[str, Tensor]:
    r"""What reads new channels so that the gradient of what makes them, all zero, is the largest.

    .. math::
        G = \sum \delta_{l+1} h_{l-1}^\top, \qquad W^{out}_{new} = c\, U_k

    with the k leading left singular vectors of G, and c the mean norm of the old columns. The
    gradient of the new rows then has norm :math:`c \sqrt{\sum_{i \le k} \sigma_i^2}` times the
    activation's slope at 0.

    Args:
        model: as it is.
        plan: its plan.
        widths: new widths by group; each made by one linear layer and read by one.
        loss: of a batch; called once, in evaluation mode.

    Returns:
        (outputs, new channels) for each group.

    Raises:
        RequestError: no loss, another layout, an activation that is flat at 0, or more new channels
            than outputs.

    Source: Evci et al., GradMax (arXiv 2201.05125).
    """
    if loss is None:
        raise invalid("loss", None, "a function that returns the loss of a batch, for 'gradmax'")
    ends: dict[str, tuple[nn.Linear, nn.Linear]] = {}
    for name, width in widths.items():
        group = plan[name]
        layers = []
        for role in ("producer", "consumer"):
            members = group.having("producer" if role == "producer" else "consumer")
            module = None
            if len(members) == 1 and members[0].tensor.endswith(".weight"):
                module = model.get_submodule(members[0].tensor.rpartition(".")[0])
            if not isinstance(module, nn.Linear) or members[0].multiplicity > 1:
                raise RequestError(
                    f"init: got 'gradmax' for {name}; expected a group that one linear layer makes "
                    "and one reads"
                )
            layers.append(module)
        made = plan.layers.get(group.having("producer")[0].tensor)
        if made is not None and made.activation in _FLAT_AT_ZERO:
            raise RequestError(
                f"init: got 'gradmax' for {name}, behind which {made.activation} has slope 0 at 0: "
                "the new channels would never learn"
            )
        if width - group.width > min(layers[1].out_features, layers[0].in_features):
            most = group.width + min(layers[1].out_features, layers[0].in_features)
            raise invalid(f"widths[{name!r}]", width, f"at most {most} for init='gradmax'")
        ends[name] = (layers[0], layers[1])
    with undisturbed(model):
        products = _gradient_products(ends, loss)
    directions = {}
    for name, product in products.items():
        left = torch.linalg.svd(product)[0][:, : widths[name] - plan[name].width]
        norm = ends[name][1].weight.detach().double().norm(dim=0).mean()
        directions[name] = left * float(norm)
    return directions


def _gradient_products(
    ends: Mapping[str, tuple[nn.Linear, nn.Linear]], loss: Loss
) -> dict[str, Tensor]:
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    hooks = []
    for name, (maker, reader) in ends.items():
        hooks.append(
            maker.register_forward_hook(
                lambda _, given, made, name=name: inputs.update({name: given[0].detach()})
            )
        )
        hooks.append(
            reader.register_forward_hook(
                lambda _, given, made, name=name: outputs.update({name: made})
            )
        )
    try:
        with torch.enable_grad():
            value = loss()
            gradients = torch.autograd.grad(value, list(outputs.values()))
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: gradient.flatten(0, -2).double().T @ inputs[name].flatten(0, -2).double()
        for name, gradient in zip(outputs, gradients, strict=True)
    }


def _multiply(tensor: Tensor, addition: Addition, factors: Tensor) -> None:
    shape = [-1 if axis == addition.axis else 1 for axis in range(tensor.ndim)]
    whole = torch.ones(tensor.shape[addition.axis], dtype=torch.float64)
    whole[: len(factors)] = factors
    tensor.mul_(whole.to(tensor).view(shape))


def _start(module: nn.Module, name: str) -> float | None:
    if isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm)):
        return _NORM_STARTS.get(name)
    return 0.0 if name == "bias" and "weight" in module._parameters else None
