"""For every test: skips that CI allows, torchvision beside any torch, small data sets."""

from __future__ import annotations

import io
import os
import re
import wave
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

ALLOWED_SKIPS = re.compile(
    r"CUDA|GPU"  # hardware that CI's machine lacks
    r"|this machine has no"
    r"|cross compiler"  # .ci/run installs it where it may
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


LONGEST = (
    "tests/studies/sweeps/test_backends.py",
    "tests/core/coupling/test_strangers.py",
    "tests/studies/test_shrunk_runs.py",
    "tests/studies/tickets/test_ticket_search.py",
    "tests/studies/sweeps/test_sweep.py",
    "tests/test_cli.py",
    "tests/test_docs.py",
    "tests/test_fuzz.py",
    "tests/training/test_resume.py",
    "tests/training/test_distributed.py",
    "tests/core/test_transforms.py",
    "tests/growth/test_growth.py",
    "tests/growth/test_deepen.py",
    "tests/contracts/test_compiled_training.py",
    "tests/contracts/test_deepcopy.py",
    "tests/contracts/test_plain_state.py",
    "tests/contracts/test_two_processes.py",
    "tests/training/test_growing_runs.py",
    "tests/core/coupling/test_models.py",
    "tests/growth/test_widen.py",
    "tests/report/test_browser.py",
    "tests/test_import_cost.py",
)
"""Files of tests that take ten seconds and more, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Has the longest files run first: a process that gets one last keeps the others waiting."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.location[0], len(rank)))


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


def encode_image(pixels, form="PNG", **options):
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, form, **options)
    return buffer.getvalue()


def encode_wav(samples, *, rate=8000, width=2, channels=1):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples)
    return buffer.getvalue()


def write_parquet(path, contents, labels, *, column="img", label="label", row_group_size=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = [
        None if content is None else {"bytes": content, "path": f"{k}.x"}
        for k, content in enumerate(contents)
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({column: pa.array(stored, kind), label: pa.array(labels, pa.int64())})
    pq.write_table(table, path, row_group_size=row_group_size, compression="none")
    return path


class DataKit:
    """What the tests of data sources need to write their inputs."""

    image = staticmethod(encode_image)
    wav = staticmethod(encode_wav)
    parquet = staticmethod(write_parquet)

    @staticmethod
    def pictures(n, size=(8, 8), channels=3, seed=0):
        shape = (n, *size) if channels == 1 else (n, *size, channels)
        return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def data_kit():
    return DataKit


@pytest.fixture
def clean_places(tmp_path, monkeypatch):
    """No data and no cache but what the test makes."""
    monkeypatch.delenv("LATEWOOD_DATA", raising=False)
    monkeypatch.setenv("LATEWOOD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def picture_folder(tmp_path, data_kit):
    """40 training and 20 test images of 8x8 in ten classes, as Parquet."""
    folder = tmp_path / "pictures"
    for split, n, seed in (("train", 40, 0), ("test", 20, 1)):
        pictures = data_kit.pictures(n, seed=seed)
        data_kit.parquet(
            folder / f"{split}-00000-of-00001.parquet",
            [data_kit.image(picture) for picture in pictures],
            [k % 10 for k in range(n)],
            row_group_size=16,
        )
    return folder


TOKENS = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LAYERS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
SPEECH = {"num_mel_bins": 8, "max_source_positions": 30, "decoder_start_token_id": 1}
TWO_STACKS = {
    "d_model": 32,
    **{f"{half}_layers": 2 for half in ("encoder", "decoder")},
    **{f"{half}_attention_heads": 4 for half in ("encoder", "decoder")},
    **{f"{half}_ffn_dim": 48 for half in ("encoder", "decoder")},
}
CONFIGURATIONS = {
    "gpt2": ("GPT2LMHeadModel", {**TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "bert": ("BertForMaskedLM", {**TOKENS, **LAYERS}),
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    ),
    "llama": ("LlamaForCausalLM", {**TOKENS, **LAYERS, "num_key_value_heads": 2}),
    "mixtral": (
        "MixtralForCausalLM",
        {**TOKENS, **LAYERS, "num_key_value_heads": 2, "num_local_experts": 4},
    ),
    "whisper": ("WhisperForConditionalGeneration", {**TOKENS, **TWO_STACKS, **SPEECH}),
    "vit": ("ViTForImageClassification", {**LAYERS, "image_size": 32, "patch_size": 8}),
    "mamba": (
        "MambaForCausalLM",
        {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    ),
}


class TransformersKit:
    """Tiny models of transformers with random weights."""

    @staticmethod
    def build(name):
        """The model, in evaluation mode, and what it is called with."""
        transformers = pytest.importorskip("transformers")
        class_name, settings = CONFIGURATIONS[name]
        kind = getattr(transformers, class_name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = kind(kind.config_class(**settings)).eval()
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(3, 64, (2, 7), generator=generator)
        if name == "vit":
            return model, {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator)}
        if name == "whisper":
            features = torch.randn(2, 8, 60, generator=generator)
            return model, {"input_features": features, "decoder_input_ids": tokens}
        if name == "t5":
            return model, {"input_ids": tokens, "decoder_input_ids": tokens.flip(0)}
        return model, {"input_ids": tokens}


@pytest.fixture
def transformers_kit():
    return TransformersKit
