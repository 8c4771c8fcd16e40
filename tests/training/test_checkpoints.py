"""Checkpoints: whole or absent, checked before use, the last good one never at risk."""

import resource
import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from warm_python import run

from latewood.errors import RequestError, WorkError
from latewood.sparsity import ContinuousSparsification
from latewood.training import checkpoints
from latewood.training.checkpoints import discard_after, latest, load_into, save, steps, write_model


def write(folder, step, **options):
    weights = {"weight": torch.full((4, 3), float(step)), "count": torch.tensor(step)}
    state = {"optimizer": {0: {"m": torch.ones(3) * step}}, "step": step, "note": None}
    return save(folder, step, weights, state, **options)


def listing(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_what_is_saved_comes_back(tmp_path):
    path = write(tmp_path, 5)
    assert path == tmp_path / "step-00000005"
    found = latest(tmp_path)
    assert (found.path, found.step) == (path, 5)
    assert torch.equal(found.model_state()["weight"], torch.full((4, 3), 5.0))
    state = found.state()
    assert torch.equal(state["optimizer"][0]["m"], torch.ones(3) * 5)
    assert (state["step"], state["note"]) == (5, None)


def test_the_last_two_stay_in_order_of_steps(tmp_path):
    for step in (8, 9, 10, 100_000_000):
        write(tmp_path, step)
    assert steps(tmp_path) == [10, 100_000_000]
    write(tmp_path, 100_000_001, keep=1)
    assert steps(tmp_path) == [100_000_001]


def test_no_folder_and_an_empty_one_have_no_checkpoint(tmp_path):
    assert latest(tmp_path / "none") is None
    assert latest(tmp_path) is None


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


FILES = ["model.safetensors", "state.safetensors", "state.json", "manifest.json"]
# A flipped bit in the manifest's white space is no damage, so that combination is left out.
DAMAGES = [(name, damage) for name in FILES for damage in (flip_a_bit, cut, empty, remove)]
DAMAGES.remove(("manifest.json", flip_a_bit))


@pytest.mark.parametrize("name, damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, name, damage):
    write(tmp_path, 1)
    damage(write(tmp_path, 2) / name)
    with pytest.warns(UserWarning, match=r"step-00000002: .*the checkpoint before it is used"):
        found = latest(tmp_path)
    assert found.step == 1


def test_a_checkpoint_renamed_to_another_step_is_passed_over(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 2).rename(tmp_path / "step-00000007")
    with pytest.warns(UserWarning, match="its manifest is of step 2"):
        assert latest(tmp_path).step == 1


def test_all_damaged_is_an_error_and_not_a_fresh_start(tmp_path):
    cut(write(tmp_path, 1) / "state.json")
    with pytest.warns(UserWarning), pytest.raises(WorkError, match="all 1 checkpoints are damaged"):
        latest(tmp_path)


def test_what_a_killed_process_left_half_written_is_ignored_and_swept(tmp_path):
    write(tmp_path, 1)
    half = tmp_path / ".step-00000002.99.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert latest(tmp_path).step == 1
    write(tmp_path, 2)
    assert listing(tmp_path) == ["step-00000001", "step-00000002"]


def test_saving_a_step_again_replaces_a_damaged_one(tmp_path):
    cut(write(tmp_path, 3) / "model.safetensors")
    write(tmp_path, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert latest(tmp_path).step == 3
    assert listing(tmp_path) == ["step-00000003"]


def test_later_ones_are_discarded(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step, keep=3)
    discard_after(tmp_path, 1)
    assert steps(tmp_path) == [1]


@pytest.mark.parametrize("failing", ["write_model", "save_state", "_sync", "_replace"])
def test_a_write_that_fails_anywhere_leaves_the_ones_before(tmp_path, monkeypatch, failing):
    write(tmp_path, 1)
    write(tmp_path, 2)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, failing, full)
    with pytest.raises(WorkError, match=r"step 3 .*No space left.*the last good one is of step 2"):
        write(tmp_path, 3)
    assert listing(tmp_path) == ["step-00000001", "step-00000002"]
    assert latest(tmp_path).step == 2


def test_a_disk_that_really_refuses_more_bytes_leaves_the_one_before(tmp_path):
    # A limit on the size of files makes the system itself refuse the write, half-way through.
    code = f"""
import resource, torch
from latewood.errors import WorkError
from latewood.training.checkpoints import save
save({str(tmp_path)!r}, 1, {{"w": torch.zeros(10)}}, {{}})
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    save({str(tmp_path)!r}, 2, {{"w": torch.zeros(100_000)}}, {{}})
except WorkError as error:
    print(error)
"""
    done = run(["-c", code])
    assert done.returncode == 0, done.stderr
    assert "the checkpoint of step 2 could not be written" in done.stdout
    assert "the last good one is of step 1" in done.stdout
    assert listing(tmp_path) == ["step-00000001"]
    assert latest(tmp_path).step == 1
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 50_000


def test_everything_is_on_disk_before_the_rename(tmp_path, monkeypatch):
    happened = []
    sync, replace = checkpoints._sync, checkpoints._replace
    monkeypatch.setattr(checkpoints, "_sync", lambda p: (happened.append(p.name), sync(p)))
    monkeypatch.setattr(
        checkpoints, "_replace", lambda a, b: (happened.append("rename"), replace(a, b))
    )
    write(tmp_path, 1)
    before = happened[: happened.index("rename")]
    assert {*FILES} <= set(before)
    assert happened[-1] == tmp_path.name


def test_another_models_checkpoint_is_refused_with_all_keys_that_differ(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    before = [p.clone() for p in model.parameters()]
    other = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(2, 2, bias=False))
    state = other.state_dict()
    del state["1.bias"]
    with pytest.raises(RequestError) as caught:
        load_into(model, state, "run/step-1")
    message = str(caught.value)
    assert message.startswith("run/step-1: is of another model; these keys differ:")
    assert "0.weight has shape (5, 3), the model's has (4, 3)" in message
    assert "1.bias is missing" in message
    assert "2.weight is not in the model" in message
    assert "0.bias" in message
    for kept, parameter in zip(before, model.parameters(), strict=True):
        assert torch.equal(kept, parameter)


def test_a_model_with_tied_and_strided_weights_is_written(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    state = {**model.state_dict(), "turned": torch.arange(6.0).view(2, 3).t()}
    write_model(tmp_path / "m.safetensors", state)
    read = load_file(tmp_path / "m.safetensors")
    assert torch.equal(read["1.weight"], model[0].weight)
    assert torch.equal(read["turned"], state["turned"])
    again = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    again[1].weight = again[0].weight
    del read["turned"]
    load_into(again, read, "here")
    assert torch.equal(again[0].weight, model[0].weight)


def test_a_fixed_mask_goes_into_a_soft_one_and_back():
    states, models = [], []
    for density in (None, 0.5):
        model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
        method = ContinuousSparsification(model, total_steps=4)
        if density is not None:
            method.density_target(density)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        models.append(model)
    for model, state in zip(models, reversed(states), strict=True):
        load_into(model, state, "here")
        assert model.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(RequestError, match="head is not in the model"):
        load_into(models[0], {**states[1], "head": torch.zeros(1)}, "here")


def test_a_file_that_is_called_like_a_checkpoint_is_none(tmp_path):
    checkpoints.save(tmp_path, 3, {"a": torch.ones(2)}, {"step": 3})
    (tmp_path / "step-00000005").write_text("a file")
    assert checkpoints.steps(tmp_path) == [3]
    assert checkpoints.latest(tmp_path).step == 3
    checkpoints.discard_after(tmp_path, 4)
    checkpoints.save(tmp_path, 5, {"a": torch.ones(2)}, {"step": 5})
    assert checkpoints.latest(tmp_path).step == 5
    assert [entry.name for entry in tmp_path.glob(".*")] == []
