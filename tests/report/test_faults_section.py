"""The section on stuck cells: means, boxes and yield from faults.json, and damage said in words."""

import json

import pytest

from latewood.report.run_data import load_runs
from latewood.report.sampling import DETAILS
from latewood.report.sections.faults_section import faults


@pytest.fixture
def measured(make_run):
    run = make_run("hardened", sparse=False, spectra=False)
    rates = [
        {
            "hrs": hrs,
            "lrs": 0.02,
            "scores": scores,
            "summary": {"nearly_worst": min(scores), "plain": 0.95},
        }
        for hrs, scores in ((0.08, [0.9, 0.8]), (0.28, [0.7, 0.4]))
    ]
    content = {"headline": "accuracy", "least": 0.6, "rates": rates}
    run.faults_path.write_text(json.dumps(content))
    return run


def test_what_was_measured_is_drawn(measured, make_run):
    section = faults(load_runs([measured], DETAILS[0]))
    means, boxes, shares = (figure for group in section.groups for figure in group.figures)
    assert means.data[0]["x"] == pytest.approx([0.1, 0.3])
    assert means.data[0]["y"] == pytest.approx([0.85, 0.55])
    assert means.data[1]["y"] == pytest.approx([0.8, 0.4])
    assert [trace["y"] for trace in boxes.data] == [[0.9, 0.8], [0.7, 0.4]]
    assert shares.data[0]["y"] == pytest.approx([1.0, 0.5])
    assert "0.55 on average" in section.notes[0].replace("\N{NARROW NO-BREAK SPACE}", " ")
    other = make_run("other", sparse=False, spectra=False)
    both = faults(load_runs([measured, other], DETAILS[0]))
    assert both.groups[1].title == "hardened" and both.notes[0].startswith("hardened: ")
    assert faults(load_runs([other], DETAILS[0])) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"headline": "a", "least": 0, "rates": []}'])
def test_a_damaged_file_is_said_to_be_one(measured, text):
    measured.faults_path.write_text(text)
    (run,) = load_runs([measured], DETAILS[0])
    assert faults([run]) is None
    assert any("scores under faults could not be read" in problem for problem in run.problems)
