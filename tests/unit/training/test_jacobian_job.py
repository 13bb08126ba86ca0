"""A job of several processes writes what one process does, and says in one line what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stopwise.artifacts import tables
from stopwise.cost.kernels import plan_rows
from stopwise.training.jacobian_job import Asked, computed, computed_by

KERNEL = {"parameters": "attention", "outputs": "contrast", "formula": "sgd", "memory_gb": 1}
MODEL = {"source": "pico-llama", "dtype": "float32", "attn_implementation": None, "trust_remote_code": False}


@pytest.fixture
def asked(tmp_path):
    """What a job asks of the pico model and eight training examples."""
    from stopwise.network.folders import prepare_model

    stamp = {"source": "pico-llama", "folder": str(prepare_model("pico-llama", tmp_path / "assets"))}
    (tmp_path / "model.json").write_text(json.dumps(stamp))
    drawn, rows = np.random.default_rng(0), []
    for k, split in enumerate(["train"] * 8 + ["validation"] * 2 + ["test"] * 3):
        ids = drawn.integers(3, 90, size=drawn.integers(3, 10)).tolist()
        known = {"split": split, "position": k, "source_row": k, "group": None, "prompt": "", "input_ids": ids}
        rows.append(known | {"label": k % 2, "label_name": "", "cut": False})
    task = {"verbalizers": [11, 23], "classes": ["a", "b"]}
    tables.write_table(tmp_path / "data.parquet", rows, "data", {"task": task})
    params = {"model": MODEL, "kernel": KERNEL, "adam": None, "scheduled": {}}
    return Asked(str(tmp_path / "data.parquet"), str(tmp_path / "model.json"), "pretrained", 0, (0, 1), params)


@pytest.mark.slow
def test_two_processes_write_the_bits_of_one(asked):
    wanted, plan = computed(asked, "cpu")
    found, told = computed_by(asked, "cpu", 2, 1)
    assert tables.content_digest(found) == tables.content_digest(wanted)
    assert told["schedule"] == plan["schedule"]
    config = {"model": MODEL, "sizes": [8], "data": {"max_tokens": 10, "validation": 2, "test": 3}}
    config |= {"tasks": {"task": {"verbalizers": {"a": " a", "b": " b"}}}}
    kernel = KERNEL | {"shards": 1, "processes": 2}
    planned = plan_rows(config | {"kernel": kernel}, str(Path(asked.model).parent / "assets"))[0]
    assert (planned["processes"], planned["schedule"], told["tiles"]) == (2, told["schedule"], 1)
    assert planned["room_gb"] == told["room_gb"]
    assert planned["peak_gb"] == pytest.approx(told["needs_gb"], rel=0.3)


@pytest.mark.slow
def test_what_one_process_refuses_is_said_in_its_words(asked):
    with pytest.raises(ValueError, match=r"^config key kernel.shards: 9 shards for 2 layers"):
        computed_by(replace(asked, piece=(8, 9)), "cpu", 1, 1)
