"""The noise of training: uniform, without memory, and the same wherever it is asked for."""

import torch

from latewood.precision.noise import noise_key, uniform_noise


def test_moments_are_those_of_the_uniform_distribution():
    noise = uniform_noise(torch.empty(1000, 1000), noise_key(0, 0, "weight")).double()
    assert noise.abs().max() <= 1
    assert noise.mean().abs() < 0.003
    assert abs(noise.square().mean() - 1 / 3) < 0.002
    assert abs(noise.pow(4).mean() - 1 / 5) < 0.002
    counts = torch.histc(noise, 64, -1, 1) / 1e6 * 64
    assert (counts - 1).abs().max() < 0.04


def test_keys_places_and_rows_are_independent():
    noises = [
        uniform_noise(torch.empty(300, 100), noise_key(seed, step, name)).flatten().double()
        for seed, step, name in [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")]
    ]
    shifted = [noises[0].roll(shift) for shift in (1, 2, 100, 16384)]
    correlations = torch.corrcoef(torch.stack([*noises, *shifted])).fill_diagonal_(0)
    assert correlations.abs().max() < 0.03


def test_the_same_key_gives_the_same_noise_and_a_longer_tensor_begins_alike():
    key = noise_key(3, 7, "layer.weight")
    short, long = uniform_noise(torch.empty(100), key), uniform_noise(torch.empty(40000), key)
    assert torch.equal(short, long[:100])
    assert torch.equal(long, uniform_noise(torch.empty(40000), key))
    assert uniform_noise(torch.empty(0, 3), key).shape == (0, 3)


def test_no_generator_is_touched():
    before = torch.get_rng_state()
    uniform_noise(torch.empty(10), noise_key(0, 0, ""))
    assert torch.equal(torch.get_rng_state(), before)
