"""States on disk: any tree comes back with its types and bits, and a bad file is named."""

import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from latewood.core.state import load_state, save_state
from latewood.errors import RequestError, WorkError

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
]


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    return (torch.randn(shape, generator=generator) * 3).to(draw(st.sampled_from(DTYPES)))


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.just("$pairs")
)
keys = scalars | st.tuples(st.integers(), st.text(max_size=3)) | st.sampled_from(["$tensor", "a"])
trees = st.recursive(
    scalars | tensors(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


def same(left, right):
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return (
            left.dtype == right.dtype
            and left.shape == right.shape
            and left.contiguous().numpy(force=True).tobytes()
            == right.contiguous().numpy(force=True).tobytes()
            if left.dtype is not torch.bfloat16
            else right.dtype is torch.bfloat16 and same(left.float(), right.float())
        )
    if isinstance(left, dict):
        return (
            len(left) == len(right)
            and all(same(a, b) for a, b in zip(left, right, strict=True))
            and all(same(a, b) for a, b in zip(left.values(), right.values(), strict=True))
        )
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return repr(left) == repr(right)
    return left == right


@given(tree=trees)
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_tree_comes_back(tmp_path, tree):
    save_state(tmp_path / "state", tree)
    assert same(load_state(tmp_path / "state"), tree)


def test_same_tells_trees_apart():
    assert not same(1, 1.0)
    assert not same(1, True)
    assert not same((1,), [1])
    assert not same({1: 2}, {"1": 2})
    assert not same(0.0, -0.0)
    assert same(math.nan, math.nan)
    assert not same(torch.zeros(2), torch.zeros(2, 1))
    assert not same(torch.zeros(2), torch.zeros(2).double())
    assert not same(torch.zeros(2), -torch.zeros(2))


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
        lambda parameters: torch.optim.Adam(parameters, amsgrad=True),
        lambda parameters: torch.optim.AdamW(parameters, lr=torch.tensor(0.01)),
    ],
    ids=["sgd", "adam", "adamw"],
)
def test_optimizer_states_come_back_and_continue_with_the_same_bits(tmp_path, make):
    def train(model, optimizer, steps):
        for step in range(steps):
            optimizer.zero_grad()
            (model(torch.full((2, 3), float(step)) + 1).square().sum()).backward()
            optimizer.step()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = make(model.parameters())
    train(model, optimizer, 3)
    save_state(tmp_path / "all", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})

    state = load_state(tmp_path / "all")
    assert same(state["optimizer"], optimizer.state_dict())
    twin = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    twin.load_state_dict(state["model"])
    resumed = make(twin.parameters())
    resumed.load_state_dict(state["optimizer"])
    train(model, optimizer, 3)
    train(twin, resumed, 3)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_views_of_one_storage_and_odd_strides(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tree = {
        "base": base,
        "column": base[:, 1],
        "transposed": base.T,
        "expanded": torch.ones(1).expand(3, 3),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "parameter": nn.Parameter(base),
        "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    save_state(tmp_path / "state", tree)
    loaded = load_state(tmp_path / "state")
    for name, tensor in tree.items():
        assert torch.equal(loaded[name], tensor), name
    loaded["base"].zero_()
    assert torch.equal(loaded["column"], base[:, 1])


def test_one_tensor_found_twice_stays_one(tmp_path):
    tensor = torch.randn(3)
    save_state(tmp_path / "state", [tensor, {"again": tensor}])
    first, second = load_state(tmp_path / "state")
    assert first is second["again"]


def test_temporary_tensors_are_not_confused(tmp_path):
    class Fresh(dict):
        def items(self):
            return ((name, torch.full((2,), float(value))) for name, value in super().items())

    save_state(tmp_path / "state", Fresh(a=1, b=2, c=3))
    assert [t[0].item() for t in load_state(tmp_path / "state").values()] == [1.0, 2.0, 3.0]


def test_a_stem_with_dots_keeps_them(tmp_path):
    save_state(f"{tmp_path}/step-1.5", {"x": 1})
    assert {path.name for path in tmp_path.iterdir()} == {"step-1.5.json", "step-1.5.safetensors"}
    assert load_state(f"{tmp_path}/step-1.5") == {"x": 1}


def test_the_files_hold_no_pickle_and_strict_json(tmp_path):
    save_state(tmp_path / "state", {"inf": math.inf, "t": torch.ones(2)})

    def refuse(constant):
        raise AssertionError(constant)

    json.loads((tmp_path / "state.json").read_text(), parse_constant=refuse)


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"a": [1, {3: object()}]}, r"state\['a'\]\[1\]\[3\]: got object; expected a dict, list"),
        ({"a": b"bytes"}, r"state\['a'\]: got bytes"),
        ({frozenset(): 1}, "key frozenset.*got frozenset"),
        ({"a": torch.eye(2).to_sparse()}, r"state\['a'\]: got torch.sparse_coo"),
        ({"a": torch.empty(2, device="meta")}, r"state\['a'\]"),
    ],
)
def test_refuses_what_it_cannot_keep(tmp_path, tree, says):
    with pytest.raises(RequestError, match=says):
        save_state(tmp_path / "state", tree)
    assert not list(tmp_path.iterdir())


def saved(tmp_path):
    save_state(tmp_path / "state", {"weights": torch.arange(100.0), "step": 3})
    return tmp_path / "state"


def test_a_missing_or_unwritable_file_is_named(tmp_path):
    with pytest.raises(WorkError, match=r"nothing\.json"):
        load_state(tmp_path / "nothing")
    with pytest.raises(WorkError, match=r"missing/state\.safetensors: the state could not"):
        save_state(tmp_path / "missing" / "state", {"x": torch.ones(1)})


@pytest.mark.parametrize("kept", [0, 5, 30, -1])
@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_a_torn_file_is_named(tmp_path, suffix, kept):
    stem = saved(tmp_path)
    path = stem.with_suffix(f".{suffix}")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WorkError, match=rf"state\.{suffix}"):
        load_state(stem)


def test_a_lost_or_garbled_half_is_named(tmp_path):
    stem = saved(tmp_path)
    text = stem.with_suffix(".json").read_text()
    stem.with_suffix(".json").write_text(text.replace("3", "4"))
    with pytest.raises(WorkError, match=r"state\.json: does not belong to state\.safetensors"):
        load_state(stem)
    stem.with_suffix(".json").write_bytes(b"\xff\xfe")
    with pytest.raises(WorkError, match=r"state\.json: not a readable state"):
        load_state(stem)
    stem = saved(tmp_path)
    stem.with_suffix(".safetensors").unlink()
    with pytest.raises(WorkError, match=r"state\.safetensors: not a readable state"):
        load_state(stem)
