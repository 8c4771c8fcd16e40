"""Importing a room costs little more than importing torch."""

import subprocess
import sys

import pytest

HEAVY = (
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.tensor",
    "triton",
    "pandas",
    "sklearn",
    "skimage",
    "plotly",
    "matplotlib",
    "accelerate",
    "torchvision",
    "datasets",
)
"""What takes long to import and few who import a room use; torch itself leaves them out."""


@pytest.mark.parametrize(
    "room",
    [
        "latewood.core",
        "latewood.faults",
        "latewood.growth",
        "latewood.kernels.inpainting",
        "latewood.kernels.masked_weight",
        "latewood.kernels.optimizers",
        "latewood.optim",
        "latewood.precision",
        "latewood.segmentation",
        "latewood.sparsity",
        "latewood.spectra",
    ],
)
def test_a_room_imports_nothing_heavy(room):
    code = f"import sys, {room}; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
