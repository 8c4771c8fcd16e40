"""`latewood branch` and `latewood connect`: runs, checkpoints and files, and what does not fit."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latewood.cli import main
from latewood.core import read_tensors
from latewood.errors import RequestError
from latewood.spectra import barrier, interpolate, truncate_
from latewood.studies.connectivity.connecting import _require_same_shape, connect_files
from latewood.tasks import TensorDataset
from latewood.training import checkpoints, open_run, train
from latewood.training.evaluation import Recalibration, evaluate, recalibrate
from latewood.training.processes import alone
from latewood.training.recipe import load_recipe
from latewood.training.run_context import RunContext

RECIPE = """
task = "digits"
model = {name = "convnet", channels = [4, 6], strides = [2, 2]}
steps = 30
batch_size = 64
optimizer = {name = "sgd", lr = 0.1, momentum = 0.9}
keep_at = [0, 10]
recalibration_batches = 4
device = "cpu"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "small.toml").write_text(RECIPE, encoding="utf-8")
    for name, changes in (
        ("one", []),
        ("two", ["seed=1"]),
        ("wide", ["model.channels=[5, 6]"]),
        ("masked", ["methods.0.name=continuous_sparsification"]),
    ):
        recipe = load_recipe(folder / "small.toml", changes)
        train(recipe, folder=folder / name, show_progress=False)
    return folder


@pytest.fixture
def call(capsys):
    def start(*words):
        with pytest.raises(SystemExit) as ended:
            main([*map(str, words)])
        shown = capsys.readouterr()
        return ended.value.code, shown.out + shown.err

    return start


def test_the_command_prints_draws_and_writes_everything(home, call, tmp_path):
    code, shown = call(
        *("connect", home / "one", home / "two", "--permute", "--points", 5, "--samples", 100),
        *("--out", tmp_path / "page.html", "--table", tmp_path / "all.json"),
    )
    assert code == 0, shown
    for word in ("train loss", "validation error, permuted", "between the ends", "conv1.weight"):
        assert word in shown
    rows = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    for channels in ("as they are", "permuted"):
        own = [row for row in rows if row["channels"] == channels and row["name"] == "train loss"]
        curve = [row["value"] for row in own if row["kind"] == "score"]
        (height,) = [row["value"] for row in own if row["kind"] == "barrier"]
        assert len(curve) == 5
        assert barrier(curve) == height
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "On the line between them" in page
    assert "conv1.weight" in page


def test_the_ends_are_the_runs_with_batch_norms_measured_anew(home):
    found = connect_files(home / "one", home / "two", points=3)
    run = train(load_recipe(home / "small.toml"), folder=home / "again", show_progress=False)
    state = read_tensors(home / "one")
    assert all(torch.equal(state[name], value) for name, value in run.model.state_dict().items())

    middle = interpolate(state, read_tensors(home / "two"), 0.5)
    opened = open_run(home / "one")
    context, model = RunContext(opened.recipe, alone(), opened.task), opened.model
    for position, values in ((0, state), (1, middle)):
        model.load_state_dict(values)
        stale = evaluate(context, model, opened.task.train)
        recalibrate(context, model)
        scores = evaluate(context, model, opened.task.train)
        curves = found.lines["as they are"].scores
        assert curves["train loss"][position] == pytest.approx(scores["loss"])
        assert curves["train error"][position] == pytest.approx(1 - scores["accuracy"])
        assert stale["loss"] != pytest.approx(scores["loss"], rel=1e-6)


def test_permuting_leaves_the_second_end_as_good(home):
    found = connect_files(home / "one", home / "two", points=3, permute=True)
    plain, permuted = (found.lines[order] for order in ("as they are", "permuted"))
    for name in plain.scores:
        assert permuted.scores[name][-1] == pytest.approx(plain.scores[name][-1], abs=1e-5)
        assert permuted.scores[name][0] == plain.scores[name][0]
    assert permuted.matching is None  # the line itself was walked as it is
    rows = {row["weight"]: row for row in found.agreement_rows()}
    assert list(rows) == ["conv1.weight", "conv2.weight", "head.weight"]
    assert rows["conv1.weight"]["agreement, permuted"] > rows["conv1.weight"]["agreement"]


def test_channels_that_cannot_be_permuted_are_named(home, call):
    changes = ["model={name='mlp', in_features=64, hidden=[]}", "steps=2", "keep_at=[]"]
    recipe = load_recipe(home / "small.toml", changes)
    for name in ("linear", "line"):
        train(recipe, folder=home / name, show_progress=False)
    code, shown = call("connect", home / "linear", home / "line", "--permute", "--samples", 10)
    assert code == 0, shown
    assert "no group of channels can be permuted" in " ".join(shown.split())
    assert "output (1 group head: the model's output)" in " ".join(shown.split())


def test_truncated_networks_get_a_line_of_their_own(home, call, tmp_path):
    words = ("--truncate", 0.5, "--permute", "--points", 3, "--samples", 100)
    page, table = tmp_path / "page.html", tmp_path / "all.json"
    code, shown = call(
        "connect", home / "one", home / "two", *words, "--out", page, "--table", table
    )
    assert code == 0, shown
    assert "train loss, permuted, top 0.5" in shown
    assert "truncated to 50% of all singular values" in page.read_text(encoding="utf-8")
    rows = json.loads(table.read_text(encoding="utf-8"))
    barriers = [row for row in rows if row["kind"] == "barrier" and row["name"] == "train loss"]
    assert [(row["channels"], row["spectra"]) for row in barriers] == [
        *(("as they are", "whole"), ("permuted", "whole")),
        *(("as they are", "top 0.5"), ("permuted", "top 0.5")),
    ]
    ends = {}
    for spectra in ("whole", "top 0.5"):
        own = [r["value"] for r in rows if r["kind"] == "score" and r["name"] == "train loss"
               and (r["channels"], r["spectra"]) == ("as they are", spectra)]  # fmt: skip
        ends[spectra] = own[0]

    opened = open_run(home / "one")
    context, model = RunContext(opened.recipe, alone(), opened.task), opened.model
    truncate_(model, fraction=0.5)
    recalibrate(context, model)
    part = TensorDataset(*opened.task.train.gather(torch.arange(100)))
    loss = evaluate(context, model, part)["loss"]
    assert ends["top 0.5"] == pytest.approx(loss)
    assert ends["whole"] != pytest.approx(loss, rel=1e-3)


def test_noise_begins_anew_with_each_evaluation_not_with_each_batch(home):
    opened, drawn = open_run(home / "one"), []

    def loss(model, batch, generator):
        drawn.append(torch.rand(1, generator=generator).item())

    task = replace(opened.task, objective=Noisy(loss))
    seen = Recalibration(RunContext(opened.recipe, alone(), task))
    for _ in range(2):
        for batch in seen:
            seen.forward(opened.model, batch)
    assert len(drawn) == 8 and len(set(drawn)) == 4
    assert drawn[:4] == drawn[4:]


class Noisy:
    """An objective with only a loss."""

    def __init__(self, loss):
        self.loss = loss


def test_checkpoints_and_files_are_ends_too(home, call, tmp_path):
    early = home / "one" / "checkpoints" / "step-00000010"
    found = connect_files(early, home / "one" / "model.safetensors", points=2, samples=50)
    assert found.lines["as they are"].scores["train loss"][0] > 0
    for name in ("one", "two"):
        torch.save(read_tensors(home / name), tmp_path / f"{name}.pt")
    files = (tmp_path / "one.pt", tmp_path / "two.pt")
    code, shown = call("connect", *files)
    assert code == 2 and "recipe: missing" in shown
    code, shown = call(
        "connect", *files, "--recipe", home / "small.toml", "--points", 2, "--samples", 9
    )
    assert code == 0, shown
    unfinished = home / "one"
    (unfinished / "summary.json").rename(unfinished / "kept.json")
    try:
        (last,) = [s for s in checkpoints.steps(unfinished / "checkpoints") if s == 30]
        latest = connect_files(unfinished, early, points=2, samples=50)
    finally:
        (unfinished / "kept.json").rename(unfinished / "summary.json")
    scores = latest.lines["as they are"].scores["train loss"]
    assert scores[::-1] == found.lines["as they are"].scores["train loss"]
    assert last == 30


def test_checkpoints_under_a_method_keep_it(home):
    ends = [home / "masked" / "checkpoints" / f"step-{step:08d}" for step in (10, 30)]
    found = connect_files(*ends, points=3, samples=50)
    assert list(found.agreements["as they are"]) == ["conv1.weight", "conv2.weight", "head.weight"]
    with pytest.raises(RequestError, match="transformation"):
        connect_files(*ends, points=3, samples=50, permute=True)
    with pytest.raises(RequestError, match=r"conv1\.weight is in the second only"):
        connect_files(ends[0], home / "one", points=3, samples=50)


def test_architectures_that_do_not_match_are_named(home, call):
    code, shown = call("connect", home / "one", home / "wide")
    assert code == 2
    assert "wide" in shown
    assert "conv1.weight has shape (5, 1, 3, 3), that of the first (4, 1, 3, 3)" in shown
    assert len(shown.splitlines()) == 1


def test_of_many_differences_the_first_are_listed(home):
    paths = (home / "one", home / "two")
    first, second = (torch.nn.ModuleList(torch.nn.Linear(n, 2) for _ in range(9)) for n in (2, 3))
    with pytest.raises(RequestError) as refused:
        _require_same_shape(first, second, paths)
    lines = str(refused.value).splitlines()
    assert len(lines) == 10
    assert lines[1].strip() == "0.weight has shape (2, 3), that of the first (2, 2)"
    assert lines[-1].strip() == "and 1 more"


def test_networks_that_differ_outside_their_states_have_no_line(home):
    paths = (home / "one", home / "two")
    first, second = (open_run(home / "one").model for _ in paths)
    for model, channel in ((first, 0), (second, 1)):
        model.register_buffer("channel", torch.tensor([channel]), persistent=False)
    with pytest.raises(RequestError, match=r"second: got '.*two'.*\n  channel, which is outside"):
        _require_same_shape(first, second, paths)
    second.channel.zero_()
    _require_same_shape(first, second, paths)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--points", "1"], "points"),
        (["--samples", "0"], "samples"),
        (["--truncate", "1.5"], "truncate"),
        (["--table", "all.txt"], "--table"),
    ],
)
def test_wrong_requests_exit_with_2(home, call, words, named):
    code, shown = call("connect", home / "one", home / "two", *words)
    assert code == 2
    assert named in shown
    assert len(shown.splitlines()) == 1


def test_nothing_to_read_exits_with_2(home, call, tmp_path):
    code, shown = call("connect", home / "one", tmp_path / "none")
    assert code == 2 and "none" in shown
    code, shown = call("connect", home / "one", home / "one" / "checkpoints" / "step-00000011")
    assert code == 2 and "0, 10" in shown


def test_the_branch_command_trains_what_is_missing(home, call):
    code, shown = call("branch", home / "two", "--at", 10, "--seeds", 4, 5)
    assert code == 0, shown
    assert "order-4" in shown and "order-5" in shown
    folder = home / "two" / "branches" / "step-10"
    before = (folder / "order-4" / "summary.json").stat().st_mtime_ns
    assert call("branch", home / "two", "--at", 10, "--seeds", 4)[0] == 0
    assert (folder / "order-4" / "summary.json").stat().st_mtime_ns == before
    near = connect_files(folder / "order-4", folder / "order-5", points=3)
    assert near.task == "digits"
    code, shown = call("branch", home / "two", "--at", 10, "--seeds", 4, "--perturb", 2.5)
    assert code == 0, shown
    far = connect_files(folder / "order-4", f"{folder}-perturbed-2.5/order-4", points=3)
    shared = [
        next(iter(found.agreements["as they are"].values())).score.item() for found in (near, far)
    ]
    assert shared[0] > shared[1]
    code, shown = call("branch", home / "two", "--at", 7)
    assert code == 2 and "0, 10, 30" in shown


def test_the_documented_protocol_runs_in_small(home, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[3] / "docs" / "connectivity.md").read_text(encoding="utf-8")
    blocks = page.partition("## The paper's protocol")[2].split("```sh\n")[1:]
    lines = [line for block in blocks for line in block.partition("```")[0].splitlines()]
    first, *rest = [shlex.split(line)[1:] for line in lines]
    recipe = str(home / "small.toml")
    words = {"cifar10-vgg16": recipe, "1760": "20"}

    def small(command, trunk="0"):
        # Two branches, at the end of the first epoch of 20 steps.
        swapped = [words.get(word, word.replace("1760", "20")) for word in command if word != "5"]
        return [word.replace("seed=0", f"seed={trunk}").replace("vgg-0", f"vgg-{trunk}")
                for word in swapped]  # fmt: skip

    # The other trunk has a branch of the same order.
    ready = [small(first), small(first, "1"), small(rest[0], "1"), *map(small, rest)]
    assert len(ready) == 8
    shorter = ["--set", "steps=30", "keep_at=[]"]
    for command in ready:
        code, shown = call(*command, *(shorter if command[0] == "train" else ()))
        assert code == 0, (command, shown)
    kept = {int(each.name[5:]) for each in Path("runs/vgg-0/checkpoints").iterdir()}
    assert kept >= {0, 4, 8, 12, 16, 20}
    table = Path("runs/vgg-0/step-20-orders-3-4.csv").read_text(encoding="utf-8")
    assert "barrier,train loss,as they are,top 0.5" in table
