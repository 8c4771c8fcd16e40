"""Exploration of pattern sets against the exact fit of single sets; networks and files."""

import itertools
import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from latewood.errors import RequestError, WorkError
from latewood.models import mlp, resnet20
from latewood.precision import LearnedPrecision, fit_counts
from latewood.precision.simd import (
    LayerCounts,
    count_layers,
    evaluate_set,
    explore,
    layer_cost,
    read_layers,
)
from latewood.precision.simd.pareto import pareto_front
from latewood.precision.simd.set_search import UNFIT, SetSearch, pattern_sets

COUNTS = st.tuples(st.integers(0, 90), st.integers(0, 150), st.integers(0, 300))
LAYERS = [
    LayerCounts("first", (18, 36, 90), outputs=16, positions=64),
    LayerCounts("second", (36, 63, 189), outputs=32, positions=16),
    LayerCounts("last", (4, 20, 40), outputs=10),
]
CANDIDATES = [0, 4, 8, 10, 19, 25, 32, 36, 44]


def by_fit(counts, members):
    fit = fit_counts(counts, members)
    uses = dict(fit.uses)
    return fit.vectors, fit.promoted, [uses.get(index, 0) for index in members]


def searched(search, counts, place):
    fits = search.fit(counts)
    return int(fits.vectors[place]), int(fits.promoted[place]), fits.uses[place].tolist()


@settings(max_examples=60, deadline=None)
@given(
    COUNTS, st.lists(st.sets(st.integers(0, 44), min_size=4, max_size=4), min_size=1, max_size=5)
)
def test_sets_are_fitted_as_one_by_one(counts, sets):
    rows = np.array(sorted({tuple(sorted(members)) for members in sets}))
    search = SetSearch(rows)
    for place, members in enumerate(rows.tolist()):
        widest = max(4 if m >= 9 else 2 if m else 1 for m in members)
        if widest < (4 if counts[0] else 2 if counts[1] else 1):
            assert search.fit(counts).vectors[place] == UNFIT
        else:
            assert searched(search, counts, place) == by_fit(counts, members)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_small_sets(size):
    sets = pattern_sets(size, CANDIDATES)
    search = SetSearch(sets)
    for counts in ((20, 50, 74), (0, 64, 1), (0, 0, 5), (0, 0, 0)):
        fits = search.fit(counts)
        for place, members in enumerate(sets.tolist()):
            if fits.vectors[place] != UNFIT:
                assert searched(search, counts, place) == by_fit(counts, members)


def test_all_sets_of_four():
    sets = pattern_sets(4)
    assert sets.shape == (148_995, 4)
    search = SetSearch(sets)
    counts = (8, 20, 100)
    fits = search.fit(counts)
    assert fits.vectors.min() == fit_counts(counts, 45).vectors
    for place in np.random.default_rng(0).integers(0, len(sets), size=20).tolist():
        assert searched(search, counts, place) == by_fit(counts, sets[place].tolist())


def test_layers_of_very_many_registers():
    """Beyond what is tried exhaustively the fit is one that holds, and as small."""
    sets = np.array([[0, 8, 19, 44], [4, 11, 21, 35], [3, 5, 10, 36]])
    search = SetSearch(sets)
    for counts in ((700, 1900, 3000), (2_000_000_007, 3_000_000_001, 9_000_000_003)):
        for place, members in enumerate(sets.tolist()):
            vectors, promoted, uses = searched(search, counts, place)
            exact = fit_counts(counts, members)
            assert (vectors, sum(uses)) == (exact.vectors, exact.vectors)
            assert promoted >= exact.promoted


def test_totals_are_those_of_the_layers():
    done = explore(LAYERS, size=3, candidates=CANDIDATES)
    assert len(done.sets) + done.unfit == 84
    for place in range(0, len(done.sets), 7):
        choice = done.choice(place)
        fits = [fit_counts(layer.counts, choice.indices) for layer in LAYERS]
        costs = [layer_cost(layer, fit) for layer, fit in zip(LAYERS, fits, strict=True)]
        assert choice.vectors == sum(cost.instructions for cost in costs)
        assert choice.cycles == sum(cost.cycles for cost in costs)
        assert choice.compute_uj == pytest.approx(1e-6 * sum(c.compute_pj for c in costs))
        memory = sum(cost.load_pj + cost.weight_pj for cost in costs)
        assert choice.memory_uj == pytest.approx(1e-6 * memory)
        assert choice.weight_bits == sum(cost.weight_bits for cost in costs)
        promoted = sum(f.promoted * layer.outputs for f, layer in zip(fits, LAYERS, strict=True))
        assert choice.promoted == promoted
        alone = evaluate_set(LAYERS, choice.patterns)
        assert alone.vectors == choice.vectors and alone.promoted == choice.promoted


def test_error_proxy_falls_with_promotions():
    layer = LayerCounts("layer", (4, 20, 40), outputs=3)
    free = evaluate_set([layer], 45)
    assert free.error == pytest.approx(3 / 6 * (4 / 64 + 20 / 4 + 40))
    all_wide = evaluate_set([layer], [(8, 0, 0)])
    assert all_wide.promoted == 180 and all_wide.error == pytest.approx(3 / 6 * 64 / 64)


def test_pareto_front_is_what_no_other_beats():
    costs = np.random.default_rng(1).integers(0, 9, size=(200, 3))
    front = set(pareto_front(costs).tolist())
    for place, cost in enumerate(costs):
        beaten = ((costs <= cost).all(axis=1) & (costs < cost).any(axis=1)).any()
        equal_before = (costs[:place] == cost).all(axis=1).any()
        assert (place in front) == (not beaten and not equal_before)
    assert pareto_front(np.zeros((0, 3))).tolist() == []


def test_best_and_table():
    done = explore(LAYERS, candidates=CANDIDATES)
    best = done.best()
    energy = done.compute_uj + done.memory_uj
    assert best.energy_uj * best.cycles == pytest.approx((energy * done.cycles).min())
    assert done.best("vectors").vectors == done.vectors.min()
    assert done.best("promoted").promoted == done.promoted.min()
    rows = done.table()
    assert len(rows) == len(done.pareto) or len(rows) == 20
    assert [row["vectors"] for row in rows] == sorted(row["vectors"] for row in rows)
    assert done.table(most=1)[0]["vectors"] == rows[0]["vectors"]
    names = [row["machine"] for row in done.baselines()]
    assert names == ["float32", "int8", "uniform patterns", "all 45 patterns"]
    bound = done.baselines()[3]["vectors"]
    assert bound <= best.vectors <= done.baselines()[1]["vectors"]


def test_larger_sets_are_no_worse():
    vectors = [explore(LAYERS, size=n, candidates=CANDIDATES).best("vectors") for n in (1, 2, 4, 6)]
    assert all(b.vectors <= a.vectors for a, b in itertools.pairwise(vectors))
    grown = explore(LAYERS, size=6, candidates=CANDIDATES)
    assert not grown.exhaustive and len(grown.best().patterns) == 6


def test_layers_of_a_network():
    model = resnet20()
    bits = [4] * 2 + [2] * 4 + [1] * 10
    names = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    first = next(name for name in sorted(names) if model.get_submodule(name).in_channels == 16)
    counted = count_layers(model, torch.zeros(2, 3, 32, 32), {"conv1": 8, first: bits})
    (layer,) = counted.layers
    assert layer == LayerCounts(first, (18, 36, 90), outputs=16, positions=1024)
    assert counted.left_out["conv1"] == "8 bits"
    assert set(counted.left_out) >= names - {first}


def test_groups_and_tokens():
    depthwise = nn.Conv2d(4, 8, 3, groups=4, padding=1)
    counted = count_layers(depthwise, torch.zeros(1, 4, 5, 5), [4, 1, 1, 0])
    assert [(layer.counts, layer.outputs, layer.positions) for layer in counted.layers] == [
        ((9, 0, 0), 2, 25),
        ((0, 0, 9), 4, 25),
        ((0, 0, 0), 2, 25),
    ]
    (linear,) = count_layers(nn.Linear(6, 3), torch.zeros(2, 7, 6), 3).layers
    assert (linear.counts, linear.outputs, linear.positions) == ((6, 0, 0), 3, 7)


def test_layers_of_transformers():
    utilities = pytest.importorskip("transformers.pytorch_utils")
    counted = count_layers(utilities.Conv1D(48, 16), torch.zeros(2, 5, 16), 2)
    (layer,) = counted.layers
    assert (layer.counts, layer.outputs, layer.positions) == ((0, 16, 0), 48, 5)


def test_the_loop_closes():
    """The best set goes into training, and the trained channels need no promotion under it."""
    torch.manual_seed(0)
    inputs, labels = torch.randn(64, 24), torch.arange(64) % 4
    best = explore(LAYERS, candidates=CANDIDATES).best()
    model = mlp(in_features=24, hidden=(32, 32), num_classes=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patterns = list(best.patterns)
        method = LearnedPrecision(model, total_steps=40, target_bits=2.0, patterns=patterns)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(40):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), labels) + method.penalty()
            loss.backward()
            optimizer.step()
            method.step()
        method.finalize()
    counted = count_layers(model, inputs)
    assert counted.layers
    for layer in counted.layers:
        assert fit_counts(layer.counts, best.patterns).promoted == 0
    again = explore(model, example_inputs=inputs, size=2, candidates=best.patterns)
    assert again.best().vectors > 0


def test_layers_from_files(tmp_path):
    path = tmp_path / "layers.json"
    path.write_text(json.dumps({"layers": [{"counts": [4, 20, 40], "outputs": 3}]}))
    assert read_layers(path) == (LayerCounts("layer 0", (4, 20, 40), 3),)
    for text, error, named in (
        ("[", WorkError, "not a readable JSON"),
        ("3", RequestError, "a list of layers"),
        ("[]", RequestError, "at least one layer"),
        ("[3]", RequestError, "layer 0"),
        ('[{"count": [1, 2, 3]}]', RequestError, "layer 0"),
        ('[{"counts": [1, 2, -3]}]', RequestError, "layer 0: got"),
        ('[{"counts": "123"}]', RequestError, "layer 0: got"),
        ('[{"counts": [1e99, 2, 3]}]', RequestError, "layer 0: got"),
    ):
        path.write_text(text)
        with pytest.raises(error, match=named):
            read_layers(path)
    with pytest.raises(RequestError, match="an existing JSON file"):
        read_layers(tmp_path / "none.json")


def test_empty_and_one_pattern():
    nothing = [LayerCounts("empty", (0, 0, 0), outputs=0, positions=0)]
    best = explore(nothing, size=1).best()
    assert (best.vectors, best.cycles, best.promoted) == (0, 0, 0)
    one = explore(LAYERS, size=1)
    # Without 4-bit slots nothing holds the layers.
    assert len(one.sets) == 36 and one.unfit == 9
    assert explore(LAYERS, candidates=[44], size=1).best().indices == (44,)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: explore([]), "at least one layer"),
        (lambda: explore([3]), "layer 0: got 3"),
        (lambda: explore(None), "network: got None"),
        (
            lambda: explore([LayerCounts("huge", (10**6, 0, 0), 10**9, 10**9)], size=1),
            "network: got '1,000,000,001,000,000,000,000,000 multiply",
        ),
        (lambda: explore(LAYERS, size=9), "size: got 9"),
        (lambda: explore(LAYERS, size=0), "size: got 0"),
        (lambda: explore(LAYERS, size=2.0), "size: got 2.0"),
        (lambda: explore(LAYERS, candidates=[0, 8]), "size: got 4; expected .* 1 to 2"),
        (lambda: explore(LAYERS, candidates=[0, 8], size=2), "slots of 4 bits for first"),
        (lambda: explore(LAYERS, size=1, curvature=-1.0), "curvature: got -1.0"),
        (lambda: explore(LAYERS, size=1, curvature=[1.0]), "curvature: got"),
        (lambda: explore(LAYERS, size=5, beam=0), "beam: got 0"),
        (lambda: explore(LAYERS, size=1).best("luck"), "by: got 'luck'"),
        (lambda: explore(nn.Linear(2, 2)), "example_inputs: got None"),
        (lambda: explore(nn.Linear(2, 2), example_inputs=torch.zeros(1, 2)), "no number format"),
        (lambda: count_layers(nn.Linear(2, 2), torch.zeros(1, 2), [1, 9]), "bits of"),
        (lambda: count_layers(nn.Linear(2, 2), torch.zeros(1, 2), {"x": 1}), "bits: got 'x'"),
    ],
)
def test_bad_input(call, named):
    with pytest.raises(RequestError, match=named):
        call()
