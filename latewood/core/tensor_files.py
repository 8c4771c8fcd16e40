"""Tensors read from files of any maker without running anything that is in them."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from latewood.core.pickle_programs import is_whole, sized_calls
from latewood.errors import RequestError, WorkError, invalid, listed

__all__ = ["read_tensors"]

_WRAPPERS: Final = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
_FOLDER_FILES: Final = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
)


def read_tensors(path: str | Path, *, key: str = "", dense: bool = True) -> dict[str, Tensor]:
    """Reads the named tensors of a checkpoint onto the CPU.

    Takes safetensors files, files of ``torch.save`` that hold tensors and plain containers, and
    Hugging Face model folders, sharded or not, and those of PEFT adapters. A state dict inside a
    training checkpoint is found, and the prefixes of DataParallel ("module.") and torch.compile
    ("_orig_mod.") are taken off.

    Args:
        path: the file or folder.
        key: where in a torch file the tensors are, with a dot between the keys of nested dicts
            ("ema.model"); "" finds them.
        dense: refuse sparse and quantized tensors, which layers do not compute with.

    Returns:
        Tensors by name, in the file's order.

    Raises:
        RequestError: there is nothing to read at the path or under the key, or it holds objects
            that only unpickling could build.
        WorkError: the file is torn or corrupted.
    """
    path = Path(path)
    if not path.is_dir() and not path.is_file():
        raise invalid("path", str(path), "an existing checkpoint file or model folder")
    tensors = _read_folder(path, key) if path.is_dir() else _read_file(path, key)
    if dense:
        _require_dense(tensors, path)
    return _plain_names(tensors, path)


def _read_folder(folder: Path, key: str) -> dict[str, Tensor]:
    for name in _FOLDER_FILES:
        path = folder / name
        if path.is_file():
            return _read_shards(path) if name.endswith(".index.json") else _read_file(path, key)
    raise invalid("path", str(folder), f"a model folder with one of {', '.join(_FOLDER_FILES)}")


def _read_shards(index_path: Path) -> dict[str, Tensor]:
    try:
        files = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
        shards = dict.fromkeys(files.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WorkError(f"{index_path}: not a readable weight index ({error!r})") from error
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        # An index is data from elsewhere: it may name files of its own folder only.
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise WorkError(f"{index_path}: names the shard {shard!r} outside its folder")
        path = index_path.parent / shard
        if not path.is_file():
            raise WorkError(f"{path}: a shard named by {index_path.name} is missing")
        tensors |= _read_file(path)
    missing = [name for name in files if name not in tensors]
    if missing:
        raise WorkError(f"{index_path}: the shards lack {', '.join(missing[:10])}")
    return {name: tensors[name] for name in files}


def _read_file(path: Path, key: str = "") -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise WorkError(f"{path}: cannot be read ({error})") from error
    # A safetensors file is the length of its JSON header and then the header.
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise WorkError(f"{path}: not a readable safetensors file ({error})") from error
        if key:
            raise RequestError(f"key: got {key!r} for {path}, a file without nesting; drop it")
        return tensors
    return _read_torch_file(path, key)


def _read_torch_file(path: Path, key: str) -> dict[str, Tensor]:
    _require_stored(path)
    try:
        with warnings.catch_warnings():
            # Hints on how to load less safely, about files that are refused below.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # What the reader raises on broken input is not specified: nearly any built-in error.
        refused = isinstance(error, pickle.UnpicklingError) and is_whole(path)
        if refused or "TorchScript" in str(error):
            raise _needs_pickle(path) from error
        raise WorkError(f"{path}: not a readable torch file ({_reason(error)})") from error
    tensors = _named_tensors(_under(content, key, path), path)
    _require_whole(tensors, path)
    return tensors


def _require_stored(path: Path) -> None:
    """Refuses a file that would unpack to more than it holds."""
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
        except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
            raise WorkError(f"{path}: not a readable torch file ({_reason(error)})") from error
        if any("/code/" in member.filename for member in members):  # TorchScript
            raise _needs_pickle(path)
        compressed = [member.filename for member in members if member.compress_type]
        if compressed:
            raise RequestError(
                f"{path}: its member {compressed[0]!r} is compressed, which torch never writes and "
                "which may unpack to any size; expected a file of torch.save"
            )
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise WorkError(f"{path}: not a readable torch file (its members exceed its size)")
    for name in sized_calls(path):
        raise RequestError(
            f"{path}: calls {name} to make something of any size; expected tensors alone"
        )


def _require_whole(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuses tensors without values, and those that repeat a few stored ones endlessly."""
    size = path.stat().st_size
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise RequestError(f"{path}: {name!r} is a meta tensor; expected one with values")
        strided = tensor.layout is torch.strided
        if strided and tensor.numel() * tensor.element_size() > size:
            raise RequestError(
                f"{path}: {name!r} has {tensor.numel()} elements, more than the file has room for; "
                "expected tensors that are stored whole (contiguous() before saving)"
            )


def _require_dense(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if tensor.is_quantized or tensor.layout is not torch.strided:
            form = "quantized" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
            raise RequestError(f"{path}: {name!r} is a {form} tensor; expected dense ones")


def _under(content: object, key: str, path: Path) -> object:
    """What a nested dict holds under a key; keys may have dots themselves."""
    if not key:
        return content
    if isinstance(content, Mapping):
        if key in content:
            return content[key]
        for first in content:
            if isinstance(first, str) and key.startswith(f"{first}."):
                return _under(content[first], key[len(first) + 1 :], path)
        known = listed(repr(name) for name in content)
        raise invalid("key", key, f"one of {known or '(none)'} in {path}, with dots between levels")
    raise invalid("key", key, f"the key of a dict in {path}, not inside a {type(content).__name__}")


def _named_tensors(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        for wrapper in _WRAPPERS:
            inner = content.get(wrapper)
            if isinstance(inner, Mapping) and _tensors_of(inner):
                return _tensors_of(inner)
        if tensors := _tensors_of(content):
            return tensors
        held = f"a dict with the keys {', '.join(map(repr, list(content)[:10])) or '(none)'}"
    else:
        held = f"a {type(content).__name__}"
    raise RequestError(f"{path}: holds {held}; expected named tensors (a state dict)")


def _tensors_of(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {
        name: tensor.detach()
        for name, tensor in content.items()
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }


def _plain_names(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    names = [name.replace("_orig_mod.", "") for name in tensors]
    while names and all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    if len(set(names)) < len(names):
        raise WorkError(f"{path}: two tensors have one name once wrapper prefixes are taken off")
    return dict(zip(names, tensors.values(), strict=True))


def _needs_pickle(path: Path) -> RequestError:
    return RequestError(
        f"{path}: holds Python objects that only unpickling could build, which can run code; "
        "expected tensors. Save them where the file was made, with "
        "safetensors.torch.save_file(model.state_dict(), PATH) or "
        "torch.save(model.state_dict(), PATH)"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return "damaged, or of another kind"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
