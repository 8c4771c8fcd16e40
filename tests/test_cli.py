"""The command line as people call it: one run of every command, mistakes, and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file
from warm_python import WarmPython, run

from latewood import __version__
from latewood.cli import main
from latewood.experiments import registry

RECIPE = """
task = "digits"
model = "mlp"
steps = 4
batch_size = 32
optimizer = {name = "sgd", lr = 0.1}

[[methods]]
name = "continuous_sparsification"
initial_logit = 0.1
final_temperature = 1e4
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def latewood(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Calls the command line in a process of its own, in an empty folder."""

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        return run(["-m", "latewood", *map(str, words)], cwd=tmp_path)

    return call


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the lines of progress that a busy machine gets."""
    monkeypatch.setattr("latewood.terminal.progress.PATIENCE", 3600.0)


@pytest.fixture
def fails(silent: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Calls the command line in this process and returns its one line on standard error."""

    def call(code: int, *words: object) -> str:
        with pytest.raises(SystemExit) as ended:
            main([*map(str, words)])
        lines = capsys.readouterr().err.splitlines()
        assert ended.value.code == code
        assert len(lines) == 1, lines
        return lines[0]

    return call


@pytest.fixture
def succeeds(silent: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Calls the command line in this process and returns its standard output."""

    def call(*words: object) -> str:
        with pytest.raises(SystemExit) as ended:
            main([*map(str, words)])
        shown = capsys.readouterr()
        assert (ended.value.code, shown.err) == (0, "")
        return shown.out

    return call


def test_demo(latewood: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    words = ("--set", "epochs=3", "model.channels=[2,2,2]", "--set", "methods.1.initial_logit=1")
    done = latewood("demo", *words)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr  # on a busy machine there may be lines of progress
    lines = done.stdout.splitlines()
    assert lines[0] == "Before and after"
    assert lines[1].split() == ["dense", "latewood", "grown", "packed"]
    assert any(line.startswith("accuracy, finalized (hard)") for line in lines)
    assert (tmp_path / "runs" / "demo" / "report.html").exists()


def test_ctrl_c_leaves_a_run_to_go_on_with(
    fails: Callable[..., str], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["-m", "latewood", "train", str(recipe), "--set", "steps=100000"]
    process = WarmPython(words, cwd=tmp_path)
    metrics = tmp_path / "runs" / "small" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("latewood: stopped after step ")
    assert "--resume runs/small" in errors

    # The length of a run cannot change on the way.
    monkeypatch.chdir(tmp_path)
    assert "100000" in fails(2, "train", "--resume", "runs/small", "--set", "steps=4")


def _outcome(printed: str) -> list[list[str]]:
    """The words of every line but the latency, whose digits also set the column's width."""
    return [line.split() for line in printed.splitlines() if not line.startswith("Latency")]


def test_train_resume_and_report(
    latewood: Callable[..., subprocess.CompletedProcess[str]],
    succeeds: Callable[..., str],
    fails: Callable[..., str],
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = latewood("train", recipe, "--set", "optimizer.lr=0.2", "--out", "mine")
    assert done.returncode == 0, done.stderr
    assert "accuracy, trained" in done.stdout
    assert (tmp_path / "mine" / "report.html").exists()
    assert "lr = 0.2" in (tmp_path / "mine" / "recipe.toml").read_text()
    monkeypatch.chdir(tmp_path)
    assert "--overwrite" in fails(2, "train", recipe, "--out", "mine")
    (tmp_path / "mine" / "summary.json").unlink()
    resumed = succeeds("train", "--resume", "mine")
    assert _outcome(done.stdout) == _outcome(resumed)
    again = succeeds("train", "--resume", "mine")
    assert again.splitlines()[0] == "nothing was trained: mine had finished after 4 steps"
    assert _outcome(again)[1:] == _outcome(resumed)
    assert succeeds("report", "mine", "--out", "page.html") == "report: page.html\n"
    assert (tmp_path / "page.html").stat().st_size > 1_000_000


def test_sweep(
    latewood: Callable[..., subprocess.CompletedProcess[str]], recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "more.txt").write_text("optimizer.lr=1e30\n")
    words = ("--set", "methods=[]", "steps=2", "--grid", "seed=0,1", "--list", "more.txt")
    done = latewood("sweep", recipe, *words, "--jobs", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "By accuracy, best first"
    folder = tmp_path / "runs" / "small-sweep"
    rows = json.loads((folder / "sweep.json").read_text())
    # Where learning rates are swept, one from which a run diverges is a result.
    assert [row["status"] for row in rows] == ["done", "done", "diverged"]
    (tmp_path / "broken.txt").write_text("batch_size=100000 drop_last=true\n")
    done = latewood("sweep", recipe, *words[:-1], "broken.txt", "--out", "b", "--jobs", 1)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("latewood: 1 of 3 runs failed: batch_size=")
    assert (folder / "sweep.html").exists()


def test_tickets(
    latewood: Callable[..., subprocess.CompletedProcess[str]], recipe: Path, tmp_path: Path
) -> None:
    recipe.write_text(RECIPE.partition("[[methods]]")[0].replace("steps = 4", "epochs = 1"))
    words = ("--rewind", 0, "--everything", "--baselines", "shuffled", "--logits", -0.2, 0.1)
    done = latewood("tickets", recipe, *words)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "small: accuracy by density and cost"
    assert lines[-1] == "tables and tickets: runs/small-tickets"
    folder = tmp_path / "runs" / "small-tickets"
    rows = json.loads((folder / "tickets.json").read_text())
    assert [row["method"] for row in rows].count("ticket") == 2
    assert len(list(folder.glob("ticket-*.safetensors"))) == 2


def test_grow(
    succeeds: Callable[..., str],
    fails: Callable[..., str],
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = ("digits-growing-mlp", "--set", "model.hidden=[16,16]", "epochs=40")
    lines = succeeds("grow", "plan", *shipped, "--seconds", 0.05).splitlines()
    assert lines[0] == "Channel groups"
    assert any(line.split()[:5] == ["linear1", "16", "24", "40", "64"] for line in lines)
    assert any(line.startswith("head") and "the model's output" in line for line in lines)
    phases = lines[lines.index("Phases") + 2 :]
    assert [line.split()[:4] for line in phases[:4]] == [
        ["0", "0", "7", "133"],
        ["1", "7", "9", "171"],
        ["2", "16", "11", "209"],
        ["3", "27", "13", "247"],
    ]
    assert lines[-1].startswith("predicted: ")
    changing = ("--set", "batch_size=[[10, 128], [30, 64]]")
    lines = succeeds("grow", "plan", *shipped, *changing, "--seconds", 0.05).splitlines()
    assert [line.split()[3] for line in lines[lines.index("Phases") + 2 :][:2]] == ["63", "141"]

    lines = succeeds("grow", "simulate", *shipped, "--seconds", 0.05, "--align", 8).splitlines()
    assert [line.split()[0] for line in lines[-4:-1]] == ["recipe", "chosen", "fixed"]
    chosen = lines[-1].partition(" = ")[2]
    lines = succeeds(
        *("grow", "plan", *shipped, "--set", f"methods.0.schedule={chosen}", "--seconds", 0.05)
    ).splitlines()
    assert "explicit" in chosen and lines[-1].startswith("predicted: ")

    assert "expected one growth among them" in fails(2, "grow", "plan", recipe)
    assert "batch_size" in fails(2, "grow", "simulate", *shipped, *changing)
    assert "--width: got 'a'" in fails(2, "grow", "widen", tmp_path, "--width", "a")
    assert "CHECKPOINT" in fails(2, "grow", "widen", tmp_path)
    assert "CHECKPOINT" in fails(2, "grow", "widen", ".")


def test_slim(
    succeeds: Callable[..., str],
    fails: Callable[..., str],
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    succeeds("train", recipe)
    lines = succeeds("slim", "runs/small", "--mode", "slim").splitlines()
    assert lines[0] == "small: slim is the form written"
    assert lines[1].split() == ["dense", "slim"]
    assert lines[-1] == "model: runs/small-slim"
    assert (tmp_path / "runs" / "small-slim" / "model.safetensors").exists()
    assert "--overwrite" in fails(2, "slim", "runs/small")
    report = json.loads(succeeds("slim", "runs/small", "--json", "--overwrite", "--batch", 2))
    assert (report["mode"], report["batch"]) == ("auto", 2)


def test_inspect(
    succeeds: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(
        {"state_dict": {"module.w": torch.eye(3), "module.b": torch.ones(3)}}, tmp_path / "a.pt"
    )
    save_file({"v": torch.ones(2, 4)}, tmp_path / "b.safetensors")
    for ending in ("csv", "json", "parquet"):
        shown = succeeds("inspect", "a.pt", "b.safetensors", "--table", f"t.{ending}")
        assert shown.endswith(f"table: t.{ending}\n")
    lines = shown.splitlines()
    assert lines[0] == "a.pt"
    assert lines[2].split()[:4] == ["w", "3x3", "3", "1"]
    rows = json.loads((tmp_path / "t.json").read_text())
    assert [(row["file"], row["name"], row["rank"]) for row in rows] == [
        ("a.pt", "w", 3),
        ("b.safetensors", "v", 2),
    ]
    assert pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pylist() == rows
    assert (tmp_path / "t.csv").read_text().startswith("file,name,shape,rank")
    shown = succeeds("inspect", "b.safetensors", "--against", "b.safetensors", "--include", "v")
    assert shown.splitlines()[2].split()[:3] == ["v", "2x4", "0"]
    shown = succeeds("inspect", "a.pt", "--key", "state_dict", "--sort", "gini", "--page", "p.html")
    assert shown.splitlines()[3].startswith("all 1")
    assert "Effective rank" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_reproduce(
    latewood: Callable[..., subprocess.CompletedProcess[str]],
    succeeds: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = latewood("reproduce", "ticket-search", "--out", "r", "--claims", "c.md")
    assert done.returncode == 0, done.stderr
    assert "pruning-in-one-run" in done.stdout
    page = (tmp_path / "c.md").read_text()
    assert "`latewood reproduce ticket-search --scale quick`" in page
    monkeypatch.chdir(tmp_path)
    assert succeeds("reproduce", "--no-run", "--out", "r", "--claims", "d.md") == "claims: d.md\n"
    assert (tmp_path / "d.md").read_text() == page.replace("c.md", "d.md")


def test_a_shipped_recipe_is_trained_by_its_name(
    succeeds: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "digits-mlp" in succeeds("recipes")
    small = ("--set", "epochs=1", "model.hidden=[8]")
    assert "runs/digits-mlp/report.html" in succeeds("train", "digits-mlp", *small)
    assert "folder" not in (tmp_path / "runs" / "digits-mlp" / "recipe.toml").read_text()
    succeeds("sweep", "digits-mlp", *small, "--grid", "seed=0", "--jobs", "1")
    assert (tmp_path / "runs" / "digits-mlp-sweep" / "sweep.html").is_file()


def test_help_and_version_do_not_load_torch() -> None:
    for word in ("--help", "--version", "train --help", "--nothing"):
        code = (
            "import sys\nfrom latewood.cli import main\n"
            f"try: main({word.split()!r})\nexcept SystemExit: pass\n"
            "heavy = {'torch', 'numpy', 'pydantic', 'pyarrow'} & set(sys.modules)\n"
            "assert not heavy, heavy"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nothing", 'Unknown command "nothing"'),
        ("train --nothing", "Unknown option: --nothing"),
        ("train a.toml b.toml", "Unused Tokens"),
        ("train", "RECIPE: missing"),
        ("train --resume run --overwrite", "--overwrite"),
        ("train missing.toml", "missing.toml: cannot be read"),
        ("train digit-convnet", "did you mean 'digits-convnet'?"),
        ("train --resume missing", "expected the folder of a run"),
        ("sweep missing.toml --grid seed=0", "missing.toml: cannot be read"),
        ("sweep missing.toml --grid seed", "--grid"),
        ("sweep missing.toml --list missing.txt", "missing.txt"),
        ("sweep missing.toml --backend slurm", '"loky", "ray", "dask"'),
        ("tickets", "RECIPE"),
        ("sweep digits --grid seed=0", "latewood recipes"),
        ("tickets missing.toml", "missing.toml: cannot be read"),
        ("tickets digitsmlp", "did you mean 'digits-mlp'?"),
        ("tickets missing.toml --rounds x", "--rounds"),
        ("grow nothing", 'Unknown command "nothing"'),
        ("grow plan", "RECIPE"),
        ("grow plan digits-growingmlp", "did you mean 'digits-growing-mlp'?"),
        ("grow widen missing", "missing"),
        ("slim", "RUN"),
        ("slim missing", "does not exist"),
        ("slim . --mode masked", '"auto", "slim", "csr", "dense"'),
        ("inspect", "FILES"),
        ("inspect missing.pt", "missing.pt"),
        ("inspect missing.pt --table all.txt", "ends in one of .csv, .json, .parquet"),
        ("inspect missing.pt --table none/all.csv", "a file in a folder there is"),
        ("spectra missing --table all", "--table: got 'all'; expected a name that ends in one of"),
        ("connect missing missing --table all.xlsx", "--table: got 'all.xlsx'"),
        ("report missing", "missing"),
        ("reproduce nothing", "expected one of"),
        ("reproduce --scale huge", '"quick", "cpu", "full"'),
        ("demo --set epochs=none", "epochs: got 'none'"),
    ],
)
def test_wrong_requests_exit_with_2(
    fails: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(2, *words.split())
    assert not any(tmp_path.iterdir())


def test_a_damaged_file_exits_with_1(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    assert "torn.safetensors" in fails(1, "inspect", tmp_path / "torn.safetensors")


def test_unexpected_errors_are_one_line_with_a_hint(
    fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("by accident\nand so on")

    monkeypatch.setattr("latewood.experiments.experiments", broken)
    monkeypatch.setattr("latewood.experiments.runner.experiments", broken)
    line = fails(1, "reproduce", "--list")
    assert line == (
        "latewood: unexpected ZeroDivisionError: by accident and so on (--debug shows where)"
    )


def test_debug_shows_where(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--debug", "inspect", str(tmp_path / "missing.pt")])
    assert ended.value.code == 2
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_before_a_run_says_how_to_go_on(
    fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("latewood.experiments.runner.experiments", interrupted)
    assert fails(1, "reproduce", "--list").startswith("latewood: stopped")


def test_a_failed_experiment_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(scale: str, bench: object) -> registry.Results:
        raise RuntimeError("no such luck")

    claim = registry.Claim("c", "C.", "[R] x", "1", lambda r: "1", lambda r: True)
    broken = registry.Experiment("broken", "Broken", "Nobody 2020", run, (claim,))
    monkeypatch.setattr("latewood.experiments.runner.experiments", lambda: {"broken": broken})
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "broken", "--out", str(tmp_path)])
    assert ended.value.code == 1
    shown = capsys.readouterr()
    assert "not measured" in shown.out
    assert shown.err == "latewood: broken: RuntimeError: no such luck\n"


def test_a_reader_that_has_gone_is_no_accident() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "latewood", "recipes"]
    with os.fdopen(writing, "w") as gone:
        done = subprocess.run(words, stdout=gone, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "")


LEAVING = """
import atexit, sys
from latewood.cli import main

class Last:
    def __del__(self):
        print("ended with the interpreter", flush=True)

atexit.register(print, "left")
last = Last()
main(sys.argv[1:])
"""


@pytest.mark.parametrize(("processes", "ends"), [("1", True), ("2", False)])
@pytest.mark.parametrize(("words", "code"), [(["recipes"], 0), (["recipes", "--nothing"], 2)])
def test_a_launched_process_leaves_before_the_interpreter_ends(processes, ends, words, code):
    """What gloo's threads still hold cannot be let go of while the interpreter ends."""
    done = subprocess.run(
        [sys.executable, "-c", LEAVING, *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"WORLD_SIZE": processes},
    )
    assert done.returncode == code, done.stderr
    lines = done.stdout.splitlines()
    assert "left" in lines
    assert ("ended with the interpreter" in lines) == ends
    assert (len(lines) > 2) == (code == 0)
