"""Networks that nobody here wrote: what of each is followed, cut, widened, slimmed and trained."""

from __future__ import annotations

import fnmatch
import logging
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

import torch

from benchmarks import _tracing_scale
from benchmarks._architecture_checks import CHECKS, Findings, Outcome, attempt, check_architecture
from benchmarks._architectures import PEERS, Architecture, draw_constants
from benchmarks._further_architectures import ARCHITECTURES
from benchmarks._timing import print_table
from benchmarks._torch_pruning import prune_half

LIMIT_SECONDS: Final = 60.0
"""For each check of an architecture."""
PEER_LIMIT_SECONDS: Final = 10.0
"""For each of Torch-Pruning's two."""
SERVED_SHARE: Final = 0.5
"""Least share of the weights in free groups of an architecture that counts as served."""
PEER: Final = "torch_pruning"


@dataclass(frozen=True)
class _Row:
    name: str
    family: str
    findings: Findings
    graph: Outcome
    pruned: Outcome

    @property
    def ours(self) -> str:
        """The worst word of the checks; "ok" also needs enough weights that can change."""
        words = {outcome.word for outcome in self.findings.outcomes.values()}
        for word in ("wrong", "error", "slow", "refused"):
            if word in words:
                return word
        return "ok" if self.findings.shares[0] >= SERVED_SHARE else "held"

    @property
    def theirs(self) -> str:
        """The same of Torch-Pruning."""
        return self.graph.word if self.graph.word != "ok" else self.pruned.word


def main(arguments: list[str]) -> None:
    """Prints a table of architectures, then what failed and why, then how many are served.

    Args:
        arguments: names or patterns, all if left out; or ``--scale`` for the growth of time and
            memory with the size of a model.
    """
    if arguments[:1] == ["--scale"]:
        _tracing_scale.main(arguments[1:])
        return
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    chosen = _chosen(arguments)
    rows = []
    for number, (name, architecture) in enumerate(chosen.items()):
        start = time.perf_counter()
        rows.append(_tried(name, architecture))
        words = " ".join(f"{check} {found.word}" for check, found in _outcomes(rows[-1]).items())
        seconds = time.perf_counter() - start
        print(f"{number + 1}/{len(chosen)} {name} ({seconds:.1f} s): {words}", file=sys.stderr)
    torch.set_num_threads(before)
    _print_rows(rows)


def _chosen(patterns: Sequence[str]) -> dict[str, Architecture]:
    missing = [peer for peer in PEERS if find_spec(peer) is None]
    chosen = {
        name: architecture
        for name, architecture in ARCHITECTURES.items()
        if not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    }
    if not chosen:
        raise SystemExit(f"no architecture is named {', '.join(patterns)}")
    for peer in missing:
        count = sum(architecture.peer == peer for architecture in chosen.values())
        print(f"{peer} is not installed: {count} architectures are left out", file=sys.stderr)
    if find_spec(PEER) is None:
        print("torch-pruning is not installed: no comparison with it", file=sys.stderr)
    return {name: item for name, item in chosen.items() if item.peer not in missing}


def _tried(name: str, architecture: Architecture) -> _Row:
    made: list[Any] = []

    def make() -> None:
        torch.manual_seed(0)
        model, inputs = architecture.make()
        draw_constants(model)
        made.extend((model, inputs))

    built = attempt(make, LIMIT_SECONDS)
    if built.word != "ok":
        outcomes = {"trace": built} | {check: Outcome("-") for check in CHECKS[1:]}
        return _Row(name, architecture.family, Findings(outcomes), Outcome("-"), Outcome("-"))
    model, inputs = made
    findings = check_architecture(model, inputs, LIMIT_SECONDS)
    graph = pruned = Outcome("-")
    if find_spec(PEER) is not None:
        graph, pruned = prune_half(model, inputs, findings.plan, PEER_LIMIT_SECONDS)
    return _Row(name, architecture.family, findings, graph, pruned)


def _outcomes(row: _Row) -> dict[str, Outcome]:
    theirs = {"TP graph": row.graph, "TP half": row.pruned}
    return {**row.findings.outcomes, **theirs}


def _print_rows(rows: Sequence[_Row]) -> None:
    header = ["architecture", "for", "trace, s", "free", "norm", "held", "verify", *CHECKS[2:]]
    print_table(
        "Architectures with random weights",
        [*header, "TP graph, s", "TP half"],
        [_cells(row) for row in rows],
    )
    print("\n**What did not end in ok**\n")
    for row in rows:
        for check, found in row.findings.outcomes.items():
            if found.word not in ("ok", "-"):
                print(f"- {row.name}, {check} {found.word}: {found.reason[:300]}")
        if row.ours == "held":
            reasons = "; ".join(reason for reason, _ in row.findings.reasons[:3])
            print(f"- {row.name}, {row.findings.shares[2]:.0%} held by: {reasons}")
    print("\n**What Torch-Pruning did not end in ok**\n")
    for row in rows:
        for found in (row.graph, row.pruned):
            if found.word not in ("ok", "-"):
                print(f"- {row.name}, {found.word}: {found.reason[:150]}")
    print(f"\n**Of {len(rows)} architectures**\n")
    print("| | ok | held | refused | wrong | error | slow |\n|---|---|---|---|---|---|---|")
    for title, words in (
        ("latewood", [row.ours for row in rows]),
        ("Torch-Pruning", [row.theirs for row in rows]),
    ):
        counts = Counter(words)
        cells = [str(counts[word]) for word in ("ok", "held", "refused", "wrong", "error", "slow")]
        print(f"| {title} | {' | '.join(cells)} |")


def _cells(row: _Row) -> list[str]:
    findings = row.findings
    outcomes = findings.outcomes
    verify = outcomes["verify"]
    return [
        row.name,
        row.family,
        f"{findings.seconds:.2f}" if outcomes["trace"].word == "ok" else outcomes["trace"].word,
        *(f"{share:.0%}" for share in findings.shares),
        f"{findings.change:.0e}" if verify.word == "ok" else verify.word,
        *(outcomes[check].word for check in CHECKS[2:]),
        f"{row.graph.seconds:.2f}" if row.graph.word == "ok" else row.graph.word,
        row.pruned.word,
    ]
