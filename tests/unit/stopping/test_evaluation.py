"""Rules judged on a measured curve."""

import numpy as np
import pytest

from stopwise.stopping.judging import BEYOND_RUN, evaluate_rules, holdout_step

RULES = ("bayes", "oracle")
STEPS = (0, 2, 3, 4, 6, 8)
TEST = (1.0, 0.6, 0.5, 0.55, 0.5, 0.7)
VALIDATION = (1.0, 0.7, 0.75, 0.6, 0.65, 0.66)


def curve(steps=STEPS, test=TEST, validation=VALIDATION):
    keys = ("step", "test_loss", "validation_loss")
    rows = [dict(zip(keys, row, strict=True)) for row in zip(steps, test, validation, strict=True)]
    return [{"n": 16, "test_accuracy": 0.5, "eta": row["step"] * 10.0, "epoch": row["step"] / 4} | row for row in rows]


def answer(rule, t, flags=()):
    return {"rule": rule, "t": t, "flags": list(flags)}


def test_a_rule_between_two_evaluations_is_judged_on_the_line_between_them():
    (row,) = evaluate_rules(curve(), [answer("sure", 7, ("mark",))], ["sure"], 2, 0.0)
    assert row["loss"] == pytest.approx(0.6)
    assert (row["eta"], row["epochs"], row["flags"]) == (70.0, 1.75, ["mark"])
    assert row["relative_regret"] == pytest.approx(0.2)
    assert row["hit"] is False


def test_the_oracle_is_the_first_lowest_test_loss():
    (row,) = evaluate_rules(curve(), [], ["oracle"], 2, 0.0)
    assert (row["t"], row["loss"], row["ratio"], row["hit"]) == (3, 0.5, 1.0, True)


def test_a_rule_beyond_the_run_has_a_step_and_no_loss():
    (row,) = evaluate_rules(curve(), [answer("gcv", 9)], ["gcv"], 2, 0.0)
    assert (row["t"], row["loss"], row["hit"], row["flags"]) == (9, None, None, [BEYOND_RUN])


def test_a_rule_without_an_answer_has_no_row():
    assert evaluate_rules(curve(), [answer("sure", None)], ["sure", "balance"], 2, 0.0) == []


def test_holdout_does_not_count_the_evaluation_that_a_predicted_stop_added():
    assert holdout_step(curve(), 1, 0.0) == (2, ())  # at step 3 the validation loss has risen
    assert holdout_step(curve(), 1, 0.0, interval=2) == (4, ())
    rows = evaluate_rules(curve(), [], ["holdout"], 1, 0.0, 2)
    assert [row["t"] for row in rows] == [4]


def test_the_oracle_is_no_evaluation_that_one_rule_alone_asked_for():
    lower = (1.0, 0.6, 0.5, 0.55, 0.52, 0.7)  # lowest at step 3, which only a predicted stop evaluates
    rows = {row["rule"]: row for row in evaluate_rules(curve(test=lower), [answer("bayes", 3)], RULES, 2, 0.0, 2)}
    assert (rows["oracle"]["t"], rows["oracle"]["loss"]) == (6, 0.52)
    assert (rows["bayes"]["loss"], rows["bayes"]["t_oracle"], rows["bayes"]["hit"]) == (0.5, 6, True)
    assert rows["bayes"]["relative_regret"] == pytest.approx(0.5 / 0.52 - 1)  # below what all others could choose


def test_a_last_step_that_is_no_multiple_of_the_interval_may_be_the_oracle():
    (row,) = evaluate_rules(curve(STEPS[:3], TEST[:3], VALIDATION[:3]), [], ["oracle"], 2, 0.0, 2)
    assert row["t"] == 3


def test_holdout_sees_a_last_step_that_is_no_multiple_of_its_interval():
    assert holdout_step(curve(STEPS[:3], TEST[:3], (1.0, 0.7, 0.5)), 2, 0.0, interval=2) == (3, ("still_improving",))


def test_a_curve_without_validation_has_no_holdout_row():
    rows = evaluate_rules(curve(validation=(None,) * 6), [answer("sure", 2)], ["sure", "holdout", "oracle"], 2, 0.0)
    assert [row["rule"] for row in rows] == ["sure", "oracle"]


def test_a_loss_that_is_not_a_number_is_never_the_oracle():
    (row,) = evaluate_rules(curve(test=(*TEST[:5], np.nan)), [], ["oracle"], 2, 0.0)
    assert row["t"] == 3
