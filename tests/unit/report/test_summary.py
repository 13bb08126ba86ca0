"""The headline numbers of a run, and the bootstrap that their intervals come from."""

import numpy as np
import pytest

from stopwise.report.summary import averaged, last_steps, markdown
from stopwise.stats import interval, redrawn, wilson
from stopwise.stopping.scores import rule_table


def judged(rule, task, seed, regret, n=16, start="pretrained", loss=None, ratio=1.0):
    loss = 1 + regret if loss is None else loss
    return {
        "start": start, "task": task, "seed": seed, "n": n, "rule": rule, "t": 3, "loss": loss,
        "relative_regret": regret, "hit": regret <= 0.05, "ratio": ratio,
    }  # fmt: skip


def runs():
    regrets = {("a", 0): (0.0, 0.2), ("a", 1): (0.1, 0.02), ("b", 0): (0.04, 0.06), ("b", 1): (0.3, 0.0)}
    rows = []
    for (task, seed), (bayes, holdout) in regrets.items():
        rows += [judged("bayes", task, seed, bayes), judged("holdout", task, seed, holdout)]
    return [*rows, judged("sure", "a", 0, 0.5), judged("bayes", "a", 0, 0.9, start="random")]


def test_training_without_a_stop_is_the_last_step_of_each_size():
    curve = [
        {"n": n, "step": step, "test_accuracy": n / 100 + step / 1000, "test_loss": 1.0 / (1 + step)}
        for n in (32, 16)
        for step in (8, 0, 4)
    ]
    found = last_steps(curve)
    assert [(row["n"], row["method"], row["t"]) for row in found] == [(16, "all_steps", 8.0), (32, "all_steps", 8.0)]
    assert [row["accuracy"] for row in found] == [pytest.approx(0.168), pytest.approx(0.328)]


def test_each_start_and_rule_is_counted_over_its_own_runs():
    table = {(row["start"], row["rule"]): row for row in rule_table(runs())}
    assert list(table) == [
        ("pretrained", "bayes"),
        ("pretrained", "holdout"),
        ("pretrained", "sure"),
        ("random", "bayes"),
    ]
    bayes, sure = table["pretrained", "bayes"], table["pretrained", "sure"]
    assert (bayes["runs"], bayes["answered"]) == (4, 4)
    assert (sure["runs"], sure["answered"]) == (4, 1)
    assert bayes["hits"][0] == 0.5
    assert bayes["regret"][0] == pytest.approx(0.07)
    assert bayes["regret_90"][0] == pytest.approx(np.quantile([0, 0.1, 0.04, 0.3], 0.9))
    assert bayes["no_worse"][0] == 0.5  # a0 and b0
    low, high = bayes["hits"][1:]
    assert 0 <= low < 0.5 < high <= 1


def test_one_task_and_seed_has_no_interval_and_a_run_without_holdout_no_comparison():
    rows = {(row["start"], row["rule"]): row for row in rule_table(runs())}
    only = rows["random", "bayes"]
    assert only["no_worse"] is None
    assert np.isnan(only["hits"][1:]).all()


def test_a_rule_beyond_its_runs_is_listed_without_numbers():
    beyond = judged("gcv", "a", 0, 0.0) | {"relative_regret": None, "hit": None, "loss": None}
    row = next(row for row in rule_table([*runs(), beyond]) if row["rule"] == "gcv")
    assert (row["runs"], row["answered"], row["hits"], row["regret"]) == (4, 0, None, None)


def test_an_oracle_at_step_0_leaves_the_ratio_open():
    (row,) = rule_table([judged("sure", "a", 0, 0.0, ratio=None)])
    assert row["ratio"] is None


def test_the_text_says_value_and_interval():
    rows = averaged([{**row, "method": row["rule"], "accuracy": 0.75} for row in runs()])
    text = markdown("demo", rows, rule_table(runs()), [])
    assert "| pretrained | sure | 1 of 4 | 0 % | 50.0 % | 50 % | 0 % | 1.00 |" in text
    line = next(line for line in text.splitlines() if line.startswith("| pretrained | bayes | 4 of 4 |"))
    assert "| 50 % [" in line
    assert "| 7.0 % [" in line
    assert "| random | bayes | 1 of 1 | 0 % | 90.0 % | 90 % | - | 1.00 |" in text


def merged(seed, task, task_b="b"):
    levels = {"accuracy_zero_shot": 0.5, "accuracy_single": 0.75, "accuracy": 0.7}
    kind = "addition" if task_b else "negation"
    return {"kind": kind, "task_a": "a", "task_b": task_b, "coefficient": 0.3, "task": task, "seed": seed, **levels}


def test_merged_models_say_their_seed_where_there_are_several():
    rows = [merged(seed, task, partner) for seed in (0, 1) for task, partner in (("a", "b"), ("b", "b"), ("a", None))]
    lines = [line for line in markdown("demo", [], [], rows).splitlines() if line.startswith(("| a +", "| - a"))]
    values = "0.500 | 0.750 | 0.700 |"
    assert lines == [
        f"| {vectors} | {seed} | 0.3 | {task} | {values}"
        for vectors, task in (("a + b", "a"), ("a + b", "b"), ("- a", "a"))
        for seed in (0, 1)
    ]
    one = markdown("demo", [], [], rows[:3])
    assert "| seed |" not in one
    assert f"| a + b | 0.3 | b | {values}" in one


def test_a_rule_that_always_hits_is_not_certain_to():
    rules = ("bayes", "oracle", "holdout")
    rows = [judged(rule, task, seed, 0.0) for rule in rules for task in "ab" for seed in (0, 1)]
    bayes, oracle, holdout = rule_table(rows)
    assert bayes["hits"] == pytest.approx((1.0, *wilson(4, 4)))
    assert bayes["hits"][1] < 0.6
    assert bayes["no_worse"] == pytest.approx((1.0, *wilson(4, 4)))
    assert oracle["hits"] == oracle["no_worse"] == holdout["no_worse"] == (1.0, 1.0, 1.0)  # by definition


def test_groups_are_drawn_whole():
    groups = ["a", "b", "a", "c", "b", "a"]
    for sample in redrawn(groups, draws=50):
        drawn = [groups[i] for i in sample]
        assert {g: drawn.count(g) % groups.count(g) for g in drawn} == dict.fromkeys(drawn, 0)
        assert sum(drawn.count(g) / groups.count(g) for g in set(drawn)) == 3


def test_the_interval_of_a_mean_is_that_of_its_groups():
    rng = np.random.default_rng(0)
    means = rng.normal(size=40)
    values = np.repeat(means, 5)  # five equal rows a group: 40 facts, not 200
    low, high = interval({"x": values}, lambda v: v["x"].mean(axis=-1), redrawn(np.repeat(np.arange(40), 5).tolist()))
    half = 1.96 * means.std() / np.sqrt(40)
    assert high - low == pytest.approx(2 * half, rel=0.1)
