"""Learning from the float network that one started from, by hooks instead of another loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from latewood.core.modes import evaluated
from latewood.errors import RequestError, invalid

__all__ = ["Distillation"]


class Distillation:
    r"""The divergence of a network's predictions from those of a teacher on the same inputs.

    .. math:: \mathrm{KL}(\mathrm{softmax}(t) \,\|\, \mathrm{softmax}(z))

    over the last axis of the outputs z and t, the mean over all others.

    Args:
        model: the student; its calls in training are remembered until the next one.
        teacher: a network that takes the same inputs, in another object; it is never changed.
        weight: factor of the divergence.

    Source: usual practice, an option of ours; the papers do not state one.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module, *, weight: float) -> None:
        own = {id(parameter) for parameter in model.parameters()}
        if not isinstance(teacher, nn.Module):
            raise invalid("distill_from", type(teacher).__name__, "a torch module")
        if teacher is model or any(id(parameter) in own for parameter in teacher.parameters()):
            raise invalid("distill_from", "the model itself", "another object, such as a deepcopy")
        self.teacher, self.weight = teacher, weight
        self._call: tuple[tuple[Any, ...], dict[str, Any], Any] | None = None
        self._handle: RemovableHandle = model.register_forward_hook(
            self._remember, with_kwargs=True
        )

    def loss(self, like: Tensor) -> Tensor:
        """The weighted divergence of the last call in training; 0 before the first.

        Args:
            like: gives dtype and device of the 0.

        Raises:
            RequestError: outputs that hold no logits, or differ in shape from the teacher's.
        """
        if self._call is None:
            return torch.zeros((), dtype=like.dtype, device=like.device)
        args, kwargs, outputs = self._call
        with evaluated(self.teacher), torch.no_grad():
            expected = _logits(self.teacher(*args, **kwargs))
        logits = _logits(outputs)
        if logits.shape != expected.shape:
            raise invalid("distill_from", tuple(expected.shape), f"outputs {tuple(logits.shape)}")
        divergence = F.kl_div(
            logits.float().log_softmax(-1).flatten(0, -2),
            expected.float().log_softmax(-1).flatten(0, -2),
            reduction="batchmean",
            log_target=True,
        )
        return self.weight * divergence

    def remove(self) -> None:
        """Takes the hook off the model."""
        self._handle.remove()
        self._call = None

    def _remember(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any
    ) -> None:
        if module.training and torch.is_grad_enabled():
            self._call = (args, kwargs, outputs)


def _logits(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs
    logits = getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor):
        raise RequestError(
            f"distill_from: outputs of type {type(outputs).__name__}; expected a tensor or an "
            "object with logits"
        )
    return logits
