"""Recurrent networks: what depends on what, states that carry on, and padding."""

import pytest
import torch

from latewood.models import bidirectional_lstm, lstm_classifier, lstm_language_model


def test_language_model_does_not_look_ahead() -> None:
    model = lstm_language_model(vocabulary=9, hidden=6).eval()
    tokens = torch.tensor([[1, 2, 3, 4]])
    changed = torch.tensor([[1, 2, 3, 8]])
    assert torch.equal(model(tokens)[:, :3], model(changed)[:, :3])
    assert not torch.equal(model(tokens)[:, 3], model(changed)[:, 3])


def test_state_carries_from_one_stretch_to_the_next() -> None:
    model = lstm_language_model(vocabulary=9, hidden=6).eval()
    tokens = torch.randint(9, (2, 8))
    first, state = model.unroll(tokens[:, :5])
    second, _ = model.unroll(tokens[:, 5:], state)
    torch.testing.assert_close(torch.cat((first, second), dim=1), model(tokens))
    assert not torch.allclose(model(tokens[:, 5:]), second)


def test_tied_decoder_shares_the_embedding() -> None:
    model = lstm_language_model(vocabulary=9, hidden=6, tied=True, init_range=0.04)
    assert model.head.weight is model.embedding.weight
    largest = max(parameter.abs().max().item() for parameter in model.parameters())
    assert 0.03 < largest <= 0.04


def test_frames_see_both_directions() -> None:
    model = bidirectional_lstm(features=3, hidden=4, layers=2, num_classes=5).eval()
    inputs = torch.randn(1, 6, 3, requires_grad=True)
    model(inputs)[0, 2].sum().backward()
    assert (inputs.grad[0].abs().sum(dim=1) > 0).all()


def test_lengths_hide_the_padding() -> None:
    model = bidirectional_lstm(features=3, hidden=4, layers=2, num_classes=5).eval()
    inputs = torch.randn(2, 6, 3)
    outputs = model(inputs, torch.tensor([3, 6]))
    assert outputs.shape == (2, 6, 5)
    torch.testing.assert_close(outputs[:1, :3], model(inputs[:1, :3]))
    torch.testing.assert_close(outputs[1:], model(inputs[1:]))
    assert not torch.allclose(model(inputs)[0, :3], outputs[0, :3])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_classifier_reads_the_last_state_or_the_mean(bidirectional) -> None:
    arguments = {"features": 3, "hidden": 4, "bidirectional": bidirectional}
    mean = lstm_classifier(**arguments).eval()
    last = lstm_classifier(**arguments, pool="last").eval()
    last.load_state_dict(mean.state_dict())
    inputs = torch.randn(2, 6, 3)
    outputs = mean.lstm(inputs)[0]
    forward, backward = outputs[:, -1, :4], outputs[:, 0, 4:]
    torch.testing.assert_close(mean(inputs), mean.head(outputs.mean(dim=1)))
    torch.testing.assert_close(last(inputs), mean.head(torch.cat((forward, backward), dim=1)))
