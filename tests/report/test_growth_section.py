"""The section on growth: widths, cost, events and ages, and nothing where nothing grows."""

import math

import pytest

from latewood.report.run_data import load_runs
from latewood.report.sampling import DETAILS
from latewood.report.sections.growth_section import growth
from latewood.report.sections.schedules_section import schedules


@pytest.fixture
def grown(make_run):
    run = make_run("grown", sparse=False, spectra=False, steps=0)
    for step, phase in ((0, 0), (10, 0), (20, 1), (30, 1), (40, 2)):
        scalars = {
            "phase": phase,
            "cost": (0.25, 0.5, 1.0)[phase],
            "training/share": (0.25, 0.3, 0.4)[phase],
            "event/step": (0, 10, 30)[phase],
            "event/before": (0.0, 0.9, 0.6)[phase],
            "event/after": (0.0, 0.95, 0.6)[phase],
            "width/conv1": (8, 12, 16)[phase],
            "norm/0": float(phase > 0),
            "norm/1": 2.0 * (phase > 0),
            "norm/2": 3.0 * (phase > 1),
            "rate/0": float(phase > 0),
            "rate/1": 0.8 * (phase > 0),
            "rate/2": 1.2 * (phase > 1),
        }
        named = {f"growth/{name}": value for name, value in scalars.items()}
        run.append_metrics({"step": step, "epoch": step / 10, "kind": "method", **named})
    return run


def section_of(*folders):
    return growth(load_runs(folders, DETAILS[0]))


def test_widths_cost_events_and_ages(grown):
    section = section_of(grown)
    cost, widths, events, norms, rates = (
        figure for group in section.groups for figure in group.figures
    )
    network, so_far = cost.data
    assert network["y"] == [0.25, 0.25, 0.5, 0.5, 1.0] and so_far["y"][-1] == 0.4
    assert widths.data[0]["y"] == [8, 8, 12, 12, 16]
    before, after = events.data
    assert (before["x"], before["y"], after["y"]) == ([10, 30], [0.9, 0.6], [0.95, 0.6])
    assert [line["name"] for line in norms.data] == ["seed", "event 1", "event 2"]
    youngest = norms.data[2]["y"]
    assert youngest[-1] == 3.0
    assert all(value is None or math.isnan(value) for value in youngest[:-1])
    assert [line["y"][-1] for line in rates.data] == [1.0, 0.8, 1.2]
    note = section.notes[0].replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert note.startswith("Its training cost 40.0 % of") and "4 times" in note


def test_runs_that_do_not_grow_stay_out_and_keep_their_colours(grown, make_run):
    dense = make_run("dense", sparse=False, spectra=False)
    assert section_of(dense) is None
    section = section_of(dense, grown)
    assert section.groups[0].figures[0].data[0]["line"]["color"] == "run 1"
    assert section.groups[1].title == "grown" and section.notes[0].startswith("grown: ")


def test_what_the_section_draws_is_not_drawn_twice(grown):
    assert schedules(load_runs([grown], DETAILS[0])) is None
