"""The training loop: everything around its steps is an observer or a collaborator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice

from torch import Tensor, nn

from latewood.errors import Interrupted
from latewood.tasks import Batch, batches
from latewood.training.failure_report import fail
from latewood.training.fit import compute_gradients, update
from latewood.training.observers import Observer, save_checkpoint
from latewood.training.processes import Processes
from latewood.training.recipe import resumption
from latewood.training.session import Session

__all__ = ["train_steps"]

ASK_EVERY = 10
"""Steps between two times that several processes agree on whether to stop."""


def train_steps(session: Session, after_step: list[Observer], stopping: Callable[[], bool]) -> None:
    """Takes all remaining steps of a run.

    Args:
        session: the run; it may be under way.
        after_step: called after every step, in this order.
        stopping: whether the user wants to stop; asked after every step.

    Raises:
        Diverged: the loss or the gradient was not finite; that step was not taken.
        Interrupted: the user stopped it; a checkpoint of the last step was written.
    """
    optimizer, scaler = session.optimizer, session.processes.scaler
    for raw, weight in _remaining_batches(session):
        session.begin_epoch()
        session.begin_step()
        batch = session.prepared(raw)
        loss, penalty = session.loss(session.network, batch, weight)
        compute_gradients(loss, optimizer, scaler)
        norm = _clipped_norm(session).item()
        value = loss.item()
        if _is_broken(session.processes, value, norm):
            fail(session, batch, weight, value)
        update(optimizer, session.methods.values(), scaler)
        session.step += 1
        regular = 0.0 if penalty is None else penalty.item()
        session.meter.add(value - regular, regular, norm)
        for observe in after_step:
            observe(session)
        if _agree_to_stop(session, stopping):
            save_checkpoint(session)
            raise Interrupted(
                f"stopped after step {session.step} of {session.total_steps}; "
                f"go on with {resumption(session.recipe, session.folder.path)}"
            )


def _remaining_batches(session: Session) -> Iterator[tuple[Batch, float]]:
    recipe, processes = session.recipe, session.processes
    seed = recipe.seed if recipe.order_seed is None else recipe.order_seed
    while not session.finished:
        epoch = session.epochs.of(session.step)
        rest_of_epoch = batches(
            session.task.train,
            batch_size=recipe.batch_size_of(epoch),
            seed=seed,
            epoch=epoch,
            rank=processes.rank,
            world_size=processes.count,
            drop_last=recipe.drop_last,
            start=session.step - session.epochs.start(epoch),
        )
        yield from islice(rest_of_epoch, session.total_steps - session.step)


def _clipped_norm(session: Session) -> Tensor:
    """The norm of the gradient, clipped if the recipe says so."""
    if session.recipe.clip_norm is not None:
        return nn.utils.clip_grad_norm_(session.clipped, session.recipe.clip_norm)
    return nn.utils.get_total_norm([p.grad for p in session.trained if p.grad is not None])


def _is_broken(processes: Processes, loss: float, norm: float) -> bool:
    """Whether the loss or the gradient is not finite, which must not reach the weights.

    Several processes share one gradient, so its norm fails in all of them at the same step. With
    fp16 an infinite gradient is the scaler's business.
    """
    if processes.scaler is not None:
        return processes.any(not math.isfinite(loss))
    return not math.isfinite(norm) or (processes.count == 1 and not math.isfinite(loss))


def _agree_to_stop(session: Session, stopping: Callable[[], bool]) -> bool:
    if session.finished:
        return False
    if session.processes.count == 1:
        return stopping()
    return session.step % ASK_EVERY == 0 and session.processes.any(stopping())
