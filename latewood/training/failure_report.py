"""What a run that cannot go on leaves behind, and says: numbers not finite, no memory left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from latewood.errors import Diverged, WorkError
from latewood.tasks import Batch
from latewood.training import checkpoints
from latewood.training.guards import first_break
from latewood.training.recipe import resumption
from latewood.training.session import Session

__all__ = ["fail", "named_exhaustion"]


def fail(session: Session, batch: Batch, weight: float, loss: float) -> NoReturn:
    """Looks for the layer that broke first, writes the state from before the step, and raises.

    A session that keeps no failures writes none.

    Args:
        session: the run, whose step has not been taken.
        batch: of the step.
        weight: of the batch's loss.
        loss: the value it had.

    Raises:
        Diverged: always.
    """

    def again() -> Tensor:
        session.begin_step()
        return session.loss(session.model, batch, weight)[0]

    broken = first_break(session.model, again, batch)
    # Several processes stop together; what to say is what the one that broke has found.
    shown = None if broken is None else (loss, broken)
    loss, where = session.processes.first(shown) or (loss, None)
    step, folder = session.step, session.folder
    state = session.state() | {"batch": batch, "finding": where}

    def write() -> Path:
        return checkpoints.save(folder.failure_folder, step, session.model.state_dict(), state)

    saved = ""
    if session.keeps_failures:
        try:
            saved = f": its state is in {session.processes.on_main(write)}"
        except WorkError as error:
            saved = f": {error}"
    again_finite = "a second run of the step was finite"
    first = again_finite if where is None else f"{where} is the first that is not finite"
    last = _last_checkpoint(session)
    raise Diverged(
        f"step {step + 1}: the loss is {loss}; {first}. The step was not taken"
        f"{saved}; {last}. A smaller learning rate or clip_norm may help"
    )


@contextmanager
def named_exhaustion(session: Session) -> Iterator[None]:
    """Says of a lack of memory where it happened, with which batches, and where to go on.

    Raises:
        WorkError: in place of what torch raises when it gets no memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_exhaustion(error):
            raise
        where = "after the last step" if session.finished else f"step {session.step + 1}"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        options = resumption(session.recipe, session.folder.path)
        on = f"go on with {options} where there is more memory"
        raise WorkError(
            f"{where}: out of memory with batch_size {session.recipe.batch_size} on "
            f"{session.processes.device} ({reason}); {_last_checkpoint(session)}: {on}, or start "
            "again with a smaller batch_size"
        ) from error


def _is_exhaustion(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "DefaultCPUAllocator" in str(error) and "allocate memory" in str(error)


def _last_checkpoint(session: Session) -> str:
    saved_steps = checkpoints.steps(session.folder.checkpoints)
    if saved_steps:
        return f"the last checkpoint is of step {saved_steps[-1]}"
    return "there is no checkpoint yet"
