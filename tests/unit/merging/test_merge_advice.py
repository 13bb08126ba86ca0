"""The merge advice and its score: what they say follows from the losses alone, and the score can go against them."""

import itertools

import numpy as np
import pytest
from scipy.stats import spearmanr

from stopwise.artifacts.tables import table_of
from stopwise.merging.agreement import agreement, compared, markdown
from stopwise.merging.pairs import KEPT, advice_markdown, advise, score, score_markdown

GRID = (0.5, 1.0)


def points(losses, single=0.5, **labels):
    """Rows of one pair a + b: losses by (coefficient, task), the same on validation and test; the start has loss 1."""
    return [
        {
            "kind": "addition",
            "task_a": "a",
            "task_b": "b",
            "coefficient": x,
            "task": task,
            "split": split,
            "loss": loss,
            "accuracy": 1 - loss / 2,
            "accuracy_zero_shot": 0.5,
            "loss_zero_shot": 1.0,
            "loss_single": single,
        }
        | labels
        for (x, task), loss in losses.items()
        for split in ("validation", "test")
    ]


GOOD = {(0.5, "a"): 0.7, (0.5, "b"): 0.7, (1.0, "a"): 0.6, (1.0, "b"): 0.5}
BAD = {(0.5, "a"): 0.9, (0.5, "b"): 0.6, (1.0, "a"): 1.4, (1.0, "b"): 0.5}


def effects(**values):
    rows = [{"quantity": "cosine", "split": None, "task_a": "a", "task_b": "b", "grouping": "whole", "value": 0.2}]
    for quantity, (first, second) in values.items():
        for a, b, value in (("a", "b", first), ("b", "a", second)):
            labels = {"quantity": quantity, "split": "train", "task_a": a, "task_b": b, "grouping": "whole"}
            rows.append(labels | {"value": value})
    return rows


def test_the_advised_coefficient_has_the_lowest_expected_loss():
    (good,) = advise(points(GOOD), effects(interference=(0.3, 0.4), transfer=(-0.1, 0.2)), seed=3)
    assert (good["coefficient"], good["adds_well"]) == (1.0, True)
    assert good["kept"] == pytest.approx(0.8)  # task a keeps 0.4 of a gain of 0.5, task b all of it
    assert (good["cosine"], good["interference"], good["transfer"]) == (0.2, 0.4, -0.1)
    (bad,) = advise(points(BAD), effects(), seed=3)
    assert (bad["coefficient"], bad["adds_well"]) == (0.5, False)
    assert bad["kept"] == pytest.approx(0.2)
    assert 0.2 < KEPT < 0.8
    assert table_of([good, bad], "merge_advice").num_rows == 2


def test_a_vector_without_a_gain_keeps_nothing():
    (row,) = advise(points(GOOD, single=1.1), effects(), seed=0)
    assert row["kept"] is None
    assert not row["adds_well"]


def test_the_score_is_regret_against_the_best_test_point():
    (advice,) = advise(points(GOOD), effects(), seed=0)
    (right,) = score([advice], points(GOOD))
    assert right["hit"]
    assert right["regret"] == right["regret_chosen"] == right["regret_plain"] == 0
    (wrong,) = score([advice], points(BAD))
    assert not wrong["hit"]
    assert (wrong["chosen"], wrong["best"]) == (0.5, 0.5)
    assert wrong["regret"] == pytest.approx(0.95 / 0.75 - 1)
    assert wrong["regret_chosen"] == 0
    assert wrong["accuracy_advised"] == pytest.approx(1 - 0.95 / 2)
    assert table_of([right, wrong], "merge_score").num_rows == 2


def test_a_merge_that_overflows_is_never_chosen_and_scored_as_the_worst():
    broken = GOOD | {(0.5, "a"): float("nan")}
    (advice,) = advise(points(broken), effects(), seed=0)
    assert advice["coefficient"] == 1.0
    (row,) = score([advice | {"coefficient": 0.5}], points(broken))
    assert row["regret"] > 1e6


def test_advice_and_score_are_told_pair_by_pair():
    rows = [advise(points(GOOD), effects(), seed)[0] for seed in (0, 1)]
    rows[1] |= {"adds_well": False, "coefficient": 0.5}
    text = advice_markdown(rows, outside="optimizer adamw")
    assert "| a + b | 1 of 2 seeds | 0.5 to 1 | 80 % |" in text
    assert "outside the theory (optimizer adamw)" in text
    scored = score_markdown([score([row], points(GOOD))[0] for row in rows])
    assert "Right about 1 of 2 pairs (50 %" in scored
    assert "always giving the more frequent answer would be right about 100 %" in scored
    assert score_markdown([]).startswith("# The merge advice, scored")


def checked(seed, noise):
    """Three pairs, predicted with an error of ``noise``, of one seed."""
    names = list(itertools.combinations("abc", 2))
    labels = {"split": None, "grouping": "whole", "quantity": "cosine", "method": "filter"}
    effect = [labels | {"task_a": a, "task_b": b, "value": 0.1 * i} for i, (a, b) in enumerate(names)]
    parts = [row | {"grouping": "layer", "value": 9.0} for row in effect]
    measured = [row | {"method": "measured", "value": row["value"] + noise} for row in effect]
    grid = points(GOOD, method="filter")
    return compared(seed, effect + parts, measured, grid, points(BAD), None)


def test_agreement_counts_whole_vectors_and_grid_points_only():
    rows = checked(0, 0.05) + checked(1, -0.05)
    assert table_of(rows, "arithmetic_check").num_rows == 2 * (3 + 2 * 2 * 2 * 2)
    found = {(row["quantity"], row["split"]): row for row in agreement(rows)}
    cosine = found["cosine", None]
    assert (cosine["pairs"], cosine["seeds"]) == (6, 2)
    pooled = spearmanr([0.0, 0.1, 0.2] * 2, [0.05, 0.15, 0.25, -0.05, 0.05, 0.15]).statistic
    assert cosine["rank_correlation"] == pytest.approx(pooled)
    assert (cosine["low"], cosine["high"]) == pytest.approx((1, 1))  # each seed alone is in order
    assert cosine["error"] == pytest.approx(0.05)
    assert cosine["bias"] == pytest.approx(0, abs=1e-12)
    assert cosine["unchanged_error"] == pytest.approx(np.mean([0.05, 0.15, 0.25, 0.05, 0.05, 0.15]))
    assert cosine["change_correlation"] == cosine["rank_correlation"]  # without merging it is 0
    loss = found["loss", "test"]
    start = {row["task"]: row["loss_zero_shot"] for row in points(BAD)}
    test = [row for row in rows if (row["quantity"], row["split"]) == ("loss", "test")]
    assert {row["unchanged"] for row in test} == set(start.values())
    assert loss["unchanged_error"] == pytest.approx(np.mean([abs(row["measured"] - row["unchanged"]) for row in test]))
    change = [[row[key] - start[row["task"]] for row in test] for key in ("predicted", "measured")]
    assert loss["change_correlation"] == pytest.approx(spearmanr(*change).statistic)
    assert loss["error"] == pytest.approx(np.mean([0.2, 0.1, 0.8, 0.0]))
    assert table_of(list(found.values()), "arithmetic_agreement").num_rows == 5
    text = markdown(list(found.values()), "optimizer adamw")
    assert "| cosine |  | the filter | 6 |" in text
    assert "outside the theory (optimizer adamw)" in text


def test_what_was_not_measured_is_left_out():
    assert compared(0, [], [], points(GOOD, method="filter"), [], None) == []
    assert agreement([]) == []
