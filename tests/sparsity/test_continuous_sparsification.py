"""What continuous sparsification does to a model, from attaching to folding."""

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from latewood.core import MASK, PRECISION, Method, attach, bake, parameter_groups
from latewood.errors import RequestError
from latewood.kernels.dispatch import native
from latewood.sparsity import ContinuousSparsification


def convnet() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, bias=False),
        nn.Flatten(),
        nn.Linear(4 * 16, 10),
    )


def images(n=8):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def randomize(method, seed=0):
    """Gives the logits both signs, as training would, and none of them close to 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for logits in method.mask_parameters():
            logits.copy_(torch.randn(logits.shape, generator=generator))
            logits.add_(0.1 * logits.sign())
    return method


def finish(method):
    for _ in range(method.total_steps):
        method.step()
    return method


def train(model, method, optimizer, steps, x=None, y=None):
    x = images() if x is None else x
    y = torch.arange(len(x)) % 10 if y is None else y
    for _ in range(steps):
        loss = F.cross_entropy(model(x), y) + method.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.step()


def test_it_is_a_method():
    assert isinstance(ContinuousSparsification(nn.Linear(2, 2), total_steps=1), Method)


# Attaching


@pytest.mark.parametrize("initial_logit", [-0.3, -0.1, 0.0, 0.05, 0.3])
def test_attaching_changes_no_bit_of_the_function(initial_logit):
    model, x = convnet().eval(), images()
    before = model(x)
    ContinuousSparsification(model, total_steps=9, initial_logit=initial_logit, exclude=())
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("kernels", ["native", "reference"])
@given(initial_logit=st.one_of(st.floats(-16, 16), st.floats(-0.3, 0.3)))
@settings(max_examples=60, deadline=None)
def test_initial_mask_is_one(kernels, initial_logit):
    """Exactly with the compiled kernels, to one unit in the last place with the reference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATEWOOD_KERNELS", kernels)
        layer = nn.Linear(5, 3)
        before = layer.weight.detach().clone()
        ContinuousSparsification(layer, total_steps=9, initial_logit=initial_logit)
        epsilon = 0.0 if native() is not None else torch.finfo(torch.float32).eps
        torch.testing.assert_close(layer.weight.detach(), before, rtol=epsilon, atol=0)


def test_paper_form_halves_every_weight_at_first():
    layer = nn.Linear(5, 3)
    before = layer.weight.detach().clone()
    ContinuousSparsification(layer, total_steps=9, scale="none")
    assert torch.equal(layer.weight, before / 2)


def test_norms_biases_and_the_last_layer_stay_dense():
    method = ContinuousSparsification(convnet(), total_steps=9)
    assert list(method.masks()) == ["0.weight", "3.weight"]


def test_which_layers_are_masked_can_be_chosen():
    for include, exclude, names in [
        (("*",), (), ["0.weight", "3.weight", "5.weight"]),
        (("3", "5"), None, ["3.weight", "5.weight"]),
        (("*",), ["0"], ["3.weight", "5.weight"]),
    ]:
        method = ContinuousSparsification(
            convnet(), total_steps=9, include=include, exclude=exclude
        )
        assert list(method.masks()) == names


def test_a_model_of_one_layer_is_masked():
    assert list(ContinuousSparsification(nn.Linear(2, 2), total_steps=9).masks()) == ["weight"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total_steps": 0}, "total_steps: got 0; expected a whole number, 1 or more"),
        ({"total_steps": 2.5}, "total_steps: got 2.5"),
        ({"total_steps": True}, "total_steps: got True"),
        ({"steps_per_epoch": 0}, "steps_per_epoch: got 0"),
        ({"initial_logit": 17.0}, "initial_logit: got 17.0; expected a number in"),
        ({"initial_logit": float("nan")}, "initial_logit: got nan"),
        ({"final_temperature": 0.5}, "final_temperature: got 0.5; expected a finite number"),
        ({"final_temperature": float("inf")}, "final_temperature: got inf"),
        ({"penalty_weight": -1.0}, "penalty_weight: got -1.0; expected a finite number, 0 or more"),
        ({"scale": "paper"}, "scale: got 'paper'; expected 'code' or 'none'"),
        ({"mask_lr": 0.0}, "mask_lr: got 0.0; expected a positive finite number, or None"),
        ({"include": ("conv*",)}, r"include: got 'conv\*'; expected a pattern that matches one of"),
        ({"exclude": ("*",)}, "exclude: got .*; expected patterns that leave at least one"),
    ],
)
def test_bad_arguments_are_named_and_leave_the_model_alone(arguments, message):
    model = convnet()
    keys = list(model.state_dict())
    with pytest.raises(RequestError, match=message):
        ContinuousSparsification(model, **{"total_steps": 9, **arguments})
    assert list(model.state_dict()) == keys


def test_models_that_cannot_be_masked_are_refused():
    masked = nn.Linear(2, 2)
    ContinuousSparsification(masked, total_steps=1)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    with pytest.warns(FutureWarning):
        hooked = nn.utils.weight_norm(nn.Linear(2, 2), dim=None)
    for model, message in [
        (masked, "model: weight already has a mask; finalize it first"),
        (normed, "model: weight has the parametrization _WeightNorm"),
        (hooked, "model: weight_v is a factor of torch.nn.utils.weight_norm"),
        (nn.ReLU(), "model: got 'ReLU'"),
        (nn.Linear(2, 2, dtype=torch.complex64), "weight of torch.complex64"),
        (nn.Linear(2, 2, device="meta"), "weight on the meta device"),
    ]:
        with pytest.raises(RequestError, match=message):
            ContinuousSparsification(model, total_steps=1)


def test_weights_without_elements_are_left_alone():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 0), nn.Linear(0, 2))
    method = ContinuousSparsification(model, total_steps=1, initial_logit=0.1)
    assert list(method.masks()) == ["0.weight"]
    method.harden()
    assert method.metrics()["density"] == 1.0


# Training


def test_the_ten_line_loop():
    import latewood

    model, epochs = convnet(), 2
    loader = [(images(), torch.arange(8)) for _ in range(10)]
    before = F.cross_entropy(model(images()), torch.arange(8)).item()

    method = latewood.sparsity.ContinuousSparsification(model, total_steps=len(loader) * epochs)
    groups = [*latewood.core.parameter_groups(model, [method])]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    for x, y in loader * epochs:
        loss = F.cross_entropy(model(x), y) + method.penalty()
        optimizer.zero_grad(); loss.backward(); optimizer.step(); method.step()  # fmt: skip # noqa: E702
    metrics = method.metrics()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ticket = method.finalize()

    assert loss.item() < before / 2
    assert 0 < metrics["density"] < 1
    assert ticket is model
    kept = (model[0].weight != 0).float().mean().item()
    assert kept == pytest.approx(method.metrics()["density/0"])


def test_logits_have_their_own_group_without_decay():
    model = convnet()
    method = ContinuousSparsification(model, total_steps=9, mask_lr=0.5)
    groups = parameter_groups(model, [method], weight_decay=1e-4, lr=0.1)
    own = groups[-1]
    assert own["weight_decay"] == 0.0 and own["lr"] == 0.5
    assert [id(p) for p in own["params"]] == [id(p) for p in method.mask_parameters()]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert (
        "lr" not in ContinuousSparsification(nn.Linear(2, 2), total_steps=9).parameter_groups()[0]
    )


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_without_a_gradient_no_logit_moves(optimizer):
    layer = nn.Linear(4, 3)
    method = randomize(ContinuousSparsification(layer, total_steps=9, penalty_weight=0.0))
    before = copy.deepcopy(method.mask_parameters())
    step = optimizer(parameter_groups(layer, [method], weight_decay=0.1), lr=0.1)
    (layer(torch.zeros(2, 4)).sum() + method.penalty()).backward()
    step.step()
    assert all(torch.equal(a, b) for a, b in zip(method.mask_parameters(), before, strict=True))


def test_penalty_is_the_weighted_sum_of_the_soft_mask():
    model = convnet()
    method = randomize(
        ContinuousSparsification(model, total_steps=5, penalty_weight=0.25, initial_logit=-0.1)
    )
    method.step()
    masks = [
        model[i].parametrizations.weight[0].scale
        * torch.sigmoid(method.temperature * model[i].parametrizations.weight[0].mask_logits)
        for i in (0, 3)
    ]
    want = 0.25 * sum(mask.sum() for mask in masks)
    gradients = torch.autograd.grad(want, method.mask_parameters())
    assert method.penalty().item() == pytest.approx(want.item(), rel=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(method.penalty(), method.mask_parameters()), gradients, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_penalty_needs_no_graph_when_it_has_no_weight():
    method = ContinuousSparsification(nn.Linear(2, 2), total_steps=5, penalty_weight=0.0)
    assert method.penalty().item() == 0.0 and not method.penalty().requires_grad


def test_frozen_weights_train_only_their_mask():
    """The supermask: weights at their initial values, only the mask learns."""
    model = convnet().requires_grad_(False)
    method = ContinuousSparsification(model, total_steps=9)
    before = model[0].parametrizations.weight.original.clone()
    train(model, method, torch.optim.SGD(method.parameter_groups(), lr=1.0), 3)
    assert torch.equal(model[0].parametrizations.weight.original, before)
    assert all((p != 0).any() for p in method.mask_parameters())


# Density


@given(
    logits=st.lists(st.floats(-2, 2, allow_subnormal=False, width=32), min_size=12, max_size=12),
    temperature=st.floats(1, 500),
)
@settings(max_examples=50, deadline=None)
def test_density_is_the_mean_of_the_hard_mask(logits, temperature):
    layer = nn.Linear(4, 3)
    method = ContinuousSparsification(layer, total_steps=1, final_temperature=temperature)
    s = torch.tensor(logits).view(3, 4)
    method.mask_parameters()[0].data.copy_(s)
    metrics = method.metrics()
    assert metrics["density"] == metrics["density/weight"] == (s > 0).double().mean().item()
    beta = layer.parametrizations.weight[0].temperature
    assert metrics["undecided"] == ((beta * s).abs() < 4).double().mean().item()
    assert metrics["temperature"] == temperature


def test_zero_logits_are_pruned_at_every_temperature():
    method = finish(ContinuousSparsification(nn.Linear(4, 3), total_steps=3))
    assert method.metrics()["density"] == 0.0


def test_density_per_layer_joins_the_matrices_of_a_layer():
    model = nn.ModuleDict({"rnn": nn.LSTM(3, 5), "head": nn.Linear(5, 2)})
    method = randomize(ContinuousSparsification(model, total_steps=3))
    metrics, masks = method.metrics(), method.masks()
    assert set(masks) == {"rnn.weight_ih_l0", "rnn.weight_hh_l0"}
    kept = sum(mask.sum().item() for mask in masks.values())
    assert metrics["density/rnn"] == metrics["density"] == kept / (20 * 3 + 20 * 5)


@given(density=st.floats(0.03, 1.0), distinct=st.integers(1, 400))
@settings(max_examples=40, deadline=None)
def test_density_target_is_exact_with_ties(density, distinct):
    model = convnet()
    method = ContinuousSparsification(model, total_steps=3, exclude=())
    generator = torch.Generator().manual_seed(distinct)
    for logits in method.mask_parameters():
        logits.data.copy_(torch.randint(distinct, logits.shape, generator=generator) - 3.0)
    total = sum(logits.numel() for logits in method.mask_parameters())
    all_logits = torch.cat([p.detach().flatten() for p in method.mask_parameters()])
    method.density_target(density)
    masks = [mask.flatten() for mask in method.masks().values()]
    kept = torch.cat(masks)
    assert kept.sum() == round(density * total)
    assert all(mask.any() for mask in masks)
    if not kept.all() and kept.sum() > 3:
        # Apart from each layer's one, nothing kept is below anything pruned.
        below = (all_logits[kept] < all_logits[~kept].max()).sum()
        assert below <= 3


def test_density_target_reserves_a_weight_for_every_layer():
    method = ContinuousSparsification(convnet(), total_steps=3)
    for logits, value in zip(method.mask_parameters(), (1.0, -1.0), strict=True):
        logits.data.fill_(value)
    method.density_target(0.1)
    assert method.masks()["3.weight"].sum() == 1


@pytest.mark.parametrize("density", [0.0, -1.0, 1.5, float("nan"), 1e-4])
def test_impossible_densities_are_refused(density):
    method = ContinuousSparsification(convnet(), total_steps=3)
    with pytest.raises(RequestError, match="density: got"):
        method.density_target(density)
    assert not method.hardened


# Hard masks


def test_hard_inside_the_block_and_soft_after_it():
    model, x = convnet().eval(), images()
    method = randomize(ContinuousSparsification(model, total_steps=3))
    soft = model(x)
    with method.hard() as same:
        assert same is model
        hard = model(x)
        with method.hard():
            assert torch.equal(model(x), hard)
        weight = model[0].weight
    assert torch.equal(model(x), soft) and not torch.equal(hard, soft)
    mask = model[0].parametrizations.weight[0]
    stored = model[0].parametrizations.weight.original
    assert torch.equal(weight, stored * mask.scale * method.masks()["0.weight"])
    with pytest.raises(ZeroDivisionError), method.hard():
        1 / 0
    assert torch.equal(model(x), soft)


def test_a_decided_network_does_not_change_when_it_hardens():
    model, x = convnet().eval(), images()
    method = finish(ContinuousSparsification(model, total_steps=3, final_temperature=1e4))
    randomize(method)
    soft = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.harden()
    assert torch.equal(model(x), soft)
    assert torch.equal(method.finalize()(x), soft)


@pytest.mark.parametrize(
    ("optimizer", "arguments"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
        (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    ],
)
def test_fine_tuning_after_hardening_revives_nothing(optimizer, arguments):
    model = convnet()
    method = ContinuousSparsification(model, total_steps=5, penalty_weight=1e-3)
    # The user's own groups: the logits decay with everything else until they are fixed.
    step = optimizer(model.parameters(), **arguments)
    train(model, method, step, 5)
    randomize(method)
    F.cross_entropy(model(images()), torch.arange(8)).backward()
    method.harden()
    masks = method.masks()
    logits = copy.deepcopy(method.mask_parameters())
    step.step()
    train(model, method, step, 10)
    for name, i in (("0.weight", 0), ("3.weight", 3)):
        assert torch.equal(model[i].weight != 0, masks[name])
    assert all(torch.equal(a, b) for a, b in zip(method.mask_parameters(), logits, strict=True))
    assert method.penalty().item() == 0.0
    method.finalize()
    assert (model[0].weight[~masks["0.weight"]] == 0).all()


def test_pruned_entries_ignore_nan():
    layer = nn.Linear(3, 2)
    method = ContinuousSparsification(layer, total_steps=1)
    method.mask_parameters()[0].data.copy_(torch.tensor([[1.0, -1.0, 1.0]] * 2))
    layer.parametrizations.weight.original.data[:, 1] = float("nan")
    method.harden()
    assert torch.equal(layer.weight[:, 1], torch.zeros(2))


def test_a_layer_never_loses_all_its_weights():
    model = convnet()
    method = finish(ContinuousSparsification(model, total_steps=3, initial_logit=-0.5))
    with torch.no_grad():
        method.mask_parameters()[0].data.view(-1)[0] = 1.0
        method.mask_parameters()[1].data.view(-1)[7] = -0.1
    with pytest.warns(UserWarning, match=r"^3\.weight: no logit is above 0; the largest one"):
        method.harden()
    kept = method.masks()["3.weight"].flatten()
    assert kept.sum() == 1 and kept[7]


def test_of_many_empty_layers_some_are_named():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(12)))
    method = finish(ContinuousSparsification(model, total_steps=3, initial_logit=-0.5))
    with pytest.warns(UserWarning, match=r"^0\.weight, .*7\.weight and 3 more: no logit is"):
        method.harden()


# Finalizing


def test_finalize_leaves_plain_modules():
    model, x = convnet().eval(), images()
    keys = list(model.state_dict())
    method = randomize(ContinuousSparsification(model, total_steps=3))
    weight = model[0].parametrizations.weight.original
    with method.hard():
        hard = model(x)
    with pytest.warns(UserWarning, match="undecided"):
        assert method.finalize() is model
    assert sorted(model.state_dict()) == sorted(keys)
    assert type(model[0]) is nn.Conv2d and model[0].weight is weight
    assert torch.equal(model(x), hard)


def test_after_finalize_every_call_says_so():
    method = finish(randomize(ContinuousSparsification(nn.Linear(50, 50), total_steps=3)))
    method.harden()
    before = method.metrics()
    method.finalize()
    for call in (
        method.finalize,
        method.step,
        method.penalty,
        method.parameter_groups,
        method.harden,
        lambda: method.density_target(0.5),
        lambda: method.load_state_dict({"step": 1}),
        lambda: method.hard().__enter__(),
    ):
        with pytest.raises(RequestError, match=r"^ContinuousSparsification: finalized; "):
            call()
    assert method.metrics() == before
    assert method.state_dict() == {"step": 3}


def test_a_finalized_model_can_be_sparsified_again():
    layer = nn.Linear(50, 50)
    method = finish(randomize(ContinuousSparsification(layer, total_steps=3)))
    method.finalize()
    before = layer.weight.detach().clone()
    ContinuousSparsification(layer, total_steps=3)
    assert torch.equal(layer.weight, before)


class Halve(nn.Module):
    """Stands in for a number format."""

    order = PRECISION

    def forward(self, weight):
        return weight / 2


@pytest.mark.parametrize("mask_first", [True, False])
def test_stacks_under_a_precision(mask_first):
    layer, x = nn.Linear(40, 30), torch.randn(5, 40)
    halve = Halve()
    if not mask_first:
        attach(layer, "weight", halve)
    method = randomize(ContinuousSparsification(layer, total_steps=3))
    if mask_first:
        attach(layer, "weight", halve)
    assert [each.order for each in layer.parametrizations.weight] == [PRECISION, MASK]
    finish(method).harden()
    before = layer(x)
    with pytest.raises(RequestError, match=r"SoftMask .* Halve inside it; expected Halve to be"):
        method.finalize()
    assert torch.equal(layer(x), before)
    bake(layer, "weight", halve)
    assert method.finalize() is layer
    assert type(layer) is nn.Linear
    assert torch.equal(layer(x), before)


# Other models


def test_lstm():
    torch.manual_seed(0)
    lstm, x = nn.LSTM(3, 5, num_layers=2, bidirectional=True), torch.randn(4, 2, 3)
    before = lstm(x)[0]
    method = ContinuousSparsification(lstm, total_steps=3)
    assert len(method.masks()) == 8
    assert torch.equal(lstm(x)[0], before)
    (lstm(x)[0].pow(2).sum() + method.penalty()).backward()
    assert all(p.grad.abs().sum() > 0 for p in method.mask_parameters())
    randomize(method)
    with method.hard():
        hard = lstm(x)[0]
    with pytest.warns(UserWarning):
        method.finalize()
    torch.testing.assert_close(lstm(x)[0], hard, rtol=0, atol=0)
    assert type(lstm) is nn.LSTM


@pytest.mark.parametrize("training", [True, False])
def test_attention(training):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).train(training)
    x = torch.randn(2, 4, 8)
    before = layer(x)
    method = ContinuousSparsification(layer, total_steps=3, exclude=())
    assert "self_attn.in_proj_weight" in method.masks()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), before)
    randomize(method)
    with torch.no_grad(), method.hard():
        hard = layer(x)
        assert not torch.allclose(hard, before)
    with pytest.warns(UserWarning), torch.no_grad():
        torch.testing.assert_close(method.finalize()(x), hard)


def test_tied_weights_are_masked_in_every_use():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 5)
            self.mix = nn.Linear(5, 5)
            self.head = nn.Linear(5, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            return self.head(self.mix(self.embed(tokens)))

    model, tokens = Tied(), torch.arange(7)
    before = model(tokens)
    method = ContinuousSparsification(model, total_steps=3, initial_logit=-0.2, exclude=())
    assert set(method.masks()) == {"mix.weight", "head.weight"}
    assert torch.equal(model(tokens), before)
    randomize(method)
    with method.hard():
        hard = model(tokens)
    with pytest.warns(UserWarning):
        method.finalize()
    assert model.head.weight is model.embed.weight
    assert torch.equal(model(tokens), hard)


def test_half_precision_weights_keep_float32_logits():
    model, x = convnet().bfloat16().eval(), images().bfloat16()
    before = model(x)
    method = randomize(ContinuousSparsification(model, total_steps=3))
    assert all(p.dtype is torch.float32 for p in method.mask_parameters())
    model.float()
    model.half()
    assert all(p.dtype is torch.float32 for p in method.mask_parameters())
    assert model[0].parametrizations.weight[0].temperature.dtype is torch.float32
    assert model[0].weight.dtype is torch.float16
    model.double()
    assert all(p.dtype is torch.float64 for p in method.mask_parameters())
    assert before.dtype is torch.bfloat16


def test_half_precision_trains():
    model = convnet().bfloat16()
    method = ContinuousSparsification(model, total_steps=3, initial_logit=0.5)
    with torch.no_grad():
        before = [p.clone() for p in method.mask_parameters()]
    optimizer = torch.optim.SGD(parameter_groups(model, [method]), lr=0.01)
    train(model, method, optimizer, 3, images().bfloat16())
    for now, was in zip(method.mask_parameters(), before, strict=True):
        assert (now != was).float().mean() > 0.9


def test_autocast_changes_nothing_about_the_mask():
    model = convnet()
    method = randomize(ContinuousSparsification(model, total_steps=3))
    plain = model[0].weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model[0].weight, plain)
        assert model(images()).dtype is torch.bfloat16
        assert method.penalty().dtype is torch.float32


def test_channels_last():
    model, x = convnet().eval(), images().to(memory_format=torch.channels_last)
    before = model(x)
    method = randomize(
        ContinuousSparsification(model.to(memory_format=torch.channels_last), total_steps=3)
    )
    assert method.mask_parameters()[0].is_contiguous(memory_format=torch.channels_last)
    want = model(x)
    model.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(model(x), want)
    assert before.shape == want.shape
    with pytest.warns(UserWarning):
        method.finalize()


@pytest.fixture
def one_process(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_data_parallel_trains_the_same(one_process):
    results = []
    for wrap in (lambda model: model, nn.parallel.DistributedDataParallel):
        model = convnet()
        method = ContinuousSparsification(
            model, total_steps=4, initial_logit=-0.02, penalty_weight=1e-3
        )
        step = torch.optim.SGD(parameter_groups(model, [method]), lr=0.1, momentum=0.9)
        train(wrap(model), method, step, 4)
        results.append(model.state_dict())
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name]), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    model, twin = convnet().cuda(), convnet()
    for net, device in ((model, "cuda"), (twin, "cpu")):
        method = ContinuousSparsification(net, total_steps=4, initial_logit=-0.02)
        step = torch.optim.SGD(parameter_groups(net, [method]), lr=0.1, momentum=0.9)
        train(net, method, step, 4, images().to(device), torch.arange(8, device=device))
        method.density_target(0.3)
        method.finalize()
    torch.testing.assert_close(model[0].weight.cpu(), twin[0].weight, rtol=1e-3, atol=1e-4)


# State


def test_state_goes_into_a_fresh_model_bit_for_bit():
    model = convnet()
    method = ContinuousSparsification(model, total_steps=20, initial_logit=-0.02)
    step = torch.optim.SGD(parameter_groups(model, [method]), lr=0.2, momentum=0.9)
    train(model, method, step, 7)
    state = copy.deepcopy((model.state_dict(), method.state_dict(), step.state_dict()))

    other = convnet()
    resumed = ContinuousSparsification(other, total_steps=20, initial_logit=-0.02)
    other_step = torch.optim.SGD(parameter_groups(other, [resumed]), lr=0.2, momentum=0.9)
    for target, part in zip((other, resumed, other_step), state, strict=True):
        target.load_state_dict(part)
    assert resumed.temperature == method.temperature
    train(model, method, step, 5)
    train(other, resumed, other_step, 5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert method.metrics() == resumed.metrics()


def test_fixed_masks_are_part_of_the_models_state():
    model = convnet()
    soft = copy.deepcopy(model.state_dict())
    method = randomize(ContinuousSparsification(model, total_steps=3))
    soft = copy.deepcopy(model.state_dict())
    method.density_target(0.3)

    other = convnet()
    resumed = ContinuousSparsification(other, total_steps=3)
    other.load_state_dict(model.state_dict())
    assert resumed.hardened
    assert all(
        torch.equal(a, b)
        for a, b in zip(resumed.masks().values(), method.masks().values(), strict=True)
    )
    assert not any(p.requires_grad for p in resumed.mask_parameters())
    other.load_state_dict(soft)
    assert not resumed.hardened and all(p.requires_grad for p in resumed.mask_parameters())


def test_the_methods_state_alone_restores_the_temperature():
    layer = nn.Linear(2, 2)
    method = ContinuousSparsification(layer, total_steps=3, final_temperature=4.0)
    method.load_state_dict({"step": 1})
    assert method.temperature == layer.parametrizations.weight[0].temperature == 2.0


@pytest.mark.parametrize("state", [{}, {"step": -1}, {"step": "3"}, {"step": 1, "more": 2}])
def test_a_state_of_another_kind_is_refused(state):
    with pytest.raises(RequestError, match="state: got"):
        ContinuousSparsification(nn.Linear(2, 2), total_steps=3).load_state_dict(state)


def test_copies_are_independent():
    model = convnet()
    method = randomize(ContinuousSparsification(model, total_steps=3))
    twin, twin_method = copy.deepcopy((model, method))
    method.step()
    method.density_target(0.2)
    method.finalize()
    assert twin_method.temperature == 1.0 and not twin_method.hardened
    assert twin[0].parametrizations.weight[0] is twin_method._masks["0.weight"]
    with pytest.warns(UserWarning):
        assert twin_method.finalize() is twin


def test_compiled_without_recompilation_as_the_temperature_rises():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model = convnet()
    plain = copy.deepcopy(model)
    method = ContinuousSparsification(model, total_steps=6, initial_logit=-0.02)
    plain_method = ContinuousSparsification(plain, total_steps=6, initial_logit=-0.02)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for net, run, each in ((model, compiled, method), (plain, plain, plain_method)):
        step = torch.optim.SGD(parameter_groups(net, [each]), lr=0.1)
        train(run, each, step, 6)
    assert counter.frame_count == 1
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
