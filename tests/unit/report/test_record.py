"""The record of a run: its small tables below one another, each row with its origin, never too large."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure
from PIL import Image

from stopwise.artifacts import tables as artifacts
from stopwise.report import record


def written(folder, task, seed, rows):
    path = folder / "guarantee" / task / f"seed{seed}.parquet"
    wildcards = {"start": "pretrained", "task": task, "seed": str(seed)}
    artifacts.write_table(path, rows, "guarantee", {"wildcards": wildcards, "volatile": {"git": "abc"}})
    return path


@pytest.fixture
def paths(tmp_path):
    rows = [{"n": 8, "step": step, "guarantee": 1 / (1 + step)} for step in range(3)]
    return [written(tmp_path, task, seed, rows) for task in ("movie", "spam") for seed in (0, 1)]


def test_rows_carry_start_task_and_seed(tmp_path, paths):
    found = record.write_record(tmp_path / "docs", {"guarantee": paths})
    table = pq.read_table(tmp_path / "docs" / "guarantee.parquet")
    assert table.column_names == ["start", "task", "seed", "n", "step", "guarantee"]
    assert table["task"].to_pylist() == ["movie"] * 6 + ["spam"] * 6
    assert table["seed"].to_pylist() == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3
    assert table["guarantee"].to_pylist() == artifacts.read_table(paths[0], "guarantee")["guarantee"].to_pylist() * 4
    assert found == [("guarantee", 12, (tmp_path / "docs" / "guarantee.parquet").stat().st_size)]
    sources = json.loads(table.schema.metadata[record.METADATA_KEY])
    assert {source["digest"] for source in sources.values()} == {artifacts.digest(path) for path in paths}
    text = record.readme("x", "snakemake --cores 2", "0123", record.revisions(paths), found)
    assert "`snakemake --cores 2`" in text
    assert "revision abc" in text


@pytest.mark.parametrize("limit", ["FILE_BYTES", "FOLDER_BYTES"])
def test_a_table_that_is_too_large_is_refused_and_nothing_is_left(tmp_path, paths, monkeypatch, limit):
    monkeypatch.setattr(record, limit, 100)
    with pytest.raises(ValueError, match="allowed: 100"):
        record.write_record(tmp_path / "docs", {"guarantee": paths})
    assert list((tmp_path / "docs").iterdir()) == []


def test_artifacts_of_two_kinds_are_not_mixed(tmp_path, paths):
    other = tmp_path / "other.parquet"
    artifacts.write_table(other, [{"n": 1, "step": 0, "layer": None}], "drift")
    with pytest.raises(artifacts.ArtifactError, match="of kind 'drift', expected 'guarantee'"):
        record.merged([*paths, other])


def test_times_are_added_up_by_rule_and_broken_files_left_out(tmp_path):
    head = "s\th:m:s\tmax_rss\n"
    for name, text in {
        "finetune/a.tsv": head + "90.0\t0:01:30\t2048\n",
        "finetune/b.tsv": head + "30.0\t0:00:30\t1024\n",
        "summary.tsv": head + "1.0\t0:00:01\t512\n",
        "finetune/c.tsv": head + "NA\tNA\tNA\n",
        "finetune/d.tsv": "no table",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    times = record.job_times(tmp_path)
    assert times == [("finetune", 2, 120.0, 2.0), ("summary", 1, 1.0, 0.5)]
    text = record.readme("x", "snakemake", "0123", [], [], times)
    assert "took 2 minutes together" in text
    assert "| finetune | 2 | 2.0 | 2.0 |" in text
    assert "| summary |" not in text  # under three seconds
    text = record.readme("x", "snakemake", "0123", [], [], times, {"F1": "Eigenvalues.\n", "F2": "Curves.\n"})
    assert text.endswith("## F1\n\n![F1](F1.png)\n\nEigenvalues.\n\n## F2\n\n![F2](F2.png)\n\nCurves.\n")


def test_pages_are_copied_whole(tmp_path):
    (tmp_path / "claims.md").write_text("held")
    record.copied({str(tmp_path / "claims.md"): str(tmp_path / "kept.md")})
    assert (tmp_path / "kept.md").read_text() == "held"
    with pytest.raises(FileNotFoundError):
        record.copied({str(tmp_path / "nothing.md"): str(tmp_path / "none.md")})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["claims.md", "kept.md"]


def test_pictures_are_kept_smaller_and_look_the_same(tmp_path):
    figure = Figure(figsize=(4, 3), dpi=150)
    axes = figure.subplots()
    for i, color in enumerate(("#0072b2", "#d55e00", "#009e73")):
        axes.plot([0, 1, 2], [i, i + 1, i], color=color, marker="o")
    source, kept = tmp_path / "F1.png", tmp_path / "kept.png"
    figure.savefig(source)
    record.pictured({str(source): str(kept)})
    assert kept.stat().st_size < 0.6 * source.stat().st_size
    before, after = (np.asarray(Image.open(path).convert("RGB"), dtype=float) for path in (source, kept))
    assert before.shape == after.shape
    assert np.abs(before - after).mean() < 0.5
