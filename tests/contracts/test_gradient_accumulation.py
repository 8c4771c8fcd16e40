"""Two half batches are one step: a method steps with the optimizer, its penalty may repeat."""

import pytest
import torch
from short_training import TOTAL_STEPS, Training, assert_same, batch


def accumulated_step(training, parts):
    training.begin()
    training.optimizer.zero_grad()
    inputs, labels = batch(training.network, training.steps)
    for some, their in zip(inputs.chunk(parts), labels.chunk(parts), strict=True):
        # As most loops do it: every part carries its share of the penalty too.
        (training.loss(some, their) / parts).backward()
    training.update()


# Batch norm would see other statistics in half a batch.
@pytest.mark.parametrize("network", ["mlp", "lstm", "attention"])
def test_two_half_batches_are_one_step(component, network, tmp_path):
    if component.section.get("activations"):
        return  # the noise of a sample depends on its place in the batch
    whole, halves = (
        Training(component, network, dtype=torch.float64, folder=tmp_path / str(parts))
        for parts in (1, 2)
    )
    for _ in range(TOTAL_STEPS):
        accumulated_step(whole, 1)
        accumulated_step(halves, 2)
    for training in (whole, halves):
        training.finish()
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(
            halves.model.state_dict()[name], tensor, rtol=1e-7, atol=1e-9, msg=name
        )
    for method, other in zip(whole.methods, halves.methods, strict=True):
        assert other.metrics() == pytest.approx(method.metrics(), rel=1e-6, abs=1e-9)
    assert whole.seen.keys() == halves.seen.keys()
    for step, values in whole.seen.items():
        assert halves.seen[step] == pytest.approx(values, rel=1e-6, abs=1e-9)


def test_asking_for_the_penalty_changes_nothing(method):
    training = Training(method, "mlp")
    for _ in range(TOTAL_STEPS):
        training.begin()
        before = training.snapshot()
        penalties = [training.method.penalty().detach() for _ in range(2)]
        assert torch.equal(*penalties)
        assert_same(training.snapshot(), before)
        training.backward()
        training.update()
