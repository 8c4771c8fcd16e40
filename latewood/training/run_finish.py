"""How a run ends: its methods finalized, the model scored and written, and the summary."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from latewood.core.finalize import finalize
from latewood.core.measure import measure
from latewood.core.protocols import Method
from latewood.slim.edits import has_recipe
from latewood.slim.saved_files import save_edits
from latewood.training import checkpoints
from latewood.training.evaluation import evaluate, recalibrate
from latewood.training.randomness import derive, seed_torch
from latewood.training.session import Session

__all__ = ["finish"]


def finish(session: Session) -> tuple[nn.Module, dict[str, Any]]:
    """Finalizes the methods, scores what is left, and writes the model and the summary.

    Args:
        session: a run after its last step.

    Returns:
        The model in evaluation mode, and the contents of ``summary.json``.

    Raises:
        WorkError: a file cannot be written.
    """
    task, group, run = session.task, session.processes, session.folder
    model = session.model
    seed_torch(derive(session.recipe.seed, "finish"), group.device)
    if session.scores is None:  # resumed after the last step
        session.scores = evaluate(session, model, advance=session.advance)
    evaluations = {"trained": session.scores}
    if session.methods:
        model = finalize(model, list(session.methods.values()))
        evaluations["finalized"] = evaluate(session, model, advance=session.advance)
        if recalibrate(session, model):
            evaluations["recalibrated"] = evaluate(session, model, advance=session.advance)
    session.advance(0, session.note)
    model.eval()
    summary: dict[str, Any] = {
        "task": task.name,
        "headline": task.headline,
        "higher_is_better": task.higher_is_better,
        "evaluations": evaluations,
        "steps": session.step,
        "seconds": round(session.seconds, 3),
    }

    trained = _training_share(session.methods.values())

    def write() -> dict[str, Any]:
        checkpoints.write_model(run.model_path, model.state_dict())
        if has_recipe(model):
            # Smaller than what the recipe makes: how it came from that, to be done again.
            save_edits(model, run.edits_path)
        size = measure(model, task.example_inputs) | trained
        run.write_summary(summary | {"size": size})
        return size

    return model, summary | {"size": group.on_main(write)}


def _training_share(methods: Iterable[Method]) -> dict[str, float]:
    """What the training cost of as many steps at full size, if a method changed the size."""
    # A tensor's shape has one owner; where two methods own some each, neither's share is the run's.
    shares = [
        m["training/share"]
        for m in (method.metrics() for method in methods)
        if m.get("training/share")
    ]
    return {"training_share": shares[0]} if len(shares) == 1 else {}
