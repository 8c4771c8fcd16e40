"""Snapshots are written whole or not at all, and read back as they were."""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from latewood.errors import RequestError, WorkError
from latewood.spectra import (
    PairAlignment,
    SpectralProbe,
    Spectrum,
    read_alignments,
    read_snapshot,
    snapshot_path,
    snapshot_paths,
    write_snapshot,
)


@pytest.fixture
def spectra():
    return [
        Spectrum("second.weight", (3, 2), np.array([2, 1], dtype=np.float32)),
        Spectrum("first.weight", (2, 2, 4), np.array([[4, 3], [6, np.nan]], dtype=np.float32)),
    ]


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path, spectra):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(WorkError, match="cannot be written"):
            write_snapshot(snapshot_path(folder, 3), 3, spectra)
        with pytest.raises(RequestError, match=r"folder.*is a file"):
            SpectralProbe(torch.nn.Linear(2, 2), every=1, folder=folder)


def test_round_trip(tmp_path, spectra):
    path = snapshot_path(tmp_path / "spectra", 120)
    write_snapshot(path, 120, spectra)
    assert path.name == "step-00000120.parquet"
    table = pq.read_table(path)
    assert [(f.name, str(f.type)) for f in table.schema] == [
        ("step", "int64"),
        ("name", "string"),
        ("index", "int32"),
        ("singular_value", "float"),
        ("error", "float"),
        ("method", "string"),
        ("dtype", "string"),
    ]
    assert table["step"].to_pylist() == [120] * 6
    assert table["name"].to_pylist() == ["second.weight"] * 2 + ["first.weight"] * 4
    assert table["index"].to_pylist() == [0, 1, 0, 1, 0, 1]
    read = read_snapshot(path)
    assert [(s.name, s.shape) for s in read] == [(s.name, s.shape) for s in spectra]
    for one, other in zip(read, spectra, strict=True):
        assert np.array_equal(one.values, other.values, equal_nan=True)


def test_every_number_says_how_it_was_found(tmp_path):
    values = np.array([3, 2, 1], dtype=np.float32)
    errors = np.array([1e-9, 1 / 3, 0.1])
    path = snapshot_path(tmp_path, 1)
    spectra = [
        Spectrum("w", (4, 3), values, errors=errors, method="gram", dtype="bfloat16"),
        Spectrum("top", (40, 30), values[:2], errors=errors[:2], method="warm"),
        Spectrum("none", (0, 3), values[:0]),
    ]
    write_snapshot(path, 1, spectra)
    table = pq.read_table(path)
    assert table["method"].to_pylist() == ["gram"] * 3 + ["warm"] * 2
    assert table["dtype"].to_pylist() == ["bfloat16"] * 3 + ["float32"] * 2
    # A bound stays one when it is rounded to the file's precision.
    assert (np.array(table["error"].to_pylist()) >= [*errors, *errors[:2]]).all()
    one, top, none = read_snapshot(path)
    assert (one.method, one.dtype, one.complete) == ("gram", "bfloat16", True)
    assert (top.method, top.values.shape, top.complete) == ("warm", (2,), False)
    assert none.complete
    assert none.values.size == 0


def test_alignments_round_trip(tmp_path):
    path = snapshot_path(tmp_path, 1)
    alignments = {
        "a->b": PairAlignment((0.5, 0.25), 0.375, 0.1),
        "b->c": PairAlignment((math.nan,), math.nan, 0.2),
    }
    spectra = [Spectrum("w", (4, 3), np.ones(3, dtype=np.float32))]
    write_snapshot(path, 1, spectra, alignments)
    assert repr(read_alignments(path)) == repr(alignments)
    write_snapshot(path, 1, spectra)
    assert read_alignments(path) == {}
    path.write_bytes(b"nothing")
    with pytest.raises(WorkError, match="not a readable"):
        read_alignments(path)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_vectors_round_trip(tmp_path, gaussian, dtype):
    def vectors(*shape, seed=0):
        return gaussian(*shape, seed=seed).numpy().astype(dtype)

    values = gaussian(9, dtype=torch.float32).numpy()
    spectra = [
        Spectrum("first", (5, 4), values[:4], vectors(5, 2), vectors(4, 2)),
        Spectrum("groups", (3, 2, 7), values[:6].reshape(3, 2), vectors(3, 2, 2), vectors(3, 7, 2)),
        Spectrum("one", (1, 9), values[:1], vectors(1, 1), vectors(9, 1)),
    ]
    path = snapshot_path(tmp_path, 3)
    write_snapshot(path, 3, spectra)
    assert all(s.left is s.right is None for s in read_snapshot(path))
    for one, other in zip(read_snapshot(path, vectors=True), spectra, strict=True):
        assert np.array_equal(one.values, other.values)
        assert one.left.dtype == one.right.dtype == dtype
        assert np.array_equal(one.left, other.left)
        assert np.array_equal(one.right, other.right)
    table = pq.read_table(path)
    assert table["left"].to_pylist()[1] == spectra[0].left[:, 1].tolist()
    assert table["right"].to_pylist()[2:4] == [None, None]
    assert table["right"].to_pylist()[6] == spectra[1].right[1, :, 0].tolist()


def test_paths_are_in_order_of_steps(tmp_path, spectra):
    for step in (200_000_000, 5, 30):
        write_snapshot(snapshot_path(tmp_path, step), step, spectra)
    (tmp_path / "notes.txt").write_text("not a snapshot")
    assert list(snapshot_paths(tmp_path)) == [5, 30, 200_000_000]
    assert snapshot_paths(tmp_path / "missing") == {}


def test_a_failed_write_leaves_what_was_there(tmp_path, spectra, monkeypatch):
    path = snapshot_path(tmp_path, 1)
    write_snapshot(path, 1, spectra)
    before = path.read_bytes()

    def full(table, file, **options):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(WorkError, match="No space"):
        write_snapshot(path, 1, spectra[:1])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_no_parameters_is_an_empty_file(tmp_path):
    path = snapshot_path(tmp_path, 0)
    write_snapshot(path, 0, [])
    assert read_snapshot(path) == []


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_torn_files_are_named(tmp_path, spectra, keep):
    path = snapshot_path(tmp_path, 1)
    write_snapshot(path, 1, spectra)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WorkError, match="step-00000001"):
        read_snapshot(path)


def test_other_parquet_files_are_named(tmp_path, spectra):
    path = snapshot_path(tmp_path, 1)
    write_snapshot(path, 1, spectra)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({}), path)
    with pytest.raises(WorkError, match="step-00000001"):
        read_snapshot(path)
