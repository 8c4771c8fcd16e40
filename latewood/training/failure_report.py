"""What a run that meets a loss or a gradient that is not finite leaves behind, and says."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from torch import Tensor

from latewood.errors import WorkError
from latewood.tasks import Batch
from latewood.training import checkpoints
from latewood.training.guards import first_break
from latewood.training.session import Session

__all__ = ["fail"]


def fail(session: Session, batch: Batch, weight: float, loss: float) -> NoReturn:
    """Looks for the layer that broke first, writes the state from before the step, and raises.

    Args:
        session: the run, whose step has not been taken.
        batch: of the step.
        weight: of the batch's loss.
        loss: the value it had.

    Raises:
        WorkError: always.
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

    try:
        saved = f"its state is in {session.processes.on_main(write)}"
    except WorkError as error:
        saved = str(error)
    again_finite = "a second run of the step was finite"
    first = again_finite if where is None else f"{where} is the first that is not finite"
    saved_steps = checkpoints.steps(folder.checkpoints)
    last = (
        f"the last checkpoint is of step {saved_steps[-1]}"
        if saved_steps
        else "there is no checkpoint yet"
    )
    raise WorkError(
        f"step {step + 1}: the loss is {loss}; {first}. The step was not taken: "
        f"{saved}; {last}. A smaller learning rate or clip_norm may help"
    )
