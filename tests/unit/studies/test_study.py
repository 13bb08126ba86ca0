"""The study of the stopping rules: cells of a made-up kernel, the table, and its figure."""

import numpy as np
import pyarrow as pa
import pytest

from stopwise.artifacts.gram import AssembledKernel
from stopwise.artifacts.sample import Sample
from stopwise.linearized import coding as outputs
from stopwise.linearized.filters import GradientDescent
from stopwise.linearized.objectives import Objective
from stopwise.linearized.paths import linearized_path
from stopwise.studies.on_the_path import METHODS, THUMB, Cell, cell_rows
from stopwise.studies.on_the_path_log_loss import METHODS as LOG_LOSS_METHODS
from stopwise.studies.on_the_path_log_loss import LogLossCell
from stopwise.studies.tables import study_markdown, study_table, title

TRAIN, VALIDATION, TEST = 40, 4, 60


def cell(n=TRAIN, seed=0, classes=2, kind=Cell):
    """A task whose outputs are linear in 6 features, labels noisy, its start the truth at ten times the scale."""
    rng = np.random.default_rng(seed)
    count = TRAIN + VALIDATION + TEST
    q = classes - 1
    x, w = rng.standard_normal((count, 6)) / np.arange(1, 7), rng.standard_normal((6, q))
    logits = np.asarray(2 * x @ w + 0.5 * rng.standard_normal((count, q)))
    labels = outputs.predicted_class(logits, classes)
    kernel = np.kron(x @ x.T, np.eye(q))
    f0 = 3 * x @ (w + 0.3 * rng.standard_normal((6, q)))
    m = TRAIN * q
    table = pa.table(
        {"split": ["train"] * TRAIN + ["validation"] * VALIDATION + ["test"] * TEST, "label": labels.astype(np.int64)}
    )
    sample = Sample(table, list(range(classes)), [str(c) for c in range(classes)], "digest")
    return kind(AssembledKernel(kernel[:m, :m], kernel[m:, :m], f0[:TRAIN], f0[TRAIN:], {}), sample, n)


@pytest.fixture(scope="module")
def rows():
    return cell_rows(cell())


def test_every_method_has_one_row(rows):
    assert [row["method"] for row in rows] == list(METHODS)


def test_the_test_loss_is_that_of_the_linearised_path():
    one = cell(classes=3)
    loss, accuracy = one.test_path
    spec, kernel = one.spec, one.kernel
    path = linearized_path(spec, one.residual, kernel.new[2 * VALIDATION :], GradientDescent(1 / spec.lambda_max), 5)
    f = kernel.outputs_new[VALIDATION:] + path[5].reshape(TEST, 2)
    labels = one.sample.labels("test")
    at = int(np.flatnonzero(one.times == 5)[0])
    assert loss[at] == pytest.approx(np.mean((outputs.targets(labels, 3) - f) ** 2))
    assert accuracy[at] == outputs.accuracy(f, labels, 3)


def test_no_row_but_the_oracle_beats_the_oracle(rows):
    for row in rows:
        if row["loss"] is not None and row["method"] != "holdout":
            assert row["loss"] >= row["loss_oracle"]
            assert row["hit"] == (row["loss"] <= 1.05 * row["loss_oracle"])
    assert next(row for row in rows if row["method"] == "oracle")["relative_regret"] == 0


def test_holdout_trains_on_three_quarters_and_chooses_on_the_rest(rows):
    one, part = cell(), cell(n=30)
    held = next(row for row in rows if row["method"] == "holdout")
    path = linearized_path(part.spec, part.residual, one.kernel.train[30:, :30], part.filter, one.times)
    validation = ((one.residual[30:, 0] - path) ** 2).mean(axis=1)
    chosen = int(np.argmin(validation))
    assert held["t"] == one.times[chosen]
    assert held["loss"] == pytest.approx(part.test_path[0][chosen])
    assert all(row["loss_holdout"] == held["loss"] for row in rows)


@pytest.fixture(scope="module")
def log_loss_rows():
    return cell_rows(cell(kind=LogLossCell))


def heavy_ball(one, steps):
    """Outputs of the linearised model on new examples, trained on cross-entropy step by step."""
    q = one.kernel.columns
    f, new = one.leading.outputs.copy(), one.leading.outputs_new.copy()
    objective = Objective("cross_entropy", one.sample.labels("train", one.n), q + 1, "contrast", 1.0, np.zeros(q))
    v = np.zeros(f.size)
    for _ in range(steps):
        v = 0.9 * v + objective.gradient(f, np.arange(one.n)).ravel()
        f = f - (one.leading.train @ v).reshape(f.shape) / one.spec.lambda_max
        new = new - (one.leading.new @ v).reshape(new.shape) / one.spec.lambda_max
    return new


@pytest.mark.parametrize("classes", [2, 3])
def test_the_test_log_loss_is_that_of_the_replayed_path(classes):
    one = cell(classes=classes, kind=LogLossCell)
    loss, accuracy = one.test_path
    f, labels = heavy_ball(one, 7)[VALIDATION:], one.sample.labels("test")
    at = int(np.flatnonzero(one.times == 7)[0])
    judge = Objective("cross_entropy", labels, classes, "contrast", 1.0, np.zeros(classes - 1))
    assert loss[at] == pytest.approx(judge.loss(f))
    assert accuracy[at] == judge.accuracy(f)


def test_under_cross_entropy_every_method_has_one_row_and_none_beats_the_oracle(log_loss_rows):
    assert [row["method"] for row in log_loss_rows] == list(LOG_LOSS_METHODS)
    assert {row["objective"] for row in log_loss_rows} == {"cross_entropy"}
    for row in log_loss_rows:
        if row["loss"] is not None and row["method"] != "holdout":
            assert row["loss"] >= row["loss_oracle"]
            assert row["hit"] == (row["loss"] <= 1.05 * row["loss_oracle"])
    steps = {row["method"]: row["t"] for row in log_loss_rows}
    assert steps["eta_0"] == 0
    assert 0 < steps["eta_10"] < steps["eta_100"] < steps["eta_1000"] <= 110


def test_holdout_under_cross_entropy_chooses_by_the_log_loss_of_the_last_quarter(log_loss_rows):
    one, part = cell(kind=LogLossCell), cell(n=30, kind=LogLossCell)
    f0 = one.leading.outputs[30:]
    judge = Objective("cross_entropy", one.sample.labels("train", 40)[30:], 2, "contrast", 1.0, np.zeros(1))
    across = part.weights @ one.kernel.train[30:, :30].T
    chosen = int(np.argmin([judge.loss(f0 + at[:, None]) for at in across]))
    held = next(row for row in log_loss_rows if row["method"] == "holdout")
    assert held["t"] == one.times[chosen]
    assert held["loss"] == pytest.approx(part.test_path[0][chosen])


@pytest.mark.parametrize("kind", [Cell, LogLossCell])
@pytest.mark.slow
def test_no_answer_reads_a_label_of_the_test_set(kind):
    one = cell(kind=kind)
    table = one.sample.table
    labels = table["label"].to_numpy().copy()
    labels[TRAIN:] = 1 - labels[TRAIN:]
    changed = Sample(table.set_column(1, "label", pa.array(labels)), *[one.sample.verbalizers, one.sample.classes, "x"])
    assert kind(one.kernel, changed, TRAIN).answers() == one.answers()


def test_rules_of_thumb_are_times_in_units_of_the_first_eigenvalue(rows):
    steps = {row["method"]: row["t"] for row in rows if row["method"] in THUMB}
    assert [steps[f"eta_{c}"] for c in (1, 3, 10, 30, 100)] == [1, 3, 10, 30, 100]
    assert steps["epochs_3"] == pytest.approx(3 * steps["epochs_1"], abs=3)


def test_the_table_counts_answers_and_compares_with_holdout():
    made = []
    for seed in range(4):
        for n, regret in ((16, 0.0), (32, 0.1)):
            common = {
                "objective": "squared",
                "task": "a",
                "seed": seed,
                "n": n,
                "accuracy": 0.5,
                "ratio": 2.0,
                "loss_holdout": 1.05,
            }
            loss = 1 + regret
            made.append({**common, "method": "sure", "loss": loss, "relative_regret": regret, "hit": regret < 0.05})
            silent = {"loss": None, "relative_regret": None, "hit": None, "accuracy": None, "ratio": None}
            made.append(
                {**common, "method": "gcv", "loss": 1.0, "relative_regret": 0.0, "hit": True} | (silent if seed else {})
            )
    found = {(row["method"], row["measure"]): row for row in study_table(made)}
    assert found["sure", "answered"]["value"] == 1
    assert found["gcv", "answered"]["value"] == 0.25
    assert found["sure", "hit_rate"]["value"] == 0.5
    assert found["sure", "median_regret"]["value"] == pytest.approx(0.05)
    assert found["sure", "beats_holdout"]["value"] == 0.5
    assert found["sure", "hit_rate"]["low"] == found["sure", "hit_rate"]["high"] == 0.5, "every seed has the same rows"
    text = study_markdown(list(found.values()), 8)
    assert "| sure | 100 % | 50 % [50, 50] | 5.0 % [5.0, 5.0] | 10 % [10, 10] | 50 % [50, 50] | 2 [2, 2] |" in text
    assert "| gcv | 25 % |" in text
    assert "Squared loss:" in text
    assert "Cross-entropy:" not in text
    both = [*made, *({**row, "objective": "cross_entropy", "method": "loo", "hit": True} for row in made)]
    tables = study_table(both)
    assert [row for row in tables if row["objective"] == "squared"] == list(found.values())
    assert "Cross-entropy:" in study_markdown(tables, 8)


def test_a_study_without_cells_names_the_key():
    with pytest.raises(ValueError, match="config key starts"):
        study_table([])


def test_methods_are_written_as_words():
    assert title("eta_30") == "rule of thumb: η = 30/λ̂₁"
    assert title("epochs_1") == "rule of thumb: 1 epoch"
    assert title("gcv") == "gcv"
    assert title("eta_0") == "no training"
    assert title("squared_bayes") == "bayes, as for squared loss"
