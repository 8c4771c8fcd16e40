"""A compiled network, and a compiled optimizer step, give what the plain ones give."""

import pytest
import torch
from short_training import Training

STEPS = 8  # past the freeze, the second round and three sets of shapes


def compiled(function):
    return torch.compile(function, backend="aot_eager")


@pytest.fixture(autouse=True)
def no_graphs_of_earlier_tests():
    # Graphs of earlier shapes count towards the limit after which torch compiles no more.
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_close(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        # float64 leaves nothing but another order of summation.
        torch.testing.assert_close(other[name], tensor, rtol=1e-7, atol=1e-9, msg=name)


def test_a_compiled_network_trains_like_a_plain_one(method):
    plain = Training(method, "convnet", dtype=torch.float64).run(STEPS)
    other = Training(method, "convnet", dtype=torch.float64, wrap=compiled).run(STEPS)
    assert other.method.metrics() == pytest.approx(plain.method.metrics(), rel=1e-9)
    assert_close(plain.finish().state_dict(), other.finish().state_dict())


def test_a_probe_sees_through_a_compiled_network(probe, tmp_path):
    plain = Training(probe, "mlp", dtype=torch.float64, folder=tmp_path / "plain").run(STEPS)
    other = Training(
        probe, "mlp", dtype=torch.float64, folder=tmp_path / "other", wrap=compiled
    ).run(STEPS)
    for training in (plain, other):
        training.finish()
    assert other.seen.keys() == plain.seen.keys() and plain.seen
    for step, values in plain.seen.items():
        assert other.seen[step] == pytest.approx(values, rel=1e-7)


def test_a_compiled_step_walks_like_a_plain_one(optimizer):
    plain = Training(optimizer, "mlp", dtype=torch.float64)
    other = Training(optimizer, "mlp", dtype=torch.float64)
    step = compiled(other.optimizer.step)
    for _ in range(4):
        plain.step()
        other.backward()
        step()
        other.steps += 1
    assert_close(dict(plain.model.named_parameters()), dict(other.model.named_parameters()))
