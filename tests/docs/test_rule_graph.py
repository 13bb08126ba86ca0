"""The picture of the workflow is current, and drawn with no edge that a longer path implies."""

import re
import subprocess

import pytest

import pages
from pipeline import TEST_CONFIG, checkout
from rule_graph import drawn, edges_of, reduced, rows_of
from stopwise.figures import style
from warm import executable

PICTURE = pages.ROOT / "docs" / "figures" / "workflow.svg"


def test_the_picture_of_the_workflow_is_current(tmp_path):
    graph = subprocess.run(
        [executable(), "-m", "snakemake", "--rulegraph", "dot", "--configfile", TEST_CONFIG],
        cwd=checkout(tmp_path), capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    edges = reduced(edges_of(graph))
    svg, _ = style.save(style.styled(drawn)(edges), tmp_path / "workflow")
    assert svg.read_bytes() == PICTURE.read_bytes(), "run `make dag`"
    assert "http" not in re.sub(
        r'xmlns\S*="[^"]+"|<!DOCTYPE[^>]*>|<dc:type[^>]*>', "", PICTURE.read_text(encoding="utf-8")
    )


def test_every_rule_is_below_those_that_it_needs_and_a_long_edge_has_a_place_in_each_row():
    edges = {("a", "b"), ("b", "c"), ("a", "d"), ("d", "e"), ("c", "e"), ("x", "e")}
    rows = rows_of(edges)
    assert rows[0] == ["a", "x"]
    row = {name: number for number, names in enumerate(rows) for name in names if ">" not in name}
    assert all(row[a] < row[b] for a, b in edges)
    assert sum("x>e" in names for names in rows) == row["e"] - row["x"] - 1
    with pytest.raises(ValueError, match="circle"):
        rows_of({("a", "b"), ("b", "a")})


def test_the_graph_is_reduced_to_what_no_longer_path_implies():
    names = ("all", "a", "b\\nw: 1", "figure_F1", "figure_F2")
    dot = "".join(f'{number}[label = "{name}", color = "x"];\n' for number, name in enumerate(names))
    dot += "1 -> 2\n2 -> 3\n1 -> 3\n3 -> 4\n4 -> 0\n"
    edges = edges_of(dot)
    assert edges == {("a", "b"), ("b", "figures"), ("a", "figures")}
    assert reduced(edges) == {("a", "b"), ("b", "figures")}
    with pytest.raises(ValueError, match="no rule graph"):
        edges_of("nothing")
