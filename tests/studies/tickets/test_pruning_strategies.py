"""Which weights and masks each baseline trains from."""

import pytest
import torch

from latewood.errors import WorkError
from latewood.sparsity import Ticket, snapshot
from latewood.studies.tickets import pruning_strategies
from latewood.studies.tickets.trial import Protocol, TicketTrainer, ticket_trainer
from latewood.training.recipe import parse_recipe


class Recorder(TicketTrainer):
    """Notes every ticket that is trained, and the network that comes out."""

    def train(self, *, ticket=None, method=None, rounds=1):
        done = super().train(ticket=ticket, method=method, rounds=rounds)
        self.__dict__.setdefault("seen", []).append((ticket, snapshot(done.session.model)))
        return done


@pytest.fixture(scope="module")
def recorder(tmp_path_factory):
    recipe = parse_recipe(
        {
            "task": "digits",
            "model": {"name": "mlp", "hidden": [8]},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "epochs": 2,
            "batch_size": 256,
            "device": "cpu",
        }
    )
    protocol = Protocol(
        recipe=recipe,
        rewind_epoch=1,
        include=("*",),
        exclude=(),
        rounds=1,
        method={},
        supermask_lr=1.0,
        iterations=2,
        fraction=0.5,
        folder=tmp_path_factory.mktemp("bench"),
        threads=1,
    )
    with ticket_trainer(protocol, 0) as trainer:
        yield Recorder(trainer.protocol, trainer.seed, trainer.group, trainer.task)


@pytest.fixture
def start(recorder):
    _, found = pruning_strategies.dense(recorder)
    recorder.seen = []
    return found


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_the_rewind_point_lies_before_the_end(start):
    assert not torch.equal(start.early["linear1.weight"], start.trained["linear1.weight"])
    assert torch.equal(start.weights["linear1.weight"], start.trained["linear1.weight"])


@pytest.mark.parametrize("rewinding", [True, False])
def test_iterative_pruning_rewinds_or_goes_on(recorder, start, rewinding):
    pruning_strategies.iterative(recorder, start, "iterative", rewinding=rewinding)
    (first, trained), (second, _) = recorder.seen
    assert same(first.snapshot, start.early if rewinding else start.trained)
    assert same(second.snapshot, start.early if rewinding else trained)
    for name in first.masks:
        assert not (second.masks[name] & ~first.masks[name]).any()
    left = {name: trained[name][first.masks[name]].abs() for name in first.masks}
    kept = torch.cat([trained[n][second.masks[n]].abs() for n in left])
    gone = torch.cat([trained[n][first.masks[n] & ~second.masks[n]].abs() for n in left])
    assert gone.max() <= kept.min() and abs(len(kept) - len(gone)) <= 1


def test_one_round_rewinds_and_one_shot_does_not(recorder, start):
    masks = {name: weight > 0 for name, weight in start.weights.items()}
    found = pruning_strategies.FoundTicket({}, Ticket(masks, start.early, {}))
    for train, values in (
        (pruning_strategies.magnitude, start.early),
        (pruning_strategies.one_shot, start.trained),
        (pruning_strategies.shuffled, start.early),
    ):
        recorder.seen = []
        train(recorder, start, found)
        ((ticket, trained),) = recorder.seen
        assert same(ticket.snapshot, values)
        assert sum(int(mask.sum()) for mask in ticket.masks.values()) == found.kept
        stored = trained["linear1.weight"][~ticket.masks["linear1.weight"]]
        # Without weight decay or momentum what is pruned never moves.
        assert torch.equal(stored, values["linear1.weight"][~ticket.masks["linear1.weight"]])
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    assert {name: int(mask.sum()) for name, mask in ticket.masks.items()} == counts


def test_nothing_is_matched_to_a_ticket_without_weights(recorder, start):
    none = {
        name: torch.zeros_like(value, dtype=torch.bool) for name, value in start.weights.items()
    }
    found = pruning_strategies.FoundTicket(
        {"initial_logit": -0.5, "round": 1}, Ticket(none, start.early, {})
    )
    with pytest.raises(WorkError, match=r"seed 0, initial logit -0\.5, round 1: .* no weight"):
        pruning_strategies.gradual(recorder, start, found)
