"""A sweep on a cluster of Ray or Dask, here of this machine: the bits are those of any other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from warm_python import run

from latewood.studies.sweeps.sweep import sweep

CHANGES = ("steps=3", "model.hidden=[8]")


@pytest.mark.parametrize(("backend", "package"), [("ray", "ray"), ("dask", "distributed")])
def test_a_cluster_trains_the_same_models(backend: str, package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    # In a process of its own, with which the cluster ends.
    words = ("sweep", "digits-mlp", "--set", *CHANGES, "--grid", "seed=0,1", "--jobs", "2")
    done = run(
        ["-m", "latewood", *words, "--backend", backend, "--out", "cluster"],
        cwd=tmp_path,
        # Ray would leave a token in the home folder.
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
    )
    assert done.returncode == 0, done.stderr
    here = sweep(
        "digits-mlp",
        {"seed": [0, 1]},
        overrides=CHANGES,
        folder=tmp_path / "here",
        jobs=1,
        show_progress=False,
    )
    for row in here.rows:
        model = Path(str(row["run"])) / "model.safetensors"
        there = (tmp_path / "cluster" / model).read_bytes()
        assert there == (tmp_path / "here" / model).read_bytes()
