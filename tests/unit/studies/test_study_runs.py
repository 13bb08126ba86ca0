"""The variants of the rules that are judged on real runs."""

import numpy as np
import pytest
from test_study import cell

from stopwise.linearized.objectives import Objective
from stopwise.linearized.paths import squared_norm_path
from stopwise.stopping.bayes import expected_loss, task_posterior
from stopwise.stopping.stops import stopping_time
from stopwise.studies.on_real_runs import (
    DRIFT,
    LATE,
    TITLES,
    equal_labels,
    equal_labels_text,
    example_losses,
    halves_text,
    hits_by_halves,
    level_step,
    read_again,
    run_rows,
    variants,
)
from stopwise.training.settings import FinetuneSettings

STEPS = 10
SETTINGS = FinetuneSettings(optimizer="heavy_ball", steps=STEPS, evaluate_every=2, patience=2)


def trajectory(one, test, path):
    rows = []
    for step, loss, linear in zip(range(0, STEPS + 1, 2), test, path, strict=True):
        row = {"n": one.n, "step": step, "test_loss": loss, "test_accuracy": 0.5, "validation_loss": loss + 0.1}
        row |= {"train_loss": loss / 2}
        rows.append(row | {"linearised_test_loss": linear, "eta": float(step), "epoch": float(step)})
    return rows


def test_variants_follow_their_definitions():
    one = cell()
    spec, y, f0 = one.spec, one.targets, one.leading.outputs
    filter = SETTINGS.filter(spec.lambda_max)
    found = variants(spec, y, f0, filter, STEPS)
    times = np.arange(6 * STEPS + 1)
    curve = expected_loss(spec, task_posterior(spec, y, f0), f0, filter, times)
    inside = curve[: STEPS + 1]
    assert found["bayes_far"] == np.argmin(curve)
    for name, slack in LATE.items():
        assert found[name] == max(t for t in range(STEPS + 1) if inside[t] <= (1 + slack) * inside.min())
    distance = np.sqrt(squared_norm_path(spec, y - f0, filter, STEPS))
    for name, weight in DRIFT.items():
        assert found[name] == np.argmin(inside * np.exp(-weight * distance))
    assert len(set(found.values())) > 1  # else the case tells nothing apart


def test_every_variant_of_a_run_is_judged_on_its_measured_curve():
    one = cell()
    test, path = [1.0, 0.8, 0.6, 0.5, 0.55, 0.6], [1.0, 0.8, 0.7, 0.75, 0.8, 0.9]
    predicted = [{"rule": "sure", "t": 3, "flags": []}]
    rows = run_rows(one.leading, one.targets, SETTINGS, trajectory(one, test, path), predicted, ["sure", "oracle"])
    found = {row["rule"]: row for row in rows}
    assert set(found) == {"sure", "oracle", *TITLES} - {"holdout_equal", "bayes_again", "bayes_later", "bayes_level"}
    assert found["path_oracle"]["t"] == 4
    assert found["path_oracle"]["loss"] == 0.6
    assert found["all_steps"]["relative_regret"] == pytest.approx(0.2)
    assert found["sure"]["loss"] == pytest.approx(0.7)


def test_the_kernel_of_adamw_knows_no_distance():
    one = cell()
    own = FinetuneSettings(optimizer="adamw", formula="adam", steps=STEPS, evaluate_every=2, patience=2)
    losses = [1.0, 0.8, 0.6, 0.5, 0.55, 0.6]
    rows = run_rows(one.leading, one.targets, own, trajectory(one, losses, losses), [], ["oracle"])
    assert {"bayes_far", "path_oracle", "oracle"} <= {row["rule"] for row in rows}
    assert not set(DRIFT) & {row["rule"] for row in rows}


def test_bayes_read_again_goes_on_from_the_outputs_it_is_given():
    one = cell()
    spec, y, f0 = one.spec, one.targets, one.leading.outputs
    filter = SETTINGS.filter(spec.lambda_max)

    def bayes(start, steps):
        return stopping_time(spec, y - start, "bayes", filter, steps, targets=y).t

    # From the start itself it is bayes, in a run shorter by the steps already made.
    again = 2 + bayes(f0, STEPS - 2)
    assert again < 9
    assert read_again(spec, y, 2, f0, filter, STEPS, 9) == {"bayes_again": again, "bayes_later": 9}
    # Outputs that training has brought nearer to the targets leave less to do.
    near = f0 + 0.8 * (y - f0)
    found = read_again(spec, y, 2, near, filter, STEPS, None)
    assert found == {"bayes_again": 2 + bayes(near, STEPS - 2)}
    assert read_again(spec, y, STEPS, f0, filter, STEPS, 3) == {}
    assert read_again(spec, np.ones_like(y), 2, f0, filter, STEPS, 3) == {}

    said = [{"rule": "bayes", "t": 9, "flags": []}]
    run = trajectory(one, [1.0] * 6, [1.0] * 6)
    rows = run_rows(one.leading, y, SETTINGS, run, said, ["bayes", "oracle"], again=(2, near))
    named = {row["rule"]: row["t"] for row in rows}
    assert (named["bayes"], named["bayes_again"], named["bayes_later"]) == (9, found["bayes_again"], 9)


def test_a_level_is_the_paths_training_loss_at_the_step_of_the_rule():
    one = cell()
    spec, r = one.spec, one.targets - one.leading.outputs
    filter = SETTINGS.filter(spec.lambda_max)
    shrunk = filter.shrinkage(spec.raw.eigenvalues, np.array([4]))[0]
    path = float(np.sum((1 - shrunk) ** 2 * spec.training_coefficients(r) ** 2) / spec.m)

    def stops(*losses):
        run = [{"step": 2 * i, "train_loss": loss} for i, loss in enumerate(losses)]
        return level_step(spec, r, filter, 4, run)

    # The first that is as low, whether the network fits faster than its path or slower; the last where none is.
    assert stops(9 * path, 0.999 * path, 0.5 * path, 0.1 * path) == 2
    assert stops(9 * path, 5 * path, 1.001 * path, 0.1 * path) == 6
    assert stops(9 * path, 5 * path, 1.001 * path) == 4

    run = trajectory(one, [1.0] * 6, [1.0] * 6)
    for row, loss in zip(run, (9.0, 5.0, 2.0, 0.9, 0.8, 0.7), strict=True):
        row["train_loss"] = loss * path
    rows = run_rows(one.leading, one.targets, SETTINGS, run, [{"rule": "bayes", "t": 4, "flags": []}], ["bayes"])
    assert {row["rule"]: row["t"] for row in rows}["bayes_level"] == 6


def test_a_run_whose_path_has_no_test_loss_has_no_path_oracle():
    one = cell()
    rows = run_rows(one.leading, one.targets, SETTINGS, trajectory(one, [1.0] * 6, [None] * 6), [], ["oracle"])
    assert "path_oracle" not in {row["rule"] for row in rows}


def test_holdout_at_equal_labels_is_charged_the_smaller_run():
    def row(n, rule, t, loss, best):
        own = {"n": n, "rule": rule, "t": t, "loss": loss, "t_oracle": 4, "loss_oracle": best, "flags": []}
        return own | {"relative_regret": loss / best - 1, "hit": True, "ratio": t / 4}

    rows = [row(32, "holdout", 6, 0.6, 0.6), row(32, "oracle", 4, 0.6, 0.6)]
    rows += [row(64, "holdout", 4, 0.5, 0.5), row(64, "oracle", 4, 0.5, 0.5)]
    (found,) = equal_labels(rows, 32)
    assert (found["n"], found["rule"], found["t"], found["loss"]) == (64, "holdout_equal", 6, 0.6)
    assert found["relative_regret"] == pytest.approx(0.2)
    assert (found["hit"], found["ratio"]) == (False, 1.5)


def test_a_rule_and_holdout_are_compared_at_equal_labels():
    def row(task, rule, loss, hit):
        return {"task": task, "seed": 0, "n": 64, "rule": rule, "loss": loss, "hit": hit}

    rows = [row("a", "bayes", 0.5, True), row("a", "holdout_equal", 0.6, False)]
    rows += [row("b", "bayes", 0.5, False), row("b", "holdout_equal", 0.4, True), row("c", "bayes", 0.1, True)]
    rows += [row("d", "bayes", 0.5, True), row("d", "holdout_equal", 0.5, True)]
    text = equal_labels_text(rows)
    assert "in the 3 runs that have both: `bayes` hits 67%, hold-out stopping 67%" in text
    assert text.endswith("lower test loss in 33%.")
    assert equal_labels_text(rows[:1]) == ""


@pytest.mark.parametrize("kind", ["squared", "cross_entropy"])
def test_losses_of_examples_have_the_loss_as_their_mean(kind):
    rng = np.random.default_rng(0)
    objective = Objective(kind, rng.integers(0, 3, 12), 3, "contrast", 1.0, np.array([0.2, -0.1]))
    outputs = rng.standard_normal((4, 12, 2))
    losses = example_losses(objective, outputs)
    assert losses.shape == (4, 12)
    np.testing.assert_allclose(losses.mean(axis=1), [objective.loss(f) for f in outputs], rtol=1e-12)


def test_halves_of_the_test_set_judge_each_other():
    steps = [0, 2, 4]
    # All examples agree: the best step is the best of any half, and so is a step within 5 %; step 3 lies between.
    agreed = np.array([1.0, 0.5, 0.52])[:, None] * np.ones(10)
    found = hits_by_halves(agreed, steps, {"bayes": 4, "holdout": 3, "sure": 1}, draws=20)
    assert found == {"half_test": 1.0, "bayes": 1.0, "holdout": 1.0, "sure": 0.0}
    # Two examples that disagree: whichever one half chooses is wrong for the other.
    split = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert hits_by_halves(split, [0, 2], {"bayes": 2}, draws=50)["half_test"] == 0.0
    assert 0.2 < hits_by_halves(split, [0, 2], {"bayes": 2}, draws=50)["bayes"] < 0.8


def test_the_yardstick_of_halves_is_no_evaluation_that_one_rule_alone_asked_for():
    added = np.array([1.0, 0.4, 0.5])[:, None] * np.ones(10)  # step 3 is there for one rule
    found = hits_by_halves(added, [0, 3, 4], {"bayes": 3, "holdout": 4}, draws=20, interval=4)
    assert found == {"half_test": 1.0, "bayes": 1.0, "holdout": 1.0}
    assert hits_by_halves(added, [0, 3, 4], {"holdout": 4}, draws=20)["holdout"] == 0.0


def test_the_noise_of_the_judges_is_one_sentence():
    text = halves_text([{"half_test": 1.0, "bayes": 0.5}, {"half_test": 0.5, "bayes": 0.5, "holdout": 1.0}], 96)
    assert text.endswith("on the other half hits 75%, `bayes` 50%, `holdout` 100%.")
    assert "96 test examples" in text
    assert halves_text([{}], 96) == ""
    assert hits_by_halves(np.ones((2, 1)), [0, 2], {"bayes": 2}) == {}
