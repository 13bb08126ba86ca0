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
from stopwise.figures import f02_curves, style
from stopwise.figures.tables import gather, ordered
from stopwise.report import interactive
from stopwise.report.interactive import Section
from stopwise.report.page_parts import POLICY, SCRIPT, STYLE
from stopwise.report.summary import ALL_STEPS
from stopwise.stopping.registry import ROW

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
BEFORE = ("zero_shot_intercept", "zero_shot")  # what stands for no training: the first that the run has
METHODS = ("zero_shot", "zero_shot_intercept", "kernel_regression", *style.RULES, ALL_STEPS)
SCREEN = 2.0  # pixels on the page for a point of a printed figure: its smallest text is then 14 pixels high
TITLES = {  # in the order of the page
    "F2": (
        "Training, and where each rule stops",
        "Lower is better. Solid lines are real training, dots its evaluations on the test set, dashed lines what was"
        " predicted before training, where something was. Below the curves each rule has a row: a mark where it stops"
        " (the median of the seeds, which may lie between their curves), an open one when that is after the end of the"
        " run. The thin vertical lines go up from the stops of bayes, hold-out and the oracle.",
    ),
    "F3": (
        "Which rule to trust",
        "Every rule judged against the best test loss of the run that it would have stopped.",
    ),
    "F4": ("More examples", "Test loss by number of training examples, and the slope that the spectrum predicts."),
    "F6": (
        "Is training what the theory says?",
        "What was measured along real runs; dashed, where there is such a line, what the theory says. The errors are"
        " those on the training examples, in the directions in which the kernel learns fastest.",
    ),
    "F8": (
        "Adding and negating task vectors",
        "Accuracy against the scaling coefficient, which validation data chose. Dashed: predicted by the kernels.",
    ),
    "F7": ("Task vectors: predicted and measured", "Cosine and interference over all pairs of tasks."),
    "F1": (
        "Eigenvalue decay",
        "K is the kernel and m its number of rows (examples times output columns). Each eigenvector is a direction that"
        " training learns at a speed proportional to its eigenvalue: the steeper the fall, the longer the last ones"
        " take. Dashed: the law that is fitted to them; power a means that the i-th falls like i to the power -a, with"
        " a 95 % interval of a in brackets.",
    ),
    "F9": ("Where the kernel comes from", "Share of the trace, alignment and effective dimension by layer."),
    "F5": ("Ridge regression and early stopping", "Ridge at 1/η against early stopping at η."),
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


def _chosen_rule(summary: pd.DataFrame) -> str | None:
    """The rule that the answer speaks of: bayes, else the first that needs no validation set."""
    known = [rule for rule in style.RULES if rule not in ("holdout", "oracle") and (summary["method"] == rule).any()]
    return "bayes" if "bayes" in known else known[0] if known else None


def answer(summary: pa.Table, curves: pa.Table | None = None) -> str:
    """What the run says, by task at its largest size: the stop and the accuracy beside the alternatives.

    ``curves``: the table of F2, for the sentence above. Empty without a rule.
    """
    data = gather([({}, summary)], SUMMARY, "summary").to_pandas()
    rule = _chosen_rule(data)
    if rule is None:
        return ""
    data = data[data["start"] == ordered(data["start"], style.STARTS)[0]]
    data = data[data["n"] == data.groupby("task")["n"].transform("max")]
    lines = []
    name = style.rule_label(rule)
    for _, task, n, rows in _rows(data):
        found = {row["method"]: row for _, row in rows.iterrows()}
        at = {m: found[m]["accuracy"] if m in found else None for m in (*BEFORE, rule, "holdout", ALL_STEPS)}
        prompt = next((at[m] for m in BEFORE if at[m] is not None), None)
        step = _number(found[rule]["t"], ".0f") if rule in found else "–"
        shares = [prompt, at[rule], at["holdout"], at[ALL_STEPS]]
        lines.append([f"{task} ({n})", step, *(_number(None if v is None else 100 * v, ".1f") for v in shares)])
    header = ["task (examples)", "step", "before", name, "hold-out", "all steps"]
    caption = f"The step of {name}, and test accuracies in percent, mean over the seeds"
    message = f02_curves.says(curves) if curves is not None else ""
    words = (
        "Accuracies before training (the start's own answer with a fitted offset; that of a new head is near chance),"
        f" at the stop of {name}, at that of hold-out, and after all steps. The stop of {name} is chosen before"
        " training and reads no validation example; hold-out has these labels more. Between two evaluations losses and"
        " accuracies are interpolated."
    )
    lead = f'<p class="lead">{_text(message)}</p>' if message else ""
    return f'<section id="answer">{lead}{table(header, lines, caption)}<p>{words}</p></section>'


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


def _heading(name: str, message: str = "") -> str:
    title, words = TITLES[name]
    lead = f'<p class="says">{_text(message)}</p>' if message else ""
    return f"<h2>{name}. {_text(title)}</h2>{lead}<p>{_text(words)}</p>"


def _rules(curves: pa.Table) -> str:
    """What each rule of the figure does, in words, folded away."""
    names = ordered({name for name in curves["rule"].to_pylist() if name in ROW}, style.RULES)
    entries = "".join(f"<dt>{_text(style.rule_label(n))}</dt><dd>{_text(ROW[n].words)}</dd>" for n in names)
    silent = "A rule that has to know how noisy the labels are has no answer where they look free of noise."
    return (
        f"<details><summary>What the rules are</summary><dl>{entries}</dl><p>{silent}</p></details>" if entries else ""
    )


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

    The page leads with the answer, then come the curves, then the tables. `tables` holds the tables of figures by id
    (those with an interactive version are drawn), `summary` the headline numbers (columns `SUMMARY`), `images` the SVG
    bytes of further figures, `facts` what to tell about the run (model, seeds, ...), `claims` its `claims` artifact.
    ValueError when a table lacks a column. About 5 MB, most of it plotly.js.
    """
    sections = interactive.sections(tables)
    pictures = {key: svg for key, svg in (images or {}).items() if key not in sections}
    parts = {}
    for key in TITLES:
        if key in sections:
            led = key == "F2" and summary is not None  # the answer says it already
            head = _heading(key, "" if led else sections[key].message)
            below = _rules(tables[key]) if key == "F2" else ""
            chosen = f'{_selectors(key, sections[key])}<div class="plot"></div>'
            parts[key] = f'<section id="{key}">{head}{chosen}{below}</section>'
        elif key in pictures:
            parts[key] = _image(key, pictures[key])
    if summary is not None and (numbers := headline(summary)):
        parts["tables"] = f'<section id="tables"><h2>All accuracies</h2>{numbers}</section>'
    if claims is not None:
        parts["claims"] = verdicts(claims)
    known = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in (facts or {}).items())
    if known:
        parts["run"] = f'<section id="run"><h2>The run</h2><dl>{known}</dl></section>'
    links = "".join(f'<a href="#{key}">{key}</a>' for key in parts)
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
{answer(summary, tables.get("F2")) if summary is not None else ""}
<nav aria-label="Figures">{links}</nav>
{"".join(parts.values())}
<noscript><p>The interactive figures need JavaScript; the tables do not.</p></noscript>
<script id="sections" type="application/json">{data}</script>
<script>{get_plotlyjs()}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""
