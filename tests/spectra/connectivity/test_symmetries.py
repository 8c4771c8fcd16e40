"""Models that nobody here wrote: every free group may be permuted, and what was is found again."""

import copy
import warnings

import pytest
import torch
from torch import nn

from latewood.core.coupling import trace_channels
from latewood.core.coupling.trace import outputs_of, run_model
from latewood.spectra import ChannelSymmetries, connect, match_channels, matched

# The stream that all layers write to, heads, and the hidden units of each block of two.
LEAST_GROUPS = {
    "gpt2": 5,
    "llama": 5,
    "mixtral": 3,
    "t5": 6,
    "vit": 5,
    "bert": 5,
    "whisper": 12,
    "resnet18": 12,
}


def build(name, kit):
    if name == "resnet18":
        torchvision = pytest.importorskip("torchvision")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = torchvision.models.resnet18(weights=None, num_classes=5)
        inputs = {"x": torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))}
    else:
        model, inputs = kit.build(name)
        if name == "mixtral":  # torch multiplies groups of rows in single precision only
            model.set_experts_implementation("eager")
    generator = torch.Generator().manual_seed(2)
    model = model.double().eval()
    with torch.no_grad():  # away from the initial values, which hide what is not equal
        for entry in model.state_dict().values():
            if entry.is_floating_point():
                entry += 0.1 * torch.rand(entry.shape, generator=generator, dtype=entry.dtype)
    return model, {
        key: value.double() if value.is_floating_point() else value for key, value in inputs.items()
    }


def outputs(model, inputs):
    with torch.no_grad():
        return [y for y in outputs_of(run_model(model, inputs)) if y.is_floating_point()]


# Their norms compute in float32 whatever the model does, and sum a permuted stream otherwise.
IN_SINGLE = ("llama", "mixtral")


@pytest.mark.parametrize("architecture", LEAST_GROUPS)
def test_every_free_group_may_be_permuted_and_is_found_again(architecture, transformers_kit):
    model, inputs = build(architecture, transformers_kit)
    symmetries = ChannelSymmetries(model, inputs)
    assert len(symmetries.groups) >= LEAST_GROUPS[architecture]
    plan = trace_channels(model, inputs)
    assert {group.name for group in plan.free if group.width > 1} <= set(symmetries.groups)

    state = copy.deepcopy(model.state_dict())
    expected = outputs(model, inputs)
    for name, group in symmetries.groups.items():
        shuffled = symmetries.permuted(state, {name: torch.arange(group.width).roll(1)})
        assert any(not torch.equal(state[key], shuffled[key]) for key in state), name
        model.load_state_dict(shuffled)
        for one, other in zip(expected, outputs(model, inputs), strict=True):
            normed = architecture in IN_SINGLE and plan[name].barriers
            tolerance = 1e-6 if normed else 1e-12
            assert float((one - other).abs().max() / one.abs().max()) < tolerance, name

    permutations = symmetries.random(seed=3)
    shuffled = symmetries.permuted(state, permutations)
    back, found = matched(model, state, shuffled, inputs)
    assert all(torch.equal(state[key], back[key]) for key in state)
    for name, order in permutations.items():
        assert torch.equal(order[found.permutations[name]], torch.arange(len(order)))


def test_a_norm_over_the_channels_forbids_another_number_but_not_another_order(transformers_kit):
    model, inputs = build("gpt2", transformers_kit)
    group = trace_channels(model, inputs)["transformer.wte#2"]
    assert {barrier.kind for barrier in group.barriers} <= {"normalised"}


class Scan(nn.Module):
    """An operation that compares neighbouring channels."""

    def forward(self, x):
        return x.cumsum(-1)


def strangers(*layers):
    torch.manual_seed(0)
    model = nn.Sequential(*layers)
    states = []
    for _ in range(2):
        for layer in layers:
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        states.append(copy.deepcopy(model.state_dict()))
    return model, *states


def test_a_matching_of_nothing_names_every_kind_of_barrier():
    layers = nn.Linear(4, 6), Scan(), nn.Linear(6, 1), nn.Linear(1, 5)
    model, first, second = strangers(*layers)
    with pytest.warns(UserWarning, match="no group of channels can be permuted") as caught:
        found = match_channels(ChannelSymmetries(model, torch.randn(2, 4)), first, second)
    assert found.permutations == {} and len(found.objective) == 2
    (message,) = (str(warning.message) for warning in caught)
    assert "input (1 group 0.inputs: linear in 0 reads data of fixed size)" in message
    assert "mixed (1 group 0: cumsum in 1 compares channels)" in message
    assert "one channel (1 group 2: it has no other order)" in message
    assert "output (1 group 3: the model's output)" in message
    with pytest.warns(UserWarning, match="no group of channels"):
        connect(model, first, second, lambda _: {"loss": 0.0}, permute=True,
                example_inputs=torch.randn(2, 4))  # fmt: skip


def test_a_matching_of_something_says_nothing():
    model, first, second = strangers(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matched(model, first, second, torch.randn(2, 4))
