"""A recipe's sections: a named callable and its keyword arguments; the signature is the schema."""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import inspect
import json
import math
import sys
import typing
from collections import ChainMap, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from latewood.errors import RequestError, invalid, nearest

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

_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    type(None): "nothing",
    Path: "a path",
}


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
    parameters, open_ended = _parameters(factory)
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
    parameters, _ = _parameters(factory)
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


@dataclass(frozen=True)
class _Parameter:
    annotation: Any
    required: bool
    positional_only: bool

    @property
    def words(self) -> str:
        return _words(self.annotation)

    def validated(self, value: Any, path: str) -> Any:
        if isinstance(value, float) and math.isnan(value):
            raise invalid(path, value, self.words)
        if _is_too_large(value):
            raise RequestError(f"{path}: got more than 64 bits; expected {self.words}")
        try:
            # JSON rules are strict about types and still take a list for a tuple, as TOML must.
            return _adapter(self.annotation).validate_json(json.dumps(value), strict=True)
        except (ValidationError, TypeError) as error:
            raise invalid(path, value, self.words + _detail(error)) from error


def _is_too_large(value: Any) -> bool:
    """Whether an integer is in there that torch has no type for."""
    if isinstance(value, list):
        return any(map(_is_too_large, value))
    if isinstance(value, dict):
        return any(map(_is_too_large, value.values()))
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _parameters(factory: Callable[..., Any]) -> tuple[dict[str, _Parameter], bool]:
    """The named parameters of a callable, and whether it takes any keyword besides."""
    target = factory.__init__ if inspect.isclass(factory) else factory
    hints = _hints(target)
    parameters: dict[str, _Parameter] = {}
    open_ended = False
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            open_ended = True
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            required = parameter.default is inspect.Parameter.empty
            annotation = hints.get(name, Any if required else _of_default(parameter.default))
            parameters[name] = _Parameter(
                annotation=_expressible(annotation),
                required=required,
                positional_only=parameter.kind is inspect.Parameter.POSITIONAL_ONLY,
            )
    return parameters, open_ended


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a callable by parameter; {} if it cannot have any."""
    try:
        return typing.get_type_hints(target, include_extras=True)
    except TypeError:
        return {}
    except NameError:
        # What only type checkers import is nothing that a recipe could write.
        own = getattr(inspect.unwrap(target), "__globals__", {})
        names = ChainMap(own, vars(builtins), defaultdict(lambda: Any))
        return typing.get_type_hints(target, localns=names, include_extras=True)


def _of_default(default: Any) -> Any:
    """The type that a parameter without an annotation takes: that of its scalar default."""
    if isinstance(default, bool | str):
        return type(default)
    return float if isinstance(default, int | float) else Any


def _expressible(annotation: Any) -> Any:
    """The part of an annotation that a recipe can write: ``float | Tensor`` becomes ``float``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        members = [_expressible(member) for member in arguments]
        members = [member for member in members if member is not Any]
        return Union[tuple(members)] if members else Any  # noqa: UP007
    if origin in (list, tuple, dict) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        inner = tuple(item if item is ... else _expressible(item) for item in arguments)
        base: Any = list if origin not in (tuple, dict) else origin
        return base[inner]
    try:
        TypeAdapter(annotation)
    except (PydanticSchemaGenerationError, PydanticUserError):
        return Any
    return annotation


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation, config=ConfigDict(strict=True))
    except PydanticUserError:  # models and dataclasses bring a configuration of their own
        return TypeAdapter(annotation)


def _words(annotation: Any) -> str:
    """What an annotation accepts, for people."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return "a value"
    if origin is typing.Annotated:
        return _words(arguments[0])
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if origin in (Union, UnionType):
        alternatives = [_words(member) for member in arguments if member is not type(None)]
        return " or ".join(dict.fromkeys(alternatives))
    if origin is tuple and ... not in arguments:
        return f"a list of {len(arguments)} values: " + ", ".join(map(_words, arguments))
    if origin in (list, tuple):
        return f"a list, each item {_words(arguments[0])}"
    if origin is dict:
        return "a table"
    return _WORDS.get(annotation) or str(getattr(annotation, "__name__", annotation))


def _detail(error: Exception) -> str:
    """Which item of a compound value was wrong, and any bound that a constraint states."""
    if not isinstance(error, ValidationError):
        return ""
    first = error.errors(include_url=False)[0]
    place = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
    bound = first["msg"] if first["type"].startswith(("greater", "less", "multiple")) else ""
    if place and first["type"] != "missing":
        return f" (item {place} is {first['input']!r})"
    return f" ({bound[0].lower()}{bound[1:]})" if bound else ""


def _depth(error: BaseException) -> int:
    """Number of stack frames between the one that caught an error and the one that raised it."""
    depth, trace = 0, error.__traceback__
    while trace is not None:
        depth, trace = depth + 1, trace.tb_next
    return depth
