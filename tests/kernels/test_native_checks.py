"""Every native function looks at every tensor it is handed: a property over all of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latewood.kernels.dispatch import native

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels are not built")

ROWS, COLUMNS = 4, 6
SIDE = 8


def floats(count):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(ROWS, COLUMNS, generator=generator) for _ in range(count)]


def inpainting():
    images = torch.rand(2, 3, SIDE, SIDE)
    starts = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    starts[:, 2:5, 2:5] = True
    outcome = [torch.zeros(2, dtype=dtype) for dtype in (torch.int64, torch.int64, torch.bool)]
    scores = [torch.zeros(2, dtype=torch.float64) for _ in range(2)]
    tensors = [images, starts, torch.zeros_like(starts), *outcome, *scores]
    rest = (2, 3, SIDE, SIDE, [0.5, 0.25], 1, 4, 1.0, 2, 1)
    return tensors, lambda function, t: function(*t, *rest)


def optim_step(rule):
    numbers = [0.1, 0.9, 0.99, 0.1, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0]

    def call(function, t):
        columns = tuple([tensor] for tensor in t[:5])
        return function(rule, 2 if rule == 1 else 0, columns, [0], numbers, [], [t[5]], 1)

    return [*floats(5), torch.tensor(3.0)], call


def staged_step(function, t):
    runs = ([2, ROWS], [0, 1]), ([3, COLUMNS], [0, 1])
    numbers = [0.1, 1.0, 0.0, 0.9, 0.1, 0.99, 0.01, 1.0, 1e-8, 0.0] * 2
    function(*([tensor] for tensor in t), *([of] for of in runs), [numbers], 1)
    return "taken"


def prepared_codes():
    bits = torch.tensor([1, 1, 2, 4], dtype=torch.uint8)
    codes = torch.randint(2, (3, 4, 1, 2), generator=torch.Generator().manual_seed(0))
    return [codes.to(torch.uint8), torch.ones(3, 4, 1, 2, dtype=torch.bool), bits, bits.clone()]


def mixed_prepare(function, t):
    return function(*t, False, 3, 4, 2, [1, 2])


def mixed_run(numbers):
    """One image of 4 channels, 3 rows and 2 columns, with a kernel of two columns."""
    sizes = [1, 3, 2, 3, 1, 1, 2, 1, 1, 0, 0, 1, 1]
    source, target = torch.ones(1, 4, 3, 2), torch.zeros(1, 3, 3, 1)
    if numbers:
        tensors = [source, target, torch.ones(3), torch.zeros(3)]
    else:
        tensors = [source.to(torch.uint8), target.to(torch.int32)]

    def call(function, t):
        product = mixed_prepare(native().mixed_prepare, prepared_codes())
        scale, bias = t[2:] or (None, None)
        return function(product, t[0], t[1], scale, bias, 1.0, 0.0, sizes, False, False, 1)

    return tensors, call


def integer_network():
    """Numbers that become codes, a product with thresholds, another one, a norm, a float layer."""
    generator = torch.Generator().manual_seed(0)
    ones = torch.ones(4, dtype=torch.uint8)
    codes = torch.randint(2, (3, 4, 1, 2), generator=generator).to(torch.uint8)
    thresholds, signs = torch.zeros(3, 1, dtype=torch.int32), torch.ones(3, dtype=torch.int32)
    tensors = [
        *(torch.rand(1, 4, 3, 2), torch.zeros(1, 2, 3, 1), ones, ones[:3].clone()),
        *(codes, torch.ones(3, 4, 1, 2, dtype=torch.bool), ones.clone(), ones.clone()),
        *(torch.ones(3), torch.zeros(3), thresholds, signs, torch.zeros(1), torch.zeros(3)),
        *(torch.ones(2), torch.zeros(2), torch.ones(2, 3, 1, 1), torch.zeros(2)),
        *(codes[:, :3, :, :1].clone(), ones[:3].clone(), ones[:3].clone()),
    ]

    def call(function, t):
        network = function()
        shapes = ((4, 3, 2), (4, 3, 2), (3, 3, 1), (3, 3, 1), (2, 3, 1))
        for shape, bits in zip(shapes, (None, t[2], t[3], None, None), strict=True):
            network.buffer(*shape, bits)
        network.begin(0)
        network.epilogue(None, None, -1, -1, -1.0, 1.0)
        network.encoder(1, 1.0, 0.0, None, None, 0, t[12], t[13])
        network.numbers(0)
        network.epilogue(None, None, -1, -1, -1.0, 1.0)
        network.encoder(2, 1.0, 0.0, t[10], t[11], 1, t[12], t[13])
        taps = [3, 1, 1, 2, 1, 1, 0, 0, 1, 1]
        network.packed(1, *t[4:8], False, 3, taps, t[8], t[9], None)
        taps = [3, 1, 1, 1, 1, 1, 0, 0, 1, 1]
        network.epilogue(None, None, -1, 3, -1.0, 1.0)
        network.packed(2, t[18], None, t[19], t[20], False, 3, taps, t[8], t[9], None)
        network.epilogue(t[14], t[15], -1, 4, -1.0, 1.0)
        network.floating(3, t[16], t[17], 2, 1, taps)
        network.finish(4)
        return network.run(t[0], t[1], 1, 1) or None

    return tensors, call


NOISE_LAYOUT = (1, ROWS, COLUMNS, False, 5)
"""Of the noise: one stretch, its channels the rows; the key is 5."""


def noise_tensors():
    """Values, widths of the rows, and two more like the values and one like the widths."""
    values, *others = floats(3)
    return [values, torch.rand(ROWS), *others, torch.zeros(ROWS)]


def noise_backward(function, t):
    return function(t[0], t[1], (-1.0, 1.0), t[2], t[3], t[4], NOISE_LAYOUT, 1)


def cells():
    held = [torch.ones(ROWS, COLUMNS, dtype=torch.int32) for _ in range(2)]
    layout = ([[0, 0, 1, 3], [1, 0, -1, 3]], 2, 0, 7)

    def call(function, t):
        return function(*t, ROWS * COLUMNS, *layout, [1, 2, 3, 5], 100, 65000, 1)

    return held, call


SAME_BYTES = frozenset(("other shape", "transposed"))
"""Changes that leave a contiguous stretch of as many elements, in whatever order."""
ANY_SIZE = SAME_BYTES | {"longer", "shorter"}
SAME_SIZE = frozenset(("other shape", "longer", "shorter"))
"""Changes that leave a contiguous tensor."""

# Function -> its tensors, a call with them, and what may be changed of one without harm.
CALLS = {
    "optim_step, momentum": (*optim_step(0), frozenset()),
    "optim_step, delayed": (*optim_step(1), frozenset()),
    "optim_step, bounded": (*optim_step(2), frozenset()),
    "optim_fits": (
        floats(5),
        lambda function, t: None if function(tuple([x] for x in t)) else "all fit",
        frozenset(),
    ),
    "optim_rate_sums": (
        floats(2),
        lambda function, t: function(t, [1.0] * 2, [0.1] * 2, 1),
        ANY_SIZE | {"double"},
    ),
    "optim_counts": ([torch.tensor(1.0), torch.tensor(2.0)], lambda f, t: f(t), frozenset()),
    "staged_step": (floats(4), staged_step, frozenset()),
    "masked_weight_forward": (
        floats(3),
        lambda function, t: function(t[0], t[1], 1.0, 1.0, t[2], 1),
        frozenset(),
    ),
    "masked_weight_backward": (
        floats(5),
        lambda function, t: function(t[0], t[1], t[2], 1.0, 1.0, t[3], t[4], 1),
        frozenset(),
    ),
    "mask_sum_forward": (floats(1), lambda function, t: function(t[0], 1.0, 1.0, 1), ANY_SIZE),
    "mask_sum_backward": (
        floats(2),
        lambda function, t: function(1.0, t[0], 1.0, 1.0, t[1], 1),
        frozenset(),
    ),
    "noise_draw": (floats(1), lambda function, t: function(5, t[0], 1), SAME_SIZE),
    "noise_extent": (floats(1), lambda function, t: function(t[0], 1), ANY_SIZE),
    "noise_forward": (
        noise_tensors()[:3],
        lambda function, t: function(t[0], t[1], (-1.0, 1.0), t[2], NOISE_LAYOUT, 1),
        frozenset(("other shape",)),
    ),
    "noise_backward": (noise_tensors(), noise_backward, frozenset(("other shape",))),
    "inpainting_ascend": (*inpainting(), frozenset(("other shape",))),
    "faults_read_drawn": (*cells(), SAME_BYTES),
    "faults_draw_states": (
        [torch.zeros(ROWS, COLUMNS, dtype=torch.uint8)],
        lambda function, t: function(t[0], ROWS * COLUMNS, [1, 2, 3, 5], 100, 65000, 1),
        SAME_BYTES,
    ),
    "mixed_prepare": (prepared_codes(), mixed_prepare, SAME_BYTES | {"nothing"}),
    "mixed_run, codes": (*mixed_run(numbers=False), SAME_BYTES),
    "mixed_run, numbers": (*mixed_run(numbers=True), SAME_BYTES),
    "IntegerNetwork": (*integer_network(), SAME_BYTES | {"nothing"}),
    "alike": (floats(3), lambda function, t: function(*t) or None, frozenset()),
    "readable": (
        floats(1),
        lambda function, t: function(t[0]) or None,
        ANY_SIZE | {"double", "half", "integers"},
    ),
}
NOTHING_RETURNED = (
    *("masked", "mask_sum_backward", "inpainting", "faults"),
    *("noise_draw", "noise_forward", "noise_backward"),
)
WITHOUT_TENSORS = {"attach", "instruction_set", "mixed_forms", "mixed_use", "MixedProduct"}


def cut(tensor, bytes_left):
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(bytes_left)
    return tensor


def behind(tensor):
    whole = torch.cat([tensor.flatten(), tensor.flatten()])
    view = whole[tensor.numel() :].view(tensor.shape)
    whole.untyped_storage().resize_(tensor.nbytes)
    return view


CHANGES = {
    "double": lambda t: t.float() if t.dtype is torch.float64 else t.double(),
    "half": lambda t: t.half(),
    "integers": lambda t: t.int() if t.dtype is torch.int64 else t.long(),
    "complex": lambda t: t.to(torch.complex64),
    "longer": lambda t: torch.cat([t, t]) if t.dim() else t.repeat(2),
    "shorter": lambda t: t[:1].clone() if t.dim() else t.repeat(0),
    "other shape": lambda t: t.reshape(*t.shape, 1).transpose(0, -1).contiguous(),
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "gaps": lambda t: torch.stack([t, t], -1)[..., 0] if t.dim() else None,
    "shared places": lambda t: t[:1].expand(t.shape) if t.dim() else None,
    "shared windows": lambda t: t.flatten().as_strided(t.shape, (1,) * t.dim()),
    "no memory": lambda t: cut(t, 0),
    "half its memory": lambda t: cut(t, t.nbytes // 2),
    "a view without memory": behind,
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "quantised": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "subclass": lambda t: t.as_subclass(type("Sub", (torch.Tensor,), {})),
    "waits for its sign": lambda t: torch.complex(t.float(), t.float()).conj().imag,
    "an array": lambda t: t.numpy(),
    "nothing": lambda t: None,
    "a number": lambda t: 3.0,
}
LAST = {"no memory", "half its memory", "a view without memory"}
"""After these torch itself would read what is not there."""


def same(changed, tensor):
    """Whether a change has changed nothing, as transposing one row does."""
    return (
        type(changed) is torch.Tensor
        and changed.layout is torch.strided
        and not changed.is_meta
        and (changed.dtype, changed.shape) == (tensor.dtype, tensor.shape)
        and changed.untyped_storage().nbytes() == tensor.untyped_storage().nbytes()
        and (tensor.numel() < 2 or changed.stride() == tensor.stride())
        and not changed.is_neg()
    )


def test_no_function_is_left_out():
    functions = {name for name in dir(native()) if not name.startswith("_")}
    assert {name.partition(",")[0] for name in CALLS} == functions - WITHOUT_TENSORS


@pytest.mark.parametrize("name", CALLS)
def test_the_calls_themselves_are_right(name):
    tensors, call, _ = CALLS[name]
    result = call(getattr(native(), name.partition(",")[0]), [t.clone() for t in tensors])
    assert result is not None or name.startswith(NOTHING_RETURNED)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.data())
def test_one_changed_tensor_is_refused_and_nothing_is_written(data):
    name = data.draw(st.sampled_from(sorted(CALLS)), label="function")
    originals, call, harmless = CALLS[name]
    index = data.draw(st.integers(0, len(originals) - 1), label="tensor")
    changes = data.draw(
        st.lists(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=2, unique=True),
        label="changes",
    )
    tensors = [t.clone() for t in originals]
    changed = tensors[index]
    if changes[0] in LAST:
        changes = changes[:1]
    for change in changes:
        try:
            changed = CHANGES[change](changed)
        except (RuntimeError, TypeError, AttributeError, IndexError, ValueError):
            return  # these two do not go together
    # What is harmless alone may undo what was changed before.
    if harmless.intersection(changes) or same(changed, originals[index]):
        return
    # A moment that is not there is no wrong one, but where the rule needs it.
    if changed is None and name.startswith("optim") and index > 1:
        return
    before = [t.clone() for t in tensors]
    tensors[index] = changed
    refused = False
    try:
        refused = call(getattr(native(), name.partition(",")[0]), tensors) is None
        if name.startswith(NOTHING_RETURNED):
            refused = False  # they return nothing where all is well
    except (ValueError, TypeError):
        refused = True
    assert refused, (name, index, changes)
    for k, (tensor, old) in enumerate(zip(tensors, before, strict=True)):
        assert k == index or torch.equal(tensor, old)
