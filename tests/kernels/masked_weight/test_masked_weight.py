"""The masked weight against float64 arithmetic, on every instruction set and through autograd."""

import copy
import os

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from warm_python import run

from latewood.errors import RequestError
from latewood.kernels.dispatch import native
from latewood.kernels.masked_weight import (
    mask_sum,
    mask_sum_reference,
    masked_weight,
    masked_weight_reference,
)

needs_native = pytest.mark.skipif(native() is None, reason="the compiled kernels are not built")

# Compares with float64 inside the process whose instruction set the environment limits. The bounds
# are in units of float32 epsilon: exp to 2 ulp, then half a unit of rounding for each operation;
# 1 - p has an absolute error, so the logit gradient's bound is relative to p. sigmoid below 1e-38
# is a denormal or 0, here times up to 1e3.
ACCURACY = """
import torch
from latewood.kernels.dispatch import native
from latewood.kernels.masked_weight import masked_weight, mask_sum
assert native() is not None
eps = torch.finfo(torch.float32).eps
generator = torch.Generator().manual_seed(0)
for temperature, scale in [(1.0, 1.0), (1.0, 2.105171), (37.0, 2.0), (200.0, 1.9)]:
    for n in (1, 7, 64, 100_003):
        w = torch.randn(n, generator=generator).requires_grad_()
        s = (torch.randn(n, generator=generator) * 30 / temperature).requires_grad_()
        g = torch.randn(n, generator=generator)
        beta = torch.tensor(temperature)
        out = masked_weight(w, s, beta, scale)
        out.backward(g)
        # float32 rounds temperature * logits first; the oracle starts from that product.
        z = (beta * s).detach().double()
        p, w64, g64 = torch.sigmoid(z), w.detach().double(), g.double()
        c = float(torch.tensor(scale))
        def check(got, want, bound):
            error = (got.detach().double() - want).abs()
            assert (error <= bound + 1e-34).all(), (error / (bound + 1e-34)).max()
        check(out, w64 * c * p, 2 * eps * (w64 * c * p).abs())
        check(w.grad, g64 * c * p, 2 * eps * (g64 * c * p).abs())
        size = (g64 * w64 * c * temperature * p).abs()
        check(s.grad, g64 * w64 * c * temperature * p * (1 - p), 3 * eps * size)
        total = mask_sum(s, beta, scale)
        check(total, (c * p).sum(), 2 * eps * (c * p).sum())
        (slope,) = torch.autograd.grad(total * 0.5, s)
        check(slope, 0.5 * c * temperature * p * (1 - p), 3 * eps * c * temperature * p)
print(native().instruction_set())
"""


@needs_native
@pytest.mark.parametrize("instruction_set", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_agrees_with_float64(instruction_set):
    chosen = {"LATEWOOD_INSTRUCTION_SET": instruction_set, "LATEWOOD_KERNELS": "native"}
    result = run(["-c", ACCURACY], env={**os.environ, **chosen})
    assert result.returncode == 0, result.stderr
    if result.stdout.strip() != instruction_set:
        pytest.skip(f"this machine has no {instruction_set}; checked {result.stdout.strip()}")


def inputs(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
    logits = torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
    return weight, logits, torch.tensor(3.0, dtype=dtype), 2.0


@pytest.fixture(params=["native", "reference"])
def kernels(request, monkeypatch):
    if request.param == "native" and native() is None:
        pytest.skip("the compiled kernels are not built")
    monkeypatch.setenv("LATEWOOD_KERNELS", request.param)
    return request.param


def test_saturation_and_special_values(kernels):
    """In float32 sigmoid is exactly 1 from 16.7 on and exactly 0 below -89, gradients included."""
    infinity, nan = float("inf"), float("nan")
    logits = torch.tensor([16.7, 40.0, 200.0, infinity, -89.5, -200.0, -infinity, -88.0, nan])
    logits.requires_grad_()
    weight = torch.full_like(logits, 3.0)
    out = masked_weight(weight, logits, torch.tensor(1.0), 1.0)
    assert torch.equal(out[:4], torch.full((4,), 3.0))
    assert torch.equal(out[4:7], torch.zeros(3))
    assert 0 < out[7] < 1e-37
    assert out[8].isnan()
    out[:8].sum().backward()
    assert torch.equal(logits.grad[:7], torch.zeros(7))


def test_zero_logit_is_half_at_every_temperature(kernels):
    for temperature in (1.0, 200.0, 1e6):
        out = masked_weight(torch.ones(20), torch.zeros(20), torch.tensor(temperature), 2.0)
        assert torch.equal(out, torch.ones(20))


def test_native_and_reference_agree(monkeypatch):
    for shape in [(), (1,), (3, 5), (0, 4), (16, 3, 3, 3)]:
        results = []
        for form in (masked_weight, masked_weight_reference):
            weight, logits, temperature, scale = inputs(*shape)
            out = form(weight, logits, temperature, scale)
            out.pow(2).sum().backward()
            results.append((out, weight.grad, logits.grad))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=1e-6)


def test_gradients_by_finite_differences(kernels):
    weight, logits, temperature, scale = inputs(4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(masked_weight, (weight, logits, temperature, scale))
    assert torch.autograd.gradgradcheck(masked_weight, (weight, logits, temperature, scale))
    assert torch.autograd.gradcheck(mask_sum, (logits, temperature, scale))


def test_double_backward_in_float32(kernels):
    weight, logits, temperature, scale = inputs(50)
    exact = inputs(50)
    for form, (w, s, t, c) in [
        (masked_weight, (weight, logits, temperature, scale)),
        (masked_weight_reference, exact),
    ]:
        first = torch.autograd.grad(form(w, s, t, c).pow(2).sum(), (w, s), create_graph=True)
        sum(g.pow(2).sum() for g in first).backward()
    torch.testing.assert_close(weight.grad, exact[0].grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits.grad, exact[1].grad, rtol=1e-4, atol=1e-4)


def test_double_backward_of_the_sum_in_float32(kernels):
    _, logits, temperature, scale = inputs(50)
    second = []
    for form in (mask_sum, mask_sum_reference):
        total = form(logits, temperature, scale)
        (slope,) = torch.autograd.grad(total.square(), logits, create_graph=True)
        second.append(torch.autograd.grad(slope.pow(2).sum(), logits)[0])
    torch.testing.assert_close(*second, rtol=1e-4, atol=1e-2)


def test_layouts(kernels):
    """Channels-last inputs keep their layout; mixed layouts and strided gradients are right."""
    weight, logits, temperature, scale = (
        x.detach() if isinstance(x, torch.Tensor) else x for x in inputs(4, 3, 5, 5)
    )
    want = masked_weight_reference(weight, logits, temperature, scale)
    last = torch.channels_last
    for w, s in [
        (weight.to(memory_format=last), logits.to(memory_format=last)),
        (weight.to(memory_format=last), logits),
        (weight.transpose(2, 3), logits.transpose(2, 3)),
    ]:
        w, s = w.requires_grad_(), s.requires_grad_()
        out = masked_weight(w, s, temperature, scale)
        swapped = w.stride(3) > w.stride(2) > 1 or w.stride(2) == 1
        torch.testing.assert_close(out, want.transpose(2, 3) if swapped else want)
        (gw, gs) = torch.autograd.grad(out, (w, s), torch.ones(1, 1, 1, 1).expand(out.shape))
        rw, rs = torch.autograd.grad(
            masked_weight_reference(w, s, temperature, scale).sum(), (w, s)
        )
        torch.testing.assert_close(gw, rw)
        torch.testing.assert_close(gs, rs)


@needs_native
def test_channels_last_layout_is_kept():
    w = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    out = masked_weight(w, w.clone(), torch.tensor(1.0), 1.0)
    assert out.stride() == w.stride()


def test_half_precision_weight_has_a_float32_mask(kernels):
    weight = torch.ones(64, dtype=torch.bfloat16, requires_grad=True)
    logits = torch.linspace(0.25, 0.26, 64, requires_grad=True)
    out = masked_weight(weight, logits, torch.tensor(1.0), 1.0)
    assert out.dtype is torch.bfloat16
    out.sum().backward()
    assert weight.grad.dtype is torch.bfloat16 and logits.grad.dtype is torch.float32
    assert logits.grad.unique().numel() > 32


def test_autocast_leaves_the_mask_in_float32(kernels):
    weight, logits, temperature, scale = inputs(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = masked_weight(weight, logits, temperature, scale)
        total = mask_sum(logits, temperature, scale)
    assert out.dtype is torch.float32 and total.dtype is torch.float32
    assert torch.equal(out, masked_weight(weight, logits, temperature, scale))


@needs_native
def test_result_does_not_depend_on_the_thread_count():
    weight, logits, temperature, scale = inputs(700_001)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out = masked_weight(weight, logits, temperature, scale)
            total = mask_sum(logits, temperature, scale)
            gradients = torch.autograd.grad(out.sum() + total, (weight, logits))
            results.append((out, total, *gradients))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_sum_is_the_sum(kernels):
    for n in (0, 1, 33, 2049, 5000):
        _, logits, temperature, scale = inputs(n)
        want = mask_sum_reference(logits.double(), temperature.double(), scale)
        torch.testing.assert_close(
            mask_sum(logits, temperature, scale).double(), want, rtol=1e-6, atol=0
        )


def test_shape_mismatch_is_refused():
    with pytest.raises(
        RequestError, match=r"logits: got \(3,\); expected the weight's shape \(2, 3\)"
    ):
        masked_weight(torch.ones(2, 3), torch.ones(3), torch.tensor(1.0), 1.0)


def test_transforms(kernels):
    """torch.func sees through the mask: per-sample gradients and forward mode work."""
    weight, logits, temperature, scale = inputs(3, 4)
    weight, logits = weight.detach(), logits.detach()
    x = torch.randn(5, 4)

    def output(w, s, x):
        return (masked_weight(w, s, temperature, scale) @ x).sum()

    gradients = torch.func.vmap(torch.func.grad(output, argnums=1), (None, None, 0))(
        weight, logits, x
    )
    for i in range(5):
        torch.testing.assert_close(
            gradients[i], torch.func.grad(output, argnums=1)(weight, logits, x[i])
        )


def test_compiled_without_graph_breaks_or_recompilation(kernels):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    weight, logits, temperature, scale = inputs(6, 6)
    compiled = torch.compile(masked_weight, fullgraph=True, backend=counter)
    for value in (1.0, 2.5, 200.0):
        temperature.fill_(value)
        torch.testing.assert_close(
            compiled(weight, logits, temperature, scale),
            masked_weight_reference(weight, logits, temperature, scale),
        )
        compiled(weight, logits, temperature, scale).sum().backward()
    assert counter.frame_count == 1


@needs_native
def test_saved_inputs_changed_before_backward_are_noticed():
    weight, logits, temperature, scale = inputs(5)
    out = masked_weight(weight, logits, temperature, scale)
    with torch.no_grad():
        logits.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_result_takes_no_memory_of_its_inputs():
    weight, logits, temperature, scale = inputs(5)
    before = copy.deepcopy(weight)
    masked_weight(weight, logits, temperature, scale).detach().zero_()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("call", ["masked", "sum"])
def test_logits_without_memory_are_refused(kernels, call):
    logits = torch.randn(5)
    logits.untyped_storage().resize_(8)
    with pytest.raises(RequestError, match="logits, bytes in its storage: got 8"):
        if call == "sum":
            mask_sum(logits, torch.tensor(2.0), 1.0)
        else:
            masked_weight(torch.randn(5), logits, torch.tensor(2.0), 1.0)


@pytest.mark.skipif(native() is None, reason="the compiled kernels are not built")
def test_data_replaced_between_the_two_passes_is_never_read_past_its_end():
    weight, logits = (torch.randn(50, requires_grad=True) for _ in range(2))
    for tensor, data in ((logits, torch.randn(3)), (weight, torch.randn(4))):
        result = masked_weight(weight, logits, torch.tensor(2.0), 1.0).sum()
        kept, tensor.data = tensor.data, data
        with pytest.raises(RuntimeError):
            result.backward()
        tensor.data = kept


@pytest.mark.skipif(native() is None, reason="the compiled kernels are not built")
def test_the_binding_refuses_tensors_that_are_not_alike():
    weight = torch.randn(5)
    for other in (torch.randn(4), torch.randn(5).double(), torch.randn(10)[::2], 3.0):
        with pytest.raises(ValueError, match=r"alike|float32"):
            native().masked_weight_forward(weight, other, 1.0, 1.0, torch.empty(5), 1)
        with pytest.raises(ValueError, match=r"alike|float32"):
            native().mask_sum_backward(1.0, weight, 1.0, 1.0, other, 1)


def pair():
    generator = torch.Generator().manual_seed(5)
    weight, logits = (torch.randn(6, 4, generator=generator) for _ in range(2))
    return weight.requires_grad_(), logits.requires_grad_()


def test_a_batch_of_gradients_comes_back_as_the_references_does():
    weight, logits = pair()
    beta = torch.tensor(2.0)
    gradients = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(6))

    def batch(outputs, inputs, given):
        return torch.autograd.grad(outputs, inputs, given, is_grads_batched=True)

    of_weight = batch(masked_weight(weight, logits, beta, 2.0), (weight, logits), gradients)
    expected = batch(
        masked_weight_reference(weight, logits, beta, 2.0), (weight, logits), gradients
    )
    torch.testing.assert_close(of_weight, expected)
    of_sum = batch(mask_sum(logits, beta, 2.0), (logits,), gradients[:, 0, 0])
    expected = batch(mask_sum_reference(logits, beta, 2.0), (logits,), gradients[:, 0, 0])
    torch.testing.assert_close(of_sum, expected)


@needs_native
def test_a_sparse_gradient_stays_sparse():
    weight, logits = pair()
    rows = torch.tensor([1, 4])
    table = masked_weight(weight, logits, torch.tensor(2.0), 2.0)
    torch.nn.functional.embedding(rows, table, sparse=True).sum().backward()
    assert weight.grad.is_sparse and logits.grad.is_sparse
    mask = torch.zeros(6, 4)
    mask[rows] = 2.0 * torch.sigmoid(2.0 * logits.detach()[rows])
    torch.testing.assert_close(weight.grad.to_dense(), mask)


def test_tangents_pass_through_in_forward_mode():
    weight, logits = (tensor.detach() for tensor in pair())
    beta, tangent = torch.tensor(2.0), torch.ones(6, 4)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(weight, tangent)
        masked = forward_ad.unpack_dual(masked_weight(dual, logits, beta, 2.0))
        dual = forward_ad.make_dual(logits, tangent)
        total = forward_ad.unpack_dual(mask_sum(dual, beta, 2.0))
    p = torch.sigmoid(beta * logits)
    torch.testing.assert_close(masked.tangent, 2.0 * p)
    torch.testing.assert_close(total.tangent, (4.0 * p * (1 - p)).sum())
