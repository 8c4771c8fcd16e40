"""What is asked of an architecture: that it is followed, cut, widened, slimmed and trained."""

from __future__ import annotations

import copy
import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from latewood.core import parameter_groups
from latewood.core.coupling import (
    NORMALISED,
    ChannelGroup,
    ChannelPlan,
    can_widen,
    slice_channels,
    trace_channels,
    verify_plan,
    widen_channels,
)
from latewood.core.coupling.model_runs import ModelRuns
from latewood.core.coupling.trace import layer_tensors, outputs_of, run_model
from latewood.core.selection import select_parameters
from latewood.errors import LatewoodError, WorkError
from latewood.slim import slim
from latewood.slim.comparison import mapped
from latewood.sparsity import FixedMasks
from latewood.sparsity.structured import StructuredSparsification

__all__ = [
    "CHECKS",
    "Findings",
    "Outcome",
    "Word",
    "WrongResult",
    "attempt",
    "check_architecture",
    "float_outputs",
    "in_double",
    "require_equal",
    "require_like",
]

Word = Literal["ok", "refused", "wrong", "error", "slow", "-"]

CHECKS: Final = ("trace", "verify", "halve", "slim", "widen", "train")
"""In order; where the trace fails the others are not tried."""
TOLERANCE: Final = 1e-12
SINGLE_TOLERANCE: Final = 1e-4
"""For networks whose operations have no float64 form."""
ADDED_CHANNELS: Final = 8
"""In each of two times; some kernels insist on multiples of it."""
STEPS: Final = 20
STEPS_PER_EPOCH: Final = 4


@dataclass(frozen=True)
class Outcome:
    """How a check ended.

    Args:
        word: "ok"; "refused" by an error of ours that says what is not possible; "wrong": the
            result is not that of the model, whether we noticed or not; "error": any other
            exception; "slow": over the limit of time; "-": not tried.
        reason: in one line; "" where it is ok.
        seconds: that it took.
    """

    word: Word
    reason: str = ""
    seconds: float = 0.0


@dataclass
class Findings:
    """What was found out about an architecture.

    Args:
        outcomes: by check.
        shares: of the weights that are in a free group, in one that only a norm holds, in others.
        reasons: why weights cannot change, and how many numbers are held by it, most first.
        seconds: that ``trace_channels`` took.
        change: of the outputs, as ``verify_plan`` gives it.
        plan: of the model, if it was traced.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    shares: tuple[float, float, float] = (0.0, 0.0, 1.0)
    reasons: list[tuple[str, int]] = field(default_factory=list)
    seconds: float = math.nan
    change: float = math.nan
    plan: ChannelPlan | None = None


class WrongResult(Exception):
    """A result that is not that of the model."""


class _OutOfTime(BaseException):
    """No Exception, which the code that is tried may catch."""


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(_: int, __: FrameType | None) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(action: Callable[[], object], limit: float) -> Outcome:
    """Does something that may fail in any way.

    Args:
        action: what to do.
        limit: seconds after which it is stopped.
    """
    start = time.perf_counter()
    word: Word = "ok"
    reason = ""
    try:
        with _limited(limit):
            action()
    except _OutOfTime:
        word, reason = "slow", f"over {limit:.0f} s"
    except (WorkError, WrongResult) as error:
        word, reason = "wrong", _line(error)
    except LatewoodError as error:
        word, reason = "refused", _line(error)
    except Exception as error:
        word, reason = "error", f"{type(error).__name__}: {_line(error)}{_place(error)}"
    seconds = time.perf_counter() - start
    if word == "error" and seconds >= limit:
        # The stop came out as another exception, from within torch's own code.
        word, reason = "slow", f"over {limit:.0f} s"
    return Outcome(word, reason, seconds)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _place(error: Exception) -> str:
    """The innermost line of this package, or of the benchmark, that the error went through."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "latewood" in file.rpartition("site-packages")[2]:
            place = f" [{file.rpartition('/')[2]}:{trace.tb_lineno}]"
        trace = trace.tb_next
    return place


def check_architecture(model: nn.Module, inputs: Any, limit: float) -> Findings:
    """Tries every check on copies of a model.

    Args:
        model: in evaluation mode; it stays as it is.
        inputs: what it is called with.
        limit: seconds for each check.
    """
    findings = Findings()

    def trace() -> None:
        traced = copy.deepcopy(model)
        exact = float_outputs(traced, inputs)
        start = time.perf_counter()
        findings.plan = trace_channels(traced, inputs)
        findings.seconds = time.perf_counter() - start
        findings.shares, findings.reasons = _weight_shares(model, findings.plan)
        outputs = float_outputs(traced, inputs)
        require_equal(outputs, exact, "the model after it was traced", SINGLE_TOLERANCE)

    findings.outcomes["trace"] = attempt(trace, limit)
    plan = findings.plan
    if plan is None:
        findings.outcomes |= {check: Outcome("-") for check in CHECKS[1:]}
        return findings

    def verify() -> None:
        findings.change = verify_plan(copy.deepcopy(model), plan, inputs)

    checks: dict[str, Callable[[], None]] = {
        "verify": verify,
        "halve": lambda: _halve(copy.deepcopy(model), plan, inputs),
        "slim": lambda: _slim(copy.deepcopy(model), plan, inputs),
        "widen": lambda: _widen(copy.deepcopy(model), plan, inputs),
        "train": lambda: _train(copy.deepcopy(model), inputs),
    }
    for name, check in checks.items():
        findings.outcomes[name] = attempt(check, limit)
    return findings


def _weight_shares(
    model: nn.Module, plan: ChannelPlan
) -> tuple[tuple[float, float, float], list[tuple[str, int]]]:
    """Sizes of the weights by the best of their axes, and what holds those that cannot change."""
    axes: dict[str, list[ChannelGroup]] = {}
    for group in plan:
        for member in group.members:
            axes.setdefault(member.tensor, []).append(group)
    sizes = [0, 0, 0]
    reasons: Counter[str] = Counter()
    for name, (module, attribute) in layer_tensors(model):
        if attribute in module._buffers:
            continue
        size = getattr(module, attribute).numel()
        groups = axes.get(name, [])
        if any(not group.barriers and group.width > 1 for group in groups):
            sizes[0] += size
        elif any(
            {barrier.kind for barrier in group.barriers} == {"normalised"} for group in groups
        ):
            sizes[1] += size
        else:
            sizes[2] += size
            held = {
                f"{barrier.kind}: {barrier.reason}"
                for group in groups
                for barrier in group.barriers
            }
            reasons.update(dict.fromkeys(held or {"never met by the trace"}, size))
    total = sum(sizes) or 1
    return (sizes[0] / total, sizes[1] / total, sizes[2] / total), reasons.most_common()


def float_outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """The outputs of a model that are not counts or indices."""
    with torch.no_grad():
        outputs = [*outputs_of(run_model(model, inputs))]
    return [output for output in outputs if output.is_floating_point()]


def require_like(outputs: list[Tensor], exact: list[Tensor], what: str) -> None:
    """Raises unless outputs have the shapes of others and are finite."""
    shapes, expected = ([tuple(output.shape) for output in list_] for list_ in (outputs, exact))
    if shapes != expected:
        raise WrongResult(f"{what}: outputs of shapes {shapes}, before {expected}")
    if not all(bool(output.isfinite().all()) for output in outputs if output.numel()):
        raise WrongResult(f"{what}: outputs are not finite")


def require_equal(outputs: list[Tensor], exact: list[Tensor], what: str, tolerance: float) -> None:
    """Raises unless outputs equal others, relative to the largest of those."""
    require_like(outputs, exact, what)
    largest = max((float(one.abs().max()) for one in exact if one.numel()), default=0.0) or 1.0
    pairs = zip(outputs, exact, strict=True)
    error = max((float((one - two).abs().max()) for one, two in pairs if one.numel()), default=0.0)
    if not error <= tolerance * largest:
        raise WrongResult(f"{what}: outputs differ by {error / largest:.1e} of the largest")


def in_double(model: nn.Module, inputs: Any) -> tuple[nn.Module, Any, float]:
    """The model and its inputs in float64 where its operations exist in it, and a tolerance."""
    double = copy.deepcopy(model).double()
    wide = mapped(inputs, lambda x: x.double() if x.is_floating_point() else x)
    try:
        outputs = float_outputs(double, wide)
    except RuntimeError:
        return model, inputs, SINGLE_TOLERANCE
    if not all(bool(output.isfinite().all()) for output in outputs):
        return model, inputs, SINGLE_TOLERANCE
    return double, wide, TOLERANCE


def _halve(model: nn.Module, plan: ChannelPlan, inputs: Any) -> None:
    exact = float_outputs(model, inputs)
    keep = {}
    for number, group in enumerate(plan.free):
        order = torch.randperm(group.width, generator=torch.Generator().manual_seed(number))
        keep[group.name] = order[: math.ceil(group.width / 2)]
    slice_channels(model, plan, keep)
    require_like(float_outputs(model, inputs), exact, "half of the channels")


def _widen(model: nn.Module, plan: ChannelPlan, inputs: Any) -> None:
    runs = ModelRuns.of(model, inputs)
    if runs.double:
        model.double()
    exact = runs.outputs()
    for count in ("once", "twice"):
        added = {group.name: ADDED_CHANNELS for group in plan if can_widen(group)}
        plan = widen_channels(model, plan, added, fill="pair", allow=NORMALISED)
        error = runs.difference(exact)
        if not error <= TOLERANCE:
            raise WrongResult(f"wider {count}: outputs differ by {error:.1e} of the largest")


def _slim(model: nn.Module, plan: ChannelPlan, inputs: Any) -> None:
    model, inputs, tolerance = in_double(model, inputs)
    for seed in range(2):
        masked = copy.deepcopy(model)
        _switch_off(masked, plan, seed)
        exact = float_outputs(masked, inputs)
        smaller = slim(masked, inputs, tolerance=tolerance)
        require_equal(float_outputs(smaller, inputs), exact, f"slim, draw {seed}", tolerance)


def _switch_off(model: nn.Module, plan: ChannelPlan, seed: int) -> None:
    """Masks random channels of every free group; every other draw spares some of their tensors."""
    generator = torch.Generator().manual_seed(seed)
    places = dict(layer_tensors(model))
    masks = {
        selected.name: torch.ones_like(selected.tensor, dtype=torch.bool)
        for selected in select_parameters(model)
    }
    for group in plan.free:
        density = float(torch.rand((), generator=generator))
        off = torch.rand(group.width, generator=generator) < density
        spared = torch.rand(len(group.members), generator=generator) < 0.15 * (seed % 2)
        for member, spare in zip(group.members, spared.tolist(), strict=True):
            module, name = places[member.tensor]
            tensor = getattr(module, name)
            if spare or name in module._buffers or not tensor.is_floating_point():
                continue
            gone = member.indices[off].flatten()
            if member.tensor in masks:
                masks[member.tensor].index_fill_(member.axis, gone, False)
            else:
                with torch.no_grad():
                    tensor.index_fill_(member.axis, gone, 0)
    # Others need no mask, and some take none: a weight under weight norm, say.
    used = {name: mask for name, mask in masks.items() if not bool(mask.all())}
    if used:
        FixedMasks(model, used)


def _train(model: nn.Module, inputs: Any) -> None:
    exact = float_outputs(model, inputs)
    full = sum(parameter.numel() for parameter in model.parameters())
    method = StructuredSparsification(
        model,
        inputs,
        budget={"parameters": 0.5},
        total_steps=STEPS,
        steps_per_epoch=STEPS_PER_EPOCH,
    )
    groups = parameter_groups(model, [method], weight_decay=1e-4)
    optimizer = torch.optim.SGD(groups, lr=1e-3, momentum=0.9)
    model.train()
    for step in range(STEPS):
        if step % STEPS_PER_EPOCH == 0:
            method.restructure(optimizer)
        outputs = outputs_of(run_model(model, inputs))
        floating = [output for output in outputs if output.requires_grad]
        loss = torch.stack([output.square().mean() for output in floating]).sum()
        optimizer.zero_grad()
        (loss + method.penalty()).backward()
        optimizer.step()
        method.step()
    smaller = method.finalize().eval()
    size = sum(parameter.numel() for parameter in smaller.parameters())
    if size > 0.5 * full:
        raise WrongResult(f"structured sparsification: {size} of {full} parameters are left")
    require_like(float_outputs(smaller, inputs), exact, "structured sparsification")
