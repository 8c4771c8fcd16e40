"""Every form of an optimizer step against plain torch, and the promises about sums of rates."""

import os
import subprocess
import sys

import pytest
import torch

from latewood.kernels import optimizers
from latewood.kernels.dispatch import native
from latewood.kernels.optimizers import native_steps, triton_steps
from latewood.kernels.optimizers.foreach_steps import step_foreach
from latewood.kernels.optimizers.reference_steps import (
    Scalars,
    StepTensors,
    rate_sum_reference,
    step_reference,
    working_dtype,
)

SHAPES = [(3, 700), (5,), (0,), (2, 3, 4), (2, 0)]
NUMBERS = Scalars(
    size=0.1,
    beta1=0.9,
    beta2=0.99,
    eps=0.01,
    keep=0.99,
    l2=0.1,
    factor=-0.5,
    previous=2.0,
    following=1.5,
    lower=0.05,
    upper=0.2,
)
RULES = [
    ("momentum", "none", 1),
    ("momentum", "none", 0),
    ("delayed", "none", 2),
    ("delayed", "old", 2),
    ("delayed", "new", 2),
    ("bounded", "none", 2),
    ("bounded", "none", 3),
]


# Triton decides when it is imported whether it interprets; test_triton_steps.py runs this file so.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(params=["native", "foreach", *(["triton"] if INTERPRETED else [])])
def run(request):
    """One of the fast forms, called as `step_reference` for a list of entries."""
    if request.param == "native" and native() is None:
        pytest.skip("the native kernels are not built")
    return {
        "native": native_steps.step_native,
        "foreach": step_foreach,
        "triton": triton_steps.step_triton,
    }[request.param]


def make_entries(dtype=torch.float32, moments=2, shapes=SHAPES, numbers=NUMBERS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    wide = working_dtype(torch.empty(0, dtype=dtype))
    entries = []
    for shape in shapes:
        parameter, gradient, first, second, peak = torch.randn(5, *shape, generator=generator)
        state = [first.to(wide), second.square().to(wide), peak.square().to(wide)]
        state = [value if k < moments else None for k, value in enumerate(state)]
        entries.append(StepTensors(parameter.to(dtype), gradient.to(dtype), *state, numbers))
    return entries


def tensors(entry):
    every = (entry.parameter, entry.exp_avg, entry.exp_avg_sq, entry.max_exp_avg_sq)
    return [tensor for tensor in every if tensor is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rule", "rates", "moments"), RULES)
def test_all_forms_agree_with_plain_torch(run, rule, rates, moments, dtype):
    expected, entries = make_entries(dtype, moments), make_entries(dtype, moments)
    gradients = [entry.gradient.clone() for entry in entries]
    expected_sums = [step_reference(rule, entry, rates) for entry in expected]
    sums = run(rule, entries, rates)
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    for entry, other, gradient in zip(entries, expected, gradients, strict=True):
        assert torch.equal(entry.gradient, gradient)
        for value, reference in zip(tensors(entry), tensors(other), strict=True):
            # A half-precision parameter may round the other way.
            slack = torch.finfo(value.dtype).eps if value.dtype.itemsize == 2 else tolerance
            torch.testing.assert_close(value, reference, rtol=slack, atol=tolerance)
    assert [float(s) for s in sums] == pytest.approx([float(s) for s in expected_sums], rel=1e-6)


@pytest.mark.parametrize("rates", ["old", "new"])
@pytest.mark.parametrize("eps", [0.1, 1e-8, 1e-40])
def test_moments_that_are_zero_tiny_infinite_or_no_number(run, rates, eps):
    """Where a reciprocal that is not made by a division would go wrong first."""
    special = [0.0, 1e-45, 1e-38, 1e-30, 1e30, 3.4e38, float("inf"), float("nan")]
    # With such an eps a rate of less than that overflows in any form.
    for value in special[4:] if eps == 1e-40 else special:
        numbers = NUMBERS._replace(eps=eps, size=1e-3)
        expected, entries = [make_entries(shapes=[(83,)], numbers=numbers) for _ in range(2)]
        for entry in (*expected, *entries):
            entry.exp_avg_sq[[3, 40, 80]] = value
        total = step_reference("delayed", expected[0], rates)
        (sum_of_rates,) = run("delayed", entries, rates)
        for a, b in zip(tensors(entries[0]), tensors(expected[0]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, equal_nan=True)
        assert float(sum_of_rates) == pytest.approx(float(total), rel=1e-6, nan_ok=True)


@pytest.mark.skipif(native() is None, reason="the native kernels are not built")
@pytest.mark.skipif("LATEWOOD_INSTRUCTION_SET" in os.environ, reason="already limited")
@pytest.mark.parametrize("instruction_set", ["baseline", "avx2"])
def test_lower_instruction_sets_agree_with_plain_torch_too(instruction_set):
    chosen = "native and (agree or bit or moments)"
    command = [sys.executable, "-m", "pytest", __file__, "-k", chosen, "-p", "no:cacheprovider"]
    environment = {**os.environ, "LATEWOOD_INSTRUCTION_SET": instruction_set}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_delayed_step_of_size_zero_leaves_the_parameter_alone(run):
    entries = make_entries(numbers=NUMBERS._replace(size=0.0))
    before = [entry.parameter.clone() for entry in entries]
    run("delayed", entries, "new")
    for entry, parameter in zip(entries, before, strict=True):
        assert torch.equal(entry.parameter, parameter)
    assert not torch.equal(entries[1].exp_avg, make_entries()[1].exp_avg)


def test_tensors_may_have_numbers_of_their_own(run):
    entries, expected = make_entries(), make_entries()
    for k in range(len(entries)):
        entries[k].scalars = expected[k].scalars = NUMBERS._replace(size=0.1 * (k % 3))
    for entry in expected:
        step_reference("delayed", entry)
    run("delayed", entries)
    for entry, other in zip(entries, expected, strict=True):
        torch.testing.assert_close(entry.parameter, other.parameter, rtol=1e-6, atol=1e-6)


def test_autograd_notices_the_native_step():
    (entry,) = make_entries(shapes=[(4,)])
    version = entry.parameter._version
    optimizers.run_step("momentum", [entry])
    assert entry.parameter._version > version


@pytest.mark.skipif(native() is None, reason="the native kernels are not built")
@pytest.mark.parametrize(("rule", "rates", "moments"), RULES)
def test_bits_do_not_depend_on_threads_or_neighbours(rule, rates, moments):
    shapes = [(700, 701), (3,), (300, 301)]
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            entries = make_entries(moments=moments, shapes=shapes)
            results.append((native_steps.step_native(rule, entries, rates), entries))
        alone = [native_steps.step_native(rule, [s], rates)[0] for s in make_entries(
            moments=moments, shapes=shapes)]  # fmt: skip
    finally:
        torch.set_num_threads(before)
    assert results[0][0] == results[1][0] == results[2][0] == alone
    for entry, other in zip(results[0][1], results[1][1], strict=True):
        assert all(map(torch.equal, tensors(entry), tensors(other)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("form", ["auto", "single", "foreach"])
def test_counting_rates_afterwards_gives_the_sum_of_the_step_bit_for_bit(dtype, form):
    entries = make_entries(dtype, shapes=[(3, 701), (64,), (1,), (100, 700)])
    sums = optimizers.run_step("delayed", entries, "new", form)
    moments = [entry.exp_avg_sq for entry in entries]
    again = optimizers.rate_sums(moments, [NUMBERS.following] * 4, [NUMBERS.eps] * 4, form)
    assert [float(a) for a in again] == [float(s) for s in sums]


@pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter from the start")
def test_triton_counts_rates_like_its_step(monkeypatch):
    monkeypatch.setattr(triton_steps, "exists", lambda device, dtype: True)
    entries = make_entries(shapes=[(3, 701), (64,), (0,)])
    sums = triton_steps.step_triton("delayed", entries, "new")
    moments = [entry.exp_avg_sq for entry in entries]
    again = triton_steps.rate_sums_triton(moments, [NUMBERS.following] * 3, [NUMBERS.eps] * 3)
    assert [float(a) for a in again] == [float(s) for s in sums]


def test_the_sum_of_rates_is_accurate_where_a_running_sum_is_not():
    moment = torch.full((4_000_000,), 0.25)
    exact = 4_000_000 / 0.6**2
    (total,) = optimizers.rate_sums([moment], [1.0], [0.1])
    assert float(total) == pytest.approx(exact, rel=1e-6)
    assert float(rate_sum_reference(moment, 1.0, 0.1)) == pytest.approx(exact, rel=1e-6)


def test_layouts_other_than_contiguous(run):
    plain, strided = make_entries(shapes=[(2, 3, 4, 5)]), make_entries(shapes=[(2, 3, 4, 5)])
    for name in ("parameter", "exp_avg", "exp_avg_sq"):
        value = getattr(strided[0], name).to(memory_format=torch.channels_last)
        setattr(strided[0], name, value)
    run("delayed", plain)
    run("delayed", strided)
    torch.testing.assert_close(strided[0].parameter, plain[0].parameter, rtol=1e-6, atol=1e-7)


def test_an_entry_whose_memory_has_holes_goes_through_plain_torch():
    (entry,) = make_entries(shapes=[(4, 6)])
    (expected,) = make_entries(shapes=[(4, 6)])
    whole = torch.zeros(4, 12)
    whole[:, ::2] = entry.parameter
    entry.parameter = whole[:, ::2]
    assert native_steps.accepted([entry]) == []
    optimizers.run_step("delayed", [entry])
    step_reference("delayed", expected)
    torch.testing.assert_close(entry.parameter, expected.parameter)
    assert whole[:, 1::2].eq(0).all()


@pytest.mark.skipif(native() is None, reason="the native kernels are not built")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_forked_process_steps_with_threads_of_its_own():
    # torch's threads do not exist there, and waiting for them would last forever.
    code = """
import os, signal, torch
from latewood.kernels.optimizers import native_steps
from latewood.kernels.optimizers.reference_steps import Scalars, StepTensors
torch.set_num_threads(2)
copies = [torch.linspace(0.1, 1, 4_000_000).view(4, -1).clone() for _ in range(3)]
def step():
    numbers = Scalars(size=0.1, beta1=0.9, beta2=0.99, eps=0.1)
    entry = StepTensors(*copies.pop().unbind(), None, numbers)
    total = native_steps.step_native("delayed", [entry], "new")
    return total, hash(entry.parameter.numpy().tobytes())
before = step()
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if step() == before else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), step() == before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0", "True"], done.stdout + done.stderr
