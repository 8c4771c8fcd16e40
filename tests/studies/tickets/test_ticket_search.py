"""The ticket search: equal terms for all, exact densities, one table however it is run."""

import csv
import json
import math

import pytest
import torch

from latewood.errors import RequestError
from latewood.sparsity import Ticket
from latewood.studies.tickets import BASELINES, search_tickets
from latewood.studies.tickets.trial import Protocol, _repeated, ticket_trainer
from latewood.training.recipe import parse_recipe

pytestmark = pytest.mark.filterwarnings("ignore:soft and hard disagree")

MASKED = 64 * 24 + 24 * 10


def search(recipe, folder, **arguments):
    options = {"exclude": (), "initial_logits": (0.0,), "rewind_epoch": 1, "show_progress": False}
    return search_tickets(recipe, folder=folder, **options | arguments)


def timeless(rows):
    return [{key: row[key] for key in row if key != "search_seconds"} for row in rows]


@pytest.fixture(scope="module")
def small():
    return parse_recipe(
        {
            "task": "digits",
            "model": {"name": "mlp", "hidden": [24], "norm": True},
            "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
            "schedule": {"name": "linear", "per": "epoch"},
            "epochs": 4,
            "batch_size": 128,
            "drop_last": True,
            "device": "cpu",
        }
    )


@pytest.fixture(scope="module")
def table(small, tmp_path_factory):
    return search(
        small,
        tmp_path_factory.mktemp("search") / "new",
        baselines=BASELINES,
        iterations=2,
        rounds=2,
        method={"penalty_weight": 1e-4},
    )


def of(table, method):
    return [row for row in table.rows if row["method"] == method]


def test_every_strategy_has_its_rows(table):
    names = [row["method"] for row in table.rows]
    assert list(dict.fromkeys(names)) == ["untrained", "dense", "ticket", "hard", *BASELINES]
    assert all(names.count(name) == 2 for name in BASELINES if name != "supermask")
    assert names.count("ticket") == 2 and names.count("hard") == names.count("supermask") == 1
    (dense,) = of(table, "dense")
    (untrained,) = of(table, "untrained")
    assert dense["accuracy"] > 0.85 > 0.3 > untrained["accuracy"]
    assert table.headline == "accuracy"


def test_matched_baselines_have_the_density_of_their_ticket(table):
    tickets = {row["round"]: row["density"] for row in of(table, "ticket")}
    assert 0 < tickets[2] <= tickets[1] < 1
    for name in ("shuffled", "magnitude", "one_shot", "gradual"):
        assert {row["round"]: row["density"] for row in of(table, name)} == tickets


def test_iterative_pruning_removes_exactly_a_fifth_a_round(table):
    first = MASKED - math.ceil(MASKED / 5)
    second = first - math.ceil(first / 5)
    for name in ("iterative", "iterative_continued"):
        assert [row["density"] for row in of(table, name)] == [first / MASKED, second / MASKED]
        assert [row["search_epochs"] for row in of(table, name)] == [4, 8]
    layers = [n - math.ceil(n / 5) for n in (64 * 24, 24 * 10)]
    assert of(table, "iterative_layerwise")[0]["density"] == sum(layers) / MASKED


def test_costs_are_counted_in_trainings_before_the_last(table):
    epochs = {row["method"]: row["search_epochs"] for row in table.rows if row["round"] != 2}
    assert epochs["dense"] == epochs["shuffled"] == 0
    assert epochs["ticket"] == epochs["magnitude"] == epochs["gradual"] == 4
    assert [row["search_epochs"] for row in of(table, "ticket")] == [4, 8]
    assert of(table, "hard")[0]["search_epochs"] == 8


def test_soft_networks_report_their_four_readings(table):
    for name in ("hard", "supermask"):
        (row,) = of(table, name)
        assert all(0 <= row[key] <= 1 for key in ("soft", "hard", "recalibrated", "undecided"))
        assert row["accuracy"] == row["recalibrated"]


def test_files_hold_the_table_and_the_tickets(table):
    with (table.folder / "tickets.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(table.rows)
    stored = json.loads((table.folder / "tickets.json").read_text())
    assert [row["density"] for row in stored] == [row["density"] for row in table.rows]
    for row in of(table, "ticket"):
        ticket = Ticket.load(table.folder / f"ticket-seed0-logit0-round{row['round']}")
        assert ticket.density == row["density"]
    assert (table.folder / "summary.csv").exists()


def test_the_table_does_not_depend_on_how_many_run_at_once(small, tmp_path):
    recipe = small.model_copy(update={"epochs": 1})
    options = {"baselines": ("shuffled",), "seeds": (0, 3)}
    one = search(recipe, tmp_path / "one", **options)
    two = search(recipe, tmp_path / "two", jobs=2, **options)
    assert timeless(one.rows) == timeless(two.rows)
    assert [row["seed"] for row in of(one, "ticket")] == [0, 3]
    assert len({row["accuracy"] for row in of(one, "ticket")}) == 2
    summary = {row["method"]: row for row in one.summary()}
    values = [row["accuracy"] for row in of(one, "ticket")]
    assert summary["ticket"]["accuracy"] == pytest.approx(sum(values) / 2)
    want = abs(values[0] - values[1]) / math.sqrt(2)
    assert summary["ticket"]["deviation"] == pytest.approx(want)
    assert summary["ticket"]["seeds"] == 2


def protocol(recipe, folder, **changes):
    options = {
        "rewind_epoch": 1,
        "include": ("*",),
        "exclude": (),
        "rounds": 1,
        "method": {},
        "supermask_lr": 1.0,
        "iterations": 1,
        "fraction": 0.2,
        "threads": 1,
    }
    return Protocol(recipe=recipe, folder=folder, **options | changes)


def test_a_ticket_that_keeps_all_and_rewinds_to_the_start_is_the_dense_training(small, tmp_path):
    with ticket_trainer(protocol(small, tmp_path, rewind_epoch=0), 0) as trainer:
        dense = trainer.train()
        everything = {
            name: torch.ones_like(dense.early[name], dtype=torch.bool)
            for name in trainer.prunable(dense.session.model)
        }
        again = trainer.train(ticket=Ticket(everything, dense.early, {}))
        plain = dense.session.model.state_dict()
        for name, value in again.session.model.named_parameters():
            stored = name.replace("parametrizations.", "").removesuffix(".original")
            assert torch.equal(value, plain[stored]), name


def test_the_rewind_point_is_the_start_of_the_epoch_with_its_statistics(small, tmp_path):
    with ticket_trainer(protocol(small, tmp_path, rewind_epoch=2), 0) as trainer:
        early = trainer.train().early
    assert early["norm1.num_batches_tracked"].item() == 2 * (1257 // 128)


def test_the_schedule_starts_anew_in_each_round():
    def ramp(at):
        return at

    value_at = _repeated(ramp, 3, 21)
    assert [value_at(step / 21) for step in range(21)] == [step % 7 / 7 for step in range(21)]
    assert value_at(1.0) == 1.0
    assert _repeated(ramp, 1, 21) is ramp


def test_the_caller_keeps_its_generators_and_threads(small, tmp_path):
    torch.manual_seed(7)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    search(small, tmp_path / "a", initial_logits=())
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"baselines": ("imp",)}, "baselines: got 'imp'; expected some of shuffled, magnitude"),
        ({"baselines": ("shuffled", "shuffled")}, "expected each once"),
        ({"seeds": ()}, "seeds: got"),
        ({"rewind_epoch": 5}, "rewind_epoch: got 5; expected 0 to 4"),
        ({"rounds": 0}, "rounds: got 0"),
        ({"jobs": 0}, "jobs: got 0"),
        ({"fraction": 1.0}, "fraction: got"),
        ({"supermask_lr": 0.0}, "supermask_lr: got"),
        ({"method": {"rounds": 2}}, "an argument of the search instead"),
        ({"method": {"final_temp": 2.0}}, "final_temp"),
    ],
)
def test_unusable_arguments_are_refused_before_anything_starts(small, tmp_path, arguments, message):
    with pytest.raises(RequestError, match=message):
        search(small, tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_recipes_that_do_not_fit_and_folders_in_use_are_refused(small, tmp_path):
    gmp = [{"name": "gradual_magnitude_pruning"}]
    with pytest.raises(RequestError, match="recipe: has methods"):
        search(small.model_copy(update={"methods": gmp}), tmp_path / "new")
    with pytest.raises(RequestError, match="epochs: missing"):
        search(small.model_copy(update={"epochs": None, "steps": 5}), tmp_path / "new")
    (tmp_path / "kept").write_text("")
    with pytest.raises(RequestError, match="which is not empty"):
        search(small, tmp_path)
