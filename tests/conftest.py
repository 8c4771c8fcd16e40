"""What holds for every test: which skips CI allows, and torchvision beside any build of torch."""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ALLOWED_SKIPS = re.compile(
    r"CUDA|GPU"  # hardware that CI's machine lacks
    r"|this machine has no"
    r"|LATEWOOD_DATA"  # real data
    r"|root may"  # CI runs as root
    r"|interpreter|already limited"  # tests that another test calls in a process of their own
)
"""Reasons to skip a test that CI lets pass: all the others are something that it has to install."""


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI, fails what was skipped for want of something that CI should have."""
    if not os.environ.get("CI") or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not ALLOWED_SKIPS.search(reason):
        report.outcome = "failed"
        report.longrepr = f"CI must not skip this ({reason}): install it in .[dev] or in .ci/run"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    refuse_skip(report)
    return report


def declare_missing_operators() -> torch.library.Library | None:
    """Lets torchvision be imported where its compiled operators do not fit the build of torch.

    The package index has torchvision for CUDA only. Beside the CPU build of torch its library does
    not load, and ``import torchvision`` (and with it that of transformers and lightning) stops at
    two operators for boxes that are then unknown. Declared without a kernel they let everything
    else work; called, they raise.
    """
    package = find_spec("torchvision")
    if package is None or package.origin is None:
        return None
    try:
        for path in Path(package.origin).parent.glob("_C*.so"):
            torch.ops.load_library(path)
            return None
    except OSError:
        pass
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


# What a Library declares ends with it.
TORCHVISION = declare_missing_operators()
