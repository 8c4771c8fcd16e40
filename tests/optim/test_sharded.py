"""Sharded and replicated parameters over two processes, against one process that has everything."""

from pathlib import Path

import pytest
import torch.distributed as dist
from warm_python import WarmPython

SCRIPT = Path(__file__).parent / "sharded_run.py"


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_walk_as_one(tmp_path):
    processes = [
        WarmPython([str(SCRIPT), str(rank), "2", str(tmp_path / "meeting")]) for rank in range(2)
    ]
    printed = [process.communicate(timeout=180) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
