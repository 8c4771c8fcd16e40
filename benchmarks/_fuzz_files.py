"""Sound files of every kind, from which a fuzz makes damaged ones."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from latewood.models import mlp
from latewood.slim import save_slim, slim
from latewood.training import parse_recipe, train

__all__ = ["SoundFiles"]

RECIPE = {
    "task": "digits",
    "model": {"name": "mlp", "hidden": [6]},
    "optimizer": {"name": "avagrad", "lr": 0.1},
    "schedule": {"name": "cosine", "warmup": 0.1},
    "methods": [{"name": "continuous_sparsification", "initial_logit": -0.1}],
    "probes": [{"name": "spectral", "every": 2}],
    "steps": 4,
    "log_every": 1,
    "evaluate_every": 2,
    "checkpoint_every": 2,
    "device": "cpu",
}


class SoundFiles:
    """A small run, a slim model, and files with a few tensors.

    Args:
        folder: an empty folder to make them in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "sound"
        train(parse_recipe(RECIPE), folder=self.run, show_progress=False)
        self.recipe = parse_recipe(RECIPE).to_toml()
        self.metrics = (self.run / "metrics.jsonl").read_bytes()
        self.summary = (self.run / "summary.json").read_bytes()
        last = sorted((self.run / "checkpoints").iterdir())[-1]
        self.checkpoint = {path.name: path.read_bytes() for path in last.iterdir()}
        self._state = last / "state"
        snapshot = next(iter(sorted((self.run / "spectra").iterdir())))
        self.snapshot_name, self.snapshot = snapshot.name, snapshot.read_bytes()
        self._make_slim()
        self._make_tensors()
        image = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        self.image = buffer.getvalue()
        record = {"process": 7, "host": "here", "machine": None, "since": "now", "token": "t"}
        self.lock = json.dumps(record).encode()

    def copied_run(self, folder: Path, *, but: tuple[str, ...]) -> Path:
        """A copy of the run, in a folder, without what is not looked at."""
        ignored = shutil.ignore_patterns(*but)
        return Path(shutil.copytree(self.run, folder / "run", ignore=ignored))

    def write_state(self, stem: Path, tree: bytes, *, like: Path | None = None) -> None:
        """Writes a nested state with another tree that it vouches for."""
        source = like or self._state
        tensors = load_file(f"{source}.safetensors")
        digest = hashlib.sha256(tree).hexdigest()
        save_file(tensors, f"{stem}.safetensors", metadata={"tree_sha256": digest})
        Path(f"{stem}.json").write_bytes(tree)

    def _make_slim(self) -> None:
        torch.manual_seed(0)
        model = mlp(in_features=8, hidden=(6,), num_classes=3).eval()
        with torch.no_grad():
            next(p for p in model.parameters() if p.ndim == 2)[:2] = 0
        self.slim = self.folder / "slim"
        arguments = {"in_features": 8, "hidden": [6], "num_classes": 3}
        small = slim(model, torch.randn(2, 8))
        save_slim(small, self.slim, factory="latewood.models:mlp", arguments=arguments)
        self.slim_json = Path(f"{self.slim}.json").read_bytes()

    def _make_tensors(self) -> None:
        tensors = {"a.weight": torch.randn(4, 3), "b.weight": torch.randn(2, 2, 3, 3).half()}
        save_file(tensors, self.folder / "t.safetensors")
        self.safetensors = (self.folder / "t.safetensors").read_bytes()
        self.index = json.dumps(
            {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model.safetensors")}
        ).encode()
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save(tensors, buffer, _use_new_zipfile_serialization=zipped)
            if zipped:
                self.torch_file = buffer.getvalue()
            else:
                self.old_torch_file = buffer.getvalue()
