"""Two processes with other samples train every entry and end with the same bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from entries import cases

SCRIPT = Path(__file__).parent / "two_processes.py"


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_end_with_the_same_bits(tmp_path):
    # One pair for all entries, as starting Python twice is most of the time.
    command = [sys.executable, str(SCRIPT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        subprocess.Popen(
            [*command, str(rank), "2", str(tmp_path / "meeting"), str(tmp_path / "probes")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    for output in outputs:
        assert all(f"{case} mlp\n" in output for case in cases("method", "probe", "optimizer"))
