"""Two processes do what one does, only the main one writes, and no error leaves one waiting."""

import os
import warnings

import pytest
import torch
from safetensors.torch import load_file
from warm_python import run, run_ranks

from latewood.errors import RequestError
from latewood.training.processes import Processes
from latewood.training.run import train
from latewood.training.run_folder import RunFolder

PARTS = '''
import os
import torch
from torch import nn
from latewood.errors import WorkError
from latewood.tasks import Classification, Task, TensorDataset

def task(*, samples: int = 53):
    noise = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(53, 6, generator=noise), torch.arange(53) % 4
    return Task(
        name="noise", train=TensorDataset(inputs[:samples], labels[:samples]),
        validation=TensorDataset(inputs[:17], labels[:17]),
        objective=Classification(), headline="accuracy", model="parts_of_distributed:net",
        example_inputs=(inputs[:1],),
    )

class Fragile(nn.Linear):
    """Breaks in one process only, after some steps."""
    fails = ""
    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + self.training
        out = super().forward(x)
        if self.training and self.calls >= 5 and os.environ.get("RANK") == "1":
            if self.fails == "raise":
                raise RuntimeError("only this process fails")
            if self.fails == "divide":
                return out / 0
        return out

def net(*, fails: str = ""):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), Fragile(8, 4))
    model[2].fails = fails
    return model
'''

RECIPE = """
task = "parts_of_distributed:task"
model = "parts_of_distributed:net"
epochs = 4
batch_size = 13
log_every = 3
checkpoint_every = 7
clip_norm = 0.5
device = "cpu"
[optimizer]
name = "sgd"
lr = 0.3
momentum = 0.9
[[methods]]
name = "continuous_sparsification"
final_temperature = 50
include = ["0"]
penalty_weight = 1e-3
[[probes]]
name = "spectral"
every = 8
"""

# Several runs in one launch, as starting Python twice is most of the time.
SCRIPT = """
import os, sys, torch, warnings
warnings.simplefilter("ignore")
from latewood.errors import LatewoodError
from latewood.training.run import train
from latewood.training.recipe import load_recipe
for folder, *overrides in (item.split(" ") for item in sys.argv[1:]):
    try:
        train(load_recipe("recipe.toml", overrides), folder=folder)
        outcome = "done"
    except LatewoodError as error:
        outcome = f"{type(error).__name__}: {error}"
    with open(f"{folder}.{os.environ.get('RANK', 'alone')}.txt", "w") as file:
        file.write(f"{outcome} [{torch.get_num_threads()} threads]")
if torch.distributed.is_initialized():
    # gloo's own threads sometimes abort an ordinary exit on a loaded machine, when all is done.
    torch.distributed.barrier()
    os._exit(0)
"""


@pytest.fixture
def home(tmp_path):
    (tmp_path / "parts_of_distributed.py").write_text(PARTS)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


def launch(home, *runs, timeout=120):
    """What a user calls: the launcher ends the other processes where one fails."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {key: value for key, value in os.environ.items() if key != "RANK"}
    environment["OMP_NUM_THREADS"] = "1"
    environment["CUDA_VISIBLE_DEVICES"] = ""
    return run([*launcher, "script.py", *runs], cwd=home, timeout=timeout, env=environment)


def outcome(home, run, rank):
    return (home / f"{run}.{rank}.txt").read_text()


def test_two_processes_end_where_one_does(home, monkeypatch):
    monkeypatch.syspath_prepend(home)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(home / "recipe.toml", folder=home / "alone")
    runs = (
        "both",
        "half steps=9 device=auto",
        "hard methods.0.harden_at=0.5",
        "many task.samples=1",
        "both",
        "nan model.fails=divide",
    )
    for done in run_ranks(["script.py", *runs], 2, cwd=home):
        assert done.returncode == 0, done.stderr
    one, two = RunFolder(home / "alone"), RunFolder(home / "both")
    # The gradient is the same mean in another order of summation: float32 rounding, step by step.
    weights, others = load_file(one.model_path), load_file(two.model_path)
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-4, atol=1e-5)
    # A probe that works beside the training says what it saw a little later.
    mine, theirs = (
        sorted(run.read_metrics(), key=lambda row: (row["step"], row["kind"])) for run in (one, two)
    )
    assert [(row["step"], row["kind"]) for row in mine] == [
        (row["step"], row["kind"]) for row in theirs
    ]
    assert [row["step"] for row in theirs if row["kind"] == "probe"] == [0, 8, 16]
    for row, other in zip(mine, theirs, strict=True):
        for each in (row, other):
            for name in ("seconds", "kind", "lag", "dropped"):
                each.pop(name, None)
        assert other == pytest.approx(row, rel=1e-4, abs=1e-5)
    assert "processes = 2" in two.recipe_path.read_text()

    # The second run in the same folder is refused in both processes, and neither waits.
    for rank in (0, 1):
        assert outcome(home, "both", rank).startswith(
            "RequestError: folder: got 'both', which holds"
        )
        assert outcome(home, "half", rank).startswith("done")
        # Halfway the logits stop, and nothing waits for their gradients.
        assert outcome(home, "hard", rank).startswith("done")
        words = "RequestError: processes: got 2 for 1 training samples; expected at most 1"
        assert outcome(home, "many", rank).startswith(words)
        # Only the second process has the broken layer, yet both know which one it is.
        assert "the output of layer '2' is the first that is not finite" in outcome(
            home, "nan", rank
        )
        assert outcome(home, "nan", rank).startswith("Diverged: step 5: the loss is nan; ")
    assert not (home / "many").exists()
    assert "processes = 2" in RunFolder(home / "half").recipe_path.read_text()


def test_an_error_in_one_process_ends_the_other(home):
    done = launch(home, "broken model.fails=raise", timeout=60)
    assert done.returncode != 0
    assert "only this process fails" in done.stderr
    assert not RunFolder(home / "broken").finished


def test_work_that_fails_in_the_main_process_raises_its_error_there():
    class Alone:
        device, process_index, num_processes = torch.device("cpu"), 0, 1

    group = Processes(Alone())
    assert group.on_main(lambda: 3) == 3
    with pytest.raises(RequestError, match="no"):
        group.on_main(lambda: (_ for _ in ()).throw(RequestError("no")))
    assert group.sum([1.0, 2.0]) == [1.0, 2.0]
    assert group.first(None) is None
    assert group.any(True)


def test_each_process_gets_its_share_of_the_cores(monkeypatch):
    from latewood.training import processes

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    threads = torch.get_num_threads()
    try:
        for local, before, expected in [("1", 2, 2), ("1", 16, 8), ("2", 1, 4), ("9", 4, 1)]:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
            torch.set_num_threads(before)
            processes._share_cores()
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(threads)
