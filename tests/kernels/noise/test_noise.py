"""The noise against published numbers of its generator, and its native form against plain torch."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad

from latewood.errors import RequestError
from latewood.kernels.dispatch import native
from latewood.kernels.noise import (
    extent,
    extent_reference,
    noise_reference,
    noisy,
    noisy_reference,
    philox,
    uniform_noise,
)

needs_native = pytest.mark.skipif(native() is None, reason="the compiled kernels are not built")
KEY = torch.tensor(-123456789012345)
LOW, HIGH = torch.tensor(-1.0), torch.tensor(1.5)


@pytest.fixture(params=["native", "reference"])
def kernels(request, monkeypatch):
    if request.param == "native" and native() is None:
        pytest.skip("the compiled kernels are not built")
    monkeypatch.setenv("LATEWOOD_KERNELS", request.param)
    return request.param


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0,) * 4, (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers_of_the_generator(counter, key, words):
    """Those that its authors publish with Random123."""
    drawn = philox(tuple(torch.tensor(word) for word in counter), key)
    assert " ".join(f"{int(word):08x}" for word in drawn) == words


def test_places_are_halves_of_words_in_the_order_that_is_documented(kernels):
    noise = uniform_noise(torch.empty(300), KEY)
    zero = torch.tensor(0)
    key = (int(KEY) & 0xFFFFFFFF, int(KEY) >> 32 & 0xFFFFFFFF)
    for place in (0, 1, 2, 31, 32, 100, 127, 128, 255, 299):
        group, inside = divmod(place, 128)
        word, half = divmod(inside, 32)
        counter = torch.tensor(16 * group + half // 2)
        bits = int(philox((counter, zero, zero, zero), key)[word]) >> 16 * (half % 2) & 0xFFFF
        signed = bits - 0x10000 if bits >= 0x8000 else bits
        assert noise[place] == (2 * signed + 1) / 2**16


def test_moments_are_those_of_the_uniform_distribution(kernels):
    noise = uniform_noise(torch.empty(1000, 1000), torch.tensor(7)).double()
    assert noise.abs().max() < 1
    assert noise.mean().abs() < 0.003
    assert abs(noise.square().mean() - 1 / 3) < 0.002
    assert abs(noise.pow(4).mean() - 1 / 5) < 0.002
    counts = torch.histc(noise, 64, -1, 1) / 1e6 * 64
    assert (counts - 1).abs().max() < 0.04


def test_keys_places_and_rows_are_independent():
    keys = (5, 6, 5 + 2**32, -5)
    noises = [uniform_noise(torch.empty(300, 100), torch.tensor(key)) for key in keys]
    noises = [noise.flatten().double() for noise in noises]
    shifted = [noises[0].roll(shift) for shift in (1, 2, 16, 32, 100, 128, 2048)]
    correlations = torch.corrcoef(torch.stack([*noises, *shifted])).fill_diagonal_(0)
    assert correlations.abs().max() < 0.03


def test_a_longer_tensor_begins_alike(kernels):
    short, long = uniform_noise(torch.empty(100), KEY), uniform_noise(torch.empty(40000), KEY)
    assert torch.equal(short, long[:100])
    assert torch.equal(long, noise_reference(40000, int(KEY), torch.device("cpu")))
    assert uniform_noise(torch.empty(0, 3), KEY).shape == (0, 3)


def test_far_places_have_counters_of_their_own():
    """Beyond 2^32 counters the second word counts on; groups are drawn one by one here."""
    far = philox((torch.tensor(3), torch.tensor(1), *[torch.tensor(0)] * 2), (1, 2))
    near = philox((torch.tensor(3), torch.tensor(0), *[torch.tensor(0)] * 2), (1, 2))
    assert all(a != b for a, b in zip(far, near, strict=True))


def test_no_generator_is_touched(kernels):
    before = torch.get_rng_state()
    noisy(torch.zeros(10), torch.ones(()), KEY)
    assert torch.equal(torch.get_rng_state(), before)


@st.composite
def problems(draw):
    """Values of any shape with widths along axes side by side, clipped or not."""
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    first = draw(st.integers(0, len(shape)))
    last = draw(st.integers(first, len(shape)))
    widths = [size if first <= axis < last else 1 for axis, size in enumerate(shape)]
    cut = draw(st.integers(0, first))
    if draw(st.booleans()):
        shape[draw(st.integers(0, len(shape) - 1))] *= draw(st.integers(1, 60))
        widths = [s if first <= axis < last else 1 for axis, s in enumerate(shape)]
    turned = draw(st.booleans()) and len(shape) > 2
    return shape, widths[cut:], turned, draw(st.booleans())


@needs_native
@settings(max_examples=80, deadline=None, derandomize=True)
@given(problems())
def test_native_and_reference_agree(problem):
    shape, widths, turned, clips = problem
    generator = torch.Generator().manual_seed(0)
    values = 2 * torch.randn(shape, generator=generator)
    if turned:
        values = values.movedim(1, -1).contiguous().movedim(-1, 1)
    width = torch.rand(widths, generator=generator)
    given_back = torch.randn(shape, generator=generator)
    bounds = {"low": LOW, "high": HIGH} if clips else {}
    results = []
    for form in (noisy, noisy_reference):
        x, w = values.clone().requires_grad_(), width.clone().requires_grad_()
        result = form(x, w, KEY, **bounds)
        results.append((result.detach(), *torch.autograd.grad(result, (x, w), given_back)))
    ours, theirs = results
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-5, atol=1e-4)


EVERY_SET = """
import torch
from latewood.kernels.dispatch import native
from latewood.kernels.noise import extent, extent_reference, noisy, noisy_reference
low, high, key = torch.tensor(-1.0), torch.tensor(1.5), torch.tensor(2**40 + 3)
for shape, widths, last in [
    ((3, 5, 33, 31), (5, 1, 1), False), ((2, 70, 20, 9), (70, 1, 1), True),
    ((70, 33), (33,), False), ((16, 8, 3, 3), (16, 8, 1, 1), False), ((5000,), (1,), False),
]:
    x = torch.randn(shape)
    x = x.to(memory_format=torch.channels_last) if last else x
    w, g = torch.rand(widths).requires_grad_(), torch.randn(shape)
    x.requires_grad_()
    a, b = (form(x, w, key, low=low, high=high) for form in (noisy, noisy_reference))
    assert type(a.grad_fn).__name__ == "NoisyValuesBackward", shape
    assert torch.equal(a, b), shape
    (ax, aw), (bx, bw) = (torch.autograd.grad(y, (x, w), g) for y in (a, b))
    assert torch.equal(ax, bx), shape
    torch.testing.assert_close(aw, bw, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(extent(x), extent_reference(x.detach()))
print(native().instruction_set())
"""


@needs_native
@pytest.mark.parametrize("instruction_set", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_draws_the_same(instruction_set):
    result = subprocess.run(
        [sys.executable, "-c", EVERY_SET],
        env={
            **os.environ,
            "LATEWOOD_INSTRUCTION_SET": instruction_set,
            "LATEWOOD_KERNELS": "native",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    if result.stdout.strip() != instruction_set:
        pytest.skip(f"this machine has no {instruction_set}; checked {result.stdout.strip()}")


@needs_native
@pytest.mark.parametrize(
    ("shape", "widths", "last"),
    [
        ((40, 16, 32, 32), (16, 1, 1), False),
        ((40, 16, 32, 32), (16, 1, 1), True),
        ((1, 700, 1000), (700, 1), False),
        ((600_001,), (1,), False),
        ((3000, 200), (200,), False),
    ],
)
def test_threads_do_not_change_the_result(shape, widths, last):
    x = torch.randn(shape)
    x = x.to(memory_format=torch.channels_last) if last else x
    w, x = torch.rand(widths).requires_grad_(), x.requires_grad_()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            y = noisy(x, w, KEY, low=LOW, high=HIGH)
            gradients = torch.autograd.grad(y, (x, w), y.detach())
            results.append((y, *gradients, extent(x), uniform_noise(x, KEY)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_native
def test_nothing_but_the_inputs_is_kept_for_the_gradients():
    kept = []
    values, width = torch.randn(8, 4, 16, requires_grad=True), torch.rand(4, 1, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        noisy(values, width, KEY, low=LOW, high=HIGH)
    assert {t.data_ptr() for t in kept} == {values.data_ptr(), width.data_ptr()}
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        noisy(values, width, KEY)
    assert {t.data_ptr() for t in kept} == {width.data_ptr()}


def test_the_key_may_change_between_the_passes(kernels):
    key = torch.tensor(5)
    values, width = torch.randn(3, 50), torch.rand(3, 1, requires_grad=True)
    expected = (uniform_noise(values, key)).sum(1, keepdim=True)
    result = noisy(values, width, key)
    key.fill_(6)
    result.sum().backward()
    torch.testing.assert_close(width.grad, expected, atol=1e-4, rtol=1e-5)


def test_noise_stays_between_the_bounds_and_clipped_values_move_the_width(kernels):
    values = torch.tensor([[-9.0, 0.25, 9.0]], requires_grad=True)
    width = torch.full((1, 1), 0.5, requires_grad=True)
    result = noisy(values, width, KEY, low=LOW, high=HIGH)
    noise = uniform_noise(values, KEY)
    assert torch.equal(result.detach(), torch.tensor([[-0.5, 0.25, 1.0]]) + 0.5 * noise)
    assert result.min() >= LOW and result.max() <= HIGH
    result.backward(torch.tensor([[1.0, 2.0, 5.0]]))
    assert values.grad.tolist() == [[0.0, 2.0, 0.0]]
    expected = (noise * torch.tensor([[1.0, 2.0, 5.0]])).sum() + 1.0 - 5.0
    torch.testing.assert_close(width.grad.sum(), expected)


def test_special_values(kernels):
    infinity, nan = float("inf"), float("nan")
    values = torch.tensor([infinity, -infinity, nan], requires_grad=True)
    width = torch.tensor([0.25], requires_grad=True)
    clipped = noisy(values, width, KEY, low=LOW, high=HIGH)
    assert clipped[:2].isfinite().all() and clipped[2].isnan()
    free = noisy(values, width, KEY)
    assert free[:2].tolist() == [infinity, -infinity] and free[2].isnan()
    assert extent(values).isnan().all()
    assert extent(values[:2]).tolist() == [infinity, -infinity, infinity]
    clipped.backward(torch.tensor([1.0, 1.0, nan]))
    assert values.grad[:2].tolist() == [0.0, 0.0] and values.grad[2].isnan()


def test_gradients_by_finite_differences(kernels):
    values = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    width = torch.rand(4, dtype=torch.float64, requires_grad=True)

    def form(x, w):
        return noisy(x, w, KEY, low=LOW.double(), high=HIGH.double())

    assert torch.autograd.gradcheck(form, (values, width))
    assert torch.autograd.gradgradcheck(form, (values, width))


def test_double_backward_in_float32(kernels):
    second = []
    for form in (noisy, noisy_reference):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(5, 7, generator=generator).requires_grad_()
        w = torch.rand(7, generator=generator).requires_grad_()
        y = form(x, w, KEY, low=LOW, high=HIGH)
        first = torch.autograd.grad(y.pow(3).sum(), (x, w), create_graph=True)
        sum(part.pow(2).sum() for part in first).backward()
        second.append((x.grad, w.grad))
    for ours, theirs in zip(*second, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_keep_theirs(kernels, dtype):
    values = torch.randn(4, 6, dtype=dtype, requires_grad=True)
    width = torch.rand(6, requires_grad=True)
    result = noisy(values, width, KEY, low=LOW, high=HIGH)
    assert result.dtype is dtype
    result.sum().backward()
    assert values.grad.dtype is dtype and width.grad.dtype is torch.float32
    wide = noisy_reference(values.float(), width, KEY, low=LOW, high=HIGH)
    torch.testing.assert_close(result.float(), wide, atol=2e-2, rtol=2e-2)
    assert extent(values).dtype is torch.promote_types(dtype, torch.float32)


def test_odd_tensors(kernels):
    assert noisy(torch.empty(0, 3), torch.ones(3), KEY).shape == (0, 3)
    assert noisy(torch.tensor(2.0), torch.tensor(0.0), KEY) == 2.0
    base = torch.randn(6, 10)
    for values in (base[::2], base.t(), base.expand(3, 6, 10), base[:, 3:7]):
        width = torch.rand(values.shape[-1])
        ours = noisy(values, width, KEY, low=LOW, high=HIGH)
        theirs = noisy_reference(values.contiguous(), width, KEY, low=LOW, high=HIGH)
        assert torch.equal(ours, theirs)
    strided = torch.rand(12)[::2]
    expected = noisy_reference(base.t(), strided, KEY)
    assert torch.equal(noisy(base.t().contiguous(), strided, KEY), expected)


@needs_native
def test_strided_and_expanded_gradients():
    values, width = torch.randn(4, 3, 5, requires_grad=True), torch.rand(3, 1, requires_grad=True)
    for gradient in (torch.randn(5, 3, 4).transpose(0, 2), torch.randn(1, 1, 1).expand(4, 3, 5)):
        ours, theirs = (
            torch.autograd.grad(
                form(values, width, KEY, low=LOW, high=HIGH), (values, width), gradient
            )
            for form in (noisy, noisy_reference)
        )
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


@needs_native
def test_only_what_is_asked_for_is_differentiated():
    width = torch.rand(3, 1, requires_grad=True)
    data = torch.randn(4, 3, 5)
    noisy(data, width, KEY, low=LOW, high=HIGH).sum().backward()
    assert width.grad is not None and data.grad is None
    values = torch.randn(4, 3, 5, requires_grad=True)
    noisy(values, width.detach(), KEY).sum().backward()
    assert torch.equal(values.grad, torch.ones(4, 3, 5))


@needs_native
def test_values_changed_before_the_backward_pass_are_noticed():
    values, width = torch.randn(5), torch.rand(1, requires_grad=True)
    result = noisy(values, width, KEY, low=LOW, high=HIGH)
    values.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


@needs_native
def test_data_replaced_between_the_two_passes_is_never_read_past_its_end():
    values, width = torch.randn(50, requires_grad=True), torch.rand(50, requires_grad=True)
    for tensor in (values, width):
        result = noisy(values, width, KEY, low=LOW, high=HIGH).sum()
        kept, tensor.data = tensor.data, torch.rand(3)
        with pytest.raises(RuntimeError):
            result.backward()
        tensor.data = kept


def test_a_batch_of_gradients_and_tangents(kernels):
    values, width = torch.randn(6, 4, requires_grad=True), torch.rand(4, requires_grad=True)
    gradients = torch.randn(3, 6, 4)
    ours, theirs = (
        torch.autograd.grad(
            form(values, width, KEY, low=LOW, high=HIGH),
            (values, width),
            gradients,
            is_grads_batched=True,
        )
        for form in (noisy, noisy_reference)
    )
    torch.testing.assert_close(ours, theirs)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(width.detach(), torch.ones(4))
        result = forward_ad.unpack_dual(noisy(values.detach(), dual, KEY))
    torch.testing.assert_close(result.tangent, uniform_noise(values, KEY))


def test_compiled_without_graph_breaks_or_recompilation(kernels):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(noisy, fullgraph=True, backend=counter)
    values, width = torch.randn(4, 6, requires_grad=True), torch.rand(6, requires_grad=True)
    key = torch.tensor(1)
    for number in (1, 2, -3):
        key.fill_(number)
        result = compiled(values, width, key, low=LOW, high=HIGH)
        torch.testing.assert_close(result, noisy(values, width, key, low=LOW, high=HIGH))
        result.sum().backward()
    assert counter.frame_count == 1


def test_gradient_checkpoints_meet_the_same_noise(kernels):
    values, width = torch.randn(4, 6), torch.rand(6, requires_grad=True)

    def form(x):
        return noisy(x, width, KEY).pow(2).sum()

    (plain,) = torch.autograd.grad(form(values), width)
    again = torch.utils.checkpoint.checkpoint(form, values, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(again, width)[0], plain)


def test_wrong_arguments_are_named():
    values = torch.randn(2, 3)
    for width in (torch.rand(2), torch.rand(1, 2, 3), torch.rand(3, 3)):
        with pytest.raises(RequestError, match="width: got"):
            noisy(values, width, KEY)
    width = torch.rand(3)
    with pytest.raises(RequestError, match="high: got None; expected both bounds"):
        noisy(values, width, KEY, low=LOW)
    with pytest.raises(RequestError, match=r"low: got '\(3,\) on cpu'; expected a 0-dim"):
        noisy(values, width, KEY, low=torch.zeros(3), high=HIGH)
    with pytest.raises(RequestError, match=r"key, dtype: got torch\.float32"):
        noisy(values, width, torch.tensor(1.0))
    with pytest.raises(RequestError, match="one element or more"):
        extent(torch.empty(0, 3))
    cut = torch.randn(5)
    cut.untyped_storage().resize_(8)
    for call in (lambda: noisy(cut, torch.ones(1), KEY), lambda: extent(cut)):
        with pytest.raises(RequestError, match="values, bytes in its storage: got 8"):
            call()


def test_extent_is_the_extent(kernels):
    for shape in [(1,), (33,), (2049,), (5, 6, 7)]:
        values = torch.randn(shape)
        torch.testing.assert_close(extent(values), extent_reference(values.double()).float())
    huge = torch.full((1_000_000,), 3.0)
    assert extent(huge).tolist() == [9.0, 3.0, 3.0]
