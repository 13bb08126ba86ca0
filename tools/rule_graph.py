"""The picture of the workflow in the docs, drawn by Mermaid from Snakemake's own graph of rules.

`make dag` runs ``snakemake --rulegraph | python tools/rule_graph.py docs/reference/architecture.md``, which
writes it between two marks.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

BEGIN, END = "<!-- dag: written by `make dag` -->", "<!-- end of dag -->"
# Bookkeeping, which would be tied to every step.
LEFT_OUT = ("all", "track", "mlflow_database")
# Rules drawn as one box.
TOGETHER = {r"figure_F\d+": "figures"}
_NODE = re.compile(r'^\s*(\d+)\[.*?label\s*=\s*"([^"\\]+)', re.MULTILINE)
_EDGE = re.compile(r"^\s*(\d+)\s*->\s*(\d+)", re.MULTILINE)

Edges = set[tuple[str, str]]


def edges_of(dot: str) -> Edges:
    """Return the edges of ``snakemake --rulegraph`` between rules, some left out or drawn together.

    Raises ValueError when the text holds no graph.
    """
    names = {number: _merged(label.strip()) for number, label in _NODE.findall(dot)}
    if not names:
        raise ValueError("there is no rule graph in the text; it must come from `snakemake --rulegraph`")
    edges = {(names[a], names[b]) for a, b in _EDGE.findall(dot)}
    return {(a, b) for a, b in edges if a != b and a not in LEFT_OUT and b not in LEFT_OUT}


def _merged(rule: str) -> str:
    return next((name for pattern, name in TOGETHER.items() if re.fullmatch(pattern, rule)), rule)


def reduced(edges: Edges) -> Edges:
    """Return the edges that no longer path already implies (the transitive reduction of an acyclic graph)."""
    after: dict[str, set[str]] = {}
    for a, b in edges:
        after.setdefault(a, set()).add(b)

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(after.get(start, ()))
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting.extend(after.get(node, ()))
        return seen

    beyond: Mapping[str, set[str]] = {node: reachable(node) for node in {b for _, b in edges}}
    return {(a, b) for a, b in edges if not any(b in beyond[c] for c in after[a] if c != b)}


def mermaid(edges: Iterable[tuple[str, str]]) -> str:
    """Return a Mermaid flow chart, its lines sorted: equal graphs give equal text."""
    lines = [f"    {a} --> {b}" for a, b in sorted(edges)]
    return "\n".join(["```mermaid", "flowchart LR", *lines, "```"])


def inserted(text: str, chart: str) -> str:
    """Return a text with the chart between the two marks. Raises ValueError when the marks are not there."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the marks {BEGIN} and {END} are not in the text")
    return f"{head}{BEGIN}\n{chart}\n{END}{tail}"


def main() -> None:
    """Read a rule graph from standard input and write it into the file that is named."""
    path = Path(sys.argv[1])
    chart = mermaid(reduced(edges_of(sys.stdin.read())))
    path.write_text(inserted(path.read_text(encoding="utf-8"), chart), encoding="utf-8")


if __name__ == "__main__":
    main()
