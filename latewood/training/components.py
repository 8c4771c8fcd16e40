"""A recipe's sections: a named callable and its keyword arguments; the signature is the schema."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal

from latewood.errors import RequestError, invalid, nearest
from latewood.training.signatures import parameters_of

__all__ = [
    "METHODS",
    "MODELS",
    "OPTIMIZERS",
    "PROBES",
    "PROVIDED",
    "REGISTRIES",
    "SCHEDULES",
    "TASKS",
    "Kind",
    "build",
    "check",
    "importable",
    "is_registered",
    "require_known",
    "resolve",
]

Kind = Literal["task", "model", "optimizer", "schedule", "method", "probe"]

TASKS: dict[str, str] = {
    name: f"latewood.tasks.{name}:{name}"
    for name in (
        "digits",
        "cifar10",
        "mnist",
        "mnist_diffusion",
        "spoken_digits",
        "shakespeare",
        "modular_addition",
        "foreground",
    )
}

MODELS: dict[str, str] = {
    name: f"latewood.models:{name}"
    for name in (
        "mlp",
        "lenet",
        "convnet",
        "resnet18",
        "resnet20",
        "resnet34",
        "resnet50",
        "resnet56",
        "vgg11",
        "vgg13",
        "vgg16",
        "wide_resnet28",
        "mobilenet_v1",
        "lstm_classifier",
        "lstm_language_model",
        "bidirectional_lstm",
        "transformer",
        "grokking_transformer",
        "unet",
        "segmentation_unet",
        "deeplab",
    )
}

OPTIMIZERS: dict[str, str] = {
    "sgd": "torch.optim:SGD",
    "adam": "torch.optim:Adam",
    "adamw": "torch.optim:AdamW",
    "avagrad": "latewood.optim:AvaGrad",
    "avagradw": "latewood.optim:AvaGradW",
    "delayed_adam": "latewood.optim:DelayedAdam",
    "adabound": "latewood.optim:AdaBound",
    "amsbound": "latewood.optim:AMSBound",
    "csgd": "latewood.optim:CSGD",
}

SCHEDULES: dict[str, str] = {
    name: f"latewood.core.schedules:{name}"
    for name in ("constant", "linear", "cosine", "exponential", "cubic", "step_decay")
}

METHODS: dict[str, str] = {
    "continuous_sparsification": "latewood.sparsity:ContinuousSparsification",
    "drop_connect": "latewood.faults:DropConnect",
    "growth": "latewood.growth:Growth",
    "gradual_magnitude_pruning": "latewood.sparsity:GradualMagnitudePruning",
    "learned_precision": "latewood.precision:LearnedPrecision",
    "structured_sparsification": "latewood.sparsity:StructuredSparsification",
}

PROBES: dict[str, str] = {
    "newborn": "latewood.growth:NewbornProbe",
    "spectral": "latewood.spectra:SpectralProbe",
    "tangent_kernel": "latewood.regimes:KernelProbe",
}

REGISTRIES: Mapping[str, dict[str, str]] = {
    "task": TASKS,
    "model": MODELS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "method": METHODS,
    "probe": PROBES,
}

PROVIDED: Mapping[str, frozenset[str]] = {
    "task": frozenset(),
    "model": frozenset(),
    "optimizer": frozenset({"params"}),
    "schedule": frozenset({"progress"}),
    "method": frozenset(
        {"model", "example_inputs", "total_steps", "steps_per_epoch", "seed", "measure_loss"}
    ),
    "probe": frozenset(
        {"model", "total_steps", "steps_per_epoch", "folder", "stages", "inputs", "targets"}
    ),
}
"""The arguments that a run passes itself, so that a recipe may not."""


@contextmanager
def importable(*folders: Path) -> Iterator[None]:
    """Makes the modules in these folders importable, as ``module:function`` needs.

    What is installed comes first: a folder called like a package does not take its place.
    """
    before = list(sys.path)
    sys.path += [str(folder) for folder in folders]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def is_registered(kind: Kind, name: str) -> bool:
    """Whether a section's name is one that ships with the package."""
    return name in REGISTRIES[kind] or name in REGISTRIES[kind].values()


def require_known(kind: Kind, name: str, path: str) -> None:
    """Refuses a name by which a recipe that anybody may have written could run code of theirs.

    Args:
        kind: "task", "model", "optimizer", "schedule", "method" or "probe".
        name: what ships with the package, or a public model or optimizer class, as
            "module:Class", of a package that is installed.
        path: key path of the section, for errors.

    Raises:
        RequestError: it is something else; nothing of it was imported, unless it is installed.
    """
    if is_registered(kind, name) or ":" not in name or _is_installed_class(kind, name):
        return
    raise RequestError(
        f"{path}.name: got {name!r} in the recipe of a run, which its maker may have chosen to run "
        "anything here; expected what ships with latewood, or a model or optimizer class of an "
        "installed package. If you trust the run, --trust (trust=True) imports and calls it"
    )


def _is_installed_class(kind: Kind, name: str) -> bool:
    module, _, attribute = name.partition(":")
    top, *inner = module.split(".")
    if kind not in ("model", "optimizer") or any(part.startswith("_") for part in (top, *inner)):
        return False
    places = [
        place
        for place in sys.path
        if Path(place).name in ("site-packages", "dist-packages") and Path(place) != Path.cwd()
    ]
    installed = PathFinder.find_spec(top, places)
    if installed is None or installed.origin is None:
        return False
    if top not in sys.modules:
        wanted = importlib.util.find_spec(top)
        if wanted is None or wanted.origin != installed.origin:
            return False
    elif getattr(sys.modules[top], "__file__", None) != installed.origin:
        return False
    import torch

    base = torch.nn.Module if kind == "model" else torch.optim.Optimizer
    target = resolve(kind, name)
    return inspect.isclass(target) and issubclass(target, base) and attribute.isidentifier()


def resolve(kind: Kind, name: str, path: str = "") -> Callable[..., Any]:
    """The callable that a section names.

    Args:
        kind: "task", "model", "optimizer", "schedule", "method" or "probe".
        name: a registered name, or "module:attribute" of the user's own.
        path: key path of the section, for errors.

    Raises:
        RequestError: an unknown name, or a module or attribute that does not exist.
    """
    where = f"{path or kind}.name"
    registry = REGISTRIES[kind]
    if name not in registry and ":" not in name:
        expected = f"one of {', '.join(sorted(registry))}, or 'module:attribute' of your own"
        raise invalid(where, name, expected + nearest(name, registry))
    module_name, _, attribute = registry.get(name, name).partition(":")
    try:
        target: Any = importlib.import_module(module_name)
    except Exception as error:  # a module of the user's own may raise anything
        named = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        raise RequestError(
            f"{where}: got {name!r}; module {module_name!r} cannot be imported ({named}{error}); "
            "expected a module in the recipe's folder, the current folder or the installation"
        ) from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            public = [key for key, value in vars(target).items() if callable(value)]
            expected = f"an attribute of {module_name!r}" + nearest(part, public)
            raise invalid(where, name, expected + _shadowed(module_name))
        target = getattr(target, part)
    if not callable(target):
        raise invalid(where, name, "something that can be called")
    try:
        inspect.signature(target)
    except ValueError as error:
        raise invalid(where, name, "a callable whose signature Python can read") from error
    return typing.cast(Callable[..., Any], target)


def _shadowed(module: str) -> str:
    """A clause about a module of the user's own that is called like one that comes before it."""
    top = module.partition(".")[0]
    there = getattr(sys.modules.get(top), "__file__", None)
    for folder in sys.path:
        for path in (Path(folder, f"{top}.py"), Path(folder, top, "__init__.py")):
            if there is not None and path.is_file() and not path.samefile(there):
                return f"; the module of that name is {there}, so give '{path}' another name"
    return ""


def check(
    kind: Kind,
    section: Mapping[str, Any],
    path: str,
    provided: Collection[str] | None = None,
    *,
    offered: Collection[str] | None = (),
) -> dict[str, Any]:
    """The section's arguments, each checked against the callable's signature.

    Types are strict, except that an integer passes for a float and a list for a tuple.

    Args:
        kind: which registry the section's name is looked up in.
        section: {"name": ..., argument: value, ...}.
        path: key path of the section in the recipe, for errors.
        provided: arguments that the run passes itself and the section may not set.
        offered: arguments that the run passes unless the section sets them; None if they are not
            known yet, which skips the check for missing ones.

    Returns:
        the arguments by name, with lists turned into tuples where the signature says so.

    Raises:
        RequestError: an unknown, missing or mistyped key; it says the key's path, what was given
            and what is allowed.
    """
    provided = PROVIDED[kind] if provided is None else provided
    factory = resolve(kind, section["name"], path)
    parameters, open_ended = parameters_of(factory)
    allowed = [name for name in parameters if name not in provided]
    arguments: dict[str, Any] = {}
    for key, value in section.items():
        if key == "name":
            continue
        if key in provided and key in parameters:
            raise RequestError(f"{path}.{key}: got {value!r}; the run sets this itself; drop it")
        if key in parameters:
            arguments[key] = parameters[key].validated(value, f"{path}.{key}")
        elif open_ended:
            arguments[key] = value
        else:
            keys = ", ".join(allowed) or "no arguments"
            raise RequestError(
                f"{path}.{key}: got {value!r}; {section['name']!r} has no such argument; "
                f"expected one of: {keys}{nearest(key, allowed)}"
            )
    if offered is not None:
        for name in allowed:
            if parameters[name].required and name not in arguments and name not in offered:
                raise RequestError(f"{path}.{name}: missing; expected {parameters[name].words}")
    return arguments


def build(
    kind: Kind,
    section: Mapping[str, Any],
    path: str,
    *,
    offered: Mapping[str, Any] | None = None,
    **provided: Any,
) -> Any:
    """Calls what the section names with its arguments.

    Args:
        kind: which registry the section's name is looked up in.
        section: {"name": ..., argument: value, ...}.
        path: key path of the section in the recipe, for errors.
        offered: arguments that the section may override; used where the signature has the name.
        provided: arguments that the section may not set; used where the signature has the name.

    Raises:
        RequestError: as ``check``, and whatever the callable itself refuses, with the key's path.
    """
    offered = offered or {}
    forbidden = PROVIDED[kind] | set(provided)
    chosen = check(kind, section, path, forbidden, offered=offered)
    factory = resolve(kind, section["name"], path)
    parameters, _ = parameters_of(factory)
    passed = {key: value for key, value in {**offered, **provided}.items() if key in parameters}
    arguments = passed | chosen
    leading = [arguments.pop(name) for name in parameters if parameters[name].positional_only]
    try:
        return factory(*leading, **arguments)
    except RequestError as error:
        separator = "." if str(error).split(":")[0].split("[")[0] in parameters else ": "
        raise RequestError(f"{path}{separator}{error}") from error
    except (TypeError, ValueError) as error:
        # Only a refusal by the callable itself is the user's; one from deeper down is a bug.
        if _depth(error) > 2:
            raise
        raise RequestError(f"{path}: {section['name']!r} refused its arguments: {error}") from error


def _depth(error: BaseException) -> int:
    """Number of stack frames between the one that caught an error and the one that raised it."""
    depth, trace = 0, error.__traceback__
    while trace is not None:
        depth, trace = depth + 1, trace.tb_next
    return depth
