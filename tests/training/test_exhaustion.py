"""A run without memory says at which step, with which batches, and what it can go on from."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from latewood.errors import WorkError
from latewood.training import checkpoints
from latewood.training.recipe import parse_recipe
from latewood.training.run import train


class Greedy(nn.Module):
    """Asks for more than any machine has, from its n-th pass in training mode on."""

    hungry = True
    raised = None

    def __init__(self, *, in_features: int, num_classes: int, at: int = 3):
        super().__init__()
        self.layer = nn.Linear(in_features, num_classes)
        self.at, self.passes = at, 0

    def forward(self, x):
        self.passes += self.training
        if Greedy.hungry and self.passes > self.at:
            if Greedy.raised is not None:
                raise Greedy.raised("nothing left")
            torch.empty(2**52)
        return self.layer(x.flatten(1))


@pytest.mark.parametrize("raised", [None, MemoryError, torch.OutOfMemoryError])
def test_the_step_the_batch_size_and_the_checkpoint_are_named(tmp_path, monkeypatch, raised):
    module = ModuleType("greedy_nets")
    module.Greedy = Greedy
    monkeypatch.setitem(sys.modules, "greedy_nets", module)
    monkeypatch.setattr(Greedy, "hungry", True)
    monkeypatch.setattr(Greedy, "raised", raised)
    recipe = parse_recipe(
        {
            "task": "digits",
            "model": "greedy_nets:Greedy",
            "steps": 6,
            "batch_size": 48,
            "checkpoint_every": 2,
            "device": "cpu",
        }
    )
    with pytest.raises(WorkError) as caught:
        train(recipe, folder=tmp_path / "run", show_progress=False)
    words = str(caught.value)
    assert words.startswith("step 4: out of memory with batch_size 48 on cpu (")
    assert "the last checkpoint is of step 2: go on with --resume" in words
    monkeypatch.setattr(Greedy, "hungry", False)
    assert checkpoints.steps(tmp_path / "run" / "checkpoints") == [2]
    again = train(recipe, folder=tmp_path / "run", resume=True, show_progress=False)
    assert again.summary["steps"] == 6


def test_other_errors_of_a_model_stay_what_they_are(tmp_path, monkeypatch):
    def broken(self, x):
        if self.training:
            raise RuntimeError("a bug of the user's own")
        return self.layer(x.flatten(1))

    module = ModuleType("greedy_nets")
    module.Greedy = Greedy
    monkeypatch.setitem(sys.modules, "greedy_nets", module)
    monkeypatch.setattr(Greedy, "forward", broken)
    recipe = parse_recipe({"task": "digits", "model": "greedy_nets:Greedy", "steps": 1})
    with pytest.raises(RuntimeError, match="a bug of the user's own"):
        train(recipe, folder=tmp_path / "run", show_progress=False)
