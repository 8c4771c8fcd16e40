from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from latewood.core import trace_channels, trace_head_sizes
from latewood.errors import RequestError
from latewood.growth import (
    StageRates,
    Stages,
    WideningSettings,
    bake_scales,
    firefly,
    norm_ratios,
    widen,
)
from latewood.growth.firefly import firefly_units
from latewood.optim import AvaGrad
from latewood.sparsity import ContinuousSparsification

DOUBLE = torch.float64


def mlp(*, bias=True, activation=nn.ReLU):
    torch.manual_seed(0)
    layers = [nn.Linear(5, 4, bias), activation(), nn.Linear(4, 6, bias), activation()]
    return nn.Sequential(*layers, nn.Linear(6, 3, bias)).double(), torch.randn(7, 5, dtype=DOUBLE)


def convnet():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    ).double()
    inputs = torch.randn(6, 3, 8, 8, dtype=DOUBLE)
    for _ in range(3):
        model(inputs)
    return model, inputs


class PreNorm(nn.Module):
    """Residual branches behind layer norms, as in a Transformer without attention."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.norms = nn.ModuleList([nn.LayerNorm(8), nn.LayerNorm(8)])
        self.up = nn.ModuleList([nn.Linear(8, 6), nn.Linear(8, 6)])
        self.down = nn.ModuleList([nn.Linear(6, 8), nn.Linear(6, 8)])
        self.last, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = x + down(F.gelu(up(norm(x))))
        return self.head(self.last(x))


def prenorm():
    torch.manual_seed(0)
    return PreNorm().double(), torch.randn(7, 5, dtype=DOUBLE)


NETS = {"mlp": mlp, "convnet": convnet, "prenorm": prenorm}


def train(model, inputs, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), torch.arange(len(inputs)) % 3).backward()
        optimizer.step()
    optimizer.zero_grad()


def twice_as_wide(model, inputs, **options):
    plan = trace_channels(model, inputs)
    held = {"normalised"}
    names = {
        group.name: 2 * group.width
        for group in plan
        if {barrier.kind for barrier in group.barriers} <= held
    }
    return widen(model, inputs, names, plan=plan, **options)


def gap(one, two):
    return float((one.detach() - two).abs().max() / two.abs().max())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_pairs_keep_the_function_in_two_events(name, training):
    model, inputs = NETS[name]()
    model.train(training)
    before = model(inputs).detach()
    statistics = copy.deepcopy(model.state_dict())
    for seed in range(2):
        twice_as_wide(model, inputs, seed=seed)
        assert gap(model(inputs), before) < 1e-12
    assert all(
        model.state_dict()[key].shape != value.shape
        for key, value in statistics.items()
        if key.endswith("0.weight") and value.ndim > 1
    )


@pytest.mark.parametrize("rescale", ["vt_exact", "none"])
@pytest.mark.parametrize("name", NETS)
def test_exact_rescaling_keeps_the_function_and_bakes_into_plain_layers(name, rescale):
    model, inputs = NETS[name]()
    names = list(model.state_dict())
    model.eval()
    before = model(inputs).detach()
    for seed in range(2):
        twice_as_wide(model, inputs, rescale=rescale, seed=seed)
    assert gap(model(inputs), before) < 1e-12
    bake_scales(model)
    assert gap(model(inputs), before) < 1e-12
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("name", NETS)
def test_variance_transfer_changes_outputs_by_one_factor(name):
    model, inputs = NETS[name]()
    model.eval()
    before = model(inputs).detach()
    settings = WideningSettings(exact_eps=True)
    twice_as_wide(model, inputs, rescale="vt", settings=settings)
    ratio = model(inputs).detach() / before
    assert float(ratio.std()) < 1e-9 and 0.1 < float(ratio.mean()) < 0.51


def test_the_tiny_worked_example():
    """O1."""
    layers = [nn.Linear(1, 2, False), nn.ReLU(), nn.Linear(2, 2, False), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(2, 1, False)).double()
    x = torch.tensor([[2.0]], dtype=DOUBLE)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [0.5]]))
        model[2].weight.copy_(torch.tensor([[1.0, -1.0], [2.0, 0.0]]))
        model[4].weight.copy_(torch.tensor([[1.0, 1.0]]))
    stages = Stages()
    widen(model, x, {"0": 4, "2": 4}, rescale="vt", stages=stages)
    with torch.no_grad():
        model[0].weight[2:] = 0.3
        model[2].weight[:2, 2:] = torch.tensor([[0.1, -0.1], [-0.2, 0.2]])
        model[2].weight[2:] = torch.tensor([0.1, 0.2, 0.3, 0.4])
        model[4].weight[0, 2:] = torch.tensor([0.7, -0.7])
    h = model[:4](x)
    assert torch.allclose(h, torch.tensor([[0.70710678, 2.82842712, 0.82, 0.82]], dtype=DOUBLE))
    assert model(x).item() == pytest.approx(1.76776695)
    ratios = [norm_ratios(model[i].weight, stages.of(f"{i}.weight"))[1] for i in (0, 2, 4)]
    assert ratios == pytest.approx([0.37947332, 0.48304589, 1.4])
    loss = 0.5 * (model(x) - 1).square().sum()
    loss.backward()
    assert loss.item() == pytest.approx(0.294733047)
    assert model[0].weight.grad.flatten().tolist() == pytest.approx(
        [1.62867966, -0.54289322, -0.07677670, 0.07677670]
    )
    assert model[4].weight.grad.flatten().tolist() == pytest.approx(
        [0.54289322, 2.17157288, 0.62956890, 0.62956890]
    )


def test_biases_are_scaled_by_all_factors_before_them():
    """O2."""
    layers = [nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(2, 1)).double()
    x = torch.tensor([[2.0]], dtype=DOUBLE)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [0.5]]))
        model[2].weight.copy_(torch.tensor([[1.0, -1.0], [2.0, 0.0]]))
        model[4].weight.fill_(1.0)
        model[0].bias.copy_(torch.tensor([0.2, -0.1]))
        model[2].bias.copy_(torch.tensor([0.3, -0.4]))
        model[4].bias.fill_(0.25)
    assert model(x).item() == pytest.approx(5.85)
    widen(model, x, {"0": 4, "2": 4}, rescale="vt")
    assert model(x).item() == pytest.approx(2.06828733)


def test_a_norm_undoes_the_factor_and_the_gradient_grows_by_its_inverse():
    """O4: outputs equal, gradients of the scaled weight 1 / c, its momentum divided by c."""
    model, inputs = convnet()
    model[-1].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(list(model.parameters()), lr=0.0, momentum=0.9)
    train(model, inputs, optimizer, steps=1)
    labels = torch.arange(6) % 3
    F.cross_entropy(model(inputs), labels).backward()
    gradient = model[3].weight.grad.clone()
    momentum = optimizer.state[model[3].weight]["momentum_buffer"].clone()
    loss = F.cross_entropy(model(inputs), labels).item()
    optimizer.zero_grad()
    settings = WideningSettings(exact_eps=True)
    widen(model, inputs, {"0": 8}, rescale="vt", optimizers=optimizer, settings=settings)
    c = 0.5**0.5
    after = F.cross_entropy(model(inputs), labels)
    after.backward()
    assert after.item() == pytest.approx(loss, abs=1e-12)
    assert torch.allclose(model[3].weight.grad[:, :4], gradient / c, atol=1e-12)
    carried = optimizer.state[model[3].weight]["momentum_buffer"]
    assert torch.allclose(carried[:, :4], momentum / c) and bool((carried[:, 4:] == 0).all())


def test_second_moments_of_hidden_weights_stay_one():
    """O8."""
    torch.manual_seed(0)
    layers = [nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(400, 2))
    nn.init.normal_(model[2].weight, std=400**-0.5)
    x, settings = torch.randn(2, 400), WideningSettings(gain=1.0)
    for seed, width in enumerate((480, 576, 692)):
        widen(model, x, {"0": width, "2": width}, rescale="vt", seed=seed, settings=settings)
        moment = float(model[2].weight.detach().square().mean()) * width
        assert moment == pytest.approx(1.0, abs=4 * 2**0.5 / width)


@pytest.mark.parametrize(
    ("mode", "expected"), [("vt_constraint_old", 6), ("vt_constraint_new", 12)]
)
def test_constraints_give_weights_the_variance_of_their_fan_in(mode, expected):
    model, inputs = mlp()
    widen(model, inputs, {"2": 12}, rescale=mode)
    variance = float(model[4].weight.detach()[:, :6].var(correction=0))
    assert variance * expected == pytest.approx(1.0)


@pytest.mark.parametrize("init", ["pair", "net2net", "replicate", "zero_out", "random"])
@pytest.mark.parametrize("name", NETS)
def test_initialisations_keep_the_function_or_do_not(name, init):
    model, inputs = NETS[name]()
    model.eval()
    before = model(inputs).detach()
    if name == "prenorm" and init not in ("pair", "replicate"):
        with pytest.raises(RequestError, match="norm"):
            widen(model, inputs, {"embed": 16}, init=init)
        widen(model, inputs, {"up.0": 12, "up.1": 12}, init=init)
    else:
        twice_as_wide(model, inputs, init=init)
    error = gap(model(inputs), before)
    assert error > 1e-3 if init == "random" else error < 1e-12


def test_net2net_carries_state_by_how_many_share():
    """O11: gradients of copies that make channels are divided, of those that read them not."""
    model, inputs = mlp(activation=nn.Tanh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    train(model, inputs, optimizer, steps=1)
    widen(model, inputs, {"0": 8}, init="replicate", optimizers=optimizer)
    state = {name: optimizer.state[p]["momentum_buffer"] for name, p in model.named_parameters()}
    train(model, inputs, optimizer, steps=0)
    F.cross_entropy(model(inputs), torch.arange(7) % 3).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(state[name], parameter.grad, atol=1e-14), name


def test_gradmax_has_the_largest_gradient_there_is():
    model, inputs = mlp(activation=nn.Tanh)
    labels = torch.arange(7) % 3
    settings = WideningSettings(loss=lambda: F.cross_entropy(model(inputs), labels))
    before = model(inputs).detach()
    twin, norm = copy.deepcopy(model), float(model[2].weight.detach().norm(dim=0).mean())
    widen(model, inputs, {"0": 6}, init="gradmax", settings=settings)
    assert gap(model(inputs), before) < 1e-12
    F.cross_entropy(model(inputs), labels).backward()
    largest = float(model[0].weight.grad[4:].norm())
    widen(twin, inputs, {"0": 6}, init="zero_out")
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        with torch.no_grad():
            twin[0].weight[4:] = 0
            twin[0].bias[4:] = 0
            random = torch.linalg.qr(torch.randn(6, 2, generator=generator, dtype=DOUBLE))[0]
            twin[2].weight[:, 4:] = norm * random
        twin.zero_grad()
        F.cross_entropy(twin(inputs), labels).backward()
        assert float(twin[0].weight.grad[4:].norm()) <= largest + 1e-12


def test_gradmax_looks_at_the_loss_in_evaluation_mode():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 6), nn.BatchNorm1d(6))
    model, inputs = model.double(), torch.randn(7, 5, dtype=DOUBLE)
    twin, before = copy.deepcopy(model).eval(), torch.get_rng_state()
    for network in (model, twin):
        settings = WideningSettings(loss=lambda network=network: network(inputs).square().sum())
        widen(network, inputs, {"0": 6}, init="gradmax", settings=settings)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training and int(model[3].num_batches_tracked) == 0
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


@pytest.mark.parametrize("rescale", ["none", "vt", "vt_constraint_new"])
def test_a_layer_that_cannot_grow_does_not_hold_the_others(rescale):
    model, inputs = mlp(activation=nn.Tanh)
    torch.nn.utils.parametrizations.weight_norm(model[0])
    before = model(inputs)
    with pytest.raises(RequestError, match=r"0\.weight is computed from several tensors"):
        widen(model, inputs, {"0": 8}, rescale=rescale)
    widen(model, inputs, {"2": 8}, rescale=rescale)
    assert model[2].out_features == 8
    assert (gap(model(inputs), before) < 1e-12) is (rescale == "none")


def test_moving_averages_of_torch_are_copies_and_others_are_refused_by_number():
    model, inputs = mlp()
    average = torch.optim.swa_utils.AveragedModel(model)
    before = average(inputs)
    widen(model, inputs, {"0": 8}, copies=average)
    assert gap(average(inputs), before) < 1e-12
    average.update_parameters(model)
    assert average.module[0].out_features == 8
    with pytest.raises(RequestError, match=r"copies\[1\]: got 'a model with shape .* for 0.weight"):
        widen(model, inputs, {"0": 10}, copies=[copy.deepcopy(model), mlp()[0]])
    with pytest.raises(RequestError, match=r"copies\[0\]: got 'a model with nothing for 0.weight"):
        widen(model, inputs, {"0": 10}, copies=nn.Linear(1, 1))
    assert model[0].out_features == 8


@pytest.mark.parametrize(
    "kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, AvaGrad]
)
def test_parameters_stay_and_their_state_goes_with_them(kind):
    """O12."""
    model, inputs = convnet()
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(model.parameters(), lr=0.01, **options)
    train(model, inputs, optimizer)
    ids = list(map(id, model.parameters()))
    old = copy.deepcopy(optimizer.state_dict()["state"])
    lengths = [len(group["params"]) for group in optimizer.param_groups]
    done = twice_as_wide(model, inputs, optimizers=optimizer)
    assert list(map(id, model.parameters())) == ids
    assert [len(group["params"]) for group in optimizer.param_groups] == lengths
    for number, parameter in enumerate(model.parameters()):
        state = optimizer.state[parameter]
        for key, value in old[number].items():
            if not isinstance(value, torch.Tensor) or value.ndim == 0:
                continue
            assert state[key].shape == parameter.shape
            corner = state[key][tuple(slice(0, size) for size in value.shape)]
            assert torch.equal(corner, value)
            new = torch.ones(parameter.shape, dtype=torch.bool)
            new[tuple(slice(0, size) for size in value.shape)] = False
            if bool(new.any()):
                filled = value.mean() if key in ("exp_avg_sq", "square_avg") else 0.0
                assert torch.allclose(state[key][new], torch.as_tensor(filled, dtype=DOUBLE))
    assert done.widths["0"] == (4, 8)
    train(model, inputs, optimizer, steps=1)


def test_state_may_be_dropped_or_padded_with_zeros():
    for state in ("drop", "zero"):
        model, inputs = mlp()
        optimizer = torch.optim.Adam(model.parameters())
        train(model, inputs, optimizer)
        settings = WideningSettings(state=state)
        widen(model, inputs, {"0": 8}, optimizers=optimizer, settings=settings)
        if state == "drop":
            assert model[0].weight not in optimizer.state and model[4].weight in optimizer.state
        else:
            assert bool((optimizer.state[model[0].weight]["exp_avg_sq"][4:] == 0).all())


def test_copies_of_the_model_grow_by_the_same_numbers():
    model, inputs = prenorm()
    average = copy.deepcopy(model)
    before = average(inputs).detach()
    twice_as_wide(model, inputs, copies=average, rescale="vt_exact")
    assert gap(average(inputs), before) < 1e-12
    for (name, one), two in zip(model.named_parameters(), average.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_learning_goes_on_and_loss_falls():
    model, inputs = prenorm()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    labels = torch.arange(7) % 3
    train(model, inputs, optimizer, steps=5)
    start = float(F.cross_entropy(model(inputs), labels))
    twice_as_wide(model, inputs, optimizers=optimizer)
    assert float(F.cross_entropy(model(inputs), labels)) == pytest.approx(start, abs=1e-12)
    new = model.up[0].weight.detach().clone()
    train(model, inputs, optimizer, steps=20)
    assert float(F.cross_entropy(model(inputs), labels)) < start / 2
    moved = (model.up[0].weight.detach() - new).abs()
    assert bool((moved[6:] > 0).any()) and bool((moved[:, 8:] > 0).any())


def snapshot(model, optimizer):
    tensors = [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
    sizes = [
        {k: v for k, v in vars(m).items() if isinstance(v, int | float | tuple)}
        for m in model.modules()
    ]
    return tensors, sizes, copy.deepcopy(optimizer.state_dict()), list(model.state_dict())


def same(one, two):
    return (
        all(torch.equal(a, b) for a, b in zip(one[0], two[0], strict=True))
        and one[1] == two[1]
        and str(one[2]) == str(two[2])
        and one[3] == two[3]
    )


@pytest.mark.parametrize("rescale", ["none", "vt", "vt_exact"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("at", ["fill_state", "widen_channels", "additions"])
def test_what_stops_in_the_middle_leaves_everything_as_it_was(at, error, rescale, monkeypatch):
    module = sys.modules[widen.__module__]
    model, inputs = prenorm()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, inputs, optimizer)
    stages = Stages()
    before, output = snapshot(model, optimizer), model(inputs).detach()
    original, calls = getattr(module, at), []

    def interrupted(*args, **named):
        calls.append(1)
        if at != "fill_state" or len(calls) > 4:
            if at == "additions":
                original(*args, **named)
            raise error("stop")
        return original(*args, **named)

    monkeypatch.setattr(module, at, interrupted)
    with pytest.raises(error):
        twice_as_wide(model, inputs, optimizers=optimizer, rescale=rescale, stages=stages)
    monkeypatch.undo()
    assert same(snapshot(model, optimizer), before)
    assert torch.equal(model(inputs), output) and stages.latest == 0
    twice_as_wide(model, inputs, optimizers=optimizer, rescale=rescale, stages=stages)
    assert stages.latest == 1
    train(model, inputs, optimizer, steps=1)


def _without_head(model):
    return torch.optim.SGD(list(model.parameters())[:-2], lr=0.1)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"0": 2}, r"widths\['0'\]: got 2; expected at least 4, the present width"),
        ({"0": 7}, r"widths\['0'\]: got 7; expected 6 or 8: from 4 channels are added in pairs"),
        ({"0": 8.0}, r"got 8\.0; expected an integer"),
        ({"4": 6}, r"widths\['4'\]: its channels cannot change: the model's output"),
        ({"nine": 6}, "widths: got 'nine'; expected a group or a layer: 0"),
        ({"0": 8, "0.weight": 8}, "that is 0, as is '0'"),
    ],
)
def test_widths_that_cannot_be_are_refused_with_the_nearest(widths, message):
    model, inputs = mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RequestError, match=message):
        widen(model, inputs, widths)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_other_requests_are_refused_by_name():
    model, inputs = mlp()
    with pytest.raises(RequestError, match=r"optimizers: none has 4\.weight; expected every"):
        widen(model, inputs, {"2": 8}, optimizers=_without_head(model))
    with pytest.raises(RequestError, match="nothing says what the state of LBFGS means"):
        widen(model, inputs, {"2": 8}, optimizers=torch.optim.LBFGS(model.parameters()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, inputs, optimizer)
    optimizer.state[model[2].weight]["other"] = torch.zeros(6, 4)
    with pytest.raises(RequestError, match=r"SGD holds 'other' for 2\.weight"):
        widen(model, inputs, {"2": 8}, optimizers=optimizer)
    model(inputs).sum().backward()
    with pytest.raises(RequestError, match=r"2\.weight has a gradient"):
        widen(model, inputs, {"2": 8})
    model.zero_grad()
    for name in ("init", "rescale"):
        with pytest.raises(RequestError, match=f"{name}: got 'best'"):
            widen(model, inputs, {"2": 8}, **{name: "best"})
    with pytest.raises(RequestError, match="relu has slope 0 at 0"):
        settings = WideningSettings(loss=lambda: model(inputs).sum())
        widen(model, inputs, {"2": 8}, init="gradmax", settings=settings)
    with pytest.raises(RequestError, match="6 or 12, multiples of 6"):
        widen(model, inputs, {"2": 8}, init="replicate")
    assert model[2].weight.shape == (6, 4)


def test_no_growth_is_no_event():
    model, inputs = mlp()
    done = widen(model, inputs, {"0": 4}, rescale="vt")
    assert done.widths == {} and done.rescaling.factors == {}


def test_masks_grow_with_their_weights():
    model, inputs = mlp()
    method = ContinuousSparsification(model, total_steps=10, steps_per_epoch=5)
    model.train()
    before = model(inputs).detach()
    for rescale in ("none", "vt_exact"):
        widen(model, inputs, {"0": model[0].out_features + 4}, rescale=rescale)
        assert gap(model(inputs), before) < 1e-12
    bake_scales(model)
    assert gap(model(inputs), before) < 1e-12
    method.finalize()
    assert model[0].weight.shape == (12, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrower_numbers_cancel_as_well(dtype):
    model, inputs = mlp()
    model, inputs = model.to(dtype), inputs.to(dtype)
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, inputs, optimizer)
    before, stages = model(inputs).detach(), Stages()
    StageRates(model, stages).attach(optimizer)
    widen(model, inputs, {"0": 8, "2": 12}, optimizers=optimizer, stages=stages)
    assert gap(model(inputs), before) < (1e-2 if dtype is torch.bfloat16 else 1e-6)
    train(model, inputs, optimizer)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


class Language(nn.Module):
    def __init__(self, *, tied=False):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.cell = nn.Embedding(9, 6), nn.LSTM(6, 5, 2, batch_first=True)
        self.back, self.head = nn.Linear(5, 6), nn.Linear(6, 9, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, tokens):
        return self.head(torch.relu(self.back(self.cell(self.table(tokens))[0])))[:, -1]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rescale", ["none", "vt", "vt_exact"])
def test_recurrent_language_models_grow_and_learn(rescale, tied):
    model, tokens = Language(tied=tied).double(), torch.arange(24).view(4, 6) % 9
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, tokens, optimizer)
    before, stages = model(tokens).detach(), Stages()
    rates = StageRates(model, stages)
    rates.attach(optimizer)
    for seed in range(2):
        widen(
            model,
            tokens,
            {"cell": model.cell.hidden_size + 2},
            optimizers=optimizer,
            rescale=rescale,
            stages=stages,
            seed=seed,
        )
    if rescale != "vt":
        assert gap(model(tokens), before) < 1e-12
    assert stages.of("cell.weight_hh_l0")[0].tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 2] * 4
    train(model, tokens, optimizer)
    bake_scales(model)
    assert "cell.weight_hh_l0" in model.state_dict()


def test_frozen_readers_are_worth_a_warning():
    model, inputs = mlp()
    model[4].requires_grad_(False)
    with pytest.warns(RuntimeWarning, match="all that reads the channels of 2 is frozen"):
        widen(model, inputs, {"2": 8})


class TiedPerceptron(nn.Module):
    """What the table makes and what the head reads are one group of channels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.up, self.down = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        return self.head(self.down(torch.relu(self.up(self.table(tokens)))))


def test_variance_transfer_through_a_tied_weight_is_one_factor_as_well():
    model, tokens = TiedPerceptron().double(), torch.arange(9)
    before = model(tokens).detach()
    for _ in range(2):
        twice_as_wide(model, tokens, rescale="vt")
    ratio = model(tokens).detach() / before
    assert float(ratio.std()) < 1e-12


class Attention(nn.Module):
    """Heads whose size follows their weights, separate or fused."""

    def __init__(self, *, fused):
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.fused = 2, fused
        if fused:
            self.qkv = nn.Linear(5, 24)
        else:
            self.q, self.k, self.v = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(5, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        parts = self.qkv(x).chunk(3, -1) if self.fused else (self.q(x), self.k(x), self.v(x))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2)).mean(1)


@pytest.mark.parametrize("rescale", ["none", "vt_exact"])
@pytest.mark.parametrize("fused", [False, True])
def test_sizes_of_heads_grow_with_the_scores_kept(fused, rescale):
    model, inputs = Attention(fused=fused).double(), torch.randn(4, 6, 5, dtype=DOUBLE)
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, inputs, optimizer)
    before = model(inputs).detach()
    for seed in range(2):
        plan = trace_head_sizes(model, inputs)
        names = {group.name: group.width + 2 for group in plan.free}
        widths = {"optimizers": optimizer, "plan": plan, "rescale": rescale, "seed": seed}
        assert names and (fused or any(group.queries for group in plan.free))
        widen(model, inputs, names, **widths)
        assert gap(model(inputs), before) < 1e-12
    train(model, inputs, optimizer)
    if not fused:
        queries = next(group.name for group in plan.free if group.queries)
        with pytest.raises(RequestError, match="entries of queries and keys"):
            widen(model, inputs, {queries: plan[queries].width + 8}, init="replicate", plan=plan)


@pytest.mark.parametrize("in_place", [False, True])
def test_an_activation_between_a_weight_and_its_norm_is_seen(in_place):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.SiLU(inplace=in_place)]
    head = [nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    model, inputs = nn.Sequential(*layers, *head).double(), torch.randn(4, 3, 8, 8, dtype=DOUBLE)
    model(inputs)
    model.eval()
    before = model(inputs).detach()
    settings = WideningSettings(exact_eps=True)
    twice_as_wide(model, inputs, rescale="vt", settings=settings)
    ratio = model(inputs).detach() / before
    assert float(ratio.std()) < 1e-9


def test_the_plan_that_an_event_returned_serves_the_next_one():
    model, x = (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(),
        torch.randn(5, 3),
    )
    x = x.double()
    first = trace_channels(model, x)
    second = widen(model, x, {"0": 6}, plan=first).plan
    twin = copy.deepcopy(model)
    before = model(x)
    carried = widen(model, x, {"0": 10}, plan=second, rescale="vt_exact", seed=3)
    traced = widen(twin, x, {"0": 10}, rescale="vt_exact", seed=3)
    assert torch.equal(model(x), twin(x)) and carried.rescaling == traced.rescaling
    assert torch.allclose(model(x), before, rtol=1e-12)
    held = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RequestError, match=r"4 positions on axis 0 of 0.weight.*which has 10"):
        widen(model, x, {"0": 12}, plan=first)
    assert all(torch.equal(tensor, held[name]) for name, tensor in model.state_dict().items())


def firefly_nets():
    torch.manual_seed(0)
    perceptron = mlp(activation=nn.Tanh)
    images = torch.randn(7, 3, 6, 6, dtype=DOUBLE)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3)]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    return [perceptron, (network, images)]


@pytest.mark.parametrize("number", [0, 1])
def test_firefly_lowers_the_loss_by_what_its_choice_promises(number):
    model, inputs = firefly_nets()[number]
    labels = torch.arange(7) % 3
    settings = WideningSettings(loss=lambda: F.cross_entropy(model(inputs), labels))
    before, outputs = float(settings.loss().detach()), model(inputs).detach()
    held = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = trace_channels(model, inputs)
    chosen = firefly_units(model, plan, {"0": 6}, settings.loss, torch.Generator().manual_seed(0))
    again = {name: tensor for name, tensor in model.state_dict().items() if "batches" not in name}
    assert all(torch.equal(tensor, held[name]) for name, tensor in again.items() if name[0] == "0")
    widen(model, inputs, {"0": 6}, init="firefly", settings=settings)
    assert model[0].weight.shape[0] == 6 and chosen["0"].sources != []
    after = float(settings.loss().detach())
    assert after < before
    assert 0 < gap(model(inputs), outputs) < 0.5


def test_a_split_alone_changes_nothing_but_by_its_step(monkeypatch):
    model, inputs = firefly_nets()[0]
    monkeypatch.setattr(firefly, "_STEP", 0.0)
    before = model(inputs).detach()
    settings = WideningSettings(loss=lambda: model(inputs).square().sum())
    widen(model, inputs, {"0": 8}, init="firefly", settings=settings)
    assert gap(model(inputs), before) < 1e-12


def test_what_firefly_cannot_do_is_refused():
    model, inputs = firefly_nets()[0]
    settings = WideningSettings(loss=lambda: model(inputs).sum())
    for widths, options, message in (
        ({"0": 6}, {}, "loss: got None"),
        ({"0": 6, "2": 8}, {"settings": settings}, "groups that share no layer"),
        ({"0": 20}, {"settings": settings}, "at most 12"),
        ({"0": 6}, {"settings": settings, "rescale": "vt"}, "'none' for init='firefly'"),
    ):
        with pytest.raises(RequestError, match=message):
            widen(model, inputs, widths, init="firefly", **options)
    assert model[0].weight.shape == (4, 5)
