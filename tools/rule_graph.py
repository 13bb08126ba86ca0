"""The picture of the workflow in the docs, drawn from Snakemake's own graph of rules.

`make dag` runs ``snakemake --rulegraph | python tools/rule_graph.py docs/figures/workflow``, which writes the picture
as SVG: rules in rows, each below those that it needs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

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


def rows_of(edges: Edges) -> list[list[str]]:
    """Return the rules in rows, each below all that it needs, with a nameless place where an edge passes a row.

    A nameless place is ``(from)>(to)``; within a row neighbours are near what they are tied to in the row above.
    """
    needs: dict[str, set[str]] = {}
    for a, b in edges:
        needs.setdefault(a, set())
        needs.setdefault(b, set()).add(a)
    depth: dict[str, int] = {}
    while len(depth) < len(needs):
        ready = [rule for rule in needs if rule not in depth and all(one in depth for one in needs[rule])]
        if not ready:
            raise ValueError("the rule graph has a circle")
        depth |= {rule: max((depth[one] + 1 for one in needs[rule]), default=0) for rule in ready}
    rows: list[list[str]] = [
        sorted(rule for rule in depth if depth[rule] == row) for row in range(max(depth.values()) + 1)
    ]
    above = {rule: sorted(needs[rule]) for rule in needs}
    for a, b in sorted(edges):
        for row in range(depth[a] + 1, depth[b]):
            rows[row].append(f"{a}>{b}")
            above[f"{a}>{b}"] = [a if row == depth[a] + 1 else f"{a}>{b}"]
        if depth[b] > depth[a] + 1:
            above[b] = [one for one in above[b] if one != a] + [f"{a}>{b}"]
    for _ in range(2):
        for row in range(1, len(rows)):
            at = {name: place for place, name in enumerate(rows[row - 1])}
            known = {name: [at[one] for one in above[name] if one in at] for name in rows[row]}
            rows[row].sort(key=lambda name: (sum(known[name]) / max(len(known[name]), 1), name))
    return rows


def drawn(edges: Edges) -> Any:
    """Return the picture as a matplotlib figure."""
    from stopwise.figures import style

    rows = rows_of(edges)
    place = {
        (row, name): ((i + 0.5) / len(names), -row) for row, names in enumerate(rows) for i, name in enumerate(names)
    }
    depth = {name: row for row, names in enumerate(rows) for name in names if ">" not in name}
    figure, axes = style.new_figure("two-column", 0.42 * len(rows))
    ax = axes[0, 0]
    for a, b in sorted(edges):
        way = [a, *[f"{a}>{b}"] * (depth[b] - depth[a] - 1), b]
        x, y = zip(*(place[depth[a] + i, name] for i, name in enumerate(way)), strict=True)
        ax.plot(x, y, color=style.COLORS["grey"], linewidth=0.8, zorder=1)
    box = {"boxstyle": "round,pad=0.35", "facecolor": "#EAF2F8", "edgecolor": style.COLORS["blue"], "linewidth": 0.6}
    for (_, name), (x, y) in place.items():
        if ">" not in name:
            label = name.replace("_", " ")
            ax.text(x, y, label, ha="center", va="center", fontsize=style.SMALL_FONT_SIZE, bbox=box, zorder=2)
    ax.set(xlim=(0, 1), ylim=(-len(rows) + 0.5, 0.5))
    ax.set_axis_off()
    return figure


def main() -> None:
    """Read a rule graph from standard input and draw it under the name that is given."""
    from stopwise.figures import style

    edges = reduced(edges_of(sys.stdin.read()))
    svg, png = style.save(style.styled(drawn)(edges), sys.argv[1])
    png.unlink()
    print(svg)


if __name__ == "__main__":
    main()
