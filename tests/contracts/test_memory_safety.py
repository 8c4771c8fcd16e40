"""Tensors that change under an optimizer end in a right result or an error, never in a crash."""

import os
from pathlib import Path

from entries import cases
from warm_python import run

SCRIPT = Path(__file__).parent / "changed_tensors.py"


def test_changed_tensors_are_handled_or_refused():
    # One process for all trials: to start it is most of the time, and none of them may end it.
    done = run([str(SCRIPT)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    trials = [line.split("/", 2) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (
        f"the process ended with {done.returncode} in {'/'.join(trials[-1])}: {done.stderr}"
    )
    wrong = ["/".join(trial) for trial in trials if trial[2].startswith("wrong")]
    assert not wrong, "\n".join(wrong)
    # An error that says nothing is no refusal.
    ours = {str(case) for case in cases("optimizer", "method") if case.is_ours}
    refusals = [
        result for name, _, result in trials if result.startswith("refused") and name in ours
    ]
    assert refusals and all(len(result.split(": ", 2)[2]) > 20 for result in refusals)
    assert {trial[0] for trial in trials} == {str(case) for case in cases("optimizer", "method")}
