"""Coming and going: bits that return, ages, samples, layers above channels."""

import copy

import pytest
import torch

from latewood.sparsity.structured.structure_selection import floored


def tensors_of(run):
    structure = run.method._structure
    state = {name: held.stored.detach().clone() for name, held in structure.spec.tensors.items()}
    for name, held in structure.spec.tensors.items():
        for key, value in run.optimizer.state.get(held.stored, {}).items():
            if isinstance(value, torch.Tensor) and value.ndim:
                state[f"{name}/{key}"] = value.clone()
    return state


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", ["convnet", "concat", "lstm"])
def test_what_was_detached_returns_bit_for_bit(runs, name, optimizer):
    run = runs(name, optimizer, epochs=30, logit_lr=0.3, freeze=1.0, growth_logit=0.0)
    for _ in range(4):
        run.epoch()
    structure = run.method._structure
    before, present = tensors_of(run), [each.clone() for each in structure.present]
    with torch.no_grad():
        output = run.model.eval()(*run.inputs)
    narrow = [torch.zeros_like(each) for each in present]
    for each, there in zip(narrow, present, strict=True):
        each[there.nonzero().flatten()[-1]] = True
    assert structure.change_to(narrow, structure.blocks, run.optimizer)
    assert sum(each.numel() for each in tensors_of(run).values()) < sum(
        each.numel() for each in before.values()
    )
    # On the way back also by way of another part.
    half = [each.clone() for each in present]
    half[0][present[0].nonzero().flatten()[0]] = False
    structure.change_to(half, structure.blocks, run.optimizer)
    structure.change_to(present, structure.blocks, run.optimizer)
    after = tensors_of(run)
    assert after.keys() == before.keys()
    assert any("exp_avg_sq" in key or "momentum" in key for key in after)
    for key, value in before.items():
        assert torch.equal(after[key], value), key
    with torch.no_grad():
        assert torch.equal(run.model(*run.inputs), output)
    assert not structure._detached or all(
        memory.state() is None or value.numel() > before[key[0]].numel()
        for key, memory in structure._detached.items()
        for value in [(memory.state() or {"values": torch.zeros(0)})["values"]]
    )


def test_a_detached_channel_remembers_what_it_was_when_it_left(runs):
    run = runs("convnet", epochs=30, freeze=1.0, growth_logit=0.0)
    run.epoch()
    run.method.restructure(run.optimizer)
    run.step()
    structure = run.method._structure
    present = [each.clone() for each in structure.present]
    left = present[0].nonzero().flatten()[-1]
    first = structure.spec.tensors["conv1.weight"]
    value = first.stored[-1].detach().clone()
    without = [each.clone() for each in present]
    without[0][left] = False
    structure.change_to(without, structure.blocks, run.optimizer)
    run.step()  # the others move on
    moved = first.stored.detach().clone()
    structure.change_to(present, structure.blocks, run.optimizer)
    assert torch.equal(first.stored[-1], value)
    assert torch.equal(first.stored[:-1], moved)
    momentum = run.optimizer.state[first.stored]["momentum_buffer"]
    assert momentum.shape == first.stored.shape


@pytest.mark.parametrize(("birth", "gain"), [("kaiming", 2), ("initial", 1 / 3)])
def test_newborn_entries_have_the_full_layers_scale_and_neutral_norms(runs, birth, gain):
    run = runs("convnet", epochs=30, freeze=1.0, birth=birth)
    run.epoch()
    structure = run.method._structure
    everything = [torch.ones_like(each) for each in structure.present]
    structure.change_to(everything, structure.blocks, run.optimizer)
    weight = structure.spec.tensors["conv3.weight"].stored
    born = weight[1:, 1:]
    assert born.std().item() == pytest.approx((gain / (12 * 9)) ** 0.5, rel=0.1)
    norm = run.model.norm3
    assert torch.equal(norm.weight[1:], torch.ones(11)) and torch.equal(
        norm.bias[1:], torch.zeros(11)
    )
    assert torch.equal(norm.running_var[1:], torch.ones(11))
    assert torch.equal(norm.running_mean[1:], torch.zeros(11))
    momentum = run.optimizer.state[weight]["momentum_buffer"]
    assert momentum[:1, :1].abs().sum() > 0 and momentum[1:].abs().sum() == 0


def test_ages_count_the_epochs_in_which_a_structure_was_there(runs):
    run = runs("resnet20", epochs=12, freeze=1.0, growth_logit=0.0, capped=False)
    method, structure = run.method, run.method._structure
    run.epoch()
    assert all(not ages.any() for ages in method._ages.epochs)
    for _ in range(8):
        before = [ages.clone() for ages in method._ages.epochs]
        run.epoch()
        sets = [*structure.present, structure.blocks]
        for number, (old, new, there) in enumerate(
            zip(before, method._ages.epochs, sets, strict=True)
        ):
            hidden = number < len(structure.present) and not structure.visible(number)
            assert torch.equal(new - old, torch.zeros_like(old) if hidden else there.long())
        for gate, ages in zip(method._structure.all_gates, method._ages.epochs, strict=True):
            ratio = 100 ** (1 / 12)
            expected = torch.tensor([ratio**t for t in ages.tolist()], dtype=torch.float64)
            assert torch.equal(gate.temperature, expected)
    assert max(int(ages.max()) for ages in method._ages.epochs) >= 6


def test_the_global_temperature_is_that_of_the_epoch(runs):
    run = runs("convnet", epochs=12, temperature="global", freeze=1.0)
    for _ in range(4):
        run.epoch()
    for gate in run.method._structure.all_gates:
        assert gate.temperature.unique().item() == pytest.approx(100 ** (3 / 12))


def test_an_absent_layer_hides_its_channels_and_leaves_their_logits(runs):
    run = runs("resnet20", epochs=10, freeze=1.0, capped=False)
    method, structure = run.method, run.method._structure
    names = [block.name for block in structure.spec.blocks]
    assert names == ["layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1",
                     "layer3.2"]  # fmt: skip
    run.epoch()
    assert not structure.blocks.any()
    inside = [n for n, home in enumerate(structure.spec.block_of) if home is not None]
    assert len(inside) == 7
    logits = [gate.logits.detach().clone() for gate in structure.gates]
    ages = copy.deepcopy(method._ages.epochs)
    with torch.no_grad():
        structure.layer_gate.logits.fill_(-50.0)
    run.epoch()
    for number in inside:
        assert torch.equal(structure.gates[number].logits, logits[number])
        assert torch.equal(method._ages.epochs[number], ages[number])
        assert method.metrics()[f"kept/{structure.spec.groups[number].name}"] == 0
    assert any(
        not torch.equal(structure.gates[number].logits, logits[number])
        for number in range(len(logits))
        if number not in inside
    )
    # A layer that comes back is the same as it was.
    with torch.no_grad():
        structure.layer_gate.logits.fill_(50.0)
    method.restructure(run.optimizer)
    run.step()
    assert method.metrics()["layers"] == 7
    block = structure.spec.blocks[1].module
    values = [p.detach().clone() for p in block.parameters()]
    structure.change_to(structure.present, torch.zeros(7, dtype=torch.bool), run.optimizer)
    assert run.model.get_submodule("layer1.1") is not block
    run.step()
    structure.change_to(structure.present, torch.ones(7, dtype=torch.bool), run.optimizer)
    assert run.model.get_submodule("layer1.1") is block
    gates = {id(gate.logits) for gate in method._structure.all_gates}
    for value, parameter in zip(values, block.parameters(), strict=True):
        assert id(parameter) in gates or torch.equal(value, parameter)


def test_structures_are_sampled_as_often_as_they_should(runs):
    run = runs("convnet", epochs=30)
    run.epoch()
    generator = run.method._generator
    chances = torch.tensor([0.05, 0.3, 0.5, 0.9])
    draws = torch.rand(10_000, 4, generator=generator, dtype=torch.float64) < chances
    error = (chances * (1 - chances) / 10_000).sqrt()
    assert torch.all((draws.double().mean(0) - chances).abs() < 4 * error)


def test_the_method_samples_by_the_chances(runs):
    run = runs("convnet", epochs=2000, steps=1, freeze=1.0, capped=False)
    method, structure = run.method, run.method._structure
    method.restructure(run.optimizer)
    logits = [torch.linspace(-2, 2, len(gate.logits)) for gate in structure.gates]
    counts = [torch.zeros(len(each)) for each in logits]
    for _ in range(400):
        method._counter.step += 1
        with torch.no_grad():
            for gate, each in zip(structure.gates, logits, strict=True):
                gate.logits.copy_(each)
                gate.temperature.fill_(1)
        method.restructure(run.optimizer)
        for count, there in zip(counts, structure.present, strict=True):
            count += there
    for count, each in zip(counts, logits, strict=True):
        chance = torch.sigmoid(each)
        error = (chance * (1 - chance) / 400).sqrt()
        assert torch.all((count / 400 - chance).abs() < 4 * error + 0.005)


def test_an_empty_sample_keeps_its_best():
    scores = torch.tensor([-3.0, -1.0, -2.0])
    assert floored(torch.zeros(3, dtype=torch.bool), scores).tolist() == [False, True, False]
    assert floored(torch.tensor([True, False, False]), scores).tolist() == [True, False, False]


def test_both_estimators_have_the_same_gradient_and_only_one_scales(runs):
    found = {}
    for estimator in ("soft", "ste"):
        run = runs("convnet", epochs=30, estimator=estimator)
        run.method.restructure(run.optimizer)
        gate = run.method._structure.gates[0]
        factors = gate.factors()
        factors.sum().backward()
        found[estimator] = factors.detach(), gate.logits.grad.clone()
    assert torch.equal(found["ste"][0], torch.ones(8, dtype=torch.float64))
    assert found["soft"][0].max() < 1
    assert torch.equal(found["ste"][1], found["soft"][1])
