"""Pages about more runs than can be drawn."""

import json

from latewood.report import write_report
from latewood.report.many_runs import MOST_DRAWN, chosen
from latewood.report.run_data import read_runs


def outcomes(make_run, values):
    folders = []
    for number, value in enumerate(values):
        folder = make_run(f"run{number}", spectra=False, steps=20)
        if value is None:
            folder.summary_path.unlink()
        else:
            summary = json.loads(folder.summary_path.read_text())
            for metrics in summary["evaluations"].values():
                metrics["accuracy"] = value
            folder.summary_path.write_text(json.dumps(summary))
        folders.append(folder)
    return folders


def test_the_first_and_the_best_are_drawn_and_all_are_listed(make_run, tmp_path):
    count = MOST_DRAWN + 4
    values = [0.5, None, *[0.6 + number / 1000 for number in range(count - 2)]]
    folders = outcomes(make_run, values)
    runs = read_runs(folders)
    # The three worst are left out: the one without an outcome and those just above the first.
    left_out = {1, 2, 3, 4}
    assert chosen(runs) == [p for p in range(count) if p not in left_out]
    page = write_report(folders, tmp_path / "page.html").read_text()
    assert f"{count} runs, the best first" in page
    listed = page[page.index("All runs") :]
    order = [listed.index(f'<th scope="row">run{number}<') for number in range(count)]
    assert order.index(min(order)) == count - 1
    assert order.index(max(order)) == 1
    assert f"Best of {count} runs: run{count - 1}" in page


def test_few_runs_are_all_drawn(make_run):
    runs = read_runs(outcomes(make_run, [0.5, None, 0.7]))
    assert chosen(runs) == [0, 1, 2]
