"""Parts of a model that do nothing: blocks that return their input, branches that are zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latewood.core.coupling.trace import layer_tensors, run_model
from latewood.core.coupling.traced_call import tensors_in
from latewood.core.modes import evaluated, unfused
from latewood.slim.cache_places import cached_layers, keep_places
from latewood.slim.comparison import Examples
from latewood.slim.dependence import Dependence
from latewood.slim.dependence_rules import RULES

__all__ = [
    "Idleness",
    "Overwrites",
    "Skip",
    "Zeros",
    "idle_modules",
    "replace_modules",
    "skip_modules",
]

Idleness = Literal["identity", "copy", "zeros"]
"""What a module returns: its input, a copy of it where one of the two is overwritten, zeros."""

_FACT: Final = (bool, int, float, str, type(None))

_SAME: Final = ("contiguous", "clone", "detach", "view", "reshape", "flatten", "expand")
"""Operations that leave the values as they are; they count where the shape stays too."""
_POSITIVE: Final = ("relu", "relu6", "sigmoid", "softmax", "softplus", "exp", "abs", "square")
_KEEPING_SIGN: Final = """
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d getitem permute transpose squeeze unsqueeze mean
""".split()  # noqa: SIM905


class _StandIn(nn.Module):
    """Answers what the code around a module asks it, in its place.

    ``nn.TransformerEncoder`` asks its first layer whether its attention is batch first, others ask
    each layer for its kind of attention.

    Args:
        replaced: whose plain attributes it has, and those of the modules inside; None has none.
    """

    def __init__(self, replaced: nn.Module | None = None) -> None:
        super().__init__()
        facts = {} if replaced is None else _facts(replaced)
        vars(self).update(facts)
        self._cached_layers = cached_layers(facts)


class Skip(_StandIn):
    """Returns its first argument, whatever else it is called with; a cache still grows.

    Args:
        replaced: the module that it stands for.
        copies: return a copy, since the input or the output is overwritten later.
    """

    def __init__(self, replaced: nn.Module | None = None, *, copies: bool = False) -> None:
        super().__init__(replaced)
        self.copies = copies

    def forward(self, inputs: Tensor, *others: Any, **named: Any) -> Tensor:
        """The input."""
        keep_places(self._cached_layers, inputs, [*others, *named.values()])
        return inputs.clone() if self.copies else inputs


class Zeros(_StandIn):
    """Returns zeros shaped like its first argument; a cache that it is called with still grows.

    Args:
        replaced: the module that it stands for.
    """

    def forward(self, inputs: Tensor, *others: Any, **named: Any) -> Tensor:
        """Zeros of the input's shape and type."""
        keep_places(self._cached_layers, inputs, [*others, *named.values()])
        return torch.zeros_like(inputs)


class Overwrites:
    """Sees where an identity may not return its very input: one of the two is overwritten later."""

    def __init__(self) -> None:
        self._versions: dict[str, list[tuple[Tensor, int]]] = {}

    def follow(self, name: str, inputs: Tensor, output: Tensor) -> None:
        """Notes what a module was given and what it returned, when it has run."""
        if _memory(inputs) != _memory(output):
            pair = [(tensor, tensor._version) for tensor in (inputs, output)]
            self._versions.setdefault(name, []).extend(pair)

    def after(self, name: str) -> bool:
        """Whether what the module was given or returned has been changed in place since."""
        return any(tensor._version > version for tensor, version in self._versions.get(name, ()))


def idle_modules(model: nn.Module, example_inputs: Examples) -> dict[str, Idleness]:
    """Finds the modules with weights that do nothing, whatever the model is given.

    A module is an identity if, operation by operation, it only adds exact zeros to its input, or
    applies a ReLU to what a ReLU made, or moves nothing; a residual block whose branch is masked is
    one. A module of several layers is zero if its output is, and has its input's shape.

    Args:
        model: any module, with its masks folded in.
        example_inputs: what it is called with.

    Returns:
        The outermost such modules by name, and which they are; never the model itself.
    """
    with evaluated(model), unfused(), torch.no_grad(), parametrize.cached():
        tensors = {name: getattr(*owner) for name, owner in layer_tensors(model)}
        state = _Values({id(tensor): name for name, tensor in tensors.items()})
        with _modules_watched(model, state), state:
            run_model(model, example_inputs)
    idle: dict[str, Idleness] = {}
    # Outer modules come first here, but last in the run.
    for name, _ in model.named_modules():
        kinds = state.verdicts.get(name, set())
        kind = next(iter(kinds)) if len(kinds) == 1 else None
        inside = any(name.startswith(f"{outer}.") for outer in idle)
        if kind is not None and not inside:
            overwritten = kind == "identity" and state.overwrites.after(name)
            idle[name] = "copy" if overwritten else kind
    return idle


def replace_modules(model: nn.Module, modules: Mapping[str, str]) -> None:
    """Puts stand-ins in the places of modules, which keep their names.

    Args:
        model: changed in place.
        modules: by name, "identity", "copy" or "zeros".
    """
    for name, kind in modules.items():
        replaced = model.get_submodule(name)
        if kind == "zeros":
            stand_in: nn.Module = Zeros(replaced)
        else:
            stand_in = Skip(replaced, copies=kind == "copy")
        model.set_submodule(name, stand_in.train(replaced.training))


def skip_modules(model: nn.Module, modules: Mapping[str, str]) -> None:
    """Takes idle modules out of a model, with their parameters; torch's encoders get shorter.

    Args:
        model: changed in place.
        modules: by name, "identity", "copy" or "zeros".
    """
    replace_modules(model, modules)
    for encoder in model.modules():
        if isinstance(encoder, nn.TransformerEncoder):
            layers = [layer for layer in encoder.layers if not _is_plain_skip(layer)]
            # It asks its first layer about its attention, so one must stay to answer.
            layers = layers or [*encoder.layers][:1]
            if len(layers) < len(encoder.layers):
                encoder.layers = nn.ModuleList(layers)
                encoder.num_layers = len(layers)


def _is_plain_skip(layer: nn.Module) -> bool:
    return isinstance(layer, Skip) and not layer.copies


def _facts(module: nn.Module) -> dict[str, Any]:
    """The plain attributes of a module by name, and namespaces with those of its submodules."""
    facts: dict[str, Any] = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, _FACT) and not name.startswith("_") and name != "training"
    }
    stand_ins = {
        name: value for name, value in vars(module).items() if isinstance(value, SimpleNamespace)
    }
    inside = {
        name: SimpleNamespace(**_facts(submodule)) for name, submodule in module.named_children()
    }
    return {**facts, **stand_ins, **inside}


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Values(Dependence):
    """Beside what depends on the inputs, which tensors are equal, and which are never negative.

    Each value has a token; tensors with the same token are equal whatever the input is.
    """

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__(names, RULES)
        self.verdicts: dict[str, set[Idleness | None]] = {}
        self.overwrites = Overwrites()
        self._tokens: dict[int, tuple[Tensor, object]] = {}
        self._positive: set[object] = set()

    def token(self, tensor: Tensor) -> object:
        """What stands for a tensor's present value."""
        return self._tokens.setdefault(id(tensor), (tensor, object()))[1]

    def is_zero(self, tensor: Tensor) -> bool:
        """Whether all of a tensor is zero whatever the input is."""
        # Asked from a hook, the question itself would be watched, and its answer steers the run.
        with torch._C.DisableTorchFunction():
            return not bool(self.matters(tensor).any())

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(function, "__name__", "").strip("_")
        named = kwargs or {}
        first = args[0] if args and isinstance(args[0], Tensor) else None
        known = None if first is None else self.token(first)
        versions = [(tensor, tensor._version) for tensor in tensors_in((args, named))]
        # Before the operation runs, since in place it overwrites what the answer depends on.
        same = None if first is None else self._unchanged(name, first, args, named)
        output = super().__torch_function__(function, types, args, kwargs)
        for tensor, version in versions:
            if tensor._version > version and not (tensor is first and same is known):
                self._renew(tensor)
        if not isinstance(output, Tensor):
            return output
        if output is not first:
            kind = None if first is None else (first.shape, first.dtype)
            equal = same is not None and (output.shape, output.dtype) == kind
            self._tokens[id(output)] = (output, same if equal else object())
        if name in _POSITIVE or (name in _KEEPING_SIGN and known in self._positive):
            self._positive.add(self.token(output))
        return output

    def _unchanged(
        self, name: str, first: Tensor, args: tuple[Any, ...], named: dict[str, Any]
    ) -> object | None:
        """The token of what the operation's result equals, if it equals something."""
        if name in _SAME:
            return self.token(first)
        if name == "relu" and self.token(first) in self._positive:
            return self.token(first)
        if name.startswith("dropout") and named.get("training") is False:
            return self.token(first)
        if name in ("add", "iadd", "radd") and not named and isinstance(args[1], Tensor):
            other = args[1]
            if other.shape == first.shape and other.dtype == first.dtype:
                if self.is_zero(other):
                    return self.token(first)
                if self.is_zero(first) and name != "iadd":
                    return self.token(other)
        return None

    def _renew(self, changed: Tensor) -> None:
        """After a change in place, what shares the memory has a new value."""
        memory = _memory(changed)
        for tensor, _ in list(self._tokens.values()):
            if tensor is changed or _memory(tensor) == memory:
                self._tokens[id(tensor)] = (tensor, object())


@contextmanager
def _modules_watched(model: nn.Module, state: _Values) -> Iterator[None]:
    """Has the state judge every module with weights, apart from the model itself."""
    handles = []
    entered: list[tuple[Any, Any]] = []
    for name, module in model.named_modules():
        heavy = any(weight.ndim > 1 for weight in module.parameters())
        if not name or not heavy:
            continue

        def enter(_: nn.Module, given: tuple[Any, ...]) -> None:
            first = given[0] if given and isinstance(given[0], Tensor) else None
            # The token of now, since the tensor itself may be changed in place.
            entered.append((None if first is None else state.token(first), first))

        def leave(module: nn.Module, _: Any, output: Any, name: str = name) -> None:
            token, first = entered.pop()
            verdict: Idleness | None = None
            alike = isinstance(output, Tensor) and first is not None
            if alike and (output.shape, output.dtype) == (first.shape, first.dtype):
                if state.token(output) is token:
                    verdict = "identity"
                    with torch._C.DisableTorchFunction():
                        state.overwrites.follow(name, first, output)
                elif any(module.children()) and state.is_zero(output):
                    verdict = "zeros"
            state.verdicts.setdefault(name, set()).add(verdict)

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
