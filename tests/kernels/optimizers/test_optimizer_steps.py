"""Every form of an optimizer step against plain torch, and the promises about sums of rates."""

import os

import pytest
import torch
import warm_python

from latewood.kernels import optimizers
from latewood.kernels.dispatch import native
from latewood.kernels.optimizers import (
    Scalars,
    StepRequest,
    StepTensors,
    native_steps,
    plan_step,
    triton_steps,
)
from latewood.kernels.optimizers.foreach_steps import step_foreach
from latewood.kernels.optimizers.reference_steps import (
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


def make_tensors(dtype=torch.float32, moments=2, shapes=SHAPES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    wide = working_dtype(dtype)
    rows = []
    for shape in shapes:
        parameter, gradient, first, second, peak = torch.randn(5, *shape, generator=generator)
        state = [first.to(wide), second.square().to(wide), peak.square().to(wide)]
        state = [value if k < moments else None for k, value in enumerate(state)]
        rows.append([parameter.to(dtype), gradient.to(dtype), *state])
    return StepTensors(*(list(column) for column in zip(*rows, strict=True)))


def written(tensors):
    columns = (tensors.parameters, *tensors.moments())
    return [tensor for column in columns for tensor in column if tensor is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rule", "rates", "moments"), RULES)
def test_all_forms_agree_with_plain_torch(run, rule, rates, moments, dtype):
    expected, tensors = make_tensors(dtype, moments), make_tensors(dtype, moments)
    gradients = [gradient.clone() for gradient in tensors.gradients]
    expected_sums = step_reference(rule, expected, [NUMBERS] * 5, rates)
    sums = run(rule, tensors, [NUMBERS] * 5, rates)
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    assert all(map(torch.equal, tensors.gradients, gradients))
    for value, reference in zip(written(tensors), written(expected), strict=True):
        # A half-precision parameter may round the other way.
        slack = torch.finfo(value.dtype).eps if value.dtype.itemsize == 2 else tolerance
        torch.testing.assert_close(value, reference, rtol=slack, atol=tolerance)
    assert [float(s) for s in sums] == pytest.approx([float(s) for s in expected_sums], rel=1e-6)


@pytest.mark.parametrize(("rule", "moments"), [("momentum", 0), ("delayed", 2), ("bounded", 3)])
def test_all_forms_agree_on_the_noise_of_rounding(run, rule, moments):
    """Keys of some parameters only; a result may differ in its last bit, and rarely rounds so."""
    keys = [1, None, 3, 2**32 - 1, 0]
    expected, tensors, nearest = (make_tensors(torch.bfloat16, moments) for _ in range(3))
    for step in (expected, tensors):
        step.parameters[0] = step.parameters[0].t().contiguous().t()
        step.noise_keys = keys
        for column in step.moments():
            if column[0] is not None:
                column[0] = column[0].t().contiguous().t()
    for step, form in ((expected, step_reference), (tensors, run), (nearest, step_reference)):
        form(rule, step, [NUMBERS] * 5)
    for value, reference, key in zip(tensors.parameters, expected.parameters, keys, strict=True):
        # Triton's interpreter cuts off where a GPU rounds to nearest.
        if key is not None and value.numel():
            assert (value != reference).float().mean() < 5e-3
        torch.testing.assert_close(value, reference, rtol=8e-3, atol=1e-6)
    assert torch.equal(expected.parameters[1], nearest.parameters[1])
    assert (expected.parameters[0] != nearest.parameters[0]).float().mean() > 0.2


@pytest.mark.parametrize("rates", ["old", "new"])
@pytest.mark.parametrize("eps", [0.1, 1e-8, 1e-40])
def test_moments_that_are_zero_tiny_infinite_or_no_number(run, rates, eps):
    """Where a reciprocal that is not made by a division would go wrong first."""
    special = [0.0, 1e-45, 1e-38, 1e-30, 1e30, 3.4e38, float("inf"), float("nan")]
    # With such an eps a rate of less than that overflows in any form.
    for value in special[4:] if eps == 1e-40 else special:
        numbers = NUMBERS._replace(eps=eps, size=1e-3)
        expected, tensors = (make_tensors(shapes=[(83,)]) for _ in range(2))
        for second in (*expected.exp_avg_sqs, *tensors.exp_avg_sqs):
            second[[3, 40, 80]] = value
        (total,) = step_reference("delayed", expected, [numbers], rates)
        (sum_of_rates,) = run("delayed", tensors, [numbers], rates)
        for a, b in zip(written(tensors), written(expected), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, equal_nan=True)
        assert float(sum_of_rates) == pytest.approx(float(total), rel=1e-6, nan_ok=True)


@pytest.mark.skipif(native() is None, reason="the native kernels are not built")
@pytest.mark.skipif("LATEWOOD_INSTRUCTION_SET" in os.environ, reason="already limited")
@pytest.mark.parametrize("instruction_set", ["baseline", "avx2"])
def test_lower_instruction_sets_agree_with_plain_torch_too(instruction_set):
    chosen = "native and (agree or bit or moments)"
    words = ["-m", "pytest", __file__, "-k", chosen, "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = warm_python.run(words, env={**os.environ, "LATEWOOD_INSTRUCTION_SET": instruction_set})
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_delayed_step_of_size_zero_leaves_the_parameter_alone(run):
    tensors = make_tensors()
    before = [parameter.clone() for parameter in tensors.parameters]
    run("delayed", tensors, [NUMBERS._replace(size=0.0)] * 5, "new")
    assert all(map(torch.equal, tensors.parameters, before))
    assert not torch.equal(tensors.exp_avgs[1], make_tensors().exp_avgs[1])


def test_tensors_may_have_numbers_of_their_own(run):
    tensors, expected = make_tensors(), make_tensors()
    scalars = [NUMBERS._replace(size=0.1 * (k % 3)) for k in range(5)]
    step_reference("delayed", expected, scalars)
    run("delayed", tensors, scalars)
    for parameter, other in zip(tensors.parameters, expected.parameters, strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-6, atol=1e-6)


def test_autograd_notices_the_native_step():
    tensors = make_tensors(shapes=[(4,)])
    version = tensors.parameters[0]._version
    optimizers.run_step("momentum", [StepRequest(tensors)], [[NUMBERS]])
    assert tensors.parameters[0]._version > version


@pytest.mark.skipif(native() is None, reason="the native kernels are not built")
@pytest.mark.parametrize(("rule", "rates", "moments"), RULES)
def test_bits_do_not_depend_on_threads_or_neighbours(rule, rates, moments):
    shapes = [(700, 701), (3,), (300, 301)]
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            tensors = make_tensors(moments=moments, shapes=shapes)
            sums = native_steps.step_native(rule, tensors, [NUMBERS] * 3, rates)
            results.append((sums, tensors))
        tensors = make_tensors(moments=moments, shapes=shapes)
        alone = [
            native_steps.step_native(rule, tensors.select([k]), [NUMBERS], rates)[0]
            for k in range(3)
        ]
    finally:
        torch.set_num_threads(before)
    assert results[0][0] == results[1][0] == results[2][0] == alone
    for other in (results[1][1], results[2][1], tensors):
        assert all(map(torch.equal, written(results[0][1]), written(other)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("form", ["auto", "single", "foreach"])
def test_counting_rates_afterwards_gives_the_sum_of_the_step_bit_for_bit(dtype, form):
    tensors = make_tensors(dtype, shapes=[(3, 701), (64,), (1,), (100, 700)])
    request = StepRequest(tensors, form)
    (sums,) = optimizers.run_step("delayed", [request], [[NUMBERS] * 4], "new")
    corrections, eps = [NUMBERS.following] * 4, [NUMBERS.eps] * 4
    again = optimizers.rate_sums(tensors.exp_avg_sqs, corrections, eps, form)
    assert [float(a) for a in again] == [float(s) for s in sums]


@pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter from the start")
def test_triton_counts_rates_like_its_step(monkeypatch):
    monkeypatch.setattr(triton_steps, "exists", lambda device, dtype: True)
    tensors = make_tensors(shapes=[(3, 701), (64,), (0,)])
    sums = triton_steps.step_triton("delayed", tensors, [NUMBERS] * 3, "new")
    corrections, eps = [NUMBERS.following] * 3, [NUMBERS.eps] * 3
    again = triton_steps.rate_sums_triton(tensors.exp_avg_sqs, corrections, eps)
    assert [float(a) for a in again] == [float(s) for s in sums]


def test_plans_of_several_groups_run_together():
    """Groups that keep other moments, have other forms and other precisions, in one call."""
    cases = [("auto", torch.float32, 2), ("single", torch.float64, 3), ("auto", torch.bfloat16, 3)]
    steps = [make_tensors(dtype, moments) for _, dtype, moments in cases]
    expected = [make_tensors(dtype, moments) for _, dtype, moments in cases]
    requests = [StepRequest(t, form) for t, (form, *_) in zip(steps, cases, strict=True)]
    sums = optimizers.run_step("bounded", requests, [[NUMBERS] * 5] * 3)
    assert sums == [[0.0] * 5] * 3
    for tensors, reference in zip(steps, expected, strict=True):
        step_reference("bounded", reference, [NUMBERS] * 5)
        for value, other in zip(written(tensors), written(reference), strict=True):
            slack = 8e-3 if value.dtype == torch.bfloat16 else 1e-6
            torch.testing.assert_close(value, other, rtol=slack, atol=1e-6)


def test_the_sum_of_rates_is_accurate_where_a_running_sum_is_not():
    moment = torch.full((4_000_000,), 0.25)
    exact = 4_000_000 / 0.6**2
    (total,) = optimizers.rate_sums([moment], [1.0], [0.1])
    assert float(total) == pytest.approx(exact, rel=1e-6)
    assert float(rate_sum_reference(moment, 1.0, 0.1)) == pytest.approx(exact, rel=1e-6)


def test_layouts_other_than_contiguous(run):
    plain, strided = (make_tensors(shapes=[(2, 3, 4, 5)]) for _ in range(2))
    for column in (strided.parameters, strided.exp_avgs, strided.exp_avg_sqs):
        column[0] = column[0].to(memory_format=torch.channels_last)
    run("delayed", plain, [NUMBERS])
    run("delayed", strided, [NUMBERS])
    torch.testing.assert_close(strided.parameters[0], plain.parameters[0], rtol=1e-6, atol=1e-7)


def test_a_parameter_whose_memory_has_holes_goes_through_plain_torch():
    tensors, expected = (make_tensors(shapes=[(4, 6)]) for _ in range(2))
    whole = torch.zeros(4, 12)
    whole[:, ::2] = tensors.parameters[0]
    tensors.parameters[0] = whole[:, ::2]
    assert plan_step(tensors).carriers == ["single"]
    optimizers.run_step("delayed", [StepRequest(tensors)], [[NUMBERS]])
    step_reference("delayed", expected, [NUMBERS])
    torch.testing.assert_close(tensors.parameters[0], expected.parameters[0])
    assert whole[:, 1::2].eq(0).all()


@pytest.mark.skipif(native() is None, reason="the native kernels are not built")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_forked_process_steps_with_threads_of_its_own():
    # torch's threads do not exist there, and waiting for them would last forever.
    code = """
import os, signal, torch
from latewood.kernels.optimizers import Scalars, StepTensors, native_steps
torch.set_num_threads(2)
copies = [torch.linspace(0.1, 1, 4_000_000).view(4, -1).clone() for _ in range(3)]
def step():
    numbers = Scalars(size=0.1, beta1=0.9, beta2=0.99, eps=0.1)
    tensors = StepTensors(*([tensor] for tensor in copies.pop().unbind()), [None])
    total = native_steps.step_native("delayed", tensors, [numbers], "new")
    return total, hash(tensors.parameters[0].numpy().tobytes())
before = step()
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if step() == before else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), step() == before)
"""
    done = warm_python.run(["-c", code])
    assert done.stdout.split() == ["0", "True"], done.stdout + done.stderr
