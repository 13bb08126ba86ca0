"""Task arithmetic: the merged network is what is measured, validation chooses, and the base keeps its bits."""

import itertools

import numpy as np
import pytest
import torch

from stopwise.linearized.coding import squared_loss, targets
from stopwise.merging.workbench import (
    TaskData,
    Workbench,
    addition,
    addition_per_task,
    all_pairs,
    analogy,
    applied,
    averaging,
    best_point,
    evaluate,
    negation,
)
from stopwise.network.pico import pico_model
from stopwise.network.task_vectors import TaskVector
from stopwise.training.finetune import FinetuneSettings, finetune
from training_reference import made_up_batch, outputs_one_by_one, same_weights, weights

GRID = [0.5, 1.0, 1.5]


@pytest.fixture(scope="module")
def model():
    return pico_model("gpt2", dtype="float32")


@pytest.fixture(scope="module")
def tasks(model):
    config = FinetuneSettings.from_config(
        {"optimizer": "heavy_ball", "learning_rate": 0.2, "steps": 12, "evaluate_every": 12, "stop": "none"}
    )
    found = {}
    for i, name in enumerate(["movie", "spam", "trec"]):
        train, validation, test = (
            made_up_batch(n, seed=10 * i + s, classes=2 + (i == 2)) for s, n in enumerate((24, 12, 20))
        )
        result = finetune(model, train, None, None, config, metadata={"task": name}, progress=False)
        found[name] = TaskData(result.vector, validation, test)
    return found


@pytest.fixture(scope="module")
def bench(model, tasks):
    return Workbench(model, tasks)


def test_evaluate_is_the_definition(model, tasks):
    batch, b_hat = tasks["movie"].test, [0.3]
    found = evaluate(model, batch, b_hat)
    f = outputs_one_by_one(model, batch)
    np.testing.assert_allclose(found.outputs, f, atol=1e-6)  # float32 sums in another order
    assert found.loss == pytest.approx(squared_loss(f + 0.3, targets(batch["labels"].numpy(), 2)), rel=1e-5)
    assert found.accuracy == np.mean((f[:, 0] + 0.3 > 0) == batch["labels"].numpy())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_applying_and_leaving_restores_every_bit(dtype):
    model = pico_model("llama", dtype=dtype)
    before = weights(model)
    vector = TaskVector.between(model, pico_model("llama", dtype=dtype, seed=1))
    with applied(model, vector, 1e30):
        assert not same_weights(model, before)
    assert same_weights(model, before)
    with pytest.raises(RuntimeError, match="inside"), applied(model, vector):
        raise RuntimeError("inside")
    assert same_weights(model, before)


def test_applied_weights_are_those_of_apply_to(model, tasks):
    merged = (tasks["movie"].vector + tasks["spam"].vector).apply_to(model, 0.7)
    with applied(model, tasks["movie"].vector + tasks["spam"].vector, 0.7):
        assert same_weights(model, weights(merged))


def test_a_vector_of_another_model_is_refused(model):
    with (
        pytest.raises(ValueError, match=r"does not fit the model: nothing.weight"),
        applied(model, TaskVector({"nothing.weight": torch.ones(1)})),
    ):
        pass


def test_pair_rows_are_measurements_of_the_merged_model(model, tasks, bench):
    before = weights(model)
    rows = all_pairs(bench, GRID)
    assert same_weights(model, before)
    assert len(rows) == 3 * len(GRID) * 2 * 2
    for row in rows[:: len(rows) // 9]:
        pair = row["tasks"].split("+")
        vector = tasks[pair[0]].vector + tasks[pair[1]].vector
        tuned = vector.apply_to(model, row["coefficient"])
        batch = getattr(tasks[row["task"]], row["split"])
        found = evaluate(tuned, batch, tasks[row["task"]].vector.intercept())
        assert row["loss"] == pytest.approx(found.loss, rel=1e-6)
        assert row["accuracy"] == found.accuracy
        own = evaluate(tasks[row["task"]].vector.apply_to(model), batch, tasks[row["task"]].vector.intercept())
        assert row["normalised_accuracy"] == pytest.approx(found.accuracy / own.accuracy)


@pytest.mark.parametrize("criterion", ["accuracy", "loss"])
def test_the_coefficient_is_chosen_on_validation_and_not_on_test(bench, criterion):
    rows = addition(bench, ("movie", "spam"), GRID, criterion)
    chosen = {row["coefficient"] for row in rows if row["chosen"]}
    assert len(chosen) == 1
    assert {(row["task"], row["split"]) for row in rows if row["chosen"]} == set(
        itertools.product(("movie", "spam"), ("validation", "test"))
    )
    spoiled = [
        row | ({"accuracy": 0.0, "loss": 9.0, "normalised_accuracy": 0.0} if row["split"] == "test" else {})
        for row in rows
    ]
    assert {best_point(spoiled, criterion)[0]} == chosen
    mean = {c: np.mean([r["loss"] for r in rows if r["coefficient"] == c and r["split"] == "validation"]) for c in GRID}
    if criterion == "loss":
        assert chosen == {min(mean, key=mean.get)}


def test_own_coefficients_do_no_worse_than_a_common_one_on_validation(bench):
    def value(rows):
        return np.mean([row["loss"] for row in rows if row["chosen"] and row["split"] == "validation"])

    common = addition(bench, ("movie", "spam"), GRID, "loss")
    own = addition_per_task(bench, ("movie", "spam"), GRID, "loss")
    assert len(own) == len(GRID) ** 2 * 4
    assert value(own) <= value(common)
    three = addition_per_task(bench, ("movie", "spam", "trec"), GRID, "loss")
    assert value(three) <= value(addition(bench, ("movie", "spam", "trec"), GRID, "loss"))
    best = best_point(three, "loss")
    losses = {tuple(row["coefficients"]) for row in three}
    assert all((*best[:i], c, *best[i + 1 :]) in losses for i in range(3) for c in GRID)  # a local optimum, checked


def test_averaging_is_addition_at_one_over_k(bench):
    average = averaging(bench, ("movie", "spam"))
    half = addition(bench, ("movie", "spam"), [0.5])
    assert [row["loss"] for row in average] == [row["loss"] for row in half]
    assert all(row["chosen"] for row in average)


def test_negation_respects_its_control_tasks(bench):
    strict = negation(bench, "movie", ["spam", "trec"], [0.5, 1.0, 2.0], tolerance=0.0)
    loose = negation(bench, "movie", ["spam", "trec"], [0.5, 1.0, 2.0], tolerance=1.0)
    for rows, tolerance in ((strict, 0.0), (loose, 1.0)):
        for row in rows:
            if row["chosen"] and row["split"] == "validation" and row["task"] != "movie":
                assert row["accuracy"] >= (1 - tolerance) * bench.zero_shot(row["task"], "validation").accuracy
    reached = [
        row["accuracy"] for row in loose if row["chosen"] and row["task"] == "movie" and row["split"] == "validation"
    ]
    assert reached == [min(row["accuracy"] for row in loose if row["task"] == "movie" and row["split"] == "validation")]
    with_no_way = negation(bench, "movie", ["spam"], [1.0], tolerance=-10.0)
    assert not any(row["chosen"] for row in with_no_way)


def test_negating_a_vector_moves_the_loss_the_other_way(bench):
    vector = bench.tasks["movie"].vector
    train = made_up_batch(24, seed=0)  # what the vector was trained on: random labels do not generalise
    at = [evaluate(vector.apply_to(bench.model, c), train, vector.intercept()).loss for c in (0.2, 0.0, -0.2)]
    assert at[0] < at[1] < at[2]


def test_analogy_with_equal_terms_is_the_third_vector(bench):
    """tau_a - tau_a + tau_c is tau_c."""
    rows = analogy(bench, "movie", "movie", "spam", "spam", [1.0])
    assert [row["task"] for row in rows] == ["spam", "spam"]
    for row in rows:
        assert row["loss"] == pytest.approx(bench.own("spam", row["split"]).loss, rel=1e-6)


def test_baselines_show_zero_shot_with_and_without_the_intercept(model, tasks, bench):
    rows = {(row["method"], row["task"], row["split"]): row for row in bench.baselines()}
    assert len(rows) == 3 * 3 * 2
    for name, task in tasks.items():
        assert rows["zero_shot_without_intercept", name, "test"]["loss"] == pytest.approx(
            evaluate(model, task.test).loss
        )
        assert rows["own_vector", name, "test"]["normalised_accuracy"] == 1
