"""The section on a budget: used and trained shares, channels, and nothing where there is none."""

import pytest

from latewood.report.run_data import load_runs
from latewood.report.sampling import DETAILS
from latewood.report.sections.budget_section import budget
from latewood.report.sections.schedules_section import schedules


@pytest.fixture
def grown(make_run):
    run = make_run("grown", sparse=False, spectra=False, steps=0)
    for step, used, trained in ((19, 0.01, 0.001), (38, 0.6, 0.05), (57, 0.98, 0.11)):
        scalars = {
            "budget/used": used,
            "budget/share": 0.2 * used,
            "training/share": trained,
            "training/macs": 1e6 * trained,
            "kept/conv1": 2.0 * step,
            "kept/conv2": 1.0,
            "penalty_weight": -0.1,
        }
        named = {f"structured_sparsification/{name}": value for name, value in scalars.items()}
        run.append_metrics({"step": step, "epoch": step / 19, "kind": "method", **named})
    return run


def section_of(*folders):
    return budget(load_runs(folders, DETAILS[0]))


def test_shares_of_the_budget_and_of_the_training(grown):
    section = section_of(grown)
    used, training, channels = (figure for group in section.groups for figure in group.figures)
    cost, limit = used.data
    assert cost["y"] == [0.01, 0.6, 0.98]
    assert (limit["x"], limit["y"]) == ([19, 57], [1, 1])
    network, so_far = training.data
    assert network["y"] == pytest.approx([0.002, 0.12, 0.196])
    assert so_far["y"] == [0.001, 0.05, 0.11]
    assert [(line["name"], line["y"][-1]) for line in channels.data] == [
        ("conv1", 114),
        ("conv2", 1),
    ]
    note = section.notes[0].replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert note.startswith("98.0 % of the budget") and "11.0 % of a full network's" in note


def test_runs_without_a_budget_stay_out_and_keep_their_colours(grown, make_run):
    dense = make_run("dense", sparse=False, spectra=False)
    assert section_of(dense) is None
    section = section_of(dense, grown)
    assert section.groups[0].figures[0].data[0]["line"]["color"] == "run 1"
    assert section.groups[1].title == "grown"
    assert section.notes[0].startswith("grown: ")


def test_what_the_section_draws_is_not_drawn_twice(grown):
    found = schedules(load_runs([grown], DETAILS[0]))
    assert [figure.title for group in found.groups for figure in group.figures] == [
        "Penalty weight"
    ]
