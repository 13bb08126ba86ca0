"""The results page: one HTML file with interactive figures that needs no network and no server.

Everything that comes from data or configuration is shown as text: a task named `<script>` is a name.
"""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow as pa
from plotly.offline import get_plotlyjs

from stopwise.claims.verdicts import measurement
from stopwise.figures import style
from stopwise.figures.tables import gather, ordered
from stopwise.report.interactive import INTERACTIVE, Section
from stopwise.report.page_parts import POLICY, SCRIPT, STYLE

SUMMARY = pa.schema(
    [
        pa.field("start", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("method", pa.string(), nullable=False),  # zero_shot, ..., or a stopping rule
        pa.field("seeds", pa.int64()),
        pa.field("accuracy", pa.float64()),  # test accuracy, mean over seeds
        pa.field("loss", pa.float64()),
        pa.field("t", pa.float64()),
        pa.field("relative_regret", pa.float64()),
    ]
)
METHODS = ("zero_shot", "zero_shot_intercept", "kernel_regression", *style.RULES)
SCREEN = 2.0  # pixels on the page for a point of a printed figure: its smallest text is then 14 pixels high
TITLES = {
    "F1": (
        "Eigenvalue decay",
        "How fast the eigenvalues of each task's kernel fall, and the law fitted to them (dashed).",
    ),
    "F2": (
        "Fine-tuning and where each rule stops",
        "Curves of real training, the linearised prediction (dashed) and the step at which each rule would stop. An "
        "open mark at the right edge is a rule that stops after the run ended. The oracle sees the test loss: it is a "
        "yardstick.",
    ),
    "F3": (
        "Stopping rules compared",
        "Every rule judged against the best test loss of the run that it would have stopped.",
    ),
    "F4": ("Error against sample size", "The measured slope beside the one that the spectrum predicts."),
    "F5": ("Ridge regression and early stopping", "Ridge at 1/η against early stopping at η."),
    "F6": (
        "Is training what the theory says?",
        "Residual by direction, loss, kernel drift and distance along real runs.",
    ),
    "F7": ("Task vectors: predicted and measured", "Cosine and interference over all pairs of tasks."),
    "F8": (
        "Adding and negating task vectors",
        "Accuracy against the scaling coefficient, which validation data chose.",
    ),
    "F9": ("Where the kernel comes from", "Share of the trace, alignment and effective dimension by layer."),
    "F10": ("Synthetic check", "Rates and regret against theory where the truth is known."),
    "F11": ("Worth in labels", "Test log-loss and accuracy against the labels spent, for every way of choosing."),
}


def _text(value: object) -> str:
    return html.escape(str(value))


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, (int, float)) and math.isfinite(value) else "–"


def headline(summary: pa.Table) -> str:
    """Table of the test accuracy by task and method at the largest size of each task, with all sizes folded away."""
    data = gather([({}, summary)], SUMMARY, "summary").to_pandas()
    if data.empty:
        return ""
    largest = data[data["n"] == data.groupby(["start", "task"])["n"].transform("max")]
    methods = ordered(data["method"], METHODS)
    caption = "Test accuracy in percent at the largest number of training examples, mean over the seeds"
    return _accuracies(largest, methods, caption) + (
        f"<details><summary>All sizes</summary>{_accuracies(data, methods, 'Test accuracy in percent')}"
        f"{_stops(data)}</details>"
    )


def _rows(data: pd.DataFrame) -> list[tuple[str, str, int, pd.DataFrame]]:
    """Start, task, size and rows of every line of a table."""
    starts, tasks = ordered(data["start"], style.STARTS), ordered(data["task"], style.TASKS)
    groups = {key: rows for key, rows in data.groupby(["start", "task", "n"])}  # noqa: C416 (a GroupBy is no mapping)
    return [
        (s, t, n, groups[s, t, n]) for s in starts for t in tasks for n in ordered(data["n"]) if (s, t, n) in groups
    ]


def _accuracies(data: pd.DataFrame, methods: list[str], caption: str) -> str:
    lines = []
    for start, task, n, rows in _rows(data):
        found = dict(zip(rows["method"], rows["accuracy"], strict=True))
        cells = [_number(100 * found[m], ".1f") if m in found else "–" for m in methods]
        lines.append([task, start, str(n), *cells])
    return table(["task", "start", "n", *(m.replace("_", " ") for m in methods)], lines, caption)


def _stops(data: pd.DataFrame) -> str:
    lines = []
    for start, task, n, rows in _rows(data.dropna(subset=["t"])):
        for _, one in rows.iterrows():
            numbers = [_number(one["t"], ".1f"), _number(one["loss"], ".4g"), _number(one["relative_regret"], ".3f")]
            lines.append([task, start, str(n), str(one["method"]).replace("_", " "), *numbers])
    if not lines:
        return ""
    return table(["task", "start", "n", "rule", "step", "test loss", "relative regret"], lines, "Where the rules stop")


def verdicts(claims: pa.Table) -> str:
    """Section with the paper's claims: what was measured, the criterion and the verdict (a `claims` artifact)."""
    rows = claims.to_pylist()
    lines = [[r["statement"], measurement(r), r["criterion"], r["verdict"]] for r in rows]
    words = "Criteria are fixed in the code, whatever a run finds. Brackets hold 95 % intervals."
    header = ["claim", "measured", "held if", "verdict"]
    made = table(header, lines, "The claims of the paper, tested by this run") if rows else ""
    return f'<section id="claims"><h2>The paper\'s claims</h2><p>{words}</p>{made}</section>'


def table(header: list[str], rows: list[list[str]], caption: str) -> str:
    """HTML table of texts."""
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in header)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    caption = f"<caption>{_text(caption)}</caption>"
    return f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _selectors(name: str, section: Section) -> str:
    """The choices of a section; those with one option only are there but hidden."""
    parts = []
    for label, options, first in section.choices:
        entries = "".join(
            f'<option value="{i}"{" selected" if i == first else ""}>{_text(option)}</option>'
            for i, option in enumerate(options)
        )
        hidden = " hidden" if len(options) < 2 else ""
        parts.append(f'<label{hidden}>{_text(label)} <select aria-label="{_text(label)}">{entries}</select></label>')
    return f"<div>{''.join(parts)}</div>"


def _heading(name: str) -> str:
    title, words = TITLES[name]
    return f"<h2>{name}. {_text(title)}</h2><p>{_text(words)}</p>"


def _image(name: str, svg: bytes) -> str:
    data = base64.b64encode(svg).decode("ascii")
    size = re.search(rb'<svg[^>]*? width="([\d.]+)pt"', svg)
    width = f' width="{SCREEN * float(size[1]):.0f}"' if size else ""
    picture = f'<img{width} alt="{_text(TITLES[name][0])}" src="data:image/svg+xml;base64,{data}">'
    return f'<section id="{name}">{_heading(name)}{picture}</section>'


def _embedded(value: Any) -> str:
    """JSON that cannot end the script element that holds it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def render(
    name: str,
    tables: Mapping[str, pa.Table],
    summary: pa.Table | None = None,
    images: Mapping[str, bytes] | None = None,
    facts: Mapping[str, str] | None = None,
    claims: pa.Table | None = None,
) -> str:
    """Make the page of a run, as HTML text.

    `tables` holds the tables of figures by id (those with an interactive version are drawn: F1, F2, F3, F8), `summary`
    the headline numbers (columns `SUMMARY`), `images` the SVG bytes of further figures, `facts` what to tell about the
    run (model, seeds, ...), `claims` its `claims` artifact. ValueError when a table lacks a column. About 5 MB, most of
    it plotly.js.
    """
    sections = {key: INTERACTIVE[key](tables[key]) for key in INTERACTIVE if key in tables}
    pictures = {key: svg for key, svg in (images or {}).items() if key not in sections}
    parts = {}
    for key in TITLES:
        if key in sections:
            plot = '<div class="plot"></div>'
            parts[key] = f'<section id="{key}">{_heading(key)}{_selectors(key, sections[key])}{plot}</section>'
        elif key in pictures:
            parts[key] = _image(key, pictures[key])
    if claims is not None:
        parts["claims"] = verdicts(claims)
    links = "".join(f'<a href="#{key}">{key}</a>' for key in parts)
    known = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in (facts or {}).items())
    data = _embedded({key: section.figures for key, section in sections.items()})
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>stopwise: {_text(name)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>When to stop fine-tuning: {_text(name)}</h1>
<dl>{known}</dl>
<nav aria-label="Figures">{links}</nav>
{headline(summary) if summary is not None else ""}
{"".join(parts.values())}
<noscript><p>The interactive figures need JavaScript; the tables do not.</p></noscript>
<script id="sections" type="application/json">{data}</script>
<script>{get_plotlyjs()}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""
