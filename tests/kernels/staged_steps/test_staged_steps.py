"""Compiled steps with rates by stage, against the plain form and for what does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latewood.kernels.dispatch import native
from latewood.kernels.staged_steps import (
    StagedStep,
    StageNumbers,
    take_steps,
    take_steps_reference,
)

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels are not built")

RANKS = 3


def runs(size, draw):
    """Runs over an axis; some are empty."""
    inner = sorted(draw(st.lists(st.integers(0, size), max_size=4)))
    ranks = [draw(st.integers(0, RANKS - 1)) for _ in range(len(inner) + 1)]
    return [*inner, size], ranks


def numbers(generator, nesterov):
    size, l2, eps = 0.1 * torch.rand(3, generator=generator, dtype=torch.float64)
    keep, correction = 0.9, 0.5
    return StageNumbers(
        float(size), keep, float(l2), 0.9, 0.1, 0.99, 0.01, correction, float(eps), nesterov
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_it_is_the_plain_form(data):
    draw = data.draw
    shape = draw(st.sampled_from([(7,), (1,), (6, 5), (5, 40), (4, 3, 3, 3), (3, 2, 17), (0, 4)]))
    moments = draw(st.sampled_from([0, 1, 2]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    tensors = [torch.rand(shape, generator=generator) + 0.1 for _ in range(2 + moments)]
    nesterov = float(moments == 1 and draw(st.booleans()))
    table = [numbers(generator, nesterov) for _ in range(RANKS)]
    if moments < 2:
        table = [one._replace(keep=1.0) for one in table]
    columns = shape[1] if len(shape) > 1 else 1
    places = runs(shape[0], draw), runs(columns, draw)
    count = torch.tensor(3.0) if moments == 2 else None

    def step(copied):
        first, second = (*copied[2:], None, None)[:2]
        own = None if count is None else count.clone()
        return StagedStep(copied[0], copied[1], first, second, *places, table, own)

    mine, theirs = step([t.clone() for t in tensors]), step([t.clone() for t in tensors])
    take_steps([mine])
    take_steps_reference([theirs])
    for name in ("parameter", "gradient", "first", "second", "count"):
        torch.testing.assert_close(getattr(mine, name), getattr(theirs, name), rtol=2e-6, atol=1e-6)


def test_many_tensors_do_not_depend_on_the_threads():
    generator = torch.Generator().manual_seed(0)
    results = []
    for threads in (1, 2):
        generator.manual_seed(0)
        steps = [
            StagedStep(
                torch.rand(600, 700, generator=generator),
                torch.rand(600, 700, generator=generator),
                torch.rand(600, 700, generator=generator),
                None,
                ([100, 600], [0, 1]),
                ([350, 700], [1, 0]),
                [StageNumbers(0.1, beta1=0.9, rest1=1.0), StageNumbers(0.2, beta1=0.9, rest1=1.0)],
            )
            for _ in range(2)
        ]
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            take_steps(steps)
        finally:
            torch.set_num_threads(before)
        results.append([step.parameter for step in steps])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("rows", "numbers", "message"),
    [
        (([4], [0]), 2, "do not cover"),
        (([6], [2]), 2, "no numbers"),
        (([4, 3, 6], [0, 0, 0]), 2, "overlap"),
        (([], []), 2, "differ in length"),
        (([6], [0]), 0, "no numbers"),
    ],
)
def test_runs_that_do_not_fit_are_refused_and_nothing_is_written(rows, numbers, message):
    weight, gradient = torch.ones(6, 5), torch.ones(6, 5)
    step = StagedStep(weight, gradient, None, None, rows, ([5], [0]), [StageNumbers(0.1)] * numbers)
    with pytest.raises(ValueError, match=message):
        take_steps([step])
    assert torch.equal(weight, gradient)


def test_empty_weights_have_nothing_to_step():
    weight = torch.ones(0, 5)
    take_steps(
        [StagedStep(weight, weight, None, None, ([0], [0]), ([5], [0]), [StageNumbers(0.1)])]
    )


def test_one_that_does_not_fit_leaves_the_others_as_they_were():
    good = StagedStep(
        torch.ones(6, 5), torch.ones(6, 5), None, None, ([6], [0]), ([5], [0]), [StageNumbers(0.1)]
    )
    bad = replace(good, parameter=torch.ones(6, 5), gradient=torch.ones(6, 5).double())
    with pytest.raises(ValueError, match="another type"):
        take_steps([good, bad])
    assert torch.equal(good.parameter, torch.ones(6, 5))
