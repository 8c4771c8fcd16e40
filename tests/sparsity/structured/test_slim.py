"""What comes out is the full model with masks, exactly, and a file that rebuilds."""

import pytest
import torch

from latewood.core import macs
from latewood.slim import load_slim, save_slim


def out(model, inputs):
    outputs = model(*inputs)
    return outputs[0] if isinstance(outputs, tuple) else outputs


@pytest.mark.parametrize(
    "name", ["convnet", "resnet20", "mobilenet", "concat", "lstm", "language", "heads"]
)
def test_slim_is_the_masked_full_model(runs, name):
    run = runs(name, epochs=6)
    before = run.full.state_dict()
    for _ in range(6):
        run.epoch()
    metrics = run.method.metrics()
    slim = run.method.finalize().eval()
    masked = run.masked()
    with torch.no_grad():
        one, other = out(masked, run.inputs), out(slim, run.inputs)
    assert torch.any(one != 0)
    assert (one - other).abs().max() <= 1e-12 * max(1.0, one.abs().max())
    full = sum(p.numel() for p in run.full.parameters())
    assert sum(p.numel() for p in slim.parameters()) == metrics["parameters"] < full
    examples = tuple(x[:1] for x in run.inputs)
    assert macs(slim, examples) == metrics["macs"]
    assert (
        run.method.budget.full
        == full
        == sum(
            value.numel()
            for name, value in before.items()
            if name in dict(masked.named_parameters())
        )
    )
    assert not any("parametrizations" in name for name in slim.state_dict())


@pytest.mark.parametrize("name", ["resnet20", "lstm"])
def test_a_file_rebuilds_it(runs, name, tmp_path):
    run = runs(name, epochs=4)
    for _ in range(4):
        run.epoch()
    slim = run.method.finalize().eval()
    save_slim(slim, tmp_path / "slim")
    fresh = load_slim(tmp_path / "slim", lambda: runs(name).full)
    with torch.no_grad():
        assert torch.equal(out(fresh, run.inputs), out(slim, run.inputs))
