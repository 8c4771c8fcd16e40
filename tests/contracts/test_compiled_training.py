"""A compiled network, and a compiled optimizer step, give what the plain ones give."""

import pytest
import torch
from short_training import Training, batch, network_of

STEPS = 7  # past the freeze, the end of a round and three sets of shapes


def compiled(function):
    return torch.compile(function, backend="aot_eager")


@pytest.fixture(autouse=True)
def no_graphs_of_earlier_tests():
    # Graphs of earlier shapes count towards the limit after which torch compiles no more.
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_close(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, msg=name, **tolerance)


def test_a_compiled_network_trains_like_a_plain_one(method):
    plain = Training(method, "mlp", dtype=torch.float64).run(STEPS)
    other = Training(method, "mlp", dtype=torch.float64, wrap=compiled).run(STEPS)
    assert other.method.metrics() == pytest.approx(plain.method.metrics(), rel=1e-9)
    # float64 leaves nothing but another order of summation.
    states = [training.finish().state_dict() for training in (plain, other)]
    assert_close(*states, rtol=1e-7, atol=1e-9)


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
    layers = [network_of("mlp")[0] for _ in range(2)]
    arguments = {key: value for key, value in optimizer.section.items() if key != "name"}
    plain, other = (optimizer.factory(layer.parameters(), **arguments) for layer in layers)
    step = compiled(other.step)
    for number in range(4):
        inputs, _ = batch("mlp", number)
        for layer in layers:
            layer.zero_grad()
            layer(inputs).square().sum().backward()
        plain.step()
        step()
    # Compiled, torch's own compute powers of beta in float32.
    assert_close(*(dict(layer.named_parameters()) for layer in layers), rtol=1e-4, atol=1e-5)
