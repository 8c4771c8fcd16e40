"""Changes tensors under an optimizer or a method between two steps, and reports what came of it.

Runs in a process of its own, which a careless native step may kill. Prints a line a trial: the
case, the change, and "right", "refused: ..." or "wrong: ...".
"""

import copy
import warnings

import torch
from entries import cases
from short_training import Training
from torch import nn

ROWS, COLUMNS = 9, 7


def optimizer_of(case, parameters):
    arguments = {key: value for key, value in case.section.items() if key != "name"}
    return case.factory(parameters, **arguments)


def parameter_of(rows=ROWS, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return nn.Parameter(torch.randn(rows, COLUMNS, generator=generator).to(dtype))


def gradient_of(parameter, step):
    generator = torch.Generator().manual_seed(10 + step)
    gradient = torch.randn(parameter.shape, generator=generator)
    return gradient.to(parameter.dtype)


def advance(optimizer, parameter, steps):
    for step in steps:
        parameter.grad = gradient_of(parameter, step)
        optimizer.step()


def moments(optimizer, parameter):
    state = optimizer.state[parameter]
    return {
        name: value
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape
    }


def to_double(optimizer, parameter):
    parameter.data = parameter.data.double()


def to_half(optimizer, parameter):
    parameter.data = parameter.data.bfloat16()


def grown(optimizer, parameter):
    parameter.data = torch.cat([parameter.data] * 40)


def shrunk(optimizer, parameter):
    parameter.data = parameter.data[:1].clone()


def other_strides(optimizer, parameter):
    parameter.data = parameter.data.t().contiguous().t()


def overlapping(optimizer, parameter):
    parameter.data = torch.as_strided(parameter.data, parameter.shape, (1, 1))


def moments_to_double(optimizer, parameter):
    for name, value in moments(optimizer, parameter).items():
        optimizer.state[parameter][name] = value.double()


def moments_to_half(optimizer, parameter):
    for name, value in moments(optimizer, parameter).items():
        optimizer.state[parameter][name] = value.bfloat16()


def moments_of_integers(optimizer, parameter):
    for name, value in moments(optimizer, parameter).items():
        optimizer.state[parameter][name] = value.to(torch.int16)


def moments_shrunk(optimizer, parameter):
    for name, value in moments(optimizer, parameter).items():
        optimizer.state[parameter][name] = value[:1].clone()


def moments_of_other_strides(optimizer, parameter):
    for name, value in moments(optimizer, parameter).items():
        optimizer.state[parameter][name] = value.t().contiguous().t()


def moments_elsewhere(optimizer, parameter):
    for name, value in moments(optimizer, parameter).items():
        optimizer.state[parameter][name] = value.to("meta")


def state_of_another_shape(optimizer, parameter):
    other = parameter_of(rows=1)
    elsewhere = type(optimizer)([other], lr=optimizer.param_groups[0]["lr"])
    for key in ("momentum",):
        if key in elsewhere.param_groups[0]:
            elsewhere.param_groups[0][key] = optimizer.param_groups[0][key]
    advance(elsewhere, other, range(2))
    optimizer.load_state_dict(copy.deepcopy(elsewhere.state_dict()))


# What may go on, but then as if nothing had been changed, to the precision of the coarser type.
TOLERANCE = {
    to_double: 1e-4,
    to_half: 0.1,
    other_strides: 1e-5,
    moments_to_double: 1e-4,
    moments_to_half: 0.1,
    moments_of_other_strides: 1e-5,
}
# What has no right result. Torch's SGD goes on with moments on another device.
REFUSED = {
    grown,
    shrunk,
    moments_of_integers,
    moments_shrunk,
    moments_elsewhere,
    state_of_another_shape,
}
# What only has to leave the process alive, as several results are right.
SURVIVED = {overlapping}


def trial(case, change):
    """What came of a change after two steps, in words."""
    parameter, untouched = parameter_of(), parameter_of()
    optimizer, other = (optimizer_of(case, [p]) for p in (parameter, untouched))
    advance(optimizer, parameter, range(2))
    advance(other, untouched, range(4))
    stateless = not moments(optimizer, parameter)
    try:
        change(optimizer, parameter)
        advance(optimizer, parameter, range(2, 4))
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        return f"refused: {type(error).__name__}: {str(error).splitlines()[0]}"
    if change in REFUSED and not stateless and case.is_ours:
        return "wrong: not refused"
    if change in TOLERANCE:
        limit = TOLERANCE[change]
        if not torch.allclose(parameter.double(), untouched.double(), rtol=limit, atol=limit):
            difference = (parameter.double() - untouched.double()).abs().max().item()
            return f"wrong: off by {difference:.3g}"
    return "right"


def state_of_another_class(case, other_case):
    """What comes of another optimizer's state: as torch does, it may load where the names agree."""
    parameter, other = parameter_of(), parameter_of()
    optimizer, elsewhere = optimizer_of(case, [parameter]), optimizer_of(other_case, [other])
    advance(elsewhere, other, range(2))
    try:
        optimizer.load_state_dict(copy.deepcopy(elsewhere.state_dict()))
        advance(optimizer, parameter, range(2, 4))
    except (RuntimeError, ValueError, TypeError) as error:
        return f"refused: {type(error).__name__}: {str(error).splitlines()[0]}"
    except KeyError as error:
        # torch's own name the option or the moment that is missing, and no more.
        return f"wrong: KeyError: {error}" if case.is_ours else f"refused: KeyError: {error}"
    return "right" if parameter.isfinite().all() else "wrong: not finite"


def network_to_double(case):
    """A method whose network becomes double between two steps."""
    training = Training(case, "convnet").run(4)
    training.model.double()
    training.dtype = torch.float64
    try:
        training.run()
        training.finish()
    except (RuntimeError, ValueError, TypeError) as error:
        return f"refused: {type(error).__name__}: {str(error).splitlines()[0]}"
    weights = list(training.model.parameters())
    if not all(p.dtype is torch.float64 and p.isfinite().all() for p in weights):
        return "wrong: not finite or not double"
    return "right"


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for case in cases("optimizer"):
        for change in (*TOLERANCE, *sorted(REFUSED | SURVIVED, key=lambda c: c.__name__)):
            print(f"{case}/{change.__name__}", end="/", flush=True)
            print(trial(case, change), flush=True)
        for other in cases("optimizer"):
            print(f"{case}/state_of_{other}", end="/", flush=True)
            print(state_of_another_class(case, other), flush=True)
    for case in cases("method"):
        print(f"{case}/network_to_double", end="/", flush=True)
        print(network_to_double(case), flush=True)


if __name__ == "__main__":
    main()
