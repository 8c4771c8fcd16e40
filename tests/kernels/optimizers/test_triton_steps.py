"""The Triton form: through the interpreter on any machine, for real where there is a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import Parameter

from latewood.optim import CSGD, AdaBound, AMSBound, AvaGrad, DelayedAdam


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_interpreted_kernels_agree_with_plain_torch():
    tests = Path(__file__).with_name("test_optimizer_steps.py")
    # The interpreter is chosen as Triton is imported: no warm process will do.
    command = [sys.executable, "-m", "pytest", str(tests), "-k", "triton", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [
        (AvaGrad, {}),
        (AvaGrad, {"gamma_mode": "official"}),
        (AvaGrad, {"gamma_mode": "paper"}),
        (DelayedAdam, {}),
        (AdaBound, {}),
        (AMSBound, {}),
        (CSGD, {"momentum": 0.9}),
    ],
)
def test_a_gpu_walks_like_the_cpu(optimizer_class, options, dtype):
    results = []
    for device, form in (("cpu", "single"), ("cuda", "fused"), ("cuda", "foreach")):
        generator = torch.Generator().manual_seed(0)
        shapes = ((300, 70), (5,), (0,), (2, 3, 4))
        values = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
        parameters = [Parameter(value) for value in values]
        switches = {"fused": form == "fused", "foreach": form == "foreach"}
        optimizer = optimizer_class(parameters, lr=0.01, **options, **switches)
        for _ in range(5):
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=generator).to(device, dtype)
            optimizer.step()
        results.append([p.detach().cpu() for p in parameters])
    slack = 1e-5 if dtype == torch.float32 else 2e-2
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=slack, atol=slack)
