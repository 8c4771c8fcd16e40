"""Two processes with other samples train every entry and end with the same bits."""

import os
from pathlib import Path

import pytest
import torch.distributed as dist
from entries import cases
from warm_python import WarmPython

SCRIPT = Path(__file__).parent / "two_processes.py"


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_end_with_the_same_bits(tmp_path):
    # One pair for all entries, as starting Python twice is most of the time.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    folders = [str(tmp_path / name) for name in ("meeting", "probes")]
    processes = [
        WarmPython([str(SCRIPT), str(rank), "2", *folders], env=environment) for rank in range(2)
    ]
    outputs, errors = zip(*(process.communicate(timeout=300) for process in processes), strict=True)
    assert [process.returncode for process in processes] == [0, 0], "\n".join([*outputs, *errors])
    for output in outputs:
        assert all(f"{case} mlp\n" in output for case in cases("method", "probe", "optimizer"))
