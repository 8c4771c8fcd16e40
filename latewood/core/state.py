"""Nested states on disk: tensors as safetensors, everything else as JSON, nothing pickled."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latewood.errors import RequestError, WorkError

__all__ = ["load_state", "save_state"]

_TENSOR: Final = "$tensor"
_TUPLE: Final = "$tuple"
_PAIRS: Final = "$pairs"
_FLOAT: Final = "$float"
_VIEWED: Final = {torch.complex128: torch.float64}
_NOT_FINITE: Final = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def save_state(path_stem: str | Path, tree: object) -> None:
    """Writes a tree of dicts, lists, tuples, tensors and scalars as STEM.safetensors and STEM.json.

    Dict keys may be strings, integers, booleans, floats, None or tuples of them. Tensors keep their
    bits and dtype but not their device or strides; one tensor found twice is stored once.

    Args:
        path_stem: path without suffix, in an existing folder.
        tree: the state, for instance ``{"optimizer": optimizer.state_dict(), "step": 3}``.

    Raises:
        RequestError: the tree holds something that is none of these; the message says where.
        WorkError: the files cannot be written.
    """
    tensor_path, tree_path = _paths(path_stem)
    packer = _Packer()
    text = json.dumps(packer.pack(tree, "state"), allow_nan=False)
    try:
        # The digest ties the two files together: halves of two different saves do not pass.
        save_file(packer.tensors, tensor_path, metadata={"tree_sha256": _digest(text)})
        tree_path.write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise WorkError(f"{tensor_path}: the state could not be written ({error})") from error


def load_state(path_stem: str | Path) -> Any:
    """Reads back what ``save_state`` wrote: the same nesting, types and bits, tensors on the CPU.

    Args:
        path_stem: the path without suffix that was given to ``save_state``.

    Raises:
        WorkError: a file is missing, torn or corrupted, or the two files belong to different saves.
    """
    tensor_path, tree_path = _paths(path_stem)
    try:
        text = tree_path.read_text(encoding="utf-8")
        packed = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise WorkError(f"{tree_path}: not a readable state ({error})") from error
    try:
        with safe_open(tensor_path, framework="pt") as file:
            digest = (file.metadata() or {}).get("tree_sha256")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WorkError(f"{tensor_path}: not a readable state ({error})") from error
    if digest != _digest(text):
        raise WorkError(f"{tree_path}: does not belong to {tensor_path.name}, or was changed")
    try:
        return _unpack(packed, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise WorkError(f"{tree_path}: not a state that Latewood wrote ({error!r})") from error


class _Packer:
    """Turns a tree into JSON and collects its tensors on the way."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._seen: dict[int, tuple[Tensor, dict[str, Any]]] = {}

    def pack(self, node: object, where: str) -> Any:
        match node:
            case None | bool() | int() | str():
                # A subclass (an enumeration, say) would silently come back as its base.
                if node is None or type(node) in (bool, int, str):
                    return node
            case float():
                value = float(node)
                return value if math.isfinite(value) else {_FLOAT: repr(value)}
            case Tensor():
                return self._pack_tensor(node, where)
            case list():
                return [self.pack(item, f"{where}[{i}]") for i, item in enumerate(node)]
            case tuple():
                return {_TUPLE: [self.pack(item, f"{where}[{i}]") for i, item in enumerate(node)]}
            case dict():
                return self._pack_dict(node, where)
        raise RequestError(
            f"{where}: got {type(node).__name__}; expected a dict, list, tuple, tensor, string, "
            "number, boolean or None"
        )

    def _pack_dict(self, node: dict[Any, Any], where: str) -> dict[str, Any]:
        values = [self.pack(value, f"{where}[{key!r}]") for key, value in node.items()]
        if all(type(key) is str and not key.startswith("$") for key in node):
            return dict(zip(node, values, strict=True))
        keys = [self._pack_key(key, where) for key in node]
        return {_PAIRS: [list(pair) for pair in zip(keys, values, strict=True)]}

    def _pack_key(self, key: object, where: str) -> Any:
        if isinstance(key, Tensor | list | dict):
            raise RequestError(f"{where}: a key of type {type(key).__name__}; expected a scalar")
        return self.pack(key, f"{where}, key {key!r}")

    def _pack_tensor(self, tensor: Tensor, where: str) -> dict[str, Any]:
        if id(tensor) not in self._seen:
            if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
                raise RequestError(f"{where}: got {tensor.layout}; expected a plain dense tensor")
            name = str(len(self.tensors))
            stored = tensor.detach().cpu().resolve_conj().resolve_neg()
            reference: dict[str, Any] = {_TENSOR: name}
            if stored.dtype in _VIEWED:
                reference["view"] = True
                stored = torch.view_as_real(stored)
            # A copy of its own for each: tensors may be views of one storage.
            self.tensors[name] = stored.clone(memory_format=torch.contiguous_format)
            # Kept alive with its entry, since an id is only unique among living objects.
            self._seen[id(tensor)] = (tensor, reference)
        return self._seen[id(tensor)][1]


def _unpack(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_unpack(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    if _TENSOR in node:
        tensor = tensors[node[_TENSOR]]
        if node.get("view") and not tensor.is_complex():
            tensors[node[_TENSOR]] = torch.view_as_complex(tensor)
        return tensors[node[_TENSOR]]
    if _FLOAT in node:
        return _NOT_FINITE[node[_FLOAT]]
    if _TUPLE in node:
        return tuple(_unpack(item, tensors) for item in node[_TUPLE])
    if _PAIRS in node:
        return {_unpack(key, tensors): _unpack(value, tensors) for key, value in node[_PAIRS]}
    return {key: _unpack(value, tensors) for key, value in node.items()}


def _paths(path_stem: str | Path) -> tuple[Path, Path]:
    # Not with_suffix, which would cut a stem such as "step-1.5".
    return Path(f"{path_stem}.safetensors"), Path(f"{path_stem}.json")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
