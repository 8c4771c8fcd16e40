"""Two processes that share the matrices find together what one finds alone."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

SCRIPT = Path(__file__).parent / "sharded_run.py"


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_the_union_is_that_of_one_process(tmp_path):
    command = [sys.executable, str(SCRIPT)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), "2", str(tmp_path / "meeting"), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
