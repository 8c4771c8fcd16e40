"""Many devices: the same maps in any order and process, statistics, stopping and going on."""

import copy
import json
import math
from collections import UserDict
from functools import partial

import joblib
import pytest
import torch
from torch import nn

from latewood.errors import RequestError, WorkError
from latewood.faults import Crossbar, MonteCarlo, StuckAt, injected, monte_carlo
from latewood.faults.evaluation_data import accuracy

FAULTS = StuckAt(0.15, 0.02)


def case():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4)
        )
        x = torch.randn(300, 10)
    return model, x, model.eval()(x).argmax(1)


def test_scores_are_those_of_each_map():
    model, x, labels = case()
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    result = monte_carlo(model, (x, labels), Crossbar(), FAULTS, maps=5, seed=2, batch_size=70)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert result.plain == 1.0 and result.rounded > 0.9 and result.maps == 5
    model.eval()
    for number, found in enumerate(result.scores):
        with injected(model, Crossbar(), FAULTS, map=number, seed=2), torch.no_grad():
            assert found == (model(x).argmax(1) == labels).double().mean().item()
    batches = list(zip(x.split(100), labels.split(100), strict=True))
    again = monte_carlo(model, iter(batches), Crossbar(), FAULTS, maps=3, seed=2)
    assert again.scores == result.scores[:3] and again.changed == result.changed[:3]


def test_more_processes_change_nothing():
    model, x, labels = case()
    alone = monte_carlo(model, (x, labels), Crossbar(), FAULTS, maps=6)
    inside = monte_carlo(nn.Sequential(model), (x, labels), Crossbar(), FAULTS, maps=2)
    assert inside.scores != alone.scores[:2]  # other names of layers are other streams
    both = monte_carlo(model, (x, labels), Crossbar(), FAULTS, maps=6, jobs=2)
    assert both == alone


@pytest.mark.parametrize("backend", ["threading", "sequential"])
def test_backends_within_the_process_leave_the_model_alone(backend):
    model, x, labels = case()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    alone = monte_carlo(model, (x, labels), Crossbar(), FAULTS, maps=12)
    threads = torch.get_num_threads()
    with joblib.parallel_config(backend=backend):
        both = monte_carlo(model, (x, labels), Crossbar(), FAULTS, maps=12, jobs=3)
    assert both == alone and torch.get_num_threads() == threads
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_it_stops_when_the_interval_is_narrow():
    model, x, labels = case()
    full = monte_carlo(model, (x, labels), Crossbar(), FAULTS, maps=60)
    wanted = MonteCarlo(full.scores[:40], full.changed[:40], 0, 0, 0).half_width
    stopped = monte_carlo(model, (x, labels), Crossbar(), FAULTS, maps=60, half_width=wanted)
    assert 30 <= stopped.maps <= 40 and stopped.scores == full.scores[: stopped.maps]
    assert stopped.half_width <= wanted


def test_a_record_goes_on(tmp_path):
    model, x, labels = case()
    path = tmp_path / "maps.jsonl"
    calls = []
    stop_at = [6]

    def score(model, batches):
        calls.append(None)
        if len(calls) in stop_at:
            raise KeyboardInterrupt
        return accuracy(model, batches)

    arguments = (model, (x, labels), Crossbar(), FAULTS)
    with pytest.raises(KeyboardInterrupt):
        monte_carlo(*arguments, maps=8, score=score, record=path)
    assert not any(hasattr(module, "parametrizations") for module in model.modules())
    with path.open("a") as file:
        file.write('{"map": 4, "sco')  # as a kill leaves it
    stop_at.clear()
    with pytest.raises(RequestError, match="faults differ"):
        monte_carlo(model, (x, labels), Crossbar(), StuckAt(0.2), score=score, record=path)
    calls.clear()
    whole = monte_carlo(*arguments, maps=8)
    again = monte_carlo(*arguments, maps=8, score=score, record=path)
    assert len(calls) == 2 + 5  # the plain and the rounded network, and the maps that were missing
    assert again == whole
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["map"] for line in lines[1:]] == list(range(8))
    with torch.no_grad():
        model[0].weight.mul_(2.0)
    calls.clear()
    with pytest.raises(RequestError, match="model differ"):
        monte_carlo(*arguments, score=score, record=path)


def test_damaged_records_and_wrong_places_are_refused(tmp_path):
    model, x, labels = case()
    path = tmp_path / "maps.jsonl"
    for text in ("[]\n", "no\n", '{"settings": {}}\n{"map": 1}\n', '{"settings": 3}\n'):
        path.write_text(text)
        with pytest.raises((WorkError, RequestError), match="record"):
            monte_carlo(model, (x, labels), Crossbar(), FAULTS, maps=2, record=path)
    with pytest.raises(RequestError, match="record"):
        monte_carlo(model, (x, labels), Crossbar(), FAULTS, record=tmp_path / "no" / "maps")


@pytest.mark.parametrize("content", [b"my notes, without an end of line", b"\x80\xff" * 9 + b"\n"])
def test_other_files_are_left_as_they_are(tmp_path, content):
    model, x, labels = case()
    path = tmp_path / "notes"
    path.write_bytes(content)
    with pytest.raises(WorkError, match="no record"):
        monte_carlo(model, (x, labels), Crossbar(), FAULTS, maps=2, record=path)
    assert path.read_bytes() == content


def test_a_record_cut_in_its_first_line_begins_anew(tmp_path):
    model, x, labels = case()
    path = tmp_path / "maps.jsonl"
    whole = monte_carlo(model, (x, labels), Crossbar(), FAULTS, maps=2, record=path)
    first = path.read_bytes()
    for length in (0, 5, 40):
        path.write_bytes(first[:length])
        again = monte_carlo(model, (x, labels), Crossbar(), FAULTS, maps=2, record=path)
        assert again == whole and path.read_bytes() == first
    for wrong in (b'"map": 1.5', b'"map": true', b'"changed": NaN, "map": 1'):
        path.write_bytes(first.replace(b'"map": 1', wrong).replace(b', "changed": 0', b', "c": 0'))
        with pytest.raises(WorkError, match="no record"):
            monte_carlo(model, (x, labels), Crossbar(), FAULTS, maps=2, record=path)


def scaled(model, batches, factor):
    return factor * accuracy(model, batches)


def test_records_of_what_looks_alike_do_not_mix(tmp_path):
    model, x, labels = case()
    other = copy.deepcopy(model)
    other[2] = nn.Tanh()
    parts = [(x[:150], labels[:150]), (x[150:], labels[150:])]

    def number(model, batches):
        return 1.0

    common = {"data": parts, "score": None, "calibration": None}
    pairs = [
        (model, common, model, common | {"data": parts[:1], "calibration": parts[1:]}),
        (model, common, other, common),
        (
            model,
            common | {"data": [UserDict(a=x)], "score": number},
            model,
            common | {"data": [UserDict(a=x + 1)], "score": number},
        ),
        (
            model,
            common | {"score": partial(scaled, factor=1.0)},
            model,
            common | {"score": partial(scaled, factor=2.0)},
        ),
    ]
    for place, (first, begun, second, going_on) in enumerate(pairs):
        record = tmp_path / str(place)
        rest = {"crossbar": Crossbar(), "faults": FAULTS, "maps": 2, "record": record}
        monte_carlo(first, **begun, **rest)
        monte_carlo(first, **begun, **rest)
        with pytest.raises(RequestError, match="another evaluation"):
            monte_carlo(second, **going_on, **rest)


def test_batch_norms_calibrated_on_each_device():
    model, x, labels = case()
    mean = model[1].running_mean.clone()
    plain = monte_carlo(model, (x, labels), Crossbar(), StuckAt(0.3), maps=10)
    renewed = monte_carlo(
        model, (x, labels), Crossbar(), StuckAt(0.3), maps=10, calibration=[(x, labels)]
    )
    assert renewed.scores != plain.scores and renewed.plain == plain.plain
    assert torch.equal(model[1].running_mean, mean)


def test_statistics():
    result = MonteCarlo((0.5, 0.7, 0.6, 0.8), (0.1, 0.2, 0.3, 0.2), 0.9, 0.95, 0)
    assert result.mean == pytest.approx(0.65) and result.effective_rate == pytest.approx(0.2)
    deviation = math.sqrt(0.05 / 3)
    assert result.std == pytest.approx(deviation)
    assert result.half_width == pytest.approx(3.182446 * deviation / 2, rel=1e-6)
    assert result.quantile(0.5) == pytest.approx(0.65) and result.quantile(0) == 0.5
    assert result.yield_at(0.7) == 0.5 and result.yield_at(0.0) == 1.0
    # Clopper-Pearson for 2 of 4, and for all of 4: 0.025^(1/4).
    assert result.yield_interval(0.7) == pytest.approx((0.067586, 0.932414), abs=1e-6)
    assert result.yield_interval(0.0) == pytest.approx((0.025**0.25, 1.0))
    assert set(result.summary()) >= {"mean", "low", "high", "maps", "effective_rate"}
    assert result.worst == 0.5 and result.nearly_worst == pytest.approx(0.515)
    losses = MonteCarlo((0.5, 0.7, 0.6, 0.8), (0.1,) * 4, 0.9, 0.9, 0, higher_is_better=False)
    assert losses.yield_at(0.6) == 0.5 and losses.worst == 0.8
    assert losses.nearly_worst == pytest.approx(0.785)
    with pytest.raises(RequestError, match="q: got 2"):
        result.quantile(2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"maps": 0}, "maps: got 0"),
        ({"jobs": 0}, "jobs: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"half_width": 0}, "half_width: got 0"),
        ({"confidence": 1.0}, "confidence: got 1.0"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"include": ["no"]}, "include: got 'no'"),
        ({"data": []}, "no samples"),
        ({"data": (torch.zeros(0, 10), torch.zeros(0, dtype=torch.long))}, "no samples"),
        ({"data": (torch.zeros(3, 10), torch.zeros(2, dtype=torch.long))}, "as many samples"),
        ({"data": torch.zeros(3, 10)}, "data: got Tensor"),
        ({"data": [torch.zeros(3, 10)]}, r"\(inputs, labels\); or pass score="),
        ({"data": (torch.zeros(3, 10), torch.zeros(3, 4))}, "labels"),
        ({"faults": 0.1}, "faults: got float"),
        ({"data": [(torch.zeros(3, 10).numpy(), torch.zeros(3))]}, "a batch of ndarray and Tensor"),
        ({"calibration": [torch.zeros(3, 10)]}, "calibration: got 'a batch that is a Tensor'"),
        ({"calibration": (torch.zeros(3, 10), torch.zeros(3))}, "calibration: got 'a batch"),
        ({"score": "accuracy"}, "score: got 'accuracy'"),
        ({"half_width": "narrow"}, "half_width: got 'narrow'"),
        ({"half_width": True}, "half_width: got True"),
        ({"confidence": "high"}, "confidence: got 'high'"),
        ({"model": nn.Linear(10, 1)}, r"model: got 'outputs of \(300, 1\)'"),
        ({"model": "net"}, "model: got str"),
    ],
)
def test_bad_requests_leave_the_model_alone(arguments, says):
    model, x, labels = case()
    call = {"data": (x, labels), "crossbar": Crossbar(), "faults": FAULTS, "maps": 2} | arguments
    with pytest.raises(RequestError, match=says):
        monte_carlo(**({"model": model} | call))
    assert not any(hasattr(module, "parametrizations") for module in model.modules())


def test_a_score_that_is_no_number_stops():
    model, x, labels = case()
    with pytest.raises(WorkError, match="score: got nan"):
        monte_carlo(
            model, (x, labels), Crossbar(), FAULTS, maps=2, score=lambda model, data: math.nan
        )
    with pytest.raises(WorkError, match="score: got a NoneType"):
        monte_carlo(model, (x, labels), Crossbar(), FAULTS, maps=2, score=lambda *_: None)


def test_a_model_under_masks_has_one_process():
    model, x, labels = case()
    with injected(model, Crossbar(), FAULTS), pytest.raises(RequestError, match="jobs: got 2"):
        monte_carlo(model, (x, labels), Crossbar(), FAULTS, jobs=2)
