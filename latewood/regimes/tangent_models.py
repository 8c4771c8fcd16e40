"""Models beside a model: its linearisation, and its output scaled and centred."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from latewood.core.copies import copy_of
from latewood.errors import invalid

__all__ = ["Linearized", "Scaled", "linearize"]


class Linearized(nn.Module):
    r"""The tangent model of a network at its weights w_0, with weights of its own to train.

    .. math:: f_{\mathrm{lin}}(x; w) = f(x; w_0) + J_{w_0}(x) (w - w_0)

    It starts as the network itself and trains in the same loops. Its modes are the network's.

    Args:
        model: gives a tensor; it is copied, and the copy never changes.

    Raises:
        RequestError: it has no parameter that is trained, or cannot be copied.

    Source: Jacot et al. 2018 (arXiv 1806.07572); Lee et al. 2019 (arXiv 1902.06720).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.origin = copy_of(model)
        self.names = [n for n, p in self.origin.named_parameters() if p.requires_grad]
        if not self.names:
            raise invalid("model", type(model).__name__, "at least one parameter that is trained")
        for parameter in self.origin.parameters():
            parameter.requires_grad_(False)
        start = dict(self.origin.named_parameters())
        self.weights = nn.ParameterList(nn.Parameter(start[n].detach().clone()) for n in self.names)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The network's output to first order in the weights' change."""
        origin = dict(self.origin.named_parameters())
        start = {name: origin[name] for name in self.names}
        change = {
            name: weight - start[name]
            for name, weight in zip(self.names, self.weights, strict=True)
        }

        def output(values: dict[str, Tensor]) -> Tensor:
            found: Tensor = functional_call(self.origin, values, args, kwargs)
            return found

        value, moved = jvp(output, (start,), (change,))[:2]
        linear: Tensor = value + moved
        return linear


def linearize(model: nn.Module) -> Linearized:
    """The tangent model of a network at its present weights, to train beside it.

    Args:
        model: any module that gives a tensor.

    Returns:
        A module of its own: ``linearize(model)(x)`` is ``model(x)`` before training.

    Raises:
        RequestError: as ``Linearized``.
    """
    return Linearized(model)


class Scaled(nn.Module):
    r"""A model whose output is scaled: large alpha makes its training that of a kernel.

    .. math:: h(x) = \alpha (f(x; w) - f(x; w_0))

    Train it on loss / alpha^2 with the learning rate of alpha = 1, whatever the model: for mean
    squared errors ``mse(h / alpha, y / alpha)`` is that loss.

    Args:
        model: gives a tensor; what is trained is this very model.
        alpha: above 0.
        center: "frozen" subtracts a frozen copy of the model as it is now; "replicated" one that is
            trained too, which doubles kernel and parameters; "none" subtracts nothing.

    Raises:
        RequestError: a value out of range, or a model that cannot be copied.

    Source: Chizat et al. 2019 (arXiv 1812.07956); COLT 2020 (arXiv 2002.09277) for the copy that
    is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        alpha: float,
        *,
        center: Literal["frozen", "replicated", "none"] = "frozen",
    ) -> None:
        super().__init__()
        if isinstance(alpha, bool) or not isinstance(alpha, int | float):
            raise invalid("alpha", alpha, "a finite number above 0")
        if not math.isfinite(alpha) or alpha <= 0:
            raise invalid("alpha", alpha, "a finite number above 0")
        if center not in ("frozen", "replicated", "none"):
            raise invalid("center", center, "'frozen', 'replicated' or 'none'")
        self.model, self.alpha, self.center = model, float(alpha), center
        self.start = None if center == "none" else copy_of(model)
        if self.start is not None and center == "frozen":
            self.start.requires_grad_(False)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """alpha times how far the model's output is from its start."""
        output: Tensor = self.model(*args, **kwargs)
        if self.start is not None:
            if self.center == "frozen":
                with torch.no_grad():
                    before = self.start(*args, **kwargs)
            else:
                before = self.start(*args, **kwargs)
            output = output - before
        return self.alpha * output
