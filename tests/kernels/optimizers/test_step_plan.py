"""What may reach which form of a step: every tensor is looked at before anything is written."""

import itertools
import os

import pytest
import torch

from latewood.errors import RequestError
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
from latewood.kernels.optimizers.fitting import Fit, fit_reference

NUMBERS = Scalars(size=0.1, beta1=0.9, beta2=0.99, eps=0.1)
COLUMNS = ("parameters", "gradients", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs")
needs_native = pytest.mark.skipif(native() is None, reason="the native kernels are not built")


def cut(tensor, bytes_left):
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(bytes_left)
    return tensor


def behind(tensor):
    """A view into a larger storage that was cut in front of the view's end."""
    whole = torch.cat([tensor.flatten(), tensor.flatten()])
    view = whole[tensor.numel() :].view(tensor.shape)
    whole.untyped_storage().resize_(tensor.nbytes)
    return view


UNFIT = {
    "other precision": lambda t: t.double(),
    "longer": lambda t: torch.cat([t, t]),
    "shorter": lambda t: t[:2].clone(),
    "other shape": lambda t: t.reshape(2, -1),
    "no memory": lambda t: cut(t, 0),
    "half its memory": lambda t: cut(t, t.nbytes // 2),
    "a view without memory": behind,
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "shared places": lambda t: t[:1].expand(t.shape),
    "shared windows": lambda t: torch.zeros(12).as_strided((4, 6), (2, 1)),
    "no tensor": lambda t: 3.0,
    "subclass": lambda t: t.as_subclass(type("Sub", (torch.Tensor,), {})),
    "gaps": lambda t: torch.stack([t, t], -1)[..., 0],
    "transposed": lambda t: t.t().contiguous().t(),
    "waits for its sign": lambda t: torch.complex(torch.zeros_like(t), -t).conj().imag,
}


def tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    columns = torch.rand(5, 3, 4, 6, generator=generator)
    return StepTensors(*([t.clone() for t in column] for column in columns))


@needs_native
@pytest.mark.parametrize("rule", ["momentum", "delayed", "bounded"])
@pytest.mark.parametrize("unfit", UNFIT)
@pytest.mark.parametrize("column", COLUMNS)
def test_the_binding_itself_writes_nothing_where_one_tensor_does_not_fit(column, unfit, rule):
    """Without the plan: the last line of defence, at the call."""
    step = tensors()
    before = [p.clone() for p in step.parameters]
    getattr(step, column)[1] = UNFIT[unfit](getattr(step, column)[1])
    columns = (step.parameters, step.gradients, *step.moments())
    rules = {"momentum": 0, "delayed": 1, "bounded": 2}
    numbers = list(map(float, NUMBERS))
    try:
        sums = native().optim_step(rules[rule], 0, columns, [0, 0, 0], numbers, [], [], 1)
    except ValueError:
        sums = None
    assert sums is None
    for k in (0, 2):
        assert torch.equal(step.parameters[k], before[k])


@needs_native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.__setitem__(0, 3), "no such rule"),
        (lambda a: a.__setitem__(1, -1), "no such rates"),
        (lambda a: a.__setitem__(3, [0, 0, 7]), "no numbers of this row"),
        (lambda a: a.__setitem__(3, [0, 0]), "lists differ in length"),
        (lambda a: a.__setitem__(4, [0.0] * 10), "no numbers of this row"),
        (lambda a: a[2][3].__setitem__(1, None), "needs both moments"),
    ],
)
def test_the_binding_refuses_arguments_that_do_not_go_together(change, message):
    step = tensors()
    columns = (step.parameters, step.gradients, *step.moments())
    arguments = [1, 0, columns, [0, 0, 0], list(map(float, NUMBERS)), [], [], 1]
    change(arguments)
    with pytest.raises(ValueError, match=message):
        native().optim_step(*arguments)


@needs_native
@pytest.mark.parametrize("unfit", [*UNFIT, "half"])
def test_neither_counts_nor_sums_read_what_does_not_fit(unfit):
    change = UNFIT.get(unfit, lambda t: t.half())
    moments = [torch.rand(4, 6), change(torch.rand(4, 6))]
    readable = unfit in ("other precision", "longer", "shorter", "other shape", "transposed")
    sums = native_steps.rate_sums_native(moments, [1.0, 1.0], [0.1, 0.1])
    assert (sums is not None) == readable
    steps = [torch.tensor(1.0), change(torch.rand(4, 6))]
    assert native_steps.counts_native(steps) is None
    assert steps[0] == 1.0


@pytest.mark.parametrize("form", ["auto", "fused", "single", "foreach"])
@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize(
    "unfit",
    ["longer", "shorter", "other shape", "no memory", "half its memory", "a view without memory",
     "meta", "sparse"],
)  # fmt: skip
def test_every_form_refuses_what_does_not_fit(form, column, unfit):
    step = tensors()
    getattr(step, column)[1] = UNFIT[unfit](getattr(step, column)[1])
    with pytest.raises(RequestError, match="parameter 1"):
        plan_step(step, form)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the same without Triton")
@pytest.mark.parametrize(
    ("column", "unfit"),
    # A step without a parameter is no step at all.
    sorted(set(itertools.product(COLUMNS, UNFIT)) - {("parameters", "no tensor")}),
)
def test_the_triton_form_is_handed_only_what_it_can_read(monkeypatch, column, unfit):
    monkeypatch.setattr(triton_steps, "exists", lambda device, dtype: True)
    monkeypatch.setenv("LATEWOOD_KERNELS", "reference")
    step = tensors()
    assert plan_step(step).carriers == ["triton"] * 3
    getattr(step, column)[1] = UNFIT[unfit](getattr(step, column)[1])
    try:
        carriers = plan_step(step).carriers
    except RequestError:
        return
    # Of a gradient the Triton form makes a copy where it lies otherwise.
    copied = column == "gradients" and unfit in (
        *("gaps", "transposed", "shared places", "shared windows", "waits for its sign"),
        "subclass",
    )
    assert carriers == ["triton", "triton" if copied else "single", "triton"]


@pytest.mark.parametrize("kernels", ["native", "reference"])
@pytest.mark.parametrize("unfit", UNFIT)
@pytest.mark.parametrize("column", COLUMNS)
def test_the_triton_form_looks_once_more_before_it_hands_out_addresses(
    monkeypatch, column, unfit, kernels
):
    monkeypatch.setenv("LATEWOOD_KERNELS", kernels)
    step = tensors()
    changed = UNFIT[unfit](getattr(step, column)[1])
    getattr(step, column)[1] = changed
    handed_out = []

    def no_launch():
        handed_out.append("addresses")
        raise LookupError("no launch here")

    monkeypatch.setattr(triton_steps, "_launch", no_launch)
    copied = column == "gradients" and fit_reference(
        step.parameters[1], changed, [step.exp_avgs[1]]
    )
    with pytest.raises((ValueError, LookupError, AttributeError, NotImplementedError)) as caught:
        triton_steps.step_triton("bounded", step, [NUMBERS] * 3)
    if copied == Fit.BUT_GRADIENT:
        # It is copied by torch, which refuses what it cannot copy.
        assert handed_out or not isinstance(caught.value, LookupError)
    else:
        assert isinstance(caught.value, ValueError) and not handed_out


@pytest.mark.parametrize("unfit", UNFIT)
def test_the_triton_form_sums_only_what_it_can_read(monkeypatch, unfit):
    monkeypatch.setattr(triton_steps, "exists", lambda device, dtype: True)
    moments = [torch.rand(4, 6), UNFIT[unfit](torch.rand(4, 6))]

    def no_launch():
        raise LookupError("no launch here")

    monkeypatch.setattr(triton_steps, "_launch", no_launch)
    readable = unfit in ("longer", "shorter", "other shape", "transposed")
    if readable:
        with pytest.raises(LookupError):
            triton_steps.rate_sums_triton(moments, [1.0, 1.0], [0.1, 0.1])
    else:
        assert triton_steps.rate_sums_triton(moments, [1.0, 1.0], [0.1, 0.1]) is None


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int16])
@pytest.mark.parametrize("unfit", [*UNFIT, "as it is"])
@pytest.mark.parametrize("column", COLUMNS)
def test_the_native_look_and_the_plain_one_agree(column, unfit, dtype):
    if unfit == "waits for its sign" and dtype in (torch.bfloat16, torch.int16):
        return  # there are no such complex numbers
    step = tensors()
    step.parameters = [p.to(dtype) for p in step.parameters]
    step.gradients = [g.to(dtype) for g in step.gradients]
    if dtype is torch.float64:
        for moments in step.moments():
            moments[:] = [m.double() for m in moments]
    getattr(step, column)[1] = UNFIT.get(unfit, lambda t: t)(getattr(step, column)[1])
    codes = native().optim_fits((step.parameters, step.gradients, *step.moments()))
    rows = zip(step.parameters, step.gradients, *step.moments(), strict=True)
    plain = [fit_reference(parameter, gradient, moments) for parameter, gradient, *moments in rows]
    assert (codes or [Fit.FULLY] * 3) == plain


@needs_native
def test_a_dispatch_mode_or_a_transform_keeps_the_native_form_away():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = StepTensors(*([torch.ones(4)] for _ in range(4)), [None])
        assert plan_step(fake).carriers == ["single"]
    assert native().optim_fits((fake.parameters, fake.gradients, *fake.moments())) == [2]

    seen = []

    def look(x):
        seen.append(native_steps.exists())
        return x.sum()

    torch.func.grad(look)(torch.ones(3))
    assert seen == [False]


def test_steps_in_front_of_a_refused_plan_are_not_taken():
    step = tensors()
    step.exp_avg_sqs[2] = torch.zeros(5)
    before = [p.clone() for p in step.parameters]
    with pytest.raises(RequestError, match=r"state of parameter 2 \('exp_avg_sq'\), shape"):
        optimizers.run_step("delayed", [StepRequest(step)], [[NUMBERS] * 3])
    assert all(map(torch.equal, step.parameters, before))
