"""Slim modules on disk: safetensors and JSON, rebuilt by the constructor of the full model."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latewood.core.format_buffers import BITS
from latewood.core.state import load_state, save_state
from latewood.errors import LatewoodError, RequestError, WorkError, invalid
from latewood.slim.csr_linear import CsrLinear
from latewood.slim.edits import (
    Edit,
    apply_edit,
    packed,
    remember,
    slim_recipe,
    unpacked,
)

__all__ = [
    "load_slim",
    "read_slim_values",
    "repeat_edits",
    "save_edits",
    "save_slim",
    "slim_factory",
]

_SLIM_FORMAT = "latewood slim module 2"
_EDITS_FORMAT = "latewood edits 1"
_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def save_slim(
    model: nn.Module,
    path: str | Path,
    *,
    factory: str | None = None,
    arguments: dict[str, Any] | None = None,
) -> None:
    """Writes a slim module as PATH.safetensors and PATH.json; nothing is pickled.

    The JSON file holds the kept channels of every group, and how the full model is made.

    Args:
        model: a result of ``slim``, also after further training.
        path: path without suffix, in an existing folder.
        factory: what makes the full model, "module:function"; None if the reader is to know.
        arguments: its keyword arguments: scalars, lists, dicts.

    Raises:
        RequestError: the model did not come from ``slim``, or the factory or its arguments have
            another form.
        WorkError: the files cannot be written.
    """
    recipe = slim_recipe(model)
    if factory is not None:
        _check_factory(factory)
    named = {} if arguments is None else arguments
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named):
        raise invalid("arguments", arguments, "a dict of keyword arguments")
    content = {
        "format": _SLIM_FORMAT,
        "factory": factory,
        "arguments": named,
        "edits": [packed(edit) for edit in recipe.edits],
        "examples": recipe.examples,
        "state": dict(model.state_dict()),
    }
    save_state(path, content)


def load_slim(
    path: str | Path,
    make_model: Callable[..., nn.Module] | None = None,
    *,
    trust: bool = False,
    restore: Callable[[nn.Module, dict[str, torch.Tensor]], object] | None = None,
) -> nn.Module:
    """Rebuilds a slim module: makes the full model, removes the same channels, fills in the values.

    Args:
        path: the path that was given to ``save_slim``.
        make_model: makes the full model when called with the stored arguments; None takes the
            factory that the file names.
        trust: allows to import and call what the file names, which may be any function of any
            installed package: only for files whose maker is trusted.
        restore: called with the module and the values before these are filled in, to add what the
            full model is made without: ``precision.restore_formats`` for number formats.

    Returns:
        The module in evaluation mode on the CPU, with the same values bit for bit.

    Raises:
        RequestError: no model to start from, or one that the recipe does not fit.
        WorkError: a file is missing, torn or not a slim module.
    """
    content = _content(path)
    if make_model is None:
        make_model = _factory(content["factory"], trust)
    model = _made(make_model, content["arguments"]).eval()
    edits, examples = [unpacked(edit) for edit in content["edits"]], content["examples"]
    with torch.no_grad():
        model.to(_floating(content["state"]))
        model = _repeated(model, edits, examples, path)
        if restore is not None:
            restore(model, content["state"])
        _fill(model, content["state"])
    remember(model, edits, examples)
    return model


def read_slim_values(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict of a slim module, without making the module.

    Args:
        path: the path that was given to ``save_slim``.

    Raises:
        WorkError: a file is missing, torn or not a slim module.
    """
    values: dict[str, torch.Tensor] = _content(path)["state"]
    return values


def slim_factory(path: str | Path) -> str | None:
    """What a slim module says that its full model is made by; None if the reader is to know.

    Args:
        path: the path that was given to ``save_slim``.

    Raises:
        WorkError: a file is missing, torn or not a slim module.
    """
    factory: str | None = _content(path)["factory"]
    return factory


def save_edits(model: nn.Module, path: str | Path) -> None:
    """Writes what made a slim module of a full one, without its values.

    For those who store the values elsewhere, as a run does: ``repeat_edits`` gives a full model
    the shape that they fit.

    Args:
        model: a module that carries a recipe, such as a result of ``slim``.
        path: path without suffix, in an existing folder.

    Raises:
        RequestError: it carries none.
        WorkError: the files cannot be written.
    """
    recipe = slim_recipe(model)
    edits = [packed(edit) for edit in recipe.edits]
    save_state(path, {"format": _EDITS_FORMAT, "edits": edits, "examples": recipe.examples})


def repeat_edits(model: nn.Module, path: str | Path) -> nn.Module:
    """Does to a full model what ``save_edits`` wrote down.

    Args:
        model: made as the one that was edited; changed in place.
        path: the path that was given to ``save_edits``.

    Returns:
        The smaller model in evaluation mode, or what took its place, with values of its own.

    Raises:
        RequestError: the edits do not fit the model.
        WorkError: a file is missing, torn or holds something else.
    """
    content = load_state(path)
    if not isinstance(content, dict) or content.get("format") != _EDITS_FORMAT:
        raise WorkError(f"{path}.json: not the edits of a model that Latewood wrote")
    edits = [unpacked(edit) for edit in content["edits"]]
    edited = _repeated(model.eval(), edits, content["examples"], path)
    remember(edited, edits, content["examples"])
    return edited


def _content(path: str | Path) -> dict[str, Any]:
    content = load_state(path)
    parts = {"format", "factory", "arguments", "edits", "examples", "state"}
    if (
        not isinstance(content, dict)
        or content.get("format") != _SLIM_FORMAT
        or content.keys() != parts
    ):
        raise WorkError(f"{path}.json: not a slim module that Latewood wrote")
    state = content["state"]
    if not isinstance(state, dict) or not all(isinstance(x, torch.Tensor) for x in state.values()):
        raise WorkError(f"{path}.json: holds no state of a model")
    return content


def _edited(model: nn.Module, edits: Sequence[Edit], examples: Any) -> nn.Module:
    with torch.no_grad():
        for edit in edits:
            model = apply_edit(model, edit, examples).eval()
    return model


def _repeated(
    model: nn.Module, edits: Sequence[Edit], examples: Any, path: str | Path
) -> nn.Module:
    """The edited model; with edits or examples from a damaged file anything may go wrong."""
    try:
        return _edited(model, edits, examples)
    except LatewoodError:
        raise
    except Exception as error:
        raise WorkError(
            f"{path}.json: what it says cannot be done to the model "
            f"({type(error).__name__}: {error})"
        ) from error


def _check_factory(name: object) -> None:
    if not isinstance(name, str) or not _FACTORY.fullmatch(name):
        raise invalid("factory", name, 'the form "module:function"')


def _made(make_model: Callable[..., nn.Module], arguments: dict[str, Any]) -> nn.Module:
    try:
        model = make_model(**arguments)
    except TypeError as error:
        raise invalid(
            "arguments", arguments, f"those of the full model's factory ({error})"
        ) from error
    if not isinstance(model, nn.Module):
        raise invalid("make_model", type(model).__name__, "a factory that returns a module")
    return model


def _factory(name: str | None, trust: bool) -> Callable[..., nn.Module]:
    if name is None:
        raise invalid("make_model", None, "the full model's factory, since the file names none")
    if not trust:
        raise RequestError(
            f"make_model: got None; expected the full model's factory, or trust=True to import and "
            f"call {name!r}, which the file names"
        )
    _check_factory(name)
    module, _, function = name.partition(":")
    package, _, rest = module.partition(".models")
    if package == "latewood.training":
        module = f"latewood.models{rest}"  # where files of earlier versions say it is
    try:
        factory: Callable[..., nn.Module] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise invalid("factory", name, f"something to import ({error})") from error
    return factory


def _floating(state: dict[str, torch.Tensor]) -> torch.dtype:
    """The type to trace in: that of the stored values, which the examples have as well."""
    dtypes = [tensor.dtype for tensor in state.values() if tensor.is_floating_point()]
    return dtypes[0] if dtypes else torch.get_default_dtype()


def _fill(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    tensors = model.state_dict(keep_vars=True)
    fixed = (tensors.keys() & state.keys()) - _sized_by_values(model)
    wrong = sorted(
        tensors.keys() ^ state.keys()
        | {name for name in fixed if tensors[name].shape != state[name].shape}
    )
    if wrong:
        formats = any(name.endswith(BITS) for name in state.keys() - tensors.keys())
        hint = ", and restore=precision.restore_formats for its number formats" if formats else ""
        raise RequestError(
            f"make_model: the slim module's values do not fit it: {', '.join(wrong[:5])}; expected "
            f"the model that was slimmed, made with the same arguments{hint}"
        )
    for name, tensor in tensors.items():
        tensor.data = tensor.data.to(state[name].dtype)
    model.load_state_dict(state)


def _sized_by_values(model: nn.Module) -> set[str]:
    """Names of the tensors of compressed rows, as many as there are weights that are not zero."""
    return {
        f"{name}.{part}" if name else part
        for name, module in model.named_modules()
        if isinstance(module, CsrLinear)
        for part in ("columns", "values")
    }
