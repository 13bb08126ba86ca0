"""The picture of the workflow is current, and drawn with no edge that a longer path implies."""

import subprocess

import pytest

import pages
from pipeline import TEST_CONFIG, checkout
from rule_graph import BEGIN, END, edges_of, inserted, mermaid, reduced
from warm import executable

PAGE = "docs/reference/architecture.md"


def test_the_picture_of_the_workflow_is_current(tmp_path):
    graph = subprocess.run(
        [executable(), "-m", "snakemake", "--rulegraph", "dot", "--configfile", TEST_CONFIG],
        cwd=checkout(tmp_path), capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    chart = mermaid(reduced(edges_of(graph)))
    assert chart in pages.text(PAGE), "run `make dag`"
    assert inserted(pages.text(PAGE), chart) == pages.text(PAGE)


def test_the_graph_is_reduced_to_what_no_longer_path_implies():
    names = ("all", "a", "b\\nw: 1", "figure_F1", "figure_F2")
    dot = "".join(f'{number}[label = "{name}", color = "x"];\n' for number, name in enumerate(names))
    dot += "1 -> 2\n2 -> 3\n1 -> 3\n3 -> 4\n4 -> 0\n"
    edges = edges_of(dot)
    assert edges == {("a", "b"), ("b", "figures"), ("a", "figures")}
    assert reduced(edges) == {("a", "b"), ("b", "figures")}
    with pytest.raises(ValueError, match="no rule graph"):
        edges_of("nothing")
    with pytest.raises(ValueError, match="marks"):
        inserted("no marks", "x")
    assert inserted(f"{BEGIN}{END}", "x") == f"{BEGIN}\nx\n{END}"
