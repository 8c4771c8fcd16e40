"""The keys of noise: one for each seed, step and tensor."""

import torch

from latewood.kernels.noise import uniform_noise
from latewood.precision.noise import noise_key


def test_keys_of_other_seeds_steps_and_names_draw_independently():
    noises = [
        uniform_noise(torch.empty(30_000), noise_key(seed, step, name)).double()
        for seed, step, name in [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")]
    ]
    correlations = torch.corrcoef(torch.stack(noises)).fill_diagonal_(0)
    assert correlations.abs().max() < 0.03


def test_the_same_key_draws_the_same():
    key = noise_key(3, 7, "layer.weight")
    assert key == noise_key(3, 7, "layer.weight")
    assert torch.equal(*[uniform_noise(torch.empty(5, 60), key) for _ in range(2)])
