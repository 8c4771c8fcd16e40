"""What a report contains, what it says about what is missing, and how large it may get."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from latewood.errors import RequestError, WorkError
from latewood.report import Figure, Group, Section, report, write_report
from latewood.report.report import LIMIT
from latewood.report.sections import SECTIONS
from latewood.spectra import (
    PairAlignment,
    Spectrum,
    random_effective_rank,
    snapshot_path,
    write_snapshot,
)
from latewood.training.run_folder import RunFolder


class Page(HTMLParser):
    """The visible text, the headings, the tables' rows and the figures of a page."""

    def __init__(self, html):
        super().__init__()
        self.text, self.headings, self.rows, self.figures, self.elements = "", [], [], [], []
        self._open = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        tag, attributes = self._open[-1] if self._open else ("", {})
        if tag == "script" and attributes.get("type") == "application/json":
            self.figures.append(json.loads(data))
        if tag in ("script", "style"):
            return
        self.text += data
        if tag in ("h1", "h2"):
            self.headings.append(data)
        if any(name in ("th", "td") for name, _ in self._open):
            self.rows[-1][-1] += data


@pytest.fixture
def read(tmp_path):
    def write_and_read(*runs, **options):
        path = write_report(runs, tmp_path / "report.html", **options)
        return Page(path.read_text(encoding="utf-8"))

    return write_and_read


def spaced(text):
    return text.replace("\N{NARROW NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")


def titles(page):
    return page.headings[1:]


def test_one_run(make_run, read):
    page = read(make_run())
    assert spaced(page.headings[0]) == "97.8 % accuracy with 6.4 % of the weights"
    assert titles(page) == [
        "Before and after",
        "Learning",
        "Schedules and methods",
        "Masks by layer",
        "Effective rank",
        "Singular values",
        "Recipe and environment",
    ]
    rows = [[spaced(cell) for cell in row] for row in page.rows]
    assert ["accuracy", "98.1 %", "96.9 %", "97.8 %"] in rows
    assert ["Nonzero parameters", "5,210"] in rows
    assert ["File", "24.1 kB"] in rows
    for words in ('name = "continuous_sparsification"', "Linux x86_64", "144 · rank"):
        assert words in page.text


def test_several_runs_are_compared_with_the_first(make_run, read):
    dense = make_run("dense", sparse=False, seed=1)
    page = read(dense, make_run("a/sparse"), make_run("b/sparse"))
    assert "Best of 3 runs: dense" in page.headings[0]
    rows = [[spaced(cell) for cell in row] for row in page.rows]
    assert ["", "dense", "a/sparse", "b/sparse"] in rows
    assert ["accuracy", "98.1 %", "97.8 %-0.3 points", "97.8 %-0.3 points"] in rows
    assert ["Nonzero parameters", "77,610", "5,210-93.3 %", "5,210-93.3 %"] in rows
    assert ["Parameters", "77,610", "77,610", "77,610"] in rows
    assert ["seed", "1", "0", "0"] in rows


def test_two_runs_put_the_change_into_the_headline(make_run, read):
    page = read(make_run("dense", sparse=False), make_run("sparse"))
    headline = spaced(page.headings[0])
    assert (
        headline
        == "sparse has 97.8 % accuracy with 6.4 % of the weights, -0.3 points against dense"
    )


def test_a_smaller_network_is_compared_with_the_first(make_run, read):
    dense, slim = make_run("dense", sparse=False), make_run("slim")
    summary = dict(slim.summary)
    summary["size"] = summary["size"] | {"parameters": 13194, "nonzero": 13194, "density": 1.0}
    slim.summary_path.write_text(json.dumps(summary))
    headline = spaced(read(dense, slim).headings[0])
    assert headline == (
        "slim has 97.8 % accuracy with 17.0 % of the parameters of dense, -0.3 points against dense"
    )


def test_figures_hold_the_metrics(make_run, read):
    run = make_run()
    page = read(run)
    curves = {
        trace["name"]: trace
        for figure in page.figures
        for trace in figure["data"]
        if trace.get("name") in ("validation", "training")
    }
    rows = run.read_metrics()
    losses = [row["loss"] for row in rows if row["kind"] == "validation"]
    assert curves["validation"]["y"] == pytest.approx(losses, rel=1e-3)
    heats = [t for f in page.figures for t in f["data"] if t["type"] == "heatmap"]
    density, undecided, rank, column, numbered, _, *maps = heats
    first = [r for r in rows if r["kind"] == "method"][-1]
    head = first["continuous_sparsification/density/head.weight"]
    assert density["z"][-1][-1] == pytest.approx(np.log10(head), rel=1e-2)
    assert density["text"][-1][-1] == pytest.approx(head, rel=1e-2)
    assert density["meta"]["rows"][0] == undecided["meta"]["rows"][0] == "stem.weight"
    assert undecided["text"][3][0] == pytest.approx((1 - 20 / 400) ** 4, rel=1e-2)
    assert undecided["text"][0][-1] == 0
    assert rank["x"][0] == 0
    assert rank["x"][-1] == 400
    assert rank["z"][0][0] > 0.9 > 0.5 > rank["z"][0][-1]
    random = random_effective_rank(16, 144)
    assert column["z"] == [[pytest.approx(random, abs=1e-3)]] * 4
    assert (column["xaxis"], column["x"]) == ("x2", ["random"])
    assert numbered["z"] == rank["z"]
    assert numbered["x"] == list(range(20))
    assert len(maps) == 4
    assert all(np.shape(each["z"]) == (16, 20) for each in maps)
    assert all(max(map(max, each["z"])) == 0 for each in maps)


def test_scores_of_the_training_samples_are_drawn_beside_those_of_validation(make_run, read):
    run = make_run()
    for step in (200, 400):
        run.append_metrics({"step": step, "epoch": 1.0, "kind": "training", "accuracy": 0.5})
    curves = [t for f in read(run).figures for t in f["data"] if t.get("name") == "training"]
    assert [curve["y"] for curve in curves if len(curve["y"]) == 2] == [[0.5, 0.5]]


def test_singular_values_have_one_panel_per_layer(make_run, read):
    page = read(make_run(rank=5))
    panels = [f for f in page.figures if f["data"][0].get("name", "").startswith("\u03c3")]
    assert len(panels) == 4
    for panel in panels:
        *values, lower, upper = panel["data"]
        assert [trace["name"] for trace in values] == [f"\u03c3{i}" for i in (5, 4, 3, 2, 1)]
        assert len(panel["x"]) == 20
        # A random matrix of this shape and norm lies between (sqrt(45) -+ sqrt(5)) s.
        edges = [np.array(trace["y"]) for trace in (lower, upper)]
        assert edges[1] / edges[0] == pytest.approx((3 + 1) / (3 - 1), rel=1e-3)
        norms = np.sqrt(sum(np.square(trace["y"]) for trace in values))
        assert edges[1] == pytest.approx(norms * (45**0.5 + 5**0.5) / 225**0.5, rel=1e-3)
        smallest, *_, largest = values
        assert all(a < b for a, b in zip(smallest["y"], largest["y"], strict=True))
        assert (largest["line"]["color"], smallest["line"]["color"]) == ("ramp 0.000", "ramp 1.000")


def test_alignments_are_drawn_over_depth_and_time(make_run, read):
    run = make_run(spectra=False)
    spectra = [Spectrum("w", (4, 3), np.ones(3, dtype=np.float32))]
    for step, scores in ((0, (0.1, 0.2)), (100, (0.3,)), (400, (0.5, 0.6))):
        found = {
            f"layer {i}->layer {i + 1}": PairAlignment((score, score / 2), 3 * score / 4, 0.05)
            for i, score in enumerate(scores)
        }
        write_snapshot(snapshot_path(run.spectra_folder, step), step, spectra, found)
    page = read(run)
    assert "Alignment of consecutive layers" in page.text
    heats = [
        t for f in page.figures for t in f["data"] if "alignment" in t.get("hovertemplate", "")
    ]
    overview, column, numbered, _, *single = heats
    assert overview["x"] == [0, 100, 400]
    assert numbered["x"] == [0, 1, 2]
    expected = [[0.075, 0.225, 0.375], [0.15, None, 0.45]]
    assert overview["z"] == numbered["z"] == expected
    assert column["z"] == [[0.05]] * 2
    assert single[0]["z"] == [[0.1, 0.3, 0.5], [0.05, 0.15, 0.25]]
    assert "Alignment of consecutive layers" not in read(make_run("plain")).text


def test_looks_that_followed_a_few_values_have_no_rank(make_run, read):
    run = make_run(spectra=False)
    for step, count in ((0, 3), (100, 2), (400, 3)):
        values = np.arange(count, 0, -1, dtype=np.float32)
        method = "svd" if count == 3 else "warm"
        spectrum = Spectrum("w", (4, 3), values, method=method)
        write_snapshot(snapshot_path(run.spectra_folder, step), step, [spectrum])
    heats = [t for f in read(run).figures for t in f["data"] if t["type"] == "heatmap"]
    ranks = [t for t in heats if "effective rank" in t["hovertemplate"]]
    assert ranks[0]["x"] == [0, 400]


def test_missing_probe_is_said(make_run, read):
    page = read(make_run(spectra=False))
    assert "No spectral probe took part" in page.text
    assert "Singular values" not in titles(page)


def test_a_single_snapshot_is_said(make_run, read):
    page = read(make_run(snapshots=1))
    assert "only one snapshot, at step 0" in page.text
    panel = next(f for f in page.figures if f["data"][0].get("mode") == "markers")
    assert panel["layout"]["xaxis"] == {"tickvals": [0]}


def test_pruned_layers_get_the_lowest_colour_and_unknown_ones_none(make_run, read):
    run = make_run(steps=0, finished=False, spectra=False)
    for step, density in ((1, 0.0), (2, 0.02)):
        row = {"cs/density/a": density} | ({"cs/density/b": 1.0} if step == 2 else {})
        run.append_metrics({"step": step, "epoch": 0, "kind": "method", **row})
    heat = next(t for f in read(run).figures for t in f["data"] if t["type"] == "heatmap")
    assert heat["zmin"] == -2
    assert heat["z"] == [[-2, pytest.approx(np.log10(0.02), abs=1e-2)], [None, 0]]
    assert heat["text"] == [[0, 0.02], [None, 1]]


def test_missing_method_leaves_its_section_out(make_run, read):
    page = read(make_run(sparse=False))
    assert "Masks by layer" not in titles(page)
    assert "without any method" in page.text


def test_probe_metrics_stand_in_for_missing_snapshots(make_run, read):
    run = make_run(spectra=False)
    run.append_metrics({"step": 0, "epoch": 0, "kind": "probe", "effective_rank/a.weight": 0.9})
    run.append_metrics({"step": 9, "epoch": 1, "kind": "probe", "effective_rank/a.weight": 0.4})
    page = read(run)
    heats = [t for f in page.figures for t in f["data"] if t.get("colorscale") == "heat"]
    assert [0.9, 0.4] in [row for heat in heats for row in heat["z"]]
    assert "No spectral probe" not in page.text


def test_unfinished_run(make_run, read):
    page = read(make_run(finished=False))
    assert "no result yet, 400 steps done" in page.headings[0]
    assert "has not finished" in page.text
    assert "Learning" in titles(page)


def test_run_with_nothing_but_a_recipe(make_run, read):
    run = make_run(finished=False, spectra=False, steps=0, snapshots=1)
    page = read(run)
    assert "No metrics were written" in page.text


def test_damaged_files_are_said(make_run, read):
    run = make_run()
    run.summary_path.write_text("{")
    run.recipe_path.write_text("= 3")
    next(iter(run.spectra_folder.iterdir())).write_bytes(b"torn")
    lines = run.metrics_path.read_text().splitlines(True)
    run.metrics_path.write_text("".join(["{broken\n", *lines]))
    page = read(run)
    for words in ("summary could not", "not valid TOML", "snapshot", "line 1 is damaged"):
        assert words in page.text, words
    assert "Effective rank" in titles(page)


def test_not_finite_numbers_are_gaps(make_run, read):
    run = make_run(steps=40)
    run.append_metrics({"step": 41, "epoch": 3, "kind": "train", "loss": float("nan"), "lr": 0.1})
    run.append_metrics({"step": 41, "epoch": 3, "kind": "validation", "loss": float("inf")})
    summary = json.loads(run.summary_path.read_text())
    summary["evaluations"]["recalibrated"]["loss"] = None
    run.summary_path.write_text(json.dumps(summary))
    page = read(run)
    assert "not a number" in page.text
    last = [t["y"][-1] for f in page.figures for t in f["data"] if t.get("name") == "validation"]
    assert None in last


def test_lower_is_better(make_run, read):
    runs = [make_run("one", spectra=False), make_run("two", spectra=False)]
    for run, value in zip(runs, (2.0, 1.0), strict=True):
        summary = json.loads(run.summary_path.read_text())
        summary |= {"headline": "loss", "higher_is_better": False}
        summary["evaluations"] = {"trained": {"loss": value}}
        run.summary_path.write_text(json.dumps(summary))
    page = read(*runs, make_run("three", spectra=False, finished=False))
    assert page.headings[0].startswith("two has loss 1")
    changes = [a for tag, a in page.elements if tag == "small" and a.get("class")]
    assert {a["class"] for a in changes} == {"better"}


EVIL = """</script><script>window.hit=1</script><img src=x onerror='window.hit=1'>"&amp;{{7*7}}"""


def test_every_string_is_escaped(make_run, tmp_path):
    run = make_run(name="<b>run & 'x\"", text=lambda words: words + EVIL)
    html = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert EVIL not in html
    page = Page(html)
    own = [a for tag, a in page.elements if tag == "script"]
    assert len(own) == len(page.figures) + 2
    assert all(a.get("type") in (None, "application/json") for a in own)
    assert not any(tag == "img" for tag, _ in page.elements)
    assert not any(name.startswith("on") for _, a in page.elements for name in a)
    assert "a plain note</script>" in page.text
    assert "{{7*7}}" in page.text
    named = [t for f in page.figures for t in f["data"] if "meta" in t]
    assert all("<" not in row for trace in named for row in trace["meta"]["rows"])
    assert "&lt;/script&gt;" in named[0]["meta"]["rows"][0]


def test_figures_cannot_leave_their_script(make_run, tmp_path):
    def careless(runs):
        return Section(
            title="x", groups=[Group(figures=[Figure(title="x", data=[{"name": EVIL}])])]
        )

    path = write_report([make_run()], tmp_path / "report.html", sections=[careless])
    html = path.read_text(encoding="utf-8")
    assert EVIL not in html
    assert Page(html).figures == [{"data": [{"name": EVIL}], "layout": {}, "x": []}]


def test_nothing_is_loaded_from_anywhere(make_run, tmp_path):
    html = write_report([make_run()], tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    links = [a.get("href") or a.get("src") for _, a in page.elements if "href" in a or "src" in a]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    policy = next(a["content"] for _, a in page.elements if "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert "connect-src" not in policy
    assert html.count("plotly.js v") == 1


def test_large_runs_stay_under_the_limit(make_run, tmp_path):
    layers = [f"stage{i // 10}.block{i % 10}.conv.weight" for i in range(40)]
    run = make_run(layers=layers, steps=3000, snapshots=80, rank=512)
    one = write_report([run], tmp_path / "one.html")
    assert one.stat().st_size < LIMIT
    several = write_report([run] * 8, tmp_path / "several.html")
    assert several.stat().st_size < LIMIT
    page = Page(several.read_text(encoding="utf-8"))
    assert "are left out" in page.text


def test_detail_falls_until_the_page_fits(make_run, tmp_path, monkeypatch):
    run = make_run(rank=64, snapshots=64)
    fine = write_report([run], tmp_path / "fine.html").stat().st_size
    monkeypatch.setattr(report, "LIMIT", fine)
    coarse = write_report([run], tmp_path / "coarse.html").stat().st_size
    assert coarse < fine
    monkeypatch.setattr(report, "LIMIT", 1000)
    with pytest.raises(RequestError, match="fewer"):
        write_report([run], tmp_path / "none.html")


def test_a_section_is_a_function(make_run, read):
    def faults(runs):
        figure = Figure(title="Accuracy under faults", data=[{"type": "scatter", "y": [1, 0.5]}])
        return Section(title=f"Faults of {runs[0].name}", groups=[Group(figures=[figure])])

    def nothing(runs):
        return None

    page = read(make_run(), sections=[*SECTIONS, faults, nothing])
    assert titles(page)[-1] == "Faults of sparse"
    assert page.figures[-1]["data"][0]["y"] == [1, 0.5]


def test_the_same_runs_give_the_same_page(make_run, tmp_path):
    run = make_run()
    first = write_report([run], tmp_path / "a.html").read_bytes()
    assert write_report([run], tmp_path / "b.html").read_bytes() == first


def test_text_in_a_page_is_not_code_of_its_template(make_run, read):
    assert not re.search(r"\{[{%]", read(make_run()).text)


def test_wrong_requests(make_run, tmp_path):
    with pytest.raises(RequestError, match="at least one"):
        write_report([], tmp_path / "report.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="files of a run"):
        write_report([RunFolder(tmp_path / "empty")], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_unwritable_place(make_run, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkError, match="cannot be written"):
        write_report([make_run()], tmp_path / "file" / "report.html")
