"""The training benchmark compares like with like, and merging stays small."""

import pytest
import torch

from stopwise.artifacts import tables as artifacts
from stopwise.cost import figure as benchmark
from stopwise.cost.benchmark import compare
from stopwise.cost.training_benchmark import against_stock_trainer, merging_memory
from stopwise.network.adapters import with_adapter
from stopwise.network.pico import pico_classifier, pico_model
from training_reference import made_up_batch, same_weights, weights


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_stock_trainer_and_stopwise_take_the_same_steps(arch):
    """Heavy ball, squared loss, the same batches: the weights agree to float32 rounding, so the times compare."""
    model = pico_model(arch, dtype="float32")
    before = weights(model)
    rows = against_stock_trainer(model, made_up_batch(20, seed=1), batch_size=8, steps=4, learning_rate=0.1)
    assert [row["method"] for row in rows] == ["stopwise", "transformers"]
    assert rows[0]["difference"] < 1e-4
    assert rows[1]["ratio"] == 1
    assert same_weights(model, before)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", ["head", "adapter"])
def test_a_head_and_an_adapter_take_the_same_steps_too(kind):
    model, parameters, batch = pico_model("llama", dtype="float32"), "trainable", made_up_batch(20, seed=1)
    if kind == "head":
        model, parameters = pico_classifier("bert", dtype="float32"), "all"
        batch["verbalizers"] = torch.arange(2)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    else:
        model = with_adapter(model, {"rank": 2})
    flags = [p.requires_grad for p in model.parameters()]
    options = {"batch_size": 8, "steps": 4, "learning_rate": 0.1, "parameters": parameters}
    rows = against_stock_trainer(model, batch, **options)
    assert rows[0]["difference"] < 1e-4
    assert [p.requires_grad for p in model.parameters()] == flags
    found = compare(model, (3,), 6, parameters=parameters, outputs="contrast", repeats=1)
    assert all(row["ratio_to_floor"] > 0 for row in found)


def test_merging_two_vectors_needs_less_memory_than_twice_one(tmp_path):
    row = merging_memory(tmp_path, numbers=12_000_000, tensors=24)
    assert row["vector_gb"] == pytest.approx(0.048)
    assert row["ratio"] < 2
    assert list(tmp_path.iterdir()) == []


def test_the_page_says_how_many_times_the_stock_trainer():
    facts = {"threads": 2, "batch_size": 16, "tokens": 24.4, "difference": 1.2e-6}
    rows = [
        {**facts, "method": "stopwise", "examples_per_second": 9.25, "ratio": 1.85},
        {**facts, "method": "transformers", "examples_per_second": 5.0, "ratio": 1.0},
    ]
    text = "\n".join(benchmark._training([artifacts.table_of(rows, "benchmark_training")]))
    assert "prompts of 24 tokens" in text
    assert "| 2 | 16 | stopwise | 9.2 | 1.85 | 1.2e-06 |" in text
    assert "| 2 | 16 | stock transformers Trainer | 5.0 | 1.00 | 1.2e-06 |" in text
