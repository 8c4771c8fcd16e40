"""Reading checkpoints: of every layout, without running what is in them, with errors that help."""

import json
import pickle
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from latewood.core.tensor_files import read_tensors
from latewood.errors import RequestError, WorkError


class RunsCode:
    """Unpickling this creates a file."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def state():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict()


def assert_same(tensors, state):
    assert list(tensors) == list(state)
    for name, tensor in state.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_safetensors(tmp_path, state):
    for name in ("model.safetensors", "model.ckpt"):  # told by content, not by suffix
        save_file(state, tmp_path / name)
        assert set(read_tensors(tmp_path / name)) == set(state)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"state": {}, "step": torch.ones(1)}},
        lambda state: {"model_state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {f"_orig_mod.module.{k}": v for k, v in state.items()},
        lambda state: {f"module._orig_mod.{k}": v for k, v in state.items()},
        lambda state: {**state, "epoch": 3},
    ],
)
def test_torch_files(tmp_path, state, wrap, zipped):
    path = tmp_path / "model.pt"
    torch.save(wrap(state), path, _use_new_zipfile_serialization=zipped)
    assert_same(read_tensors(path), state)


def test_names_that_only_begin_alike_are_kept(tmp_path):
    state = {"module.weight": torch.ones(1), "head.weight": torch.ones(2)}
    torch.save(state, tmp_path / "a.pt")
    assert list(read_tensors(tmp_path / "a.pt")) == list(state)
    torch.save({"layer._orig_mod.weight": torch.ones(1)}, tmp_path / "b.pt")
    assert list(read_tensors(tmp_path / "b.pt")) == ["layer.weight"]
    torch.save({"_orig_mod.x": torch.ones(1), "x": torch.ones(2)}, tmp_path / "c.pt")
    with pytest.raises(WorkError, match=r"c\.pt: two tensors have one name"):
        read_tensors(tmp_path / "c.pt")


def test_parameters_come_back_without_gradients(tmp_path):
    torch.save({"weight": nn.Parameter(torch.ones(2))}, tmp_path / "a.pt")
    assert not read_tensors(tmp_path / "a.pt")["weight"].requires_grad


def write_shards(folder, state, save, suffix):
    names = list(state)
    files = {name: f"part-{i % 2}.{suffix}" for i, name in enumerate(names)}
    for file in set(files.values()):
        save({name: state[name] for name in names if files[name] == file}, folder / file)
    return files


@pytest.mark.parametrize(
    ("index", "save", "suffix"),
    [
        ("model.safetensors.index.json", save_file, "safetensors"),
        ("pytorch_model.bin.index.json", torch.save, "bin"),
    ],
)
def test_sharded_model_folders(tmp_path, state, index, save, suffix):
    files = write_shards(tmp_path, state, save, suffix)
    (tmp_path / index).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert_same(read_tensors(tmp_path), state)

    files["extra.weight"] = files["0.weight"]
    (tmp_path / index).write_text(json.dumps({"weight_map": files}))
    with pytest.raises(WorkError, match=r"the shards lack extra\.weight"):
        read_tensors(tmp_path)
    files["extra.weight"] = f"part-9.{suffix}"
    (tmp_path / index).write_text(json.dumps({"weight_map": files}))
    with pytest.raises(WorkError, match=rf"part-9\.{suffix}: a shard named by"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_single_file_model_folders(tmp_path, state, name):
    save = save_file if name.endswith("safetensors") else torch.save
    save(state, tmp_path / name)
    assert set(read_tensors(tmp_path)) == set(state)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", 3, ".."])
def test_an_index_cannot_reach_outside_its_folder(tmp_path, state, shard):
    save_file(state, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index = {"weight_map": dict.fromkeys(state, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WorkError):
        read_tensors(folder)


@pytest.mark.parametrize("broken", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_a_broken_index_is_named(tmp_path, broken):
    (tmp_path / "model.safetensors.index.json").write_text(broken)
    with pytest.raises(WorkError, match=r"index\.json: not a readable weight index"):
        read_tensors(tmp_path)


def test_refuses_pickles_without_running_them(tmp_path):
    witness = tmp_path / "it-ran"
    malicious = {"weight": torch.ones(2), "hook": RunsCode(witness)}
    torch.save(malicious, tmp_path / "zip.pt")
    torch.save(malicious, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(RunsCode(witness)))
    for name in ("zip.pt", "legacy.pt", "plain.pkl"):
        with pytest.raises(RequestError, match=rf"{name}: .*run code.*torch\.save\(model\.state_d"):
            read_tensors(tmp_path / name)
    assert not witness.exists()
    pickle.loads((tmp_path / "plain.pkl").read_bytes())  # the payload is live
    assert witness.exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_refuses_whole_models_and_scripts(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    for name in ("module.pt", "script.pt"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(RequestError, match="run code"):
                read_tensors(tmp_path / name)


@pytest.mark.parametrize("kept", [0, 3, 40, 300, -30])
@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "legacy.pt"])
def test_torn_files_are_named(tmp_path, state, name, kept):
    path = tmp_path / name
    if name.endswith("safetensors"):
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name == "a.pt")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WorkError, match=rf"{name}: not a readable"):
        read_tensors(path)


def test_noise_is_named(tmp_path):
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(WorkError, match=r"noise\.bin: not a readable torch file"):
        read_tensors(tmp_path / "noise.bin")


def test_files_without_named_tensors_say_what_they_hold(tmp_path):
    torch.save(torch.ones(3), tmp_path / "one.pt")
    with pytest.raises(RequestError, match="holds a Tensor; expected named tensors"):
        read_tensors(tmp_path / "one.pt")
    torch.save({"epoch": 3, 7: torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(RequestError, match="a dict with the keys 'epoch', 7"):
        read_tensors(tmp_path / "other.pt")


def test_missing_paths_are_requests(tmp_path):
    with pytest.raises(RequestError, match="an existing checkpoint file"):
        read_tensors(tmp_path / "nothing.pt")
    with pytest.raises(RequestError, match=r"a model folder with one of model\.safetensors\.index"):
        read_tensors(tmp_path)


class Sized:
    """Unpickling this makes something as large as it says."""

    def __init__(self, maker, size=10**10) -> None:
        self.maker, self.size = maker, size

    def __reduce__(self):
        return (self.maker, (self.size,))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "maker", [bytearray, torch.FloatTensor, torch.FloatStorage, torch.UntypedStorage]
)
def test_a_small_file_cannot_ask_for_memory(tmp_path, maker, zipped):
    content = {"a": torch.ones(2, 2), "b": [Sized(maker)], "c": Sized(maker)}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(RequestError, match=f"a.pt: calls .*{maker.__name__} to make something of"):
        read_tensors(tmp_path / "a.pt")


def test_an_archive_is_never_unpacked_to_more_than_it_holds(tmp_path, state):
    torch.save(state, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as source,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(RequestError, match=r"b\.pt: its member '.*' is compressed"):
        read_tensors(tmp_path / "b.pt")
    # Two members that lie on each other.
    content = bytearray((tmp_path / "a.pt").read_bytes())
    torch.save({"a": torch.zeros(1000), "b": torch.ones(1000)}, tmp_path / "c.pt")
    with zipfile.ZipFile(tmp_path / "c.pt") as archive:
        first, second = (m for m in archive.infolist() if m.file_size == 4000)
        offsets = first.header_offset, second.header_offset
    content = bytearray((tmp_path / "c.pt").read_bytes())
    entry = content.rindex(second.filename.encode()) - 46
    assert int.from_bytes(content[entry + 42 : entry + 46], "little") == offsets[1]
    for place in (entry + 20, entry + 24):
        content[place : place + 4] = (len(content) * 2).to_bytes(4, "little")
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(WorkError, match="its members exceed its size"):
        read_tensors(tmp_path / "c.pt")


NOT_PLAIN = {
    "has 1000000 elements, more than the file has room": lambda: torch.ones(1).expand(1000, 1000),
    "is a sparse_coo tensor": lambda: torch.eye(3).to_sparse(),
    "is a sparse_csr tensor": lambda: torch.eye(3).to_sparse_csr(),
    "is a meta tensor": lambda: torch.ones(3, 3, device="meta"),
    "is a quantized tensor": lambda: torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8),
}


@pytest.mark.parametrize(("words", "make"), NOT_PLAIN.items(), ids=NOT_PLAIN)
def test_tensors_without_plain_values_are_named(tmp_path, words, make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"fine": torch.ones(2, 2), "layer.weight": make()}, tmp_path / "a.pt")
        with pytest.raises(RequestError, match=f"'layer.weight' {words}"):
            read_tensors(tmp_path / "a.pt")
