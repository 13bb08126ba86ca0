"""Claims: a verdict follows from the interval and the criterion alone, and what was not measured is not tested."""

import math

import numpy as np
import pyarrow as pa
import pytest

from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.gram import AssembledKernel
from stopwise.artifacts.sample import Sample
from stopwise.claims import verdicts as claims
from stopwise.claims.measures import ridge_rows
from stopwise.claims.paper import CLAIMS, FEW_EPOCHS, RATE_MARGIN
from stopwise.claims.verdicts import FAILED, HELD, UNDECIDED, UNTESTED, Evidence, interval, verdict
from stopwise.linearized.coding import squared_loss
from stopwise.linearized.paths import kernel_regression
from stopwise.linearized.spectrum import Spectrum

NONE = math.nan


def judged(evidence):
    return {row["claim"]: row for row in claims.judged(CLAIMS, evidence)}


@pytest.mark.parametrize(
    ("found", "allowed", "said"),
    [
        ((1.0, 0.9, 1.1), (0.5, 2.0), HELD),
        ((1.0, 0.9, 1.1), (-math.inf, 1.1), HELD),
        ((1.0, 0.9, 1.1), (1.05, math.inf), UNDECIDED),
        ((1.0, 0.9, 1.1), (-math.inf, 0.8), FAILED),
        ((1.0, 0.9, 1.1), (1.2, 1.4), FAILED),
        ((1.0, 0.5, 3.0), (0.9, 1.1), UNDECIDED),
        ((1.0, NONE, NONE), (0.5, 2.0), UNDECIDED),
        ((NONE, NONE, NONE), (0.5, 2.0), UNTESTED),
    ],
)
def test_the_verdict_follows_from_the_interval_and_the_criterion(found, allowed, said):
    assert verdict(*found, *allowed) == said


def test_three_tasks_make_the_tasks_the_units_and_fewer_the_runs():
    runs = [(task, seed, value + seed) for task, value in (("a", 1.0), ("b", 2.0), ("c", 6.0)) for seed in (0, 1)]
    mean, low, high, count, over = interval(runs)
    assert (mean, count, over) == (3.5, 3, "tasks")
    half = 4.302653 * np.std([1.5, 2.5, 6.5], ddof=1) / math.sqrt(3)  # Student's 0.975 quantile of two degrees
    assert (low, high) == pytest.approx((3.5 - half, 3.5 + half), rel=1e-5)
    assert interval(runs[:4])[3:] == (4, "runs")
    assert interval([("a", 0, 1.0)])[:1] == (1.0,)
    assert math.isnan(interval([("a", 0, 1.0)])[1])
    # more seeds of the same task do not make an interval over tasks narrower
    assert interval(runs * 5)[1:3] == (low, high)


def test_a_factor_is_averaged_in_its_logarithm():
    mean, low, high, *_ = interval([("a", 0, 2.0), ("b", 0, 0.5), ("c", 0, 1.0)], factor=True)
    assert mean == pytest.approx(1.0)
    assert low * high == pytest.approx(1.0)
    assert interval([("a", 0, -1.0)], factor=True)[3] == 0


def test_nothing_measured_is_nothing_tested():
    rows = judged(Evidence())
    assert {row["verdict"] for row in rows.values()} == {UNTESTED}
    assert all(row["value"] is None for row in rows.values())
    artifacts.table_of(list(rows.values()), "claims")


def test_claims_name_tables_and_figures_that_exist_and_have_a_criterion_each():
    assert len({claim.key for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        kind = claim.table.removesuffix(".parquet").split("/")
        assert (kind[-1] if kind[-1] != "*" else kind[0]) in artifacts.kinds(), claim.table
        assert claim.low < claim.high
        assert not (math.isinf(claim.low) and math.isinf(claim.high))
        assert claim.why.endswith(".")


def curves(task, seed, losses, start="pretrained", n=16, linearised=None):
    names = ("start", "task", "seed", "n", "step", "epoch", "eta", "test_loss", "linearised_test_loss")
    linearised = linearised or losses
    return [
        dict(zip(names, (start, task, seed, n, 2 * i, 2.0 * i, 0.1 * i, loss, other), strict=True))
        for i, (loss, other) in enumerate(zip(losses, linearised, strict=True))
    ]


def test_epochs_are_counted_to_the_first_loss_within_five_percent_of_the_best_at_the_largest_size():
    quick, slow = [1.0, 0.52, 0.5, 0.6], [1.0, 0.9, 0.8, 0.7]
    rows = [row for seed in range(3) for row in curves("a", seed, quick)]
    rows += curves("a", 0, slow, n=8)  # a smaller size says nothing here
    found = judged(Evidence(trajectories=rows))["few epochs"]
    assert found["value"] == 2.0
    assert found["verdict"] == HELD
    assert "full batches" in found["note"]
    assert "In 0 of 3 runs" in found["note"]
    late = [row for task in "abc" for row in curves(task, 0, slow)]
    found = judged(Evidence(trajectories=late, batch_size=4))["few epochs"]
    assert found["value"] == 6.0 > FEW_EPOCHS
    assert found["verdict"] == FAILED
    assert "batches of 4" in found["note"]
    assert "In 3 of 3 runs" in found["note"]


def test_starts_are_compared_on_the_same_task_and_seed():
    rows = []
    for task, factor in (("a", 2.0), ("b", 2.2), ("c", 1.9)):
        rows += curves(task, 0, [1.0, 0.5]) + curves(task, 0, [2.0, 0.5 * factor], start="random")
    rows += curves("d", 0, [1.0, 0.9], start="random")  # without a partner
    found = judged(Evidence(trajectories=rows))
    assert found["pretrained against random"]["count"] == 3
    assert found["pretrained against random"]["value"] == pytest.approx((2.0 * 2.2 * 1.9) ** (1 / 3))
    assert found["pretrained against random"]["verdict"] == HELD
    assert found["pretrained against mixed"]["verdict"] == UNTESTED


def test_the_linear_network_is_compared_where_the_real_one_is_best():
    rows = [row for task in "abc" for row in curves(task, 0, [1.0, 0.5, 0.7], linearised=[1.0, 0.75, 0.1])]
    found = judged(Evidence(trajectories=rows))["linear training"]
    assert found["value"] == pytest.approx(1.5)
    assert found["verdict"] == FAILED


def slopes(task, measured, predicted, excess=1.0):
    row = {"start": "pretrained", "task": task, "seed": 0, "predicted_slope": predicted}
    return [{**row, "n": n, "excess": excess * n**measured} for n in (8, 16, 32)]


def test_the_rate_is_the_measured_slope_minus_the_predicted_one():
    rows = [row for task, s in (("a", -0.6), ("b", -0.7), ("c", -0.65)) for row in slopes(task, s, -0.66)]
    found = judged(Evidence(slopes=rows + slopes("d", -1.0, -0.5, excess=-1.0)))["rate in n"]
    assert found["value"] == pytest.approx(0.01, abs=1e-9)
    assert found["verdict"] == HELD
    assert found["note"].startswith("1 of 4 runs")
    steep = [row for task in "abc" for row in slopes(task, -2.0, -0.66)]
    assert judged(Evidence(slopes=steep))["rate in n"]["verdict"] == FAILED
    assert RATE_MARGIN == 0.25


def test_one_run_beyond_its_bound_fails_the_bound():
    key = {"start": "pretrained", "task": "a", "seed": 0, "rule": "worst_case"}
    said = [{**key, "n": n, "bound": 2.0, "sigma": 0.5} for n in (8, 16)]
    lost = [
        {**key, "n": 8, "loss": 0.75, "relative_regret": 0.0},
        {**key, "n": 16, "loss": 2.05, "relative_regret": 0.0},
    ]
    found = judged(Evidence(stoppings=said, evaluations=lost))["bound"]
    assert (found["value"], found["verdict"]) == (pytest.approx(0.9), HELD)
    lost[1]["loss"] = 2.5
    assert judged(Evidence(stoppings=said, evaluations=lost))["bound"]["verdict"] == FAILED
    said[1]["sigma"] = math.nan  # no answer
    found = judged(Evidence(stoppings=said, evaluations=lost))["bound"]
    assert found["verdict"] == HELD
    assert "In 1 of 2 runs" in found["note"]


def test_regret_counts_the_runs_without_an_answer():
    key = {"start": "pretrained", "seed": 0, "n": 8}
    rows = [
        {**key, "task": t, "rule": "worst_case", "loss": 1.0, "relative_regret": r}
        for t, r in zip("abc", (0.01, 0.02, 0.0), strict=True)
    ]
    rows += [{**key, "task": t, "rule": "holdout", "loss": 1.0, "relative_regret": 0.5} for t in "abcd"]
    found = judged(Evidence(evaluations=rows))
    assert found["worst-case stop"]["verdict"] == HELD
    assert "In 1 of 4 runs" in found["worst-case stop"]["note"]
    assert found["hold-out stop"]["verdict"] in (FAILED, UNDECIDED)


def test_the_power_laws_are_averaged_and_the_others_named():
    row = {"start": "pretrained", "seed": 0, "n": 16, "exponent": 1.5}
    rows = [
        {**row, "task": task, "kind": kind}
        for task, kind in zip("abcd", ("power",) * 3 + ("exponential",), strict=True)
    ]
    rows[1] |= {"exponent": 1.6}
    found = judged(Evidence(decays=rows))["eigenvalue decay"]
    assert found["count"] == 3
    assert found["verdict"] == HELD
    assert "1 × exponential" in found["note"]


def test_merging_is_judged_at_the_coefficient_that_validation_chose():
    row = {"kind": "addition", "coefficient": 1.0, "split": "test", "chosen": True, "accuracy_single": 0.8}
    row["accuracy_zero_shot"] = 0.75
    rows = [
        {**row, "task_a": a, "task_b": b, "task": a, "accuracy": 0.78, "predicted_accuracy": 0.9}
        for a, b in ("xy", "yz", "xz")
    ]
    rows += [{**rows[0], "chosen": False, "accuracy": 0.1}, {**rows[0], "split": "validation", "accuracy": 0.1}]
    found = judged(Evidence(arithmetic=rows))
    assert found["addition"]["value"] == pytest.approx(0.975)
    assert found["addition"]["over"] == "pairs"
    assert found["accuracy of merged models"]["value"] == pytest.approx(0.12)
    assert found["accuracy of merged models"]["verdict"] == FAILED
    assert found["accuracy of merged models"]["note"] == "Predicting the accuracy before merging would err by 0.03."
    assert found["addition"]["note"] is None
    rows[0]["accuracy_single"] = 0.7
    assert judged(Evidence(arithmetic=rows))["addition"]["note"].startswith("In 1 of 3 cases the own vector alone is")


def test_predictions_of_vectors_are_judged_by_their_distance():
    rows = [
        {"seed": 0, "quantity": q, "task_a": a, "task_b": b, "predicted": p, "measured": p + 0.02}
        for q in ("cosine", "interference")
        for (a, b), p in zip(("xy", "yz", "xz"), (0.1, 0.5, 0.3), strict=True)
    ]
    found = judged(Evidence(pairs=rows))
    assert found["cosine of task vectors"]["value"] == pytest.approx(0.02)
    assert found["cosine of task vectors"]["verdict"] == HELD
    assert "1.00" in found["interference"]["note"]
    assert found["interference"]["note"].endswith("Predicting 0 for every pair would err by 0.32.")


def test_predictions_that_were_fitted_to_the_measurement_do_not_count():
    row = {"seed": 0, "quantity": "cosine", "task_a": "a", "task_b": "b", "predicted": 0.1, "measured": 0.1}
    found = judged(Evidence(pairs=[{**row, "outside_theory": "adamw"}]))
    assert found["cosine of task vectors"]["verdict"] == UNTESTED


def test_the_guarantee_fails_with_one_step_above_it_and_drift_is_that_of_the_last_kernel():
    row = {"start": "pretrained", "seed": 0, "n": 8, "layer": None, "measured": None, "predicted": None}
    rows = []
    for task, last in (("a", 0.02), ("b", 0.05), ("c", 0.04)):
        for step, loss, promised in ((0, 1.0, 1.0), (2, 0.3, 0.5)):
            rows.append({**row, "task": task, "quantity": "loss", "step": step, "measured": loss})
            rows.append({**row, "task": task, "quantity": "guarantee", "step": step, "predicted": promised})
        for step, value in ((2, 0.5), (4, last)):
            rows.append({**row, "task": task, "quantity": "drift", "step": step, "measured": value})
        rows.append({**row, "task": task, "quantity": "drift", "step": 4, "measured": 9.0, "layer": "h.0"})
    found = judged(Evidence(training=rows))
    assert (found["convergence guarantee"]["value"], found["convergence guarantee"]["verdict"]) == (0.6, HELD)
    assert found["kernel drift"]["value"] == pytest.approx(0.11 / 3)
    assert found["kernel drift"]["verdict"] == HELD
    rows[2]["measured"] = 0.6
    assert judged(Evidence(training=rows))["convergence guarantee"]["verdict"] == FAILED


def test_the_synthetic_study_is_judged_by_the_same_margins():
    row = {"m": None, "rule": "worst_case", "known": True, "count": 200}
    rates = [
        {**row, "decay": "beta1", "quantity": "slope", "value": -0.7, "low": -0.75, "high": -0.65},
        {**row, "decay": "beta1", "quantity": "theory_slope", "value": -0.67, "low": -0.67, "high": -0.67},
        {**row, "decay": "all", "quantity": "bound_share", "value": 0.1, "low": 0.0, "high": 1.5},
    ]
    best = [{"source": s, "filter": f, "best": b} for s in "abc" for f, b in (("ridge", 1.02), ("descent", 1.0))]
    found = judged(Evidence(rates=rates, study=best))
    assert found["synthetic rate, eigenvalues k⁻²"]["value"] == pytest.approx(-0.03)
    assert found["synthetic rate, eigenvalues k⁻²"]["verdict"] == HELD
    assert found["synthetic rate, finite rank"]["verdict"] == UNTESTED
    assert found["synthetic bound"]["verdict"] == FAILED
    assert found["synthetic ridge"]["verdict"] == HELD


def small_kernel(n=10, held_out=4):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((n + 2 * held_out, 30))
    train, new = features[:n], features[n:]
    f0, f0_new = rng.standard_normal((n, 1)), rng.standard_normal((2 * held_out, 1))
    kernel = AssembledKernel(train @ train.T, new @ train.T, f0, f0_new, {})
    split = ["train"] * n + ["validation"] * held_out + ["test"] * held_out
    labels = [i % 2 for i in range(n + 2 * held_out)]
    table = pa.table({"split": split, "label": pa.array(labels, pa.int64())})
    return kernel, Sample(table, [0, 1], ["a", "b"], "x"), held_out


def test_ridge_is_taken_at_one_over_eta_and_at_no_training():
    kernel, sample, held_out = small_kernel()
    rows = ridge_rows(kernel, sample, "contrast", 1.0, "fitted", 10, [0.0, 0.5, 2.0])
    assert [row["eta"] for row in rows] == [0.0, 0.5, 2.0]
    residual = sample.targets("train", "contrast", 1.0) - kernel.outputs
    y, f0 = sample.targets("test", "contrast", 1.0), kernel.outputs_new[held_out:]
    assert rows[0]["loss"] == pytest.approx(squared_loss(f0 + residual.mean(axis=0), y))
    spec = Spectrum.of(kernel.train, 1, True)
    fitted = kernel_regression(spec, residual, kernel.new[held_out:], 0.5)
    assert rows[2]["loss"] == pytest.approx(squared_loss(f0 + fitted.reshape(f0.shape), y))


def test_the_text_holds_every_claim_with_its_criterion_and_verdict():
    rows = claims.judged(CLAIMS, Evidence(trajectories=curves("a", 0, [1.0, 0.5])))
    text = claims.markdown("demo", {"model": "m"}, rows)
    for row in rows:
        assert f"| {row['statement']} |" in text
        assert f"**{row['claim']}** ({row['verdict']})" in text
    assert "no interval" in text  # one run has none
    assert "- model: m" in text


@pytest.mark.pipeline
@pytest.mark.slow
def test_the_pipeline_writes_its_verdicts(finished_pipeline):
    folder = finished_pipeline[0] / "results/test"
    rows = {row["claim"]: row for row in artifacts.read_table(folder / "claims.parquet", "claims").to_pylist()}
    assert set(rows) == {claim.key for claim in CLAIMS}
    for name in ("few epochs", "ridge, linearised", "ridge, real training", "linear training", "worst-case stop"):
        assert rows[name]["value"] is not None, name
    for name in ("pretrained against random", "synthetic bound"):
        assert rows[name]["verdict"] == UNTESTED
    text = (folder / "claims.md").read_text(encoding="utf-8")
    assert "colours, moods" in text
    assert finished_pipeline[1].folder not in text
