"""The plan of joint training: training the linearised model on all tasks follows it, task by task."""

import numpy as np
import pytest

from stopwise.kernel.ntk import task_kernels
from stopwise.linearized.coding import targets
from stopwise.network.pico import pico_model
from stopwise.training.finetune import FinetuneSettings, finetune
from stopwise.training.joint_prediction import JointPlan, joint_rows
from training_reference import made_up_batch

CLASSES = {"two": 2, "three": 3}
VALUES = {"optimizer": "heavy_ball", "momentum": 0.6, "steps": 6, "evaluate_every": 2, "stop": "none", "tangent": True}


@pytest.fixture(scope="module")
def joint():
    """Return (plan, result) of two tasks with different numbers of columns, trained as the linearised model."""
    model = pico_model("llama")
    batches = {name: made_up_batch(8 + 2 * c, seed=c, classes=c) for name, c in CLASSES.items()}
    test = {name: made_up_batch(6, seed=10 + c, classes=c) for name, c in CLASSES.items()}
    y = {name: targets(batch["labels"].numpy(), CLASSES[name]) for name, batch in batches.items()}
    settings = FinetuneSettings.from_config(VALUES)
    plan = JointPlan.of(task_kernels(model, batches), y, True, settings)
    result = finetune(
        model, batches, None, test, settings, spectrum=plan.spectrum, predicted={"train": plan.path}, progress=False
    )
    return plan, result


def test_each_task_follows_its_linearised_loss(joint):
    plan, result = joint
    rows = [row for row in joint_rows(result, plan) if row["split"] == "train"]
    assert {row["task"] for row in rows} == {None, *CLASSES}
    # Kernel and Jacobian-vector products are sums of float64 in another order: they differ by 3e-9 here.
    for row in rows:
        assert row["linearised_loss"] == pytest.approx(row["loss"], rel=1e-7)
    for row in result.trajectory:
        assert row["linearised_train_loss"] == pytest.approx(row["train_loss"], rel=1e-7)


def test_every_split_and_task_has_a_row_at_every_evaluation(joint):
    plan, result = joint
    rows = joint_rows(result, plan)
    assert {(row["step"], row["task"], row["split"]) for row in rows} == {
        (at["step"], task, split)
        for at in result.trajectory
        for task in (None, *CLASSES)
        for split in ("train", "test")
    }
    assert len(rows) == len(result.trajectory) * 3 * 2
    assert {row["n"] for row in rows} == {26}
    assert all(row["linearised_loss"] is None for row in rows if row["split"] == "test")


def test_rules_stop_the_joint_run(joint):
    plan, _ = joint
    stops = plan.stops(["gcv", "sure"], 6, "reml", "prior")
    assert [row["rule"] for row in stops] == ["gcv", "sure"]
    assert all(row["n"] == 26 and (row["t"] is None or 0 <= row["t"] <= 6) for row in stops)
    heuristic = JointPlan(plan.spectrum, plan.targets, plan.residuals, plan.filter, plan.path, exact=False)
    assert all("heuristic" in row["flags"] for row in heuristic.stops(["gcv"], 6, "reml", "prior"))


def test_the_loss_of_all_rows_weighs_tasks_by_their_rows(joint):
    plan, _ = joint
    losses = plan.linearised_losses(0)
    sizes = {name: residual.size for name, residual in plan.residuals.items()}
    assert sizes == {"two": 12, "three": 28}
    assert losses[None] == pytest.approx((12 * losses["two"] + 28 * losses["three"]) / 40)
    # The intercepts are already in the path at the start.
    centred = [r - r.mean(axis=0) for r in plan.residuals.values()]
    assert losses[None] == pytest.approx(np.mean(np.concatenate([np.ravel(r) for r in centred]) ** 2))
