"""Compiled products that compute something else are found out before they are used."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from latewood.kernels.dispatch import native
from latewood.kernels.mixed_products import mixed_matmul, product_choice, self_test
from latewood.kernels.mixed_products.product_choice import widths_by_table
from latewood.kernels.mixed_products.self_test import form_in_use, sound_native

pytestmark = pytest.mark.skipif(native() is None, reason="without the compiled kernels")


class Broken:
    """The compiled kernels, whose products in some forms are off by one in one place."""

    def __init__(self, *forms: str, sums: bool = True, raises: bool = False) -> None:
        self.module, self.broken, self.sums, self.raises = native(), forms, sums, raises
        self.form = self.module.mixed_forms()[0]  # type: ignore[union-attr]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def mixed_use(self, form: str) -> None:
        self.form = form
        self.module.mixed_use(form)  # type: ignore[union-attr]

    def mixed_run(self, prepared: Any, inputs: Any, target: Any, *others: Any) -> bool:
        if self.form in self.broken and self.raises:
            raise RuntimeError("no such instruction")
        fine: bool = self.module.mixed_run(prepared, inputs, target, *others)  # type: ignore[union-attr]
        if self.form in self.broken and (target.dtype == torch.int32) == self.sums:
            target.view(-1)[-1] += 1
        return fine


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module = native()
    assert module is not None
    monkeypatch.setattr(self_test, "_TESTED", {})
    yield
    module.mixed_use(module.mixed_forms()[0])
    widths_by_table.cache_clear()


def test_every_form_of_this_processor_passes() -> None:
    module = native()
    assert module is not None
    forms = module.mixed_forms()
    assert forms[0] == module.instruction_set() and forms[-1] == "baseline"
    for form in forms:
        module.mixed_use(form)
        results = list(self_test._results(module))
        assert len(results) == 16 and all(fine for _, fine in results)


def test_the_test_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = native()
    assert module is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sound_native() is module
    assert form_in_use(module) == module.mixed_forms()[0]
    monkeypatch.setattr(self_test, "_results", lambda _: pytest.fail("tested again"))
    assert sound_native() is module


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("sums", [True, False])
def test_a_broken_form_is_named_and_not_used(
    sums: bool, raises: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = native()
    assert module is not None
    best = module.mixed_forms()[0]
    broken = Broken(best, sums=sums, raises=raises)
    monkeypatch.setattr(self_test, "native", lambda: broken)
    codes = torch.randint(0, 4, (5, 9), dtype=torch.uint8)
    expected = (2 * codes.long() - 3) @ (2 * codes.long() - 3).t()
    with pytest.warns(RuntimeWarning, match=f"the {best} form of the kernels"):
        assert torch.equal(mixed_matmul(codes, codes, 2), expected.int())
    others = module.mixed_forms()[1:]
    assert form_in_use(broken) == (others[0] if others else "")


def test_without_a_sound_form_the_reference_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = native()
    assert module is not None
    broken = Broken(*module.mixed_forms())
    monkeypatch.setattr(self_test, "native", lambda: broken)
    codes = torch.randint(0, 2, (3, 7), dtype=torch.uint8)
    with pytest.warns(RuntimeWarning) as caught:
        sums = mixed_matmul(codes, codes, 1)
    assert torch.equal(sums, ((2 * codes.long() - 1) @ (2 * codes.long() - 1).t()).int())
    assert len(caught) == len(module.mixed_forms()) and sound_native() is None


def test_an_unknown_form_is_refused() -> None:
    module = native()
    assert module is not None
    with pytest.raises(ValueError, match="no such form"):
        module.mixed_use("quantum")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATEWOOD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(product_choice, "_SECONDS", 0.001)
    widths_by_table.cache_clear()
    return tmp_path / "cache"


def test_the_choice_is_kept_and_found_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = native()
    chosen = widths_by_table(module)
    assert set(chosen) <= {1, 2}
    (path,) = folder.iterdir()
    kept = json.loads(path.read_text())
    assert kept["widths"] == chosen and kept["processor"]
    path.write_text(json.dumps({**kept, "widths": [2]}))
    widths_by_table.cache_clear()
    assert widths_by_table(module) == [2]
    # Another processor measures for itself.
    monkeypatch.setattr(product_choice, "_processor", lambda: "another")
    monkeypatch.setattr(product_choice, "_table_is_faster", lambda _, width: width == 1)
    widths_by_table.cache_clear()
    assert widths_by_table(module) == [1]
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", '{"widths": [1]}', b"\xff\xfe", "[" * 100_000],
)
def test_a_broken_cache_is_ignored(
    content: str | bytes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product_choice, "_table_is_faster", lambda *_: True)
    module = native()
    widths_by_table(module)
    (path,) = folder.iterdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    widths_by_table.cache_clear()
    assert widths_by_table(module) == [1, 2]
    assert json.loads(path.read_text())["widths"] == [1, 2]


@pytest.mark.parametrize("widths", [[3], [1, 1], "12", None, [[1]], [2, 1]])
def test_a_cached_answer_that_is_none_is_measured_again(
    widths: object, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product_choice, "_table_is_faster", lambda *_: False)
    module = native()
    widths_by_table(module)
    (path,) = folder.iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), "widths": widths}))
    widths_by_table.cache_clear()
    assert widths_by_table(module) == []


def test_a_cache_that_cannot_be_written_is_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LATEWOOD_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(product_choice, "_SECONDS", 0.001)
    widths_by_table.cache_clear()
    assert set(widths_by_table(native())) <= {1, 2}
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("slow", [True, False])
def test_the_faster_method_is_chosen(slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def multiplied(module: Any, prepared: Any, *_: Any, **__: Any) -> bool:
        nonlocal now
        now += 0.002 if prepared == slow else 0.001
        return True

    monkeypatch.setattr(product_choice, "lay_out", lambda _, __, tables: bool(tables))
    monkeypatch.setattr(product_choice, "multiply", multiplied)
    monkeypatch.setattr(product_choice.time, "perf_counter", lambda: now)
    assert product_choice._table_is_faster(None, 1) is not slow
