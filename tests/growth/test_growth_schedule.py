"""When a network grows and how far: worked schedules, and those that fit no run or no network."""

import pytest

from latewood.errors import RequestError
from latewood.growth import GrowthSchedule, explicit, growth_schedule, late, phased, plateau
from latewood.growth.growth_schedule import Plateau
from latewood.growth.plateau_watch import PlateauWatch


def test_the_papers_phases():
    schedule = phased(end=4.0)
    assert schedule.widths("layer", 16) == [16, 20, 24, 28, 34, 40, 48, 58, 64]
    assert schedule.widths("layer", 64) == [64, 76, 92, 110, 132, 158, 190, 228, 256]
    # Eight epochs first, of 160: 8, 10, 12, 14, 17, 20, 24, 29, 26.
    assert phased(end=4.0, first=8).starts(160) == [0, 8, 18, 30, 44, 61, 81, 105, 134]
    # All lengths by the rate: 7.7, 9.2, 11.1, 13.3, 16, 19.1, 23, 27.6, 33.1.
    assert schedule.starts(160) == [0, 8, 17, 28, 41, 57, 76, 99, 127]
    assert phased(end=4.0, phases=4, epoch_rate=0.0).starts(8) == [0, 2, 4, 6]


def test_widths_by_name_and_aligned():
    schedule = phased(end={"hidden": 64, "1": 30}, phases=3, rate=0.5, epochs=[1, 2, 3], align=16)
    assert schedule.widths("hidden", 16) == [16, 32, 64]
    assert schedule.widths("other", 16) is None
    assert schedule.named == ("hidden", "1")
    assert schedule.starts(6) == [0, 1, 3]


def test_an_odd_width_grows_in_pairs():
    assert late(end=2.0).widths("layer", 3) == [3, 7]
    assert late(end=1.01).widths("layer", 4) == [4, 6]


def test_one_widening_late():
    assert late(at=0.6).starts(10) == [0, 6]
    with pytest.raises(RequestError, match=r"schedule.at: got 0.1; expected .* both sides of 4"):
        late(at=0.1).starts(4)


def test_explicit_widths():
    schedule = explicit(widths={"a": [4, 4, 8]}, epochs=[1, 1, 1])
    assert schedule.widths("a", 4) == [4, 4, 8] and schedule.widths("b", 4) is None
    with pytest.raises(RequestError, match=r"widths\['a'\]: got \[4, 4, 8\]; .* width 6 first"):
        schedule.widths("a", 6)


def test_a_plateau_grows_in_time_in_any_case():
    schedule = plateau(end=4.0, phases=4, latest=0.75)
    assert schedule.starts(12) == [0, 3, 6, 9]
    with pytest.raises(RequestError, match=r"schedule\.phases: got 4"):
        schedule.starts(3)


def test_a_loss_that_no_longer_falls_is_noticed():
    watch = PlateauWatch(Plateau(patience=2, threshold=0.1))
    assert [watch.stalled(loss) for loss in (1.0, 0.8, 0.75, 0.6, 0.58, 0.56)] == [
        *(False, False, False, False, False, True)
    ]
    again = PlateauWatch(Plateau(patience=2, threshold=0.1))
    again.load_state_dict(watch.state_dict())
    assert again.stalled(0.6)
    watch.restart()
    assert not watch.stalled(0.9)


def test_a_loss_that_falls_to_below_zero_improves():
    watch = PlateauWatch(Plateau(patience=1, threshold=0.1))
    assert [watch.stalled(loss) for loss in (0.0, -1.0, -1.05, -1.2)] == [False, False, True, False]


def test_a_recipes_table_names_the_schedule():
    schedule = growth_schedule({"name": "late", "end": 3.0, "at": 0.5})
    assert schedule.widths("x", 10) == [10, 30] and growth_schedule(schedule) is schedule
    assert isinstance(growth_schedule({"name": "phased", "end": 2.0}), GrowthSchedule)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("phase", "schedule.name: got 'phase'; expected one of phased, late"),
        ({"end": 4.0}, "schedule.name: got None"),
        (3, "schedule: got 3"),
        ({"name": "late", "ends": 2.0}, r"schedule late: got .*expected the arguments end, at"),
        ({"name": "phased"}, r"schedule phased: .*missing a required argument: 'end'"),
        ({"name": "phased", "end": 1.0}, "schedule.end: got 1.0; expected a number above 1"),
        ({"name": "phased", "end": float("nan")}, "schedule.end: got nan"),
        ({"name": "phased", "end": {"a": 2.5}}, r"schedule.end\['a'\]: got 2.5"),
        (
            {"name": "phased", "end": 2.0, "phases": 1},
            "schedule.phases: got 1; expected at least 2",
        ),
        ({"name": "phased", "end": 2.0, "phases": "3"}, "schedule.phases: got '3'"),
        ({"name": "phased", "end": 2.0, "rate": 0.0}, "schedule.rate: got 0.0"),
        ({"name": "phased", "end": 2.0, "align": 3}, "schedule.align: got 3"),
        ({"name": "phased", "end": 2.0, "epochs": [1, 2]}, r"schedule.epochs: got \[1, 2\]"),
        ({"name": "phased", "end": 2.0, "phases": 2, "epochs": [0, 2]}, "schedule.epochs: got 0"),
        ({"name": "phased", "end": 2.0, "epochs": [1] * 9, "first": 1}, "schedule.first: got both"),
        ({"name": "phased", "end": 2.0, "epoch_rate": -1.0}, "schedule.epoch_rate: got -1.0"),
        ({"name": "late", "at": 1.0}, "schedule.at: got 1.0"),
        ({"name": "late", "at": "x"}, "schedule late: got .*right types"),
        ({"name": "plateau", "end": 2.0, "patience": 0}, "schedule.patience: got 0"),
        ({"name": "plateau", "end": 2.0, "threshold": 1.0}, "schedule.threshold: got 1.0"),
        ({"name": "plateau", "end": 2.0, "latest": 1.0}, "schedule.latest: got 1.0"),
        ({"name": "explicit", "widths": {}, "epochs": [1, 1]}, "schedule.widths: got {}"),
        (
            {"name": "explicit", "widths": {"a": [4, 7]}, "epochs": [1, 1]},
            r"schedule.widths\['a'\]: got \[4, 7\]; expected 2 widths, .* even numbers",
        ),
        (
            {"name": "explicit", "widths": {"a": [4, 2]}, "epochs": [1, 1]},
            r"schedule.widths\['a'\]: got \[4, 2\]",
        ),
        ({"name": "explicit", "widths": {"a": [4]}, "epochs": [1, 1]}, r"\['a'\]: got \[4\]"),
    ],
)
def test_what_makes_no_schedule_is_refused_by_name(section, message):
    with pytest.raises(RequestError, match=message):
        growth_schedule(section)


@pytest.mark.parametrize(("total", "where"), [(5, "after"), (7, "before")])
def test_a_schedule_that_does_not_end_with_the_run_is_refused(total, where):
    with pytest.raises(RequestError, match=rf"schedule.epochs: .* it ends {where} the run does"):
        phased(end=2.0, phases=3, epochs=[1, 2, 3]).starts(total)


def test_phases_that_find_no_room_are_refused():
    with pytest.raises(RequestError, match="schedule: got 9 phases in 8 epochs: total: got 8"):
        phased(end=2.0, first=1).starts(8)
    with pytest.raises(RequestError, match=r"schedule\.phases: got 9; expected at most 8"):
        phased(end=2.0).starts(8)


def test_every_phase_has_an_epoch_however_short_the_run_is():
    assert phased(end=2.0, phases=3, epoch_rate=1.0).starts(7) == [0, 1, 3]
    for total in range(9, 16):
        starts = phased(end=2.0, epoch_rate=1.0).starts(total)
        assert sorted({*starts}) == starts and starts[-1] < total and len(starts) == 9


def test_a_final_width_that_pairs_do_not_reach_is_refused_with_the_nearest():
    with pytest.raises(RequestError, match=r"end\['a'\]: got 9; .* such as 8 or 10"):
        late(end={"a": 9}).widths("a", 4)
    with pytest.raises(RequestError, match=r"end\['a'\]: got 2; .* from 4 in steps of 2"):
        late(end={"a": 2}).widths("a", 4)
