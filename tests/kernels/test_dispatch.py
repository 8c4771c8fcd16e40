"""The choice between compiled kernels and references."""

import os
import subprocess
import textwrap

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from warm_python import run

from latewood.errors import RequestError
from latewood.kernels.dispatch import native, native_for


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(["-c", textwrap.dedent(code)], env={**os.environ, **environment})


needs_native = pytest.mark.skipif(native() is None, reason="the compiled kernels are not built")


def test_reference_can_be_forced(monkeypatch):
    monkeypatch.setenv("LATEWOOD_KERNELS", "reference")
    assert native() is None
    assert native_for(torch.zeros(3)) is None


def test_unknown_choice_is_refused(monkeypatch):
    monkeypatch.setenv("LATEWOOD_KERNELS", "fastest")
    with pytest.raises(RequestError, match="LATEWOOD_KERNELS: got 'fastest'; expected 'reference'"):
        native()


@needs_native
def test_compiled_kernels_are_the_default(monkeypatch):
    monkeypatch.delenv("LATEWOOD_KERNELS", raising=False)
    assert native().instruction_set() in ("baseline", "avx2", "avx512")
    assert native_for(torch.zeros(3), torch.zeros(3)) is native()


@needs_native
@pytest.mark.parametrize(
    "tensors",
    [
        [torch.zeros(3, dtype=torch.float64)],
        [torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16)],
        [torch.zeros(4, 4)[:, ::2]],
        [torch.zeros(3, 4), torch.zeros(4, 3).T],
        [torch.zeros(2, device="meta")],
        [torch.nn.Buffer(torch.zeros(3)).as_subclass(type("Sub", (torch.Tensor,), {}))],
    ],
    ids=["float64", "mixed dtypes", "gaps", "different layouts", "meta", "subclass"],
)
def test_tensors_the_kernels_cannot_read_go_to_the_reference(tensors):
    assert native_for(*tensors) is None


@needs_native
def test_dense_layouts_go_to_the_kernels():
    for tensor, layout in [
        (torch.zeros(2, 3, 4, 4), torch.channels_last),
        (torch.zeros(2, 3, 4, 4, 4), torch.channels_last_3d),
    ]:
        moved = tensor.to(memory_format=layout)
        assert native_for(moved, moved.clone()) is native()
        assert native_for(moved, tensor) is None


@needs_native
def test_transforms_and_tracing_go_to_the_reference():
    seen = []

    def look(x):
        seen.append(native_for(x))
        return x.sum()

    torch.func.grad(look)(torch.zeros(3))
    torch.func.vmap(look)(torch.zeros(2, 3))
    with FlopCounterMode(display=False):
        look(torch.zeros(3))
    assert seen == [None, None, None]


def test_a_missing_module_gives_one_warning_and_the_reference_result():
    result = run_python(
        """
        import sys, warnings
        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name == "latewood.kernels._native":
                    raise ImportError("no such kernels here")
        sys.meta_path.insert(0, Blocker())
        import torch
        from latewood.kernels.masked_weight import masked_weight, masked_weight_reference
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            inputs = torch.randn(5), torch.randn(5), torch.tensor(3.0), 2.0
            for _ in range(3):
                assert torch.equal(masked_weight(*inputs), masked_weight_reference(*inputs))
        print(len(seen), seen[0].category.__name__, seen[0].message)
        """,
        LATEWOOD_KERNELS="",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("1 RuntimeWarning the compiled kernels cannot be loaded")
    assert "no such kernels here" in result.stdout


def test_no_warning_when_the_reference_was_asked_for():
    result = run_python(
        """
        import sys, warnings
        sys.modules["latewood.kernels._native"] = None
        warnings.simplefilter("error")
        from latewood.kernels.dispatch import native
        print(native())
        """,
        LATEWOOD_KERNELS="reference",
    )
    assert result.stdout == "None\n", result.stderr


@needs_native
@pytest.mark.parametrize("limit", ["baseline", "avx2"])
def test_instruction_set_can_be_limited(limit):
    code = "from latewood.kernels.dispatch import native; print(native().instruction_set())"
    chosen = run_python(code, LATEWOOD_INSTRUCTION_SET=limit).stdout.strip()
    order = ["baseline", "avx2", "avx512"]
    assert chosen in order[: order.index(limit) + 1]


@needs_native
@pytest.mark.parametrize(
    "broken",
    [
        lambda t: t.to_sparse(),
        lambda t: t[:1].expand(4, 6),
        lambda t: torch.zeros(12).as_strided((4, 6), (2, 1)),
        lambda t: torch.complex(t, t).conj().imag,
        lambda t: t.reshape(6, 4),
        lambda t: torch.zeros(2, 4, 6),
        lambda t: (t.untyped_storage().resize_(0), t)[1],
        lambda t: (t.untyped_storage().resize_(90), t)[1],
        lambda t: torch._efficientzerotensor((4, 6)),
    ],
    ids=["sparse", "expanded", "windows", "sign", "shape", "size", "freed", "cut", "zero"],
)
def test_memory_that_is_not_as_it_seems_goes_to_the_reference(broken):
    whole = torch.ones(4, 6)
    assert native_for(whole, broken(torch.ones(4, 6))) is None
