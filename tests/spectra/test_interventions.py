"""Truncation, perturbation and masks against closed forms, and what they leave alone."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from latewood.core.batch_norm import recalibrate_batch_norm
from latewood.errors import RequestError
from latewood.spectra import (
    apply_masks_,
    magnitude_masks,
    perturb_,
    perturbed,
    random_masks,
    reinitialize_,
    truncate_,
    truncated,
    truncation_scores,
    weight_matrices,
)


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3),
            nn.Flatten(), nn.Linear(100, 8), nn.Linear(8, 5),
        )  # fmt: skip


@pytest.fixture
def batches(gaussian):
    return [(3 + gaussian(8, 3, 5, 5, seed=seed, dtype=torch.float32),) for seed in range(3)]


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (40, 60), (3, 5, 7)])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_parts_add_up_and_are_orthogonal(gaussian, shape, fraction):
    matrix = gaussian(*shape)
    top = truncated(matrix, fraction=fraction)
    bottom = truncated(matrix, keep="bottom", fraction=fraction)
    assert torch.allclose(top + bottom, matrix, atol=1e-12)
    energy = top.square().sum() + bottom.square().sum()
    assert energy.item() == pytest.approx(matrix.square().sum().item())
    assert torch.allclose(truncated(top, fraction=fraction), top, atol=1e-12)
    values = torch.linalg.svdvals(matrix)
    count = math.ceil(fraction * min(shape[-2:]))
    left_out = values[..., count:].square().sum()
    assert (matrix - top).square().sum().item() == pytest.approx(left_out.item(), abs=1e-12)
    assert torch.linalg.matrix_rank(top).tolist() == torch.full(shape[:-2], count).tolist()


def test_half_of_an_odd_rank_is_rounded_up(gaussian):
    assert torch.linalg.matrix_rank(truncated(gaussian(5, 7))) == 3
    assert torch.linalg.matrix_rank(truncated(gaussian(100, 100), fraction=0.07)) == 7


def test_single_precision_and_broken_matrices(gaussian):
    matrix = gaussian(40, 60, dtype=torch.float32)
    top = truncated(matrix)
    assert top.dtype == torch.float32
    assert torch.allclose(top, truncated(matrix.double()).float(), atol=1e-5)
    matrix[0, 0] = torch.nan
    assert truncated(matrix).isnan().all()


def test_truncation_of_a_model_spares_head_biases_and_norms(net):
    before = copy.deepcopy(net.state_dict())
    changed = truncate_(net)
    assert changed == ["0.weight", "3.weight", "5.weight"]
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in changed), name
    first = truncated(before["0.weight"].flatten(1)).reshape(6, 3, 3, 3)
    assert torch.equal(net[0].weight, first)
    swapped = truncated(before["3.weight"].transpose(0, 1).flatten(1))
    assert torch.equal(net[3].weight, swapped.reshape(4, 6, 3, 3).transpose(0, 1))
    assert truncate_(net, skip_head=False, include=("6",)) == ["6.weight"]
    assert truncate_(net, exclude=("3", "0.*")) == ["5.weight"]


def test_batch_norms_are_measured_anew_where_batches_are_given(net, batches):
    truncate_(net, batches=batches)
    with torch.no_grad():
        seen = torch.stack([net[0](x).mean((0, 2, 3)) for (x,) in batches]).mean(0)
    assert torch.allclose(net[1].running_mean, seen, atol=1e-5)
    assert net.training


def test_scores_of_the_parts(net, batches):
    before = copy.deepcopy(net.state_dict())

    def energy(model):
        weight = model[5].weight
        return {"energy": weight.square().sum().item(), "mean": model[1].running_mean.sum().item()}

    scores = truncation_scores(net, energy, batches=batches)
    assert list(scores) == ["full", "top", "bottom"]
    parts = scores["top"]["energy"] + scores["bottom"]["energy"]
    assert parts == pytest.approx(scores["full"]["energy"], rel=1e-5)
    assert scores["top"]["energy"] > scores["bottom"]["energy"] > 0
    # All three read their own statistics, the whole model too, though it keeps those it has.
    whole = copy.deepcopy(net)
    recalibrate_batch_norm(whole, batches)
    assert scores["full"]["mean"] == whole[1].running_mean.sum().item() != 0
    assert scores["full"]["mean"] != scores["top"]["mean"] != scores["bottom"]["mean"]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert truncation_scores(net, energy)["full"]["mean"] == 0
    with pytest.raises(RequestError, match="batches"):
        truncation_scores(net, energy, batches=iter(batches))


@pytest.mark.parametrize(
    ("strength", "cosine"),
    [(0.1, 0.99504), (0.25, 0.97014), (0.5, 0.89443), (1, 0.70711), (2.5, 0.37139)],
)
def test_perturbation_keeps_the_norm_and_turns_as_far_as_expected(gaussian, strength, cosine):
    weight = gaussian(300, 200)
    moved = perturbed(weight, strength, generator=torch.Generator().manual_seed(3))
    assert moved.norm().item() == pytest.approx(weight.norm().item())
    found = (moved * weight).sum() / weight.square().sum()
    assert found.item() == pytest.approx(cosine, abs=0.01)
    step = perturbed(
        weight, strength, generator=torch.Generator().manual_seed(3), preserve_norm=False
    )
    assert (step - weight).norm().item() == pytest.approx(strength * weight.norm().item())
    assert torch.allclose(step / step.norm(), moved / moved.norm())


def test_perturbation_of_nothing_and_by_nothing(gaussian):
    generator = torch.Generator().manual_seed(0)
    weight = gaussian(4, 3, dtype=torch.float32)
    assert torch.allclose(perturbed(weight, 0.0, generator=generator), weight)
    assert perturbed(torch.zeros(3, 2), 1.0, generator=generator).count_nonzero() == 0


def test_perturbation_of_a_model_depends_on_its_seed_alone(net):
    state = copy.deepcopy(net.state_dict())
    random_state = torch.get_rng_state()
    results = []
    for seed in (5, 5, 6):
        net.load_state_dict(state)
        assert perturb_(net, 0.5, seed=seed, exclude=("5",)) == ["0.weight", "3.weight"]
        results.append(copy.deepcopy(net.state_dict()))
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name])
        moved = name in ("0.weight", "3.weight")
        assert torch.equal(value, results[2][name]) == (not moved)
        assert torch.equal(value, state[name]) == (not moved)


@pytest.mark.parametrize("keep", [0, 0.01, 0.05, 0.29, 0.5, 1])
def test_magnitude_masks_keep_exactly_the_largest(gaussian, keep):
    weights = {"a": gaussian(10, 5), "b": 0.5 * gaussian(2, 5, 5, seed=1)}
    masks = magnitude_masks(weights, keep)
    assert [m.shape for m in masks.values()] == [w.shape for w in weights.values()]
    kept = torch.cat([weights[n][masks[n]].abs() for n in weights])
    dropped = torch.cat([weights[n][~masks[n]].abs() for n in weights])
    assert len(kept) == round(keep * 100)
    if 0 < keep < 1:
        assert kept.min() > dropped.max()


def test_magnitude_masks_count_ties_exactly():
    masks = magnitude_masks({"a": torch.ones(2, 5), "b": -torch.ones(2, 5)}, 0.6)
    assert masks["a"].sum() == 2
    assert masks["b"].sum() == 10


def test_random_masks_have_the_density_of_each_layer(gaussian):
    masks = magnitude_masks({"a": gaussian(100, 100), "b": 3 * gaussian(100, 100, seed=1)}, 0.3)
    control = random_masks(masks, seed=0)
    for name, mask in masks.items():
        density = mask.double().mean().item()
        assert control[name].double().mean().item() == pytest.approx(density, abs=0.02)
        both = (control[name] & mask).double().mean().item()
        assert both == pytest.approx(density**2, abs=0.02)
    assert all(torch.equal(control[n], random_masks(masks, seed=0)[n]) for n in masks)
    assert not torch.equal(control["a"], random_masks(masks, seed=1)["a"])


def test_weights_are_drawn_anew_and_nothing_else(net, batches):
    before = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    names = reinitialize_(net, seed=3, batches=batches)
    assert torch.equal(torch.get_rng_state(), state)
    assert names == ["0.weight", "3.weight", "5.weight"]
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in names and "running" not in name
                                                    and "tracked" not in name)  # fmt: skip
    for name in names:
        weight = net.get_parameter(name)
        bound = 1 / math.sqrt(weight[0].numel())
        assert weight.abs().max() < bound
        assert weight.double().square().mean().item() == pytest.approx(bound**2 / 3, rel=0.25)
    seen = torch.cat([net[0](x).transpose(0, 1).flatten(1) for (x,) in batches], dim=1)
    assert torch.allclose(net[1].running_mean, seen.mean(1), atol=1e-5)
    again = copy.deepcopy(net)
    reinitialize_(again, seed=3)
    assert torch.equal(again[5].weight, net[5].weight)
    reinitialize_(again, seed=4, include=("5",))
    assert torch.equal(again[3].weight, net[3].weight)
    assert not torch.equal(again[5].weight, net[5].weight)
    parametrize.register_parametrization(net[3], "weight", nn.Identity())
    with pytest.raises(RequestError, match=r"3\.weight is under a transformation"):
        reinitialize_(net, seed=0)


def test_masks_are_applied_to_the_model(net, batches):
    weights = weight_matrices(net)
    assert list(weights) == ["0.weight", "3.weight", "5.weight"]
    before = {name: weight.clone() for name, weight in weights.items()}
    head = net[6].weight.clone()
    masks = magnitude_masks(weights, 0.2)
    apply_masks_(net, masks, batches=batches)
    for name, weight in weight_matrices(net).items():
        assert torch.equal(weight, before[name] * masks[name])
    assert torch.equal(net[6].weight, head)
    assert net[1].running_mean.count_nonzero() > 0


def test_bad_arguments_are_refused(net, gaussian):
    with pytest.raises(RequestError, match="keep"):
        truncate_(net, keep="middle")
    for fraction in (-0.1, 1.1, math.nan):
        with pytest.raises(RequestError, match="fraction"):
            truncate_(net, fraction=fraction)
    for strength in (-1, math.inf, math.nan):
        with pytest.raises(RequestError, match="strength"):
            perturb_(net, strength, seed=0)
    with pytest.raises(RequestError, match="keep"):
        magnitude_masks({"a": gaussian(2, 2)}, 1.1)
    with pytest.raises(RequestError, match="weights"):
        magnitude_masks({}, 0.5)
    with pytest.raises(RequestError, match="weights: got 'a'"):
        magnitude_masks({"a": torch.full((2, 2), torch.nan)}, 0.5)
    with pytest.raises(RequestError, match=r"masks: got '0\.bias'"):
        apply_masks_(net, {"0.bias": torch.ones(6, dtype=torch.bool)})
    with pytest.raises(RequestError, match="masks"):
        apply_masks_(net, {"0.weight": torch.ones(6, dtype=torch.bool)})
    parametrize.register_parametrization(net[3], "weight", nn.Identity())
    with pytest.raises(RequestError, match=r"3\.weight is under a transformation"):
        truncate_(net)
