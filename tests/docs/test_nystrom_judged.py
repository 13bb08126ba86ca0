"""The tool that judges a kernel of some columns goes on where it was stopped, and its record says what it found."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

import nystrom_judged as tool

EXAMPLES = 24


def made_up(assets, threads):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(EXAMPLES, EXAMPLES)) * np.arange(1, EXAMPLES + 1.0) ** -0.8
    y = np.sign(x @ rng.normal(size=EXAMPLES) + 0.5 * rng.normal(size=EXAMPLES))
    f0 = 0.1 * rng.normal(size=(EXAMPLES, 1))
    return {"matrix": x @ x.T, "outputs": f0, "targets": y[:, None], "cost": np.array([60.0, 5.0])}


@pytest.fixture
def small(tmp_path, monkeypatch):
    found = {"KEPT": tmp_path / "kept", "RECORD": tmp_path / "record", "RANKS": (4, EXAMPLES), "SEEDS": (0, 1)}
    for name, value in (found | {"EXAMPLES": EXAMPLES, "LAST": 150, "computed": made_up}).items():
        monkeypatch.setattr(tool, name, value)
    return tmp_path


def test_a_finished_answer_is_not_computed_again(small, monkeypatch):
    tool.run(small, 1)
    (tool.KEPT / "rank4-seed1.json").unlink()
    judged, asked = tool.judged, []
    monkeypatch.setattr(
        tool, "judged", lambda rank, seed, *rest: asked.append((rank, seed)) or judged(rank, seed, *rest)
    )
    monkeypatch.setattr(tool, "computed", None)  # nor is the kernel
    tool.run(small, 1)
    assert asked == [(4, 1)]
    tool.run(small, 1)
    assert asked == [(4, 1)]


def test_all_columns_stop_where_the_kernel_does_and_fewer_are_told_apart(small):
    tool.run(small, 1)
    tool.record()
    stops = pq.read_table(tool.RECORD / "stops.parquet").to_pylist()
    whole = [row for row in stops if row["rank"] == EXAMPLES]
    assert {row["form"] for row in whole} == set(tool.FORMS)
    assert all(row["t"] == row["t_whole"] and row["cost"] == pytest.approx(row["cost_whole"]) for row in whole)
    assert any(row["t"] != row["t_whole"] for row in stops if row["rank"] == 4)
    text = (tool.RECORD / "README.md").read_text(encoding="utf-8")
    assert text.count(f"| all {EXAMPLES} |") == 2
    assert text.count("| 4 |") == 3


def test_the_certificate_held_in_every_draw_of_the_record():
    kernels = pq.read_table(tool.RECORD / "kernels.parquet").to_pylist()
    assert {(row["rank"], row["seed"]) for row in kernels} == {(r, s) for r in tool.RANKS for s in tool.SEEDS}
    assert all(0 < row["largest_error"] <= row["bound"] for row in kernels)
    best = {rank: min(row["largest_error"] for row in kernels if row["rank"] == rank) for rank in tool.RANKS}
    assert list(best.values()) == sorted(best.values(), reverse=True)
