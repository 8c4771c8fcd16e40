"""The one order in which data is read: whole, sharded, resumed."""

from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from latewood.errors import RequestError
from latewood.tasks import (
    Dataset,
    Normalise,
    TensorDataset,
    batch_count,
    batch_stream,
    batches,
    epoch_order,
    stratified_prefix,
)


def indexed(n):
    return TensorDataset(torch.arange(n))


@st.composite
def readings(draw):
    n = draw(st.integers(1, 40))
    return {
        "n": n,
        "batch_size": draw(st.integers(1, 50)),
        "world_size": draw(st.integers(1, min(n, 7))),
        "seed": draw(st.integers(0, 2**40)),
        "epoch": draw(st.integers(0, 1000)),
        "shuffle": draw(st.booleans()),
    }


def read(n, world_size, **arguments):
    """Per rank, the list of (samples, weight)."""
    return [
        [
            (batch[0].tolist(), weight)
            for batch, weight in batches(indexed(n), rank=rank, world_size=world_size, **arguments)
        ]
        for rank in range(world_size)
    ]


@given(readings())
def test_every_sample_once_over_all_ranks(reading):
    ranks = read(**reading)
    seen = [k for rank in ranks for samples, weight in rank if weight > 0 for k in samples]
    assert sorted(seen) == list(range(reading["n"]))


@given(readings())
def test_all_ranks_take_the_same_number_of_steps_and_none_is_empty(reading):
    ranks = read(**reading)
    expected = batch_count(reading["n"], reading["batch_size"])
    assert [len(rank) for rank in ranks] == [expected] * reading["world_size"]
    assert all(samples for rank in ranks for samples, _ in rank)


@given(readings())
def test_ranks_together_read_the_global_batch_in_its_order(reading):
    one = read(**{**reading, "world_size": 1})[0]
    many = read(**reading)
    for number, (samples, weight) in enumerate(one):
        parts = [rank[number][0] for rank in many if rank[number][1] > 0]
        assert [k for part in parts for k in part] == samples
        assert weight == 1.0


@given(readings())
def test_weighted_local_means_give_the_global_mean(reading):
    world = reading["world_size"]
    one = read(**{**reading, "world_size": 1})[0]
    many = read(**reading)
    for number, (samples, _) in enumerate(one):
        total = sum(
            Fraction(weight).limit_denominator(10**6) * Fraction(sum(local), len(local))
            for local, weight in (rank[number] for rank in many)
        )
        assert total / world == Fraction(sum(samples), len(samples))


@given(readings(), st.data())
def test_any_start_is_the_tail(reading, data):
    whole = read(**reading)
    start = data.draw(st.integers(0, len(whole[0])))
    assert read(**reading, start=start) == [rank[start:] for rank in whole]


@given(readings())
def test_drop_last_leaves_out_what_is_not_full(reading):
    if reading["batch_size"] > reading["n"]:
        with pytest.raises(RequestError, match="batch_size"):
            read(**reading, drop_last=True)
        return
    kept = reading["n"] // reading["batch_size"]
    assert batch_count(reading["n"], reading["batch_size"], True) == kept
    assert read(**reading, drop_last=True) == [rank[:kept] for rank in read(**reading)]


@given(st.integers(0, 2**40), st.integers(0, 100))
def test_order_depends_on_seed_and_epoch_only(seed, epoch):
    order = epoch_order(50, seed=seed, epoch=epoch)
    torch.manual_seed(seed + 1)
    assert torch.equal(order, epoch_order(50, seed=seed, epoch=epoch))
    assert sorted(order.tolist()) == list(range(50))
    assert not torch.equal(order, epoch_order(50, seed=seed, epoch=epoch + 1))
    assert not torch.equal(order, epoch_order(50, seed=seed + 1, epoch=epoch))


def test_seed_and_epoch_are_not_exchangeable():
    orders = [epoch_order(50, seed=s, epoch=e).tolist() for s in range(3) for e in range(3)]
    assert len({tuple(order) for order in orders}) == 9


def test_batch_size_does_not_change_the_order():
    small = [k for s, _ in read(20, 1, batch_size=3, seed=1, epoch=2)[0] for k in s]
    large = [k for s, _ in read(20, 1, batch_size=8, seed=1, epoch=2)[0] for k in s]
    assert small == large != sorted(small)


def test_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    list(batches(indexed(10), batch_size=4, seed=0, epoch=0))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("batch_size", {"batch_size": 0}),
        ("seed", {"seed": -1}),
        ("epoch", {"epoch": -1}),
        ("world_size", {"world_size": 6}),
        ("world_size", {"world_size": 0}),
        ("rank", {"rank": 1}),
        ("rank", {"rank": -1}),
        ("start", {"start": 4}),
        ("start", {"start": -1}),
        ("batch_size", {"batch_size": 6, "drop_last": True}),
    ],
)
def test_bad_requests_are_refused_before_the_first_batch(named, arguments):
    request = {"batch_size": 2, "seed": 0, "epoch": 0} | arguments
    with pytest.raises(RequestError, match=f"^{named}: got"):
        batches(indexed(5), **request)


def test_an_empty_data_set_is_refused():
    with pytest.raises(RequestError, match="no samples"):
        batches(indexed(0), batch_size=1, seed=0, epoch=0)


@given(
    n=st.integers(1, 12),
    batch_size=st.integers(1, 5),
    steps=st.integers(0, 30),
    start=st.integers(0, 30),
    drop_last=st.booleans(),
)
def test_a_stream_is_epoch_after_epoch_from_any_step_on(n, batch_size, steps, start, drop_last):
    assume(not drop_last or n >= batch_size)
    whole = []
    for epoch in range(60):
        order = batches(indexed(n), batch_size=batch_size, seed=3, epoch=epoch, drop_last=drop_last)
        whole += [batch[0].tolist() for batch, _ in order]
    stream = batch_stream(
        indexed(n), batch_size=batch_size, seed=3, steps=steps, start=start, drop_last=drop_last
    )
    assert [batch[0].tolist() for batch in stream] == whole[start : start + steps]


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("steps", {"steps": -1}),
        ("start", {"start": -1}),
        ("batch_size", {"batch_size": 0}),
        ("batch_size", {"batch_size": 11, "drop_last": True}),
        ("seed", {"seed": -1}),
    ],
)
def test_a_stream_refuses_what_it_cannot_read_at_once(named, arguments):
    with pytest.raises(RequestError, match=f"^{named}: got"):
        batch_stream(indexed(10), **{"batch_size": 5, "seed": 0, "steps": 3, **arguments})


def test_tensor_dataset_gathers_every_field_and_transforms():
    values, labels = torch.arange(12.0).view(6, 2), torch.arange(6)
    data = TensorDataset(values, labels, transform=lambda batch: (batch[0] * 2, batch[1]))
    assert isinstance(data, Dataset)
    inputs, targets = data.gather(torch.tensor([4, 1, 1]))
    assert torch.equal(inputs, values[[4, 1, 1]] * 2)
    assert targets.tolist() == [4, 1, 1]
    part = data.subset(torch.tensor([5, 0]))
    assert len(part) == 2
    assert torch.equal(part.gather(torch.tensor([0]))[0], values[[5]] * 2)


def test_tensor_dataset_refuses_fields_of_different_lengths():
    with pytest.raises(RequestError, match=r"tensors: got \[3, 4\]"):
        TensorDataset(torch.zeros(3), torch.zeros(4))
    with pytest.raises(RequestError, match="tensors"):
        TensorDataset()


def test_normalise_channel_by_channel():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    mean, std = torch.tensor([0.5, 0.1, 0.0]), torch.tensor([0.25, 0.2, 0.5])
    normalise = Normalise(mean, std)
    values, labels = normalise((pixels, torch.zeros(2)))
    assert values.dtype == torch.float32
    torch.testing.assert_close(values[1, :, 2, 3], torch.tensor([-2.0, 0.5, 2.0]))
    torch.testing.assert_close(normalise.black, torch.tensor([-2.0, -0.5, 0.0]))
    assert labels.tolist() == [0, 0]


def test_normalise_leaves_float_sources_as_they_were():
    source = torch.full((1, 1, 2, 2), 255.0)
    Normalise(torch.tensor([0.5]), torch.tensor([0.5]))((source,))
    assert source.unique().tolist() == [255.0]


@pytest.mark.parametrize(("mean", "std"), [([0.5], [0.0]), ([0.5], [-1.0]), ([0.5], [0.5, 0.5])])
def test_normalise_refuses_what_cannot_be_a_deviation(mean, std):
    with pytest.raises(RequestError, match="std"):
        Normalise(torch.tensor(mean), torch.tensor(std))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.data())
def test_stratified_prefix_keeps_proportions_and_nests(labels, data):
    labels = torch.tensor(labels)
    limit = data.draw(st.integers(1, len(labels)))
    chosen = stratified_prefix(labels, limit)
    assert len(chosen) == limit
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    if limit > 1:
        assert set(stratified_prefix(labels, limit - 1).tolist()) < set(chosen.tolist())
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        mine = (labels[chosen] == label).sum()
        assert torch.equal(chosen[labels[chosen] == label], members[:mine])
        assert abs(mine - limit * len(members) / len(labels)) <= 2


@pytest.mark.parametrize("limit", [0, 6])
def test_stratified_prefix_refuses_a_limit_out_of_range(limit):
    with pytest.raises(RequestError, match="limit"):
        stratified_prefix(torch.zeros(5), limit)
