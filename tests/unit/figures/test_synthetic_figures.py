"""F5 and F10 are drawn from small studies, show what their tables hold, and give the same bytes twice."""

import pyarrow as pa
import pytest

from stopwise.artifacts import tables as artifacts
from stopwise.figures import f05_ridge as f5
from stopwise.figures import f10_known_truth as f10
from stopwise.figures import style
from stopwise.studies.synthetic import DECAYS, ridge_and_descent, study
from stopwise.studies.synthetic_tables import linearity_markdown


@pytest.fixture(scope="module")
def tables():
    studies = [pa.Table.from_pylist(study(decay, [32, 64], 4, loo=False)) for decay in DECAYS]
    ridges = [pa.Table.from_pylist(ridge_and_descent(decay, 32, 3, points=10)) for decay in DECAYS[:2]]
    return f5.table(ridges), f10.table(studies)


def test_tables_have_the_declared_columns(tables):
    assert tables[0].schema == f5.COLUMNS == artifacts.schema("F5")
    assert tables[1].schema == f10.COLUMNS == artifacts.schema("F10")


def test_rows_of_the_studies_fit_their_artifacts():
    rows = study("beta2", [32], 2, loo=False)
    assert artifacts.table_of(rows, "theory_study").num_rows == len(rows)
    rows = ridge_and_descent("beta2", 32, 2, points=4)
    assert artifacts.table_of(rows, "theory_ridge").num_rows == 8


@pytest.mark.slow
def test_figures_are_pure_functions_of_their_tables(tables, tmp_path):
    for module, table in zip((f5, f10), tables, strict=True):
        first = style.save(module.draw(table), tmp_path / "first")
        second = style.save(module.draw(table), tmp_path / "second")
        assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_f10_writes_the_measured_slope_beside_that_of_theory(tables):
    figure = f10.draw(tables[1])
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    rows = {(r["quantity"], r["decay"], r["rule"]): r["value"] for r in tables[1].to_pylist() if r["known"]}
    for decay in DECAYS:
        measured, theory = rows["slope", decay, "worst_case"], rows["theory_slope", decay, "worst_case"]
        assert any(f"slope {measured:.2f}" in t and f"theory {theory:.2f}" in t for t in texts)


def test_f5_has_a_panel_for_each_source_and_a_note_for_none(tables):
    visible = [ax for ax in f5.draw(tables[0]).axes if ax.get_visible()]
    assert [ax.get_title(loc="left").split(",")[0] for ax in visible] == ["finite rank", "eigenvalues $k^{-2}$"]
    assert f5.draw(f5.COLUMNS.empty_table()).axes[0].texts[0].get_text() == "no study"


def test_linearity_table_reports_the_largest_deviation():
    row = {"width": 8, "scale": 0.1, "optimizer": "heavy_ball"}
    steps = [row | {"deviation": 0.01, "deviation_new": 0.02}, row | {"deviation": 0.03, "deviation_new": 0.01}]
    assert "| 8 | 0.1 | heavy_ball | 2 | 3 % | 2 % |" in linearity_markdown(steps)
