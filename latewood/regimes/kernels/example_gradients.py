"""Gradients of outputs for every example: by a model's layers where that can be, else slowly."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.utils import _pytree as pytree

from latewood.core.modes import uncompiled, unfused
from latewood.errors import RequestError, invalid, listed
from latewood.regimes.kernels.gradient_pieces import Dense, Mode, Piece, bytes_of, dense_gradient
from latewood.regimes.kernels.parameter_operations import LAYOUTS, Operation, OperationWatcher

__all__ = [
    "ChangedWay",
    "ExampleGradients",
    "Inputs",
    "ParameterMethod",
    "Way",
    "examples_of",
]

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""What a model is called with: one tensor, positional or keyword arguments; every tensor in there
has the examples along its first axis."""
Way = Literal["layer", "vmap", "loop"]
"""How the gradient of a parameter is found: from the operations that read it, by ``torch.func``, or
by a backward pass for each example and output."""

_CHECKED: Final = 3
_TOLERANCES: Final = {torch.float64: 1e-6, torch.float32: 2e-3}


@dataclass(frozen=True)
class ParameterMethod:
    """How the kernel of one parameter is computed.

    Args:
        parameter: its name.
        way: "layer", "vmap" or "loop".
        reason: why it is not "layer"; "" if it is.
    """

    parameter: str
    way: Way
    reason: str


def examples_of(inputs: Inputs, name: str = "inputs") -> int:
    """The number of examples in some inputs.

    Raises:
        RequestError: they hold no tensor, or tensors of different lengths, or none.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    lengths = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
    if len(lengths) != 1 or 0 in lengths:
        raise invalid(name, sorted(lengths), "tensors with the same number of examples, at least 1")
    return lengths.pop()


def part_of(inputs: Inputs, examples: slice) -> Any:
    """Some of the examples."""
    return pytree.tree_map(
        lambda leaf: leaf[examples] if isinstance(leaf, Tensor) else leaf, inputs
    )


class ExampleGradients:
    """The gradients of a model's outputs, example by example and parameter by parameter.

    It runs the model on copies of its parameters, so that neither these nor their gradients, nor
    buffers, nor generators change. A first run on a few examples says which operations read which
    parameter, and whether what they give is the whole gradient; where it is not, the slow ways are.

    Args:
        model: any module that gives (N, C).
        inputs: some examples.
        mode: of the kernel: "sum" has one output, the sum of all.
        include: globs on names of parameters to cover.
        exclude: globs on names of parameters to leave out.
        dtype: in which to compute; the model's own if None.
        forward: how to run the model on inputs; by default ``model(inputs)`` and the like.

    Raises:
        RequestError: what cannot have a tangent kernel: layers or outputs in which examples depend
            on each other or on chance, outputs that are not (N, C), no parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        *,
        mode: Mode,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        dtype: torch.dtype | None = None,
        forward: Callable[[nn.Module, Any], Tensor] | None = None,
    ) -> None:
        _require_independent(model)
        self.model, self.mode, self.dtype, self.forward = model, mode, dtype, forward
        self.names = _selected(model, include, exclude)
        self.parameters = {
            name: self._cast(parameter.detach()) for name, parameter in model.named_parameters()
        }
        for name in self.names:
            self.parameters[name] = self.parameters[name].detach().requires_grad_()
        self.methods: list[ParameterMethod] = []
        self._layouts: list[str | None] = []
        self.bytes_per_example, self._classes = 0, 1
        with self._running():
            self._plan(self._cast_inputs(part_of(inputs, slice(0, _CHECKED))))

    @property
    def slow(self) -> list[str]:
        """The parameters whose gradients are not found from operations."""
        return [method.parameter for method in self.methods if method.way != "layer"]

    def pieces(self, inputs: Inputs) -> dict[str, list[Piece]]:
        """The gradients for some examples, by parameter; a parameter without any is left out.

        Raises:
            ChangedWay: of these examples some are elsewhere in what a layer returns than the plan
                says; the next call takes the slow way for its parameters.
        """
        with self._running():
            return self._pieces(self._cast_inputs(inputs))

    def outputs(self, inputs: Inputs) -> Tensor:
        """(N, C), what the model gives."""
        with self._running(), torch.no_grad():
            return self._output(self._cast_inputs(inputs))

    def pulled(self, inputs: Inputs, weights: Tensor) -> dict[str, Tensor]:
        """The gradient of the sum of all outputs times weights (N, C), by parameter."""
        with self._running():
            chosen = [self.parameters[name] for name in self.names]
            total = (self._output(self._cast_inputs(inputs)) * weights).sum()
            grads = torch.autograd.grad(total, chosen, allow_unused=True)
            return {
                name: torch.zeros_like(parameter) if grad is None else grad
                for name, parameter, grad in zip(self.names, chosen, grads, strict=True)
            }

    def _pieces(self, inputs: Inputs) -> dict[str, list[Piece]]:
        count = examples_of(inputs)
        slow = set(self.slow)
        result: dict[str, list[Piece]] = {}
        if len(slow) < len(self.names):
            output, watcher = self._watched(inputs)
            operations = watcher.operations
            if len(operations) != len(self._layouts):
                raise RequestError(
                    "model: the operations that it runs depend on the number of examples; exclude "
                    "the parameters concerned, or give all examples at once"
                )
            kept = [
                (operation, layout)
                for operation, layout in zip(operations, self._layouts, strict=True)
                if layout is not None and set(operation.names) - slow
            ]
            moved = {n for n in watcher.unknown if n in self._chosen and n not in slow}
            moved |= _moved(kept, count)
            signals = [] if moved else self._signals(output, [op for op, _ in kept])
            if not moved:
                moved = self._misplaced(output, kept, signals)
            if moved - slow:
                self._slow_down(moved - slow)
                raise ChangedWay
            for (operation, layout), signal in zip(kept, signals, strict=True):
                if signal is None:
                    continue
                for name, piece in operation.pieces(signal, count, layout):
                    if name in self.parameters and name in self._chosen and name not in slow:
                        result.setdefault(name, []).append(piece)
        by_way: dict[Way, list[str]] = {}
        for method in self.methods:
            by_way.setdefault(method.way, []).append(method.parameter)
        for name, gradient in self._by_vmap(by_way.get("vmap", []), inputs).items():
            result[name] = [Dense(gradient)]
        for name, gradient in self._by_loop(by_way.get("loop", []), inputs).items():
            result[name] = [Dense(gradient)]
        return {name: result[name] for name in self.names if name in result}

    def _signals(self, output: Tensor, operations: list[Operation]) -> list[Tensor | None]:
        """Gradients of the outputs in what each operation returned, (C, *shape)."""
        targets = (
            [output.sum()] if self.mode == "sum" else [each.sum() for each in output.unbind(1)]
        )
        edges = [operation.edge for operation in operations]
        if not edges or not output.requires_grad:
            return [None] * len(edges)
        signals: list[Tensor | None] = [None] * len(edges)
        for index, target in enumerate(targets):
            grads: Sequence[Tensor | None] = torch.autograd.grad(
                target, edges, retain_graph=True, allow_unused=True
            )
            for place, grad in enumerate(grads):
                if grad is None:
                    continue
                held = signals[place]
                if held is None:
                    held = grad.new_zeros(len(targets), *grad.shape)
                    signals[place] = held
                held[index] = grad
        return signals

    def _misplaced(
        self,
        output: Tensor,
        kept: list[tuple[Operation, str]],
        signals: list[Tensor | None],
    ) -> set[str]:
        """Parameters of operations in which an example is not where those of the plan were.

        Sorting and routing change places with the data, so it takes all of the examples to see it:
        with a factor for each example on its outputs, the gradients at its place have that factor.
        """
        edges = [operation.edge for operation, _ in kept]
        if len(output) == 1 or not edges or not output.requires_grad:
            return set()
        draws = torch.rand(len(output), generator=torch.Generator().manual_seed(0))
        factors = (1 + draws).to(output)
        weighted = torch.autograd.grad((output * factors[:, None]).sum(), edges, allow_unused=True)
        tolerance = _TOLERANCES.get(output.dtype, 5e-2)
        names: set[str] = set()
        for (operation, layout), signal, grad in zip(kept, signals, weighted, strict=True):
            if signal is None or grad is None:
                continue
            expected = _times(signal.sum(0), factors, layout)
            low, high = torch.aminmax(signal)
            largest = torch.maximum(-low, high) * len(signal)
            if not bool(((grad - expected).abs() <= tolerance * largest).all()):
                names.update(operation.names)
        return names & self._chosen

    def _slow_down(self, names: set[str]) -> None:
        """Has some parameters take the slow way that nothing escapes."""
        reason = "examples change places in what its layer returns"
        self.methods = [
            ParameterMethod(m.parameter, "loop", reason) if m.parameter in names else m
            for m in self.methods
        ]
        classes, entries = self._classes, sum(self.parameters[name].numel() for name in names)
        self.bytes_per_example += 2 * classes * entries * self.parameters[self.names[0]].itemsize

    def _plan(self, inputs: Inputs) -> None:
        """Finds how the gradient of each parameter is had, and checks it on a few examples."""
        count = examples_of(inputs)
        output, watcher = self._watched(inputs)
        tolerance = _TOLERANCES.get(output.dtype, 5e-2)
        self._require_alone(inputs, output, tolerance)
        if not output.requires_grad:
            raise RequestError(
                "model: its outputs depend on none of the parameters "
                f"{listed(self.names)}; expected ones that gradients reach"
            )
        signs = torch.randint(0, 2, (output.shape[1],), generator=torch.Generator().manual_seed(0))
        weights = (2 * signs - 1).to(output)
        if self.mode == "sum":
            weights = torch.ones_like(weights)
        operations = watcher.operations
        edges = [operation.edge for operation in operations]
        chosen = [self.parameters[name] for name in self.names]
        totals: dict[int, dict[str, Tensor | None]] = {}
        singles: list[list[Tensor | None]] = []
        checked = sorted({0, count - 1})
        for example in checked:
            target = (output[example] * weights).sum()
            grads: Sequence[Tensor | None] = torch.autograd.grad(
                target, [*chosen, *edges], retain_graph=True, allow_unused=True
            )
            totals[example] = dict(zip(self.names, grads[: len(chosen)], strict=True))
            singles.append(list(grads[len(chosen) :]))
        reasons = {
            name: f"read by {operation}"
            for name, operation in watcher.unknown.items()
            if name in self._chosen
        }
        self._layouts = []
        found: dict[int, dict[str, list[Piece]]] = {example: {} for example in checked}
        size, classes = 0, 1 if self.mode == "sum" else output.shape[1]
        self._classes = classes
        for place, operation in enumerate(operations):
            signals = [grads[place] for grads in singles]
            layout = _layout_of(operation, signals, checked, count)
            self._layouts.append(layout)
            if layout is None:
                for name in operation.names:
                    reasons.setdefault(name, "examples are not apart in what its layer returns")
                continue
            for example, signal in zip(checked, signals, strict=True):
                if signal is None:
                    continue
                for name, piece in operation.pieces(signal[None], count, layout):
                    found[example].setdefault(name, []).append(piece)
                    size += bytes_of(piece, classes)
        self.bytes_per_example = 2 * max(1, size // (len(checked) * count))
        for name in self.names:
            if name in reasons:
                continue
            for example in checked:
                total = totals[example][name]
                parts = found[example].get(name)
                if not parts and (total is None or not bool(total.any())):
                    continue
                if total is None or not parts:
                    reasons[name] = "read where no operation shows it"
                    break
                ours = dense_gradient(parts)[0, example].reshape(total.shape)
                if not _close(ours, total, tolerance):
                    reasons[name] = "its layer's gradient is not the whole one"
                    break
        self._settle(inputs, reasons, totals, weights, tolerance)

    def _settle(
        self,
        inputs: Inputs,
        reasons: dict[str, str],
        totals: dict[int, dict[str, Tensor | None]],
        weights: Tensor,
        tolerance: float,
    ) -> None:
        """Says how each parameter is done; the slow ways are checked like the fast one."""
        slow = [name for name in self.names if name in reasons]
        ways: dict[str, Way] = dict.fromkeys(self.names, "layer")
        if slow:
            try:
                jacobians = self._by_vmap(slow, inputs)
            except Exception as error:
                # A model may do anything that torch.func does not follow.
                jacobians = {}
                refused = f"; torch.func: {type(error).__name__}"
            else:
                refused = "; torch.func gives another gradient"
            for name in slow:
                ways[name] = "vmap"
                for example, grads in totals.items():
                    total = grads[name]
                    if name in jacobians and total is not None:
                        rows = jacobians[name][:, example]
                        ours = rows[0] if self.mode == "sum" else weights.to(rows) @ rows
                        if self.mode == "sum" or _close(
                            ours.reshape(total.shape), total, tolerance
                        ):
                            continue
                    elif name in jacobians:
                        continue
                    ways[name] = "loop"
                if ways[name] == "loop":
                    reasons[name] += refused
            classes = 1 if self.mode == "sum" else len(weights)
            entries = sum(self.parameters[name].numel() for name in slow)
            self.bytes_per_example += 2 * classes * entries * weights.element_size()
        self.methods = [ParameterMethod(n, ways[n], reasons.get(n, "")) for n in self.names]

    def _by_vmap(self, names: list[str], inputs: Inputs) -> dict[str, Tensor]:
        """(C, N, P) of some parameters, by ``torch.func``."""
        if not names:
            return {}
        moving = {name: self.parameters[name].detach() for name in names}
        leaves, structure = pytree.tree_flatten(inputs)
        places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

        def single(values: dict[str, Tensor], *tensors: Tensor) -> Tensor:
            filled = list(leaves)
            for index, tensor in zip(places, tensors, strict=True):
                filled[index] = tensor[None]
            example = pytree.tree_unflatten(filled, structure)
            output = self._output(example, values)[0]
            return output.sum()[None] if self.mode == "sum" else output

        jacobian = vmap(jacrev(single), in_dims=(None, *(0 for _ in places)))
        with warnings.catch_warnings():
            # That an operation is slow under it, this way says itself.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            found = jacobian(moving, *(leaves[index] for index in places))
        return {name: value.detach().flatten(2).transpose(0, 1) for name, value in found.items()}

    def _by_loop(self, names: list[str], inputs: Inputs) -> dict[str, Tensor]:
        """The same by a backward pass for each example and output."""
        if not names:
            return {}
        chosen = [self.parameters[name] for name in names]
        rows: dict[str, list[Tensor]] = {name: [] for name in names}
        count = examples_of(inputs)
        for example in range(count):
            output = self._output(part_of(inputs, slice(example, example + 1)))[0]
            targets = [output.sum()] if self.mode == "sum" else list(output)
            for index, target in enumerate(targets):
                grads = torch.autograd.grad(
                    target, chosen, retain_graph=index + 1 < len(targets), allow_unused=True
                )
                for name, parameter, grad in zip(names, chosen, grads, strict=True):
                    whole = torch.zeros_like(parameter) if grad is None else grad
                    rows[name].append(whole.detach().flatten())
        return {
            name: torch.stack(parts).unflatten(0, (count, -1)).transpose(0, 1)
            for name, parts in rows.items()
        }

    def _watched(self, inputs: Inputs) -> tuple[Tensor, OperationWatcher]:
        ids = {id(self.parameters[name]): name for name in self.names}
        watcher = OperationWatcher(ids)
        with watcher:
            output = self._output(inputs)
        return output, watcher

    def _output(self, inputs: Inputs, values: Mapping[str, Tensor] | None = None) -> Tensor:
        # Copies of the buffers: a run may write into them.
        buffers = {name: self._cast(b.detach()).clone() for name, b in self.model.named_buffers()}
        state = {**self.parameters, **buffers, **(values or {})}
        if self.forward is not None:
            wrapper = _Called(self.model, self.forward)
            output = functional_call(
                wrapper, {f"model.{name}": value for name, value in state.items()}, (inputs,)
            )
        elif isinstance(inputs, Mapping):
            output = functional_call(self.model, state, (), dict(inputs))
        else:
            args = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
            output = functional_call(self.model, state, args)
        output = getattr(output, "logits", output)
        if not isinstance(output, Tensor) or output.ndim != 2 or not output.is_floating_point():
            shown = (
                (tuple(output.shape), output.dtype) if isinstance(output, Tensor) else type(output)
            )
            raise invalid(
                "model",
                shown,
                "outputs of shape (N, C), real; forward= may pick or reshape them: "
                "forward=lambda model, x: model(x)[:, -1]",
            )
        if len(output) != examples_of(inputs):
            raise invalid(
                "model", tuple(output.shape), f"one row for each of {examples_of(inputs)} examples"
            )
        return output

    def _require_alone(self, inputs: Inputs, output: Tensor, tolerance: float) -> None:
        with torch.no_grad():
            again = self._output(inputs)
            if not _close(again, output, tolerance):
                raise RequestError(
                    "model: its outputs change from one run to the next, so it draws random "
                    "numbers or keeps a state; expected model.eval() and no noise"
                )
            for example in sorted({0, len(output) - 1}):
                alone = self._output(part_of(inputs, slice(example, example + 1)))
                if len(output) > 1 and not _close(alone[0], output[example], tolerance):
                    raise RequestError(
                        "model: what it gives for an example depends on the others of its batch, "
                        "so there is no tangent kernel; expected one whose examples do not mix"
                    )

    @property
    def _chosen(self) -> set[str]:
        return set(self.names)

    def _cast(self, tensor: Tensor) -> Tensor:
        if self.dtype is not None and tensor.is_floating_point():
            return tensor.to(self.dtype)
        return tensor

    def _cast_inputs(self, inputs: Inputs) -> Any:
        return pytree.tree_map(
            lambda leaf: self._cast(leaf.detach()) if isinstance(leaf, Tensor) else leaf, inputs
        )

    @contextmanager
    def _running(self) -> Iterator[None]:
        with torch.random.fork_rng(), uncompiled(), unfused(), torch.enable_grad():
            yield


def _moved(kept: list[tuple[Operation, str]], count: int) -> set[str]:
    """Parameters of operations whose output cannot hold the examples as in the plan."""
    return {
        name
        for operation, layout in kept
        if not operation.divides(count, layout)
        for name in operation.names
    }


def _times(signal: Tensor, factors: Tensor, layout: str) -> Tensor:
    """A signal with a factor for each example, at the place of that example."""
    count = len(factors)
    if layout == "second":
        return signal * factors.reshape(1, count, *[1] * (signal.ndim - 2))
    if layout == "minor":
        whole = factors.repeat(signal.shape[0] // count)
    else:
        whole = factors.repeat_interleave(signal.shape[0] // count)
    return signal * whole.reshape(-1, *[1] * (signal.ndim - 1))


class ChangedWay(Exception):
    """A parameter takes another way from now on, so what was computed has to be computed anew."""


class _Called(nn.Module):
    """A model behind a function that calls it."""

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, forward
        self.training = model.training

    def forward(self, inputs: Any) -> Tensor:
        return self.call(self.model, inputs)


def _layout_of(
    operation: Operation, signals: list[Tensor | None], checked: list[int], count: int
) -> str | None:
    """Where the examples are: no gradient of one may arrive at the place of another."""
    for layout in LAYOUTS:
        if not operation.divides(count, layout):
            continue
        apart = True
        for example, signal in zip(checked, signals, strict=True):
            if signal is None:
                continue
            if layout == "second":
                by_example = signal.transpose(0, 1)
            elif layout == "minor":
                by_example = signal.unflatten(0, (-1, count)).transpose(0, 1)
            else:
                by_example = signal.reshape(count, -1)
            others = [index for index in range(count) if index != example]
            apart = apart and not bool(by_example[others].any())
        if apart:
            return layout
    return None


def _close(ours: Tensor, total: Tensor, tolerance: float) -> bool:
    scale = total.abs().max() if total.numel() else total.sum()
    return bool(((ours - total).abs() <= tolerance * scale + 1e-30).all())


def _selected(model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    for argument, globs in (("include", include), ("exclude", exclude)):
        if isinstance(globs, str):
            raise invalid(argument, globs, "a list of globs on names of parameters")
    named = dict(model.named_parameters())
    names = [
        name
        for name, parameter in named.items()
        if parameter.requires_grad
        and any(fnmatch.fnmatchcase(name, glob) for glob in include)
        and not any(fnmatch.fnmatchcase(name, glob) for glob in exclude)
    ]
    for glob in include:
        if glob != "*" and not any(fnmatch.fnmatchcase(name, glob) for name in named):
            raise invalid("include", glob, f"a glob that matches one of {listed(named)}")
    if not names:
        raise invalid(
            "model", type(model).__name__, "at least one chosen parameter that is trained"
        )
    return names


def _require_independent(model: nn.Module) -> None:
    """Refuses layers by which the examples of a batch depend on each other or on chance."""
    for name, module in model.named_modules():
        batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if batch_norm and (module.training or module.running_mean is None):
            raise invalid(
                "model",
                f"{name or 'a model'}, a {type(module).__name__} that normalises with its batch",
                "batch norms in evaluation mode, model.eval(), with running statistics: in "
                "training mode examples depend on each other and there is no tangent kernel",
            )
        dropout = isinstance(module, nn.modules.dropout._DropoutNd)
        if dropout and module.training and module.p > 0:
            raise invalid(
                "model",
                f"{name or 'a model'}, a {type(module).__name__} in training mode",
                "model.eval(): with dropout the kernel is another at every run",
            )
