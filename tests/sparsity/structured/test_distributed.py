"""Two processes grow the same network: the same structures, the same bits."""

import json

from warm_python import run_ranks

PARTS = """
import torch
from latewood.tasks import TensorDataset
from latewood.models import resnet20
from latewood.tasks import Classification, Task

def task():
    noise = torch.Generator().manual_seed(0)
    images, labels = torch.randn(48, 3, 8, 8, generator=noise), torch.arange(48) % 4
    return Task(
        name="noise", train=TensorDataset(images, labels), validation=TensorDataset(images, labels),
        objective=Classification(), headline="accuracy", model="parts_of_two:net",
        example_inputs=(images[:1],),
    )

def net():
    return resnet20(width=0.25, num_classes=4)
"""

RECIPE = """
task = "parts_of_two:task"
epochs = 6
batch_size = 16
device = "cpu"
[optimizer]
name = "sgd"
lr = 0.05
momentum = 0.9
[[methods]]
name = "structured_sparsification"
budget = { parameters = 0.5 }
logit_lr = 0.5
growth_logit = -0.5
freeze = 0.7
"""

SCRIPT = """
import hashlib, json, os, sys, torch, warnings
warnings.simplefilter("ignore")
from latewood.sparsity.structured.live_structure import LiveStructure
from latewood.training.run import train
seen = []
change_to = LiveStructure.change_to
def watched(self, *args, **named):
    changed = change_to(self, *args, **named)
    bits = b"".join(p.detach().numpy().tobytes() for p in self.model.parameters())
    logits = [gate.logits.tolist() for gate in self.gates] + [self.layer_gate.logits.tolist()]
    seen.append([[p.tolist() for p in self.present], self.blocks.tolist(), logits,
                 hashlib.sha256(bits).hexdigest()])
    return changed
LiveStructure.change_to = watched
result = train("recipe.toml", folder="run", show_progress=False)
bits = b"".join(p.detach().numpy().tobytes() for p in result.model.parameters())
seen.append(hashlib.sha256(bits).hexdigest())
with open(f"rank-{os.environ['RANK']}.json", "w") as file:
    json.dump(seen, file)
# gloo's own threads sometimes abort an ordinary exit on a loaded machine, when all is done.
torch.distributed.barrier()
os._exit(0)
"""


def test_two_processes_grow_the_same_network(tmp_path):
    (tmp_path / "parts_of_two.py").write_text(PARTS)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "script.py").write_text(SCRIPT)
    for done in run_ranks(["script.py"], 2, cwd=tmp_path):
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert len(one) == 1 + 6  # the seed, four samples, the freeze, the end
    assert one == two
    blocks = [each[1] for each in one[:-1]]
    assert not any(blocks[0]) and any(any(each) for each in blocks)
