"""A contact sheet: one HTML page with every result, that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import jinja2

from latewood.errors import WorkError
from latewood.segmentation.segment_files import Done, means

__all__ = ["LARGEST", "render_sheet", "write_sheet"]

LARGEST = 600
"""Previews on one page; what is beyond them is counted."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width">
<title>Segmentation of {{ count }} images</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fafafa }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 1rem }
figure { margin: 0; background: #fff; border: 1px solid #ddd; border-radius: 6px; padding: .5rem }
img { width: 100%; display: block; border-radius: 3px }
figcaption { font-size: 12px; margin-top: .4rem; overflow-wrap: anywhere }
table { border-collapse: collapse } td, th { padding: .2rem .8rem .2rem 0; text-align: left }
.failed, .flag { color: #a4262c }
</style>
</head>
<body>
<h1>{{ shown }} of {{ count }} images segmented</h1>
{% if failures %}
<h2 class="failed">{{ failures | length }} failed</h2>
<ul class="failed">{% for error in failures %}<li>{{ error }}</li>{% endfor %}</ul>
{% endif %}
{% if passed_over %}
<details><summary>{{ passed_over | length }} passed over, which are no images</summary>
<ul>{% for path in passed_over %}<li>{{ path }}</li>{% endfor %}</ul></details>
{% endif %}
{% if scores %}
<h2>Agreement with the true masks</h2>
<table>
<tr><th></th><th>better polarity</th><th>as it is</th></tr>
{% for name in ("accuracy", "iou", "miou", "dice") %}
<tr><td>{{ name }}</td><td>{{ "%.4f" | format(scores[name]) }}</td>
<td>{{ "%.4f" | format(scores[name + "_fixed"]) }}</td></tr>
{% endfor %}
<tr><td>empty masks</td><td colspan="2">{{ "%.1f" | format(100 * scores["empty"]) }} %</td></tr>
</table>
{% endif %}
<h2>Results</h2>
{% if left_out %}<p>{{ left_out }} more are in the folder, without a preview here.</p>{% endif %}
<div class="sheet">
{% for item in items %}
<figure><img alt="{{ item.name }}" src="data:image/jpeg;base64,{{ item.picture }}">
<figcaption><b>{{ item.name }}</b><br>{{ item.words }}
{% if item.flags %}<span class="flag">{{ item.flags }}</span>{% endif %}</figcaption></figure>
{% endfor %}
</div>
<p>Outline: what was found; dark: background. Latewood.</p>
</body>
</html>
"""


def write_sheet(done: Sequence[Done], path: Path, passed_over: Sequence[Path] = ()) -> Path:
    """Writes the contact sheet.

    Args:
        done: what became of the images.
        path: the HTML file.
        passed_over: files and folders that were not treated, which it names.

    Raises:
        WorkError: it cannot be written.
    """
    try:
        path.write_text(render_sheet(done, passed_over), encoding="utf-8")
    except OSError as error:
        raise WorkError(f"{path}: cannot be written: {error.strerror or error}") from error
    return path


def render_sheet(done: Sequence[Done], passed_over: Sequence[Path] = ()) -> str:
    """The contact sheet as HTML: failures first, then scores, then a preview of each image."""
    good = [one for one in done if one.record]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_PAGE).render(
        count=len(done),
        shown=len(good),
        failures=[one.error for one in done if one.error],
        passed_over=passed_over,
        scores=means(done),
        left_out=max(0, len(good) - LARGEST),
        items=[_item(one) for one in good[:LARGEST]],
    )


def _item(one: Done) -> dict[str, str]:
    record = one.record
    words = f"foreground {100 * record['foreground']:.0f} %, score {record['score']:.3f}"
    if one.scores:
        words += f", IoU {one.scores['iou']:.3f}"
    return {
        "name": one.name,
        "picture": base64.b64encode(one.preview).decode(),
        "words": words,
        "flags": ", ".join(record["flags"]),
    }
