"""A finished method leaves a plain network behind: no transformation, no hook, no stranger."""

import torch
from entries import BESIDE, Case
from short_training import Training, assert_same, batch, network_of
from torch import nn
from torch.nn.utils import parametrize

from latewood.core import Restructuring
from latewood.precision import remove_formats, restore_formats
from latewood.slim.edits import has_recipe

HOOKS = [
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
]


def hooks_of(model):
    """How many hooks each module and each parameter has, where there is one."""
    counts = {
        (name, kind): len(getattr(module, kind))
        for name, module in model.named_modules()
        for kind in HOOKS
    }
    for name, parameter in model.named_parameters():
        counts[name, "tensor"] = len(parameter._backward_hooks or {})
        counts[name, "accumulated"] = len(
            getattr(parameter, "_post_accumulate_grad_hooks", 0) or {}
        )
    return {key: count for key, count in counts.items() if count}


def parts_of(model):
    """Name, class and attributes of every module, with what belongs to a size left out."""
    return {name: type(module) for name, module in model.named_modules()}


def finished(method, network):
    training = Training(method, network).run()
    return training, training.finish()


def test_no_transformation_and_no_hook_is_left(method, network):
    training, model = finished(method, network)
    assert model is training.model
    remove_formats(model)  # they say what grid a weight lies on, and stay on purpose
    plain = network_of(network)
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    assert hooks_of(model) == hooks_of(plain) == {}
    assert parts_of(model) == parts_of(plain)
    names = [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in model.named_parameters()] == names
    buffers = [name for name, _ in plain.named_buffers()]
    assert [name for name, _ in model.named_buffers()] == buffers
    for module, other in zip(model.modules(), plain.modules(), strict=True):
        # A smaller model says how it came from the full one, so that its file can rebuild it.
        noted = {"_slim_recipe"} if module is model and has_recipe(model) else set()
        assert vars(module).keys() - noted == vars(other).keys()
    assert all(type(p) is nn.Parameter and p.requires_grad for p in model.parameters())


def test_a_plain_network_takes_the_state(method, network):
    training, model = finished(method, network)
    if isinstance(training.method, Restructuring):
        shapes = [p.shape for p in network_of(network).parameters()]
        assert [p.shape for p in model.parameters()] != shapes
        return  # a slim file rebuilds these shapes: tests/slim/test_saved_files.py
    plain = network_of(network, seed=1)
    restore_formats(plain, model.state_dict())
    plain.load_state_dict(model.state_dict())
    inputs, _ = batch(network, 99)
    assert torch.equal(plain.eval()(inputs), model.eval()(inputs))


def test_a_probe_leaves_nothing_while_it_looks(probe, network, tmp_path):
    training = Training(probe, network, folder=tmp_path)
    without = Training(Case("optimizer", "sgd"), network, beside=BESIDE.get(probe.name))
    for _ in range(3):
        training.step()
        without.step()
        assert hooks_of(training.model) == {}
        assert parts_of(training.model) == parts_of(without.model)
        assert_same(training.snapshot(), without.snapshot())
