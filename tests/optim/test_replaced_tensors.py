"""Tensors that no longer belong together: the step is refused whole, or taken right."""

import contextlib
import copy
import itertools
import os
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import Parameter
from warm_python import run

from latewood.errors import LatewoodError, RequestError
from latewood.optim import CSGD, AdaBound, AMSBound, AvaGrad, AvaGradW, DelayedAdam

CASES = [
    (AvaGrad, {}),
    (AvaGrad, {"gamma_mode": "official", "gamma_scope": "tensor"}),
    (AvaGradW, {"weight_decay": 0.1}),
    (DelayedAdam, {}),
    (AdaBound, {}),
    (AMSBound, {}),
    (CSGD, {"momentum": 0.9}),
    (CSGD, {}),
]
SHAPES = [(6, 5), (7,), (2, 3, 4, 5)]


def freed(tensor, bytes_left=0):
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(bytes_left)
    return tensor


# What may happen to one tensor. The first row fits no more, the second means what it meant.
BROKEN = {
    "double": lambda t: t.double(),
    "longer": lambda t: torch.cat([t, t]),
    "shorter": lambda t: t[:1].clone(),
    "flat": lambda t: t.reshape(1, -1),
    "expanded": lambda t: t[:1].expand(t.shape),
    "freed": freed,
    "cut": lambda t: freed(t, 2 * t.element_size()),
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
    "complex": lambda t: t.to(torch.complex64),
}
ODD = {
    "half": lambda t: t.half(),
    "gaps": lambda t: torch.stack([t, t + 1], -1)[..., 0],
    "shifted": lambda t: torch.cat([t.new_zeros(3), t.flatten()])[3:].view(t.shape),
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "unsigned yet": lambda t: torch.complex(torch.zeros_like(t), -t).conj().imag,
}  # fmt: skip


def prepared(optimizer_class, options):
    """An optimizer two steps old, with gradients for the third, in two groups."""
    generator = torch.Generator().manual_seed(0)
    parameters = [Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    groups = [{"params": parameters[:1]}, {"params": parameters[1:]}]
    optimizer = optimizer_class(groups, lr=0.1, **options)
    for k in range(3):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        if k < 2:
            optimizer.step()
    return parameters, optimizer


def replace(parameters, optimizer, index, name, change):
    """Applies a change to one tensor of the parameter at an index; False where there is none."""
    parameter = parameters[index]
    if name in ("data", "grad"):
        tensor = parameter if name == "data" else parameter.grad
        try:
            tensor.data = change(tensor.detach())
        except RuntimeError:
            return False
        return True
    if name not in optimizer.state[parameter]:
        return False
    optimizer.state[parameter][name] = change(optimizer.state[parameter][name])
    return True


def tensors_of(parameters, optimizer):
    """Every number of a model and its optimizer, but for tensors that have no memory to read."""
    groups = [
        g["gamma"] for g in optimizer.param_groups if isinstance(g.get("gamma"), torch.Tensor)
    ]
    states = [
        value
        for p in parameters
        for value in optimizer.state.get(p, {}).values()
        if isinstance(value, torch.Tensor)
    ]
    readable = []
    for tensor in [*(p.detach() for p in parameters), *states, *groups]:
        if tensor.layout is torch.sparse_coo:
            readable.append(tensor.to_dense())
        elif tensor.device.type == "meta" or tensor.untyped_storage().nbytes() < 4 * min(
            tensor.numel(), 5
        ):
            continue
        else:
            readable.append(tensor.clone())
    return readable


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize(("optimizer_class", "extra"), CASES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    index=st.integers(0, 2),
    name=st.sampled_from(["data", "grad", "step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"]),
    change=st.sampled_from([*BROKEN, *ODD]),
)
def test_one_changed_tensor_is_refused_whole_or_stepped_like_the_reference(
    optimizer_class, extra, options, index, name, change
):
    outcomes = []
    for kernels in ("native", "reference"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LATEWOOD_KERNELS", kernels)
            parameters, optimizer = prepared(optimizer_class, {**extra, **options})
            if name == "step" and change in ("transposed", "gaps", "expanded", "longer", "shorter"):
                return
            if not replace(parameters, optimizer, index, name, {**BROKEN, **ODD}[change]):
                return
            before = tensors_of(parameters, optimizer)
            error = None
            try:
                optimizer.step()
            except LatewoodError as raised:
                error = raised
            after = tensors_of(parameters, optimizer)
            if error is not None:
                assert all(map(torch.equal, before, after)), "refused, but something has changed"
            outcomes.append((type(error), str(error), after))
    (kind, message, native), (other_kind, other_message, reference) = outcomes
    assert kind is other_kind and message == other_message
    for a, b in zip(native, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3 if change == "half" else 1e-5, atol=1e-5)


@pytest.mark.parametrize("change", BROKEN)
@pytest.mark.parametrize("name", ["data", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"])
def test_what_fits_no_more_is_refused_by_name(name, change):
    parameters, optimizer = prepared(AMSBound, {})
    replaced = replace(parameters, optimizer, 2, name, BROKEN[change])
    # Data and gradients of another layout or device torch refuses itself.
    assert replaced == (name not in ("data", "grad") or change not in ("sparse", "meta"))
    if not replaced:
        return
    if (name, change) in (("grad", "double"), ("grad", "expanded")):
        optimizer.step()
        return
    label = {"data": "parameter 2", "grad": "gradient of parameter 2"}
    if name == "data" and change in ("double", "longer", "shorter", "flat"):
        # The parameter is what counts; the first thing that no longer belongs to it is named.
        label = {"data": "gradient of parameter 2|state of parameter 2 "}
    with pytest.raises(
        LatewoodError, match=label.get(name, f"state of parameter 2 \\('{name}'\\)")
    ):
        optimizer.step()


@pytest.mark.parametrize("change", sorted(ODD.keys() - {"half"}))  # half is another precision
@pytest.mark.parametrize("name", ["grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"])
def test_what_lies_elsewhere_is_stepped_as_before(name, change):
    results = []
    for changed in (False, True):
        parameters, optimizer = prepared(AMSBound, {})
        if changed:
            assert replace(parameters, optimizer, 2, name, ODD[change])
        optimizer.step()
        results.append([p.detach() for p in parameters])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_the_message_says_what_was_expected_and_why():
    parameters, optimizer = prepared(AvaGrad, {})
    optimizer.state[parameters[2]]["exp_avg"] = torch.zeros(4, 5)
    with pytest.raises(
        RequestError,
        match=r"state of parameter 2 \('exp_avg'\), shape: got \(4, 5\); expected that of its "
        r"parameter, \(2, 3, 4, 5\); was the parameter replaced, or the state loaded from another",
    ):
        optimizer.step()


def test_a_named_parameter_is_called_by_its_name():
    layer = nn.Linear(3, 2)
    optimizer = AdaBound(layer.named_parameters())
    layer(torch.ones(3)).sum().backward()
    optimizer.step()
    optimizer.state[layer.bias]["exp_avg_sq"] = torch.zeros(3)
    with pytest.raises(RequestError, match=r"state of parameter 'bias' \('exp_avg_sq'\), shape"):
        optimizer.step()


@pytest.mark.parametrize("step", [None, 3, torch.zeros(2), torch.zeros(1)], ids=str)
def test_a_count_that_is_no_number_is_refused(step):
    parameters, optimizer = prepared(AdaBound, {})
    optimizer.state[parameters[1]]["step"] = step
    before = copy.deepcopy(parameters)
    with pytest.raises(RequestError, match=r"state of parameter 1 \('step'\), value"):
        optimizer.step()
    assert all(map(torch.equal, parameters, before))
    assert optimizer.state[parameters[0]]["step"].item() == 2


# What ended the process, or changed weights without a word, before tensors were looked at.
CRASHES = {
    "model.double()": "model.double(); backward()",
    "data of another precision": """
for p in model.parameters():
    p.data = p.data.double()
backward()
""",
    "data of another size": "model.weight.data = torch.ones(40, 3); backward()",
    "a state from another layer": """
other = torch.nn.Linear(3, 1)
donor = make(other.parameters())
other(torch.ones(2, 3)).sum().backward()
donor.step()
model(torch.ones(2, 3)).sum().backward()
optimizer.load_state_dict(donor.state_dict())
""",
    "a moment without memory": """
backward()
for state in optimizer.state.values():
    for name, value in state.items():
        if name != 'step': value.untyped_storage().resize_(0)
""",
}


@pytest.mark.parametrize("happening", CRASHES)
def test_no_process_dies_of_it(happening):
    cases = [(optimizer_class.__name__, extra) for optimizer_class, extra in CASES]
    code = f"""
import gc, torch
import latewood.optim
from latewood.errors import LatewoodError
for name, extra in {cases!r}:
    def make(parameters):
        return getattr(latewood.optim, name)(parameters, lr=0.1, **extra)
    model = torch.nn.Linear(3, 20)
    def backward():
        model.weight.grad, model.bias.grad = (torch.ones_like(p) for p in model.parameters())
    optimizer = make(model.parameters())
    for _ in range(2):
        backward()
        optimizer.step()
{textwrap.indent(CRASHES[happening], "    ")}
    before = [p.detach().clone() for p in model.parameters()]
    refused = 0
    for _ in range(20):
        try:
            optimizer.step()
        except LatewoodError as error:
            assert all(map(torch.equal, before, model.parameters()))
            refused += 1
        # What was overwritten shows when memory is given back and handed out again.
        gc.collect(0)
        filler = [torch.ones(k) for k in range(200)]
    # Without momentum there is no state that could be of another kind.
    assert refused == (0 if name == "CSGD" and not extra else 20), (name, extra, refused)
"""
    done = run(["-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("optimizer_class", "extra"), CASES)
def test_a_converted_model_goes_on_once_its_state_is_converted(optimizer_class, extra):
    model = nn.Linear(3, 2)
    optimizer = optimizer_class(model.parameters(), lr=0.1, **extra)

    def step():
        optimizer.zero_grad()
        model(torch.ones(3, dtype=model.weight.dtype)).square().sum().backward()
        optimizer.step()

    step()
    step()
    model.double()
    with (
        pytest.raises(RequestError, match=r"load_state_dict\(optimizer.state_dict\(\)\)")
        if (optimizer_class is not CSGD or extra)
        else contextlib.nullcontext()
    ):
        step()
    optimizer.load_state_dict(optimizer.state_dict())
    before = model.weight.detach().clone()
    step()
    assert not torch.equal(before, model.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("optimizer_class", "extra"), CASES)
def test_a_model_made_narrower_keeps_its_moments(optimizer_class, extra, dtype):
    results = []
    for kernels in ("native", "reference"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LATEWOOD_KERNELS", kernels)
            parameters, optimizer = prepared(optimizer_class, extra)
            for p in parameters:
                p.data = p.data.to(dtype)
                p.grad = p.grad.to(dtype)
            optimizer.step()
            results.append([p.detach().float() for p in parameters])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("optimizer_class", "extra"), CASES)
def test_a_change_of_memory_format_between_steps_changes_no_result(optimizer_class, extra):
    results = []
    for toggled in (False, True):
        generator = torch.Generator().manual_seed(0)
        conv = nn.Conv2d(3, 4, 3)
        with torch.no_grad():
            for p in conv.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        optimizer = optimizer_class(conv.parameters(), lr=0.1, **extra)
        for k in range(4):
            if toggled and k == 2:
                conv.to(memory_format=torch.channels_last)
            for p in conv.parameters():
                gradient = torch.randn(p.shape, generator=generator)
                p.grad = torch.empty_like(p).copy_(gradient)
            optimizer.step()
        results.append([p.detach() for p in conv.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("optimizer_class", "extra"), CASES)
def test_a_copied_optimizer_steps_its_own_copies(optimizer_class, extra):
    pair = prepared(optimizer_class, extra)
    copies = copy.deepcopy(pair)
    for p, copied in zip(pair[0], copies[0], strict=True):
        copied.grad = p.grad.clone()
    before = tensors_of(*pair)
    copies[1].step()
    assert all(map(torch.equal, before, tensors_of(*pair)))
    pair[1].step()
    assert all(map(torch.equal, tensors_of(*pair), tensors_of(*copies)))


def test_a_conjugated_gradient_is_read_with_its_sign():
    for seed, kernels in itertools.product(range(2), ("native", "reference")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LATEWOOD_KERNELS", kernels)
            generator = torch.Generator().manual_seed(seed)
            values = torch.randn(2, 5, dtype=torch.complex64, generator=generator)
            p, q = (Parameter(values[0].clone()) for _ in range(2))
            p.grad, q.grad = values[1].conj(), values[1].conj().resolve_conj()
            for x in (p, q):
                CSGD([x], lr=0.1).step()
            assert torch.equal(p, q)
