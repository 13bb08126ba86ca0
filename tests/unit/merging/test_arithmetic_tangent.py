"""The tangent space and the exported models: linear where it must be, and the same numbers in other tools."""

import numpy as np
import pytest
import torch
from safetensors import safe_open

from stopwise.artifacts.tables import table_of
from stopwise.kernel.between_tasks import cross_kernels
from stopwise.linearized.coding import targets
from stopwise.merging.effects import WHOLE
from stopwise.merging.linearised import TangentBench, disentanglement, tangent_outputs, tangent_rows
from stopwise.merging.measured import cosine_parts, interference_rows
from stopwise.merging.workbench import TaskData, Workbench, evaluate, judged
from stopwise.network.export import export_model
from stopwise.network.parameters import select_parameters
from stopwise.network.pico import pico_model, pico_tokenizer
from stopwise.network.task_vectors import TaskVector
from stopwise.training.finetune import FinetuneSettings, finetune
from training_reference import made_up_batch, outputs_one_by_one, same_weights, weights


@pytest.fixture(scope="module")
def model():
    return pico_model("gpt2")


@pytest.fixture(scope="module")
def bench(model):
    config = FinetuneSettings.from_config(
        {"optimizer": "heavy_ball", "learning_rate": 0.5, "steps": 12, "evaluate_every": 12, "stop": "none"}
    )
    tasks = {}
    for i, name in enumerate(["movie", "spam"]):
        train, validation, test = (made_up_batch(n, seed=10 * i + s, classes=2 + i) for s, n in enumerate((20, 8, 12)))
        result = finetune(model, train, None, None, config, metadata={"task": name}, progress=False)
        tasks[name] = TaskData(result.vector, validation, test)
    return Workbench(model, tasks)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_the_tangent_is_the_derivative_of_the_real_network(arch):
    """Against central differences in float64: error O(h^2), here h = 1e-4 (float32 parts of Llama: looser)."""
    model, batch = pico_model(arch), made_up_batch(7)
    vector = TaskVector.between(model, pico_model(arch, seed=1))
    f0, change = tangent_outputs(model, batch, vector)
    np.testing.assert_allclose(f0, outputs_one_by_one(model, batch), atol=1e-6)
    ahead, behind = (outputs_one_by_one(vector.apply_to(model, h), batch) for h in (1e-4, -1e-4))
    difference = (ahead - behind) / 2e-4
    assert np.linalg.norm(change - difference) <= (1e-6 if arch == "gpt2" else 5e-3) * np.linalg.norm(difference)


def test_the_tangent_of_a_sum_is_the_sum_of_tangents(bench):
    movie, spam = bench.tasks["movie"], bench.tasks["spam"]
    tangent = TangentBench(bench)
    _, both = tangent_outputs(bench.model, spam.test, 0.5 * movie.vector - spam.vector)
    by_parts = 0.5 * tangent.change["movie", "spam", "test"] - tangent.change["spam", "spam", "test"]
    np.testing.assert_allclose(both, by_parts, rtol=1e-9, atol=1e-12)


def test_a_small_coefficient_merges_as_the_tangent_says(bench):
    """The gap between network and tangent is second order: a tenth of the coefficient, a hundredth of the gap."""
    tangent = TangentBench(bench)
    vector = bench.tasks["movie"].vector + bench.tasks["spam"].vector
    gaps = []
    for c in (0.01, 0.001):
        real = bench.measure(vector, c, ["movie"], ["test"])["movie", "test"].outputs
        gaps.append(np.abs(real - tangent.outputs({"movie": c, "spam": c}, "movie", "test")).max())
    assert gaps[1] < gaps[0] / 50
    rows = tangent.grid(("movie", "spam"), [[0.001, 0.001]])
    measured = bench.grid("addition", ("movie", "spam"), [[0.001, 0.001]])
    for linear, real in zip(rows, measured, strict=True):
        assert (linear["task"], linear["split"]) == (real["task"], real["split"])
        assert linear["loss"] == pytest.approx(real["loss"], rel=1e-3)


def test_tangent_training_gives_a_vector_whose_tangent_is_its_outputs(model):
    train, _, test = (made_up_batch(n, seed=n) for n in (12, 1, 9))
    config = FinetuneSettings.from_config(
        {"optimizer": "heavy_ball", "learning_rate": 0.05, "steps": 6, "stop": "none", "tangent": True}
    )
    result = finetune(model, train, None, test, config, progress=False)
    assert result.stopped == "steps"
    f0, change = tangent_outputs(model, test, result.vector)
    np.testing.assert_allclose(result.outputs["test"][-1], f0 + change, rtol=1e-9, atol=1e-12)


def test_disentanglement_is_zero_where_nothing_is_added(bench):
    tangent = TangentBench(bench)
    rows = {(row["c_a"], row["c_b"]): row for row in disentanglement(bench, "movie", "spam", [0.0, 1.0], tangent)}
    assert rows[0.0, 0.0]["xi"] == rows[0.0, 0.0]["xi_linearised"] == 0
    for row in rows.values():
        assert 0 <= row["xi"] <= 2
        assert 0 <= row["xi_linearised"] <= 2
    task = bench.tasks["movie"]
    only_spam = evaluate(bench.tasks["spam"].vector.apply_to(bench.model), task.test, task.offset).outputs
    base = bench.zero_shot("movie", "test").outputs
    moved = np.mean((only_spam + task.offset > 0) != (base + task.offset > 0))
    assert rows[0.0, 1.0]["xi"] == pytest.approx(moved)


@pytest.mark.slow
def test_every_variant_of_an_addition_is_what_it_says(bench):
    config = FinetuneSettings.from_config(
        {"optimizer": "heavy_ball", "learning_rate": 0.05, "steps": 4, "stop": "none", "tangent": True}
    )
    vectors = {
        name: finetune(bench.model, made_up_batch(10, seed=i, classes=2 + i), None, None, config, progress=False).vector
        for i, name in enumerate(bench.tasks)
    }
    rows = tangent_rows(bench, vectors, [0.5, 1.0])
    assert table_of(rows, "tangent_arithmetic").num_rows == 3 * 2 * 2 * 2
    for row in rows:
        tau = vectors if row["variant"] != "linearised" else {name: t.vector for name, t in bench.tasks.items()}
        merged = row["coefficient"] * (tau["movie"] + tau["spam"])
        data = bench.tasks[row["task"]]
        offset = data.offset if row["variant"] == "linearised" else np.array(vectors[row["task"]].intercept())
        batch = getattr(data, row["split"])
        if row["variant"] == "tangent_on_network":
            f = outputs_one_by_one(merged.apply_to(bench.model), batch)
        else:
            f = sum(tangent_outputs(bench.model, batch, merged))
        assert row["loss"] == pytest.approx(judged(f, batch, offset).loss)
        assert row["loss_zero_shot"] == pytest.approx(
            judged(outputs_one_by_one(bench.model, batch), batch, offset).loss
        )
    chosen = {(row["variant"], row["coefficient"]) for row in rows if row["chosen"]}
    assert {variant for variant, _ in chosen} == {"linearised", "tangent", "tangent_on_network"}
    assert len(chosen) == 3


def test_measured_interference_is_a_vector_alone_on_another_task(bench):
    rows = interference_rows(bench)
    assert table_of(rows, "interference").num_rows == len(rows)
    found = {(r["quantity"], r["task_a"], r["task_b"]): r["value"] for r in rows if r["grouping"] == "whole"}
    movie, spam = bench.tasks["movie"], bench.tasks["spam"]
    f0 = outputs_one_by_one(bench.model, movie.test)
    change = outputs_one_by_one(spam.vector.apply_to(bench.model), movie.test) - f0
    residual = targets(movie.test["labels"].numpy(), 2) - movie.offset - f0
    size = np.linalg.norm(residual)
    assert found["interference", "movie", "spam"] == pytest.approx(np.linalg.norm(change) / size)
    assert found["transfer", "movie", "spam"] == pytest.approx(np.sum(change * residual) / size**2)
    assert found["cosine", "movie", "spam"] == pytest.approx(movie.vector.cosine(spam.vector))
    for grouping, parts in (("layer", 2), ("type", 2)):
        values = [r["value"] for r in rows if r["quantity"] == "cosine" and r["grouping"] == grouping]
        assert len(values) == parts
        assert sum(values) == pytest.approx(found["cosine", "movie", "spam"], abs=1e-12)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_parts_of_vectors_are_named_as_those_of_kernels(arch):
    model = pico_model(arch)
    vector = TaskVector({name: p.detach() for name, p in select_parameters(model, "attention").items()})
    batches = {name: made_up_batch(3, seed=seed) for seed, name in enumerate("ab")}
    kernels = cross_kernels(model, batches, batches)
    parts = cosine_parts(vector, vector)
    assert parts[WHOLE, ""] == pytest.approx(1)
    for grouping in ("layer", "type"):
        assert {part for where, part in parts if where == grouping} == set(kernels.parts[grouping])


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_an_exported_model_is_the_merged_model_in_transformers(tmp_path, arch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = pico_model(arch, dtype="float32")
    vector = TaskVector.between(model, pico_model(arch, dtype="float32", seed=1), metadata={"task": "movie"})
    before = weights(model)
    folder = export_model(model, tmp_path / "merged", vector, 0.3, tokenizer=pico_tokenizer())
    assert same_weights(model, before)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert same_weights(loaded, weights(vector.apply_to(model, 0.3)))
    assert AutoTokenizer.from_pretrained(folder)(" positive")["input_ids"] == pico_tokenizer()(" positive")["input_ids"]
    # What merging tools read: plain safetensors under the model's own parameter names, ties stored once.
    with safe_open(folder / "model.safetensors", framework="pt") as stream:
        assert set(stream.keys()) <= set(model.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    with pytest.raises(ValueError, match="exists already"):
        export_model(model, folder)


def test_a_failed_export_leaves_nothing(tmp_path):
    model = pico_model("gpt2", dtype="float32")
    with pytest.raises(ValueError, match="does not fit"):
        export_model(model, tmp_path / "merged", TaskVector({"w": torch.ones(2)}))

    class Broken:
        def save_pretrained(self, folder):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        export_model(model, tmp_path / "merged", tokenizer=Broken())
    assert list(tmp_path.iterdir()) == []
