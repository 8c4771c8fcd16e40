"""The setting on digits: its split, its permuted labels, and runs that can be cut anywhere."""

from __future__ import annotations

import copy

import torch

from latewood.core.schedules import cosine
from latewood.experiments.spectra import digits_setting


def test_split_of_standardised_digits() -> None:
    data = digits_setting.load()
    assert (len(data.train), len(data.validation)) == (1400, 397)
    whole = torch.cat((data.train.tensors[0], data.validation.tensors[0]))
    assert abs(whole.mean()) < 1e-5
    assert abs(whole.std() - 1) < 1e-5


def test_random_labels_are_those_of_other_digits() -> None:
    true, permuted = digits_setting.load(), digits_setting.load(random_labels=True)
    assert torch.equal(true.train.tensors[0], permuted.train.tensors[0])

    def labels(data: digits_setting.Digits) -> torch.Tensor:
        return torch.cat((data.train.tensors[1], data.validation.tensors[1]))

    assert torch.equal(labels(true).bincount(), labels(permuted).bincount())
    for part in ("train", "validation"):
        first, second = getattr(true, part).tensors[1], getattr(permuted, part).tensors[1]
        assert 0.05 < (first == second).double().mean() < 0.15
    again = digits_setting.load(random_labels=True)
    assert torch.equal(labels(again), labels(permuted))


def test_networks_come_from_their_seed_alone() -> None:
    state = torch.get_rng_state()
    first, second, other = (digits_setting.network((8,), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.head.weight, second.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_a_run_cut_in_the_middle_of_an_epoch_ends_as_an_uncut_one() -> None:
    data = digits_setting.load()
    settings = {"epochs": 2, "batch_size": 200, "seed": 3, "schedule": cosine()}
    whole = digits_setting.network((8,), seed=0)
    parted = copy.deepcopy(whole)
    seen: list[int] = []
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1, momentum=0.9)
    digits_setting.fit_part(whole, data, optimizer, **settings, observe=seen.append)
    assert seen == list(range(15))
    optimizer = torch.optim.SGD(parted.parameters(), lr=0.1, momentum=0.9)
    for start, stop in ((0, 4), (4, 9), (9, None)):
        digits_setting.fit_part(parted, data, optimizer, **settings, start=start, stop=stop)
    for one, other in zip(whole.parameters(), parted.parameters(), strict=True):
        assert torch.equal(one, other)


def test_scores_of_a_model_that_knows_the_answers() -> None:
    data = digits_setting.load()
    inputs, labels = data.validation.tensors
    known = 100.0 * torch.nn.functional.one_hot(labels, 10).float()

    class Knows(torch.nn.Module):
        def forward(self, given: torch.Tensor) -> torch.Tensor:
            assert given is inputs
            return known

    assert digits_setting.scores(Knows(), data.validation) == {"loss": 0.0, "error": 0.0}
