"""Importing a room costs little more than importing torch."""

import pytest
from import_probe import imported_by

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

ROOMS = (
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
)


@pytest.fixture(scope="module")
def imported():
    return imported_by(*ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_nothing_heavy(room, imported):
    assert room in imported[room]
    assert not (imported["torch"] | imported[room]) & set(HEAVY)
