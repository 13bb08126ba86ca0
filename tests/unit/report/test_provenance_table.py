"""The provenance table: one row per file, from metadata alone."""

import hashlib
import json

import pytest

from stopwise.artifacts import tables as artifacts
from stopwise.report.provenance import provenance_rows
from tracking_runs import SVG, small_run


def rows_of(results):
    files = [path for path in results.rglob("*") if path.is_file()]
    return {row["artifact"]: row for row in provenance_rows(results, files)}


def test_every_file_has_a_row_with_its_origin(tmp_path):
    results = small_run(tmp_path / "demo")
    rows = rows_of(results)
    assert len(rows) == 6
    row = rows["finetune/pretrained/movie/seed0/trajectory.parquet"]
    assert row["rule"] == "finetune"
    assert row["kind"] == "trajectory"
    assert json.loads(row["wildcards"]) == {"start": "pretrained", "task": "movie", "seed": "0"}
    assert json.loads(row["config"])["finetune"]["momentum"] == 0.9
    assert json.loads(row["inputs"]) == {"results/demo/data/movie/seed0.parquet": "abc"}
    assert json.loads(row["versions"])["numpy"] == "2.4"
    assert (row["seconds"], row["peak_mb"], row["device"], row["seed"]) == (2.5, 100.0, "cpu", 0)
    assert row["digest"] == artifacts.digest(results / row["artifact"])
    figure = rows["figures/F1.svg"]
    assert (figure["rule"], figure["kind"]) == ("F1", "svg")
    assert figure["digest"] == hashlib.sha256(SVG.encode()).hexdigest()[:16]
    assert rows["figures/F2_movie.svg"]["rule"] is None


def test_the_table_fits_its_schema_and_is_sorted(tmp_path):
    rows = list(rows_of(small_run(tmp_path / "demo")).values())
    table = artifacts.table_of(rows, "provenance")
    assert table.num_rows == 6
    assert table.column("artifact").to_pylist() == sorted(table.column("artifact").to_pylist())


def test_a_damaged_table_is_named(tmp_path):
    results = small_run(tmp_path / "demo")
    path = results / "decay/pretrained/movie/seed0.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(artifacts.ArtifactError, match=r"seed0\.parquet: damaged"):
        rows_of(results)
