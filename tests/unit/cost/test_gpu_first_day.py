"""The first day on a GPU is rehearsed without one: every section runs, and what must hold does on the CPU."""

from __future__ import annotations

import json

import pytest

import gpu_first_day


@pytest.mark.slow
def test_the_day_is_rehearsed_without_a_gpu(tmp_path, monkeypatch):
    for name, value in {"SMALL": "1", "DEVICE": "cpu", "OUT": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(gpu_first_day, "training", lambda day, found: None)  # tested as training_benchmark
    assert gpu_first_day.main() == 0
    found = json.loads((tmp_path / "first_day.json").read_text(encoding="utf-8"))
    assert not [name for name, row in found.items() if "error" in row or "skipped" in row]
    assert found["one_weight"]["fp16x2"]["from_float32"] < 1e-6 < found["one_weight"]["bf16"]["from_float32"]
    assert found["engine"]["n4_plan"]["schedule"] == "keep"
