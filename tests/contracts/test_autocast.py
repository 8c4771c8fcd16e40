"""Under bf16 autocast a network trains: what is finite stays so, and weights stay in float32."""

import pytest
import torch
from short_training import TOTAL_STEPS, Training
from torch import Tensor


@pytest.fixture(autouse=True)
def recurrent_layers_of_any_processor():
    """Without instructions for bf16, torch's recurrent layers end in an error of oneDNN."""
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    with torch.backends.mkldnn.flags(enabled=supported, deterministic=False):
        yield


def tensors_of(node):
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, dict | list | tuple):
        for value in node.values() if isinstance(node, dict) else node:
            yield from tensors_of(value)


def test_autocast_trains_and_leaves_weights_in_float32(component, network, tmp_path):
    training = Training(component, network, folder=tmp_path)
    for _ in range(TOTAL_STEPS):
        training.begin()
        trained = {
            id(parameter): (parameter, parameter.detach().clone())
            for group in training.optimizer.param_groups
            for parameter in group["params"]
        }
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = training.backward()
        assert loss.isfinite()
        training.update()
        moved = [p for p, before in trained.values() if p.grad is not None and p.grad.any()]
        assert moved
    assert any(not torch.equal(p, before) for p, before in trained.values())
    floating = [t for t in tensors_of(training.state()) if t.is_floating_point()]
    assert all(tensor.isfinite().all() for tensor in floating)
    half = (torch.bfloat16, torch.float16)
    assert not [tensor for tensor in floating if tensor.dtype in half]
    model = training.finish()
    assert all(p.dtype is torch.float32 and p.isfinite().all() for p in model.parameters())


def test_autocast_takes_the_same_way_within_its_precision(method, network):
    plain, rounded = Training(method, network), Training(method, network)
    for training, enabled in ((plain, False), (rounded, True)):
        training.begin()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            training.backward()
    for p, q in zip(plain.model.parameters(), rounded.model.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            # bfloat16 keeps eight bits, and a gradient is a sum of many roundings.
            limit = 0.3 * p.grad.abs().max().item() + 1e-3
            torch.testing.assert_close(q.grad, p.grad, rtol=0.0, atol=limit)
