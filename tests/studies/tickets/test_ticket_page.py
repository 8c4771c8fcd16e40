"""The page of a search: curves with intervals over the seeds, from the table or its folder."""

import json
import math
import warnings
from html.parser import HTMLParser

import pytest

from latewood.cli import main
from latewood.core.statistics import half_width
from latewood.errors import RequestError, WorkError
from latewood.studies.tickets import BASELINES, TicketTable, write_tickets_page
from latewood.studies.tickets.pruning_strategies import ALONE, MATCHED

DENSITY = {"ticket": 0.013, "hard": 0.013, "shuffled": 0.013, "gradual": 0.013, "iterative": 0.8}
ACCURACY = {"ticket": 0.97, "hard": 0.96, "shuffled": 0.5, "gradual": 0.95, "iterative": 0.98}


def row(method, seed, **more):
    return {
        "method": method,
        "seed": seed,
        "initial_logit": None,
        "round": None,
        "search_epochs": 40,
        "density": DENSITY.get(method, 1.0),
        "accuracy": ACCURACY.get(method, 0.98) + 0.01 * seed,
        "search_seconds": 1.5,
        **more,
    }


@pytest.fixture
def table(tmp_path):
    rows = []
    for seed in (0, 1, 2):
        rows += [row("untrained", seed, accuracy=0.1), row("dense", seed, search_epochs=0)]
        rows += [row(name, seed, initial_logit=-0.1, round=1) for name in ("ticket", "shuffled")]
        rows += [row("gradual", seed, initial_logit=-0.1, round=1)]
        soft = {"soft": 0.97, "hard": 0.96, "recalibrated": 0.96, "undecided": 0.02 - 0.01 * seed}
        rows.append(row("hard", seed, initial_logit=-0.1, round=1, **soft))
        rows += [
            row("iterative", seed, round=n, density=0.8**n, search_epochs=40 * n) for n in (1, 2)
        ]
    return TicketTable(rows, "accuracy", tmp_path, setting="mlp model, digits task")


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.text, self.figures, self._script, self._hidden = "", [], False, False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self._script = tag == "script" and ("type", "application/json") in attrs
        self._hidden = tag in ("script", "style")

    def handle_data(self, data):
        if self._script:
            self.figures.append(json.loads(data))
            self._script = False
        elif not self._hidden:
            self.text += data


def page_of(path):
    return Page(path.read_text(encoding="utf-8"))


def spaced(text):
    return text.replace("\N{NARROW NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")


def traces(figure):
    return {t["name"]: t for t in figure["data"] if "name" in t}


def test_the_curve_has_every_way_with_its_interval(table, tmp_path):
    page = page_of(write_tickets_page(table, tmp_path / "page.html"))
    whole, near, cost = page.figures
    found = traces(whole)
    assert set(found) == {
        "ticket",
        "hard masks, no second training",
        "ticket's counts at random places",
        "magnitude, gradual",
        "magnitude, iterative, rewound",
        "dense",
    }
    ticket = found["ticket"]
    assert ticket["x"] == [0.013] and ticket["y"] == [pytest.approx(0.98)]
    width = half_width([0.97, 0.98, 0.99])
    assert ticket["error_y"]["arrayminus"] == [pytest.approx(width)]
    assert ticket["error_y"]["array"] == [pytest.approx(1 - 0.98)], "no share is above 1"
    under = spaced(ticket["customdata"][0])
    assert "98.00 ± 2.48 %" in under and "1.3 % of the weights" in under and "40 search ep" in under
    iterative = found["magnitude, iterative, rewound"]
    assert iterative["x"] == [pytest.approx(0.64), pytest.approx(0.8)]
    assert iterative["mode"] == "lines+markers"
    assert whole["layout"]["xaxis"]["type"] == "log"
    seeds = [t for t in whole["data"] if "name" not in t]
    assert any(t["y"] == [pytest.approx(v) for v in (0.97, 0.98, 0.99)] for t in seeds)
    assert near["layout"]["yaxis"]["range"][0] > 0.9
    assert traces(cost)["magnitude, iterative, rewound"]["x"] == [40, 80]


def test_words(table, tmp_path):
    text = spaced(page_of(write_tickets_page(table, tmp_path / "page.html")).text)
    assert (
        "A ticket with 1.3 % of the weights has 98.0 % accuracy, the dense network 99.0 %" in text
    )
    assert "means over 3 seeds with 95 % intervals" in text
    assert "Mlp model, digits task." in text
    assert "2.0 % undecided (seed 0, initial logit -0.1: soft 97.0 %, hard 96.0 %" in text


def test_one_seed_has_no_interval_and_says_so(table, tmp_path):
    table = TicketTable([r for r in table.rows if r["seed"] == 0], "accuracy", tmp_path)
    page = page_of(write_tickets_page(table, tmp_path / "page.html"))
    assert "There was one seed" in page.text
    assert traces(page.figures[0])["ticket"]["error_y"]["array"] == [0.0]
    assert table.summary()[0]["interval"] is None


def test_lower_may_be_better_and_results_may_be_missing(table, tmp_path):
    rows = [
        {**{k: v for k, v in r.items() if k != "accuracy"}, "loss": 1 - r["accuracy"]}
        for r in table.rows
    ]
    rows += [dict(rows[2], initial_logit=-0.2, density=0.006, loss=0.3)]
    rows += [dict(rows[2], initial_logit=-0.3, density=0.001, loss=math.nan)]
    table = TicketTable(rows, "loss", tmp_path, higher_is_better=False)
    text = spaced(page_of(write_tickets_page(table, tmp_path / "page.html")).text)
    assert "A ticket with 1.3 % of the weights has loss 0.02" in text


def test_a_search_without_tickets(table, tmp_path):
    rows = [r for r in table.rows if r["method"] in ("dense", "iterative")]
    text = page_of(
        write_tickets_page(TicketTable(rows, "accuracy", tmp_path), tmp_path / "p.html")
    ).text
    assert "3 networks compared" in text


def test_nothing_of_the_table_becomes_markup(table, tmp_path):
    evil = "</script><script>window.hit=1</script>"
    rows = [dict(r, method=evil) if r["method"] == "gradual" else r for r in table.rows]
    table = TicketTable(rows, "accuracy", tmp_path, setting=evil)
    html = write_tickets_page(table, tmp_path / "page.html").read_text(encoding="utf-8")
    assert evil not in html


def test_the_folder_gives_the_same_page(table, tmp_path, capsys, monkeypatch):
    # The command line prints warnings in its own way from then on.
    monkeypatch.setattr("warnings.showwarning", warnings.showwarning)
    table.save()
    again = TicketTable.load(tmp_path)
    assert (
        again.rows == [{key: r.get(key) for key in again.rows[0]} for r in table.rows]
        and again.setting == table.setting
    )
    first = write_tickets_page(table, tmp_path / "a.html").read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path)])
    assert ended.value.code == 0
    assert (tmp_path / "report.html").read_bytes() == first
    assert "report.html" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path), str(tmp_path)])
    assert ended.value.code == 2
    assert "a ticket search, among others" in capsys.readouterr().err


def test_folders_without_a_search_and_damaged_ones(table, tmp_path):
    with pytest.raises(RequestError, match="expected the folder of a ticket search"):
        TicketTable.load(tmp_path)
    table.save()
    for text in ("{", "[]", "[3]", '[{"method": "ticket"}]'):
        (tmp_path / "tickets.json").write_text(text)
        with pytest.raises(WorkError):
            TicketTable.load(tmp_path)


def test_every_baseline_has_its_strategy():
    assert set(BASELINES) == {*MATCHED, *ALONE, "supermask"}
