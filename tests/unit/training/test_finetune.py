"""Fine-tuning does what its equations say: gradients, update rules, step sizes, evaluation, stopping."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stopwise.linearized.coding import squared_loss, targets
from stopwise.network.adapters import with_adapter
from stopwise.network.learner import Learner
from stopwise.network.parameters import select_parameters
from stopwise.network.pico import pico_model
from stopwise.training.finetune import FinetuneSettings, finetune, first_examples, sweep
from training_reference import (
    made_up_batch,
    outputs_one_by_one,
    plain_gradient,
    same_weights,
    weights,
)

LAMBDA = SimpleNamespace(eigenvalues=np.array([2.0, 1.0]))


@pytest.fixture
def model():
    return pico_model("llama")


@pytest.fixture(scope="module")
def data():
    return made_up_batch(24, seed=1), made_up_batch(16, seed=2), made_up_batch(16, seed=3)


def settings(**values):
    defaults = {"optimizer": "gradient_descent", "learning_rate": 0.5, "steps": 6, "evaluate_every": 2, "stop": "none"}
    return FinetuneSettings.from_config(defaults | values)


def run(model, data, config, **options):
    return finetune(model, *data, config, progress=False, **options)


@pytest.mark.parametrize(
    ("optimizer", "subset"),
    [
        ("gradient_descent", "attention"),
        ("heavy_ball", "attention"),
        ("nesterov", "attention"),
        ("heavy_ball", "trainable"),
    ],
)
def test_training_follows_its_recursion(data, optimizer, subset):
    """Against a loop that sums gradients example by example and writes the update out; an adapter is trainable."""
    model, reference = pico_model("llama"), pico_model("llama")
    if subset == "trainable":
        model, reference = (with_adapter(one, {"rank": 2, "alpha": 8}, seed=3) for one in (model, reference))
    config = settings(optimizer=optimizer, momentum=0.8, learning_rate=0.3, steps=4, parameters=subset)
    result = run(model, data, config)
    parameters = select_parameters(reference, subset)
    start = {name: p.detach().clone() for name, p in parameters.items()}
    y = targets(data[0]["labels"].numpy(), 2)
    b_hat = (y - outputs_one_by_one(reference, data[0])).mean(axis=0)
    velocity = [torch.zeros_like(p) for p in parameters.values()]
    for _ in range(4):
        gradient = plain_gradient(reference, parameters, data[0], b_hat)
        for p, v, g in zip(parameters.values(), velocity, gradient, strict=True):
            v.mul_(0.0 if optimizer == "gradient_descent" else 0.8).add_(g)
            p.data -= 0.3 * (v if optimizer != "nesterov" else g + 0.8 * v)
    np.testing.assert_allclose(result.intercept, b_hat, rtol=1e-12)
    for name, p in parameters.items():
        # The model is float64 but for parts that transformers computes in float32: 1e-5 of the displacement.
        expected = p.detach() - start[name]
        assert torch.linalg.norm(result.vector[name] - expected) <= 1e-5 * torch.linalg.norm(expected)


def test_adamw_is_the_adamw_of_torch(model, data):
    config = settings(optimizer="adamw", learning_rate=1e-2, weight_decay=0.1, steps=3)
    result = run(model, data, config)
    reference = pico_model("llama")
    parameters = select_parameters(reference, "attention")
    start = {name: p.detach().clone() for name, p in parameters.items()}
    torch_optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        for p, g in zip(
            parameters.values(), plain_gradient(reference, parameters, data[0], result.intercept), strict=True
        ):
            p.grad = g
        torch_optimizer.step()
    for name, p in parameters.items():
        expected = p.detach() - start[name]
        # Adam divides by |g|: where g is near zero its rounding is amplified, hence 1e-3 of the norm.
        assert torch.linalg.norm(result.vector[name] - expected) <= 1e-3 * torch.linalg.norm(expected)


@pytest.mark.parametrize("tokens", [1, 30, 10_000])
def test_length_buckets_do_not_change_the_gradient(model, data, tokens):
    whole = run(model, data, settings(tokens_per_batch=100_000, steps=1))
    cut = run(model, data, settings(tokens_per_batch=tokens, steps=1))
    # Only the order of sums (and float32 parts of the forward pass) differ.
    assert (whole.vector - cut.vector).norm() <= 1e-6 * whole.vector.norm()


def test_step_size_comes_from_the_largest_eigenvalue(model, data):
    """alpha = c/lambda_1, so half of c with half of lambda_1 is the same run, and eta counts alpha."""
    one = run(model, data, settings(learning_rate=None, step_size=1.0), spectrum=LAMBDA)
    other = SimpleNamespace(eigenvalues=np.array([1.0]), lambda_max=1.0)
    two = run(model, data, settings(learning_rate=None, step_size=0.5), spectrum=other)
    assert [row["eta"] for row in one.trajectory] == [0.0, 1.0, 2.0, 3.0]
    assert one.table_rows() == two.table_rows()


def test_the_model_is_given_back_bit_for_bit(model, data):
    before, flags = weights(model), [p.requires_grad for p in model.parameters()]
    result = run(model, data, settings())
    assert result.vector.norm() > 0
    assert same_weights(model, before)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())


def test_a_failure_also_gives_the_model_back(model, data):
    before = weights(model)

    def fail(step):
        if step == 2:
            raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        run(model, data, settings(), on_evaluation=fail)
    assert same_weights(model, before)


def test_rows_hold_the_measured_losses_of_the_weights_at_their_step(model, data):
    seen = {}

    def look(step):
        seen[step] = [outputs_one_by_one(model, batch) for batch in data]

    result = run(model, data, settings(), on_evaluation=look)
    assert [row["step"] for row in result.trajectory] == [0, 2, 4, 6] == sorted(seen)
    for row in result.trajectory:
        for name, batch, f in zip(("train", "validation", "test"), data, seen[row["step"]], strict=True):
            y = targets(batch["labels"].numpy(), 2)
            assert row[f"{name}_loss"] == pytest.approx(squared_loss(f + result.intercept, y), rel=1e-6)
            wanted = np.mean((f + result.intercept > 0)[:, 0] == batch["labels"].numpy())
            assert row[f"{name}_accuracy"] == pytest.approx(wanted)
    assert result.trajectory[-1]["train_loss"] < result.trajectory[0]["train_loss"]
    assert result.trajectory[0]["distance"] == 0
    assert result.trajectory[-1]["distance"] == pytest.approx(result.vector.norm(), rel=1e-9)
    layers = [row["distance"] for row in result.layers if row["step"] == 6]
    assert math.hypot(*layers) == pytest.approx(result.vector.norm(), rel=1e-9)


def test_holdout_keeps_the_lowest_validation_loss(model, data):
    noise = made_up_batch(16, seed=5, learnable=False)  # nothing to learn: the validation loss rises again
    config = settings(stop="holdout", patience=2, steps=40, evaluate_every=1, learning_rate=4.0)
    result = run(model, (data[0], noise, data[2]), config)
    losses = [row["validation_loss"] for row in result.trajectory]
    assert result.best_row["validation_loss"] == min(losses)
    assert result.stopped == "patience"
    assert result.stop_step == result.trajectory[-1]["step"] == result.best + 2
    shorter = run(model, data, settings(steps=result.best, learning_rate=4.0)) if result.best else None
    norm = shorter.vector.norm() if shorter else 0.0
    assert result.vector.norm() == pytest.approx(norm, abs=1e-12)


def test_continue_after_stop_changes_the_curve_and_not_the_answer(model, data):
    noise = made_up_batch(16, seed=5, learnable=False)
    config = {"stop": "holdout", "patience": 2, "steps": 20, "evaluate_every": 1, "learning_rate": 4.0}
    short = run(model, (data[0], noise, data[2]), settings(**config))
    full = run(model, (data[0], noise, data[2]), settings(**config, continue_after_stop=True))
    assert len(full.trajectory) == 21 > len(short.trajectory)
    assert full.table_rows()[: len(short.trajectory)] == short.table_rows()
    assert (full.best, full.stopped, full.stop_step) == (short.best, short.stopped, short.stop_step)
    assert all(torch.equal(full.vector[name], short.vector[name]) for name in short.vector)


@pytest.mark.parametrize("t", [0, 3, 6])
def test_a_predicted_stop_reads_no_validation_data(model, data, t):
    config = settings(stop={"rule": "sure", "t": t})
    result = run(model, (data[0], None, data[2]), config)
    assert (result.best, result.stopped, result.trajectory[-1]["step"]) == (t, "predicted", t)
    assert result.trajectory[-1]["validation_loss"] is None
    whole = run(model, data, settings(steps=max(t, 1)))
    assert result.vector.norm() == pytest.approx(whole.vector.norm() if t else 0.0, rel=1e-12)


def test_validation_data_changes_nothing_of_a_predicted_stop(model, data):
    config = settings(stop={"rule": "sure", "t": 3}, continue_after_stop=True)
    assert config.reads_validation
    assert not replace(config, continue_after_stop=False).reads_validation
    seen = run(model, data, config)
    other = run(model, (data[0], made_up_batch(16, seed=77), data[2]), config)
    short = run(model, (data[0], None, data[2]), replace(config, continue_after_stop=False))
    losses = [[row["validation_loss"] for row in result.trajectory] for result in (seen, other)]
    assert losses[0] != losses[1]
    assert seen.trajectory[-1]["step"] == 6
    for result in (other, short):
        assert (result.best, result.stop_step) == (seen.best, seen.stop_step) == (3, 3)
        assert all(torch.equal(result.vector[name], seen.vector[name]) for name in seen.vector)


def test_divergence_ends_the_run_with_a_word_and_keeps_a_finite_state(model, data):
    result = run(model, data, settings(learning_rate=1e6, steps=20, evaluate_every=1, parameters="head"))
    assert result.stopped == "diverged"
    assert len(result.trajectory) < 20
    assert math.isfinite(result.best_row["train_loss"])
    assert math.isfinite(result.vector.norm())


def test_one_hard_example_in_a_small_batch_is_not_divergence(model, data):
    """A batch of one whose loss is far above the mean, in training that hardly moves."""
    config = settings(batch_size=1, learning_rate=1e-6, steps=8, evaluate_every=8)
    one = {name: value[:8] if len(value) > 2 else value for name, value in data[0].items()}
    f = outputs_one_by_one(model, one)
    y = targets(one["labels"].numpy(), 2)
    losses = ((y - f - (y - f).mean(axis=0)) ** 2).mean(axis=1)
    limit = max(losses.mean(), (y**2).mean())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stopwise.training.loop.DIVERGENCE", float(0.9 * losses.max() / limit))
        assert losses.max() > 0.9 * losses.max() > losses.mean()
        result = finetune(model, one, data[1], data[2], config, progress=False)
    assert result.stopped != "diverged"
    assert result.trajectory[-1]["step"] == 8


def test_nan_is_never_best(data):
    model = pico_model("llama", dtype="float32")
    result = run(model, data, settings(learning_rate=1e30, steps=5, evaluate_every=1, stop="holdout"))
    assert result.stopped == "diverged"
    assert math.isfinite(result.best_row["validation_loss"])
    assert math.isfinite(result.vector.norm())


@pytest.mark.parametrize("classes", [2, 3])
def test_cross_entropy_descends_its_own_gradient(model, classes):
    """The first step against torch's cross_entropy on the class logits."""
    batch = made_up_batch(10, seed=4, classes=classes)
    result = run(model, (batch, None, None), settings(objective="cross_entropy", steps=1, learning_rate=0.7))
    from stopwise.network.forward import class_outputs

    parameters = select_parameters(model, "attention")
    for p in parameters.values():
        p.requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(class_outputs(model, batch, outputs="logits"), batch["labels"])
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    assert result.trajectory[0]["train_loss"] == pytest.approx(float(loss.detach()), rel=1e-9)
    assert not result.intercept.any()
    for (name, _), g in zip(parameters.items(), gradients, strict=True):
        assert torch.linalg.norm(result.vector[name] + 0.7 * g) <= 1e-6 * torch.linalg.norm(g)


@pytest.mark.parametrize("subset", ["attention", "linear", "all", "head", ["layers.1.*q_proj"]])
def test_only_the_subset_moves(model, data, subset):
    result = run(model, data, settings(steps=2, learning_rate=0.1, parameters=subset))
    assert list(result.vector) == list(select_parameters(model, subset))
    assert all(float(result.vector[name].abs().max()) > 0 for name in result.vector)


def test_an_adapter_has_a_vector_of_its_own(data):
    """Only the adapter moves, and its vector gives the trained outputs; the model comes back as it was."""
    model = with_adapter(pico_model("gpt2"), {"rank": 2, "alpha": 1, "target": "attention"}, seed=3)
    before, f = weights(model), {}

    def look(step):
        f[step] = outputs_one_by_one(model, data[2])

    config = settings(parameters="trainable", steps=4, learning_rate=5.0)
    result = run(model, data, config, on_evaluation=look)
    assert same_weights(model, before)
    assert set(dict(model.named_parameters())) == set(before)
    tuned = result.vector.apply_to(model)
    np.testing.assert_allclose(outputs_one_by_one(tuned, data[2]), f[4], rtol=1e-9, atol=1e-12)
    assert np.abs(f[4] - f[0]).max() > 1e-3


def test_mini_batches_are_the_announced_ones(model, data):
    """Against a loop over ``draw_batches``; epochs count examples drawn."""
    from stopwise.linearized.replay import draw_batches

    result = run(model, data, settings(batch_size=10, steps=3, learning_rate=0.2, evaluate_every=1), seed=7)
    reference = pico_model("llama")
    parameters = select_parameters(reference, "attention")
    for index in draw_batches(24, 10, 3, 7):
        part = {k: (v if k == "verbalizers" else v[index]) for k, v in data[0].items()}
        for p, g in zip(
            parameters.values(), plain_gradient(reference, parameters, part, result.intercept), strict=True
        ):
            p.data -= 0.2 * g
    original = dict(pico_model("llama").named_parameters())
    for name, p in parameters.items():
        expected = p.detach() - original[name].detach()
        assert torch.linalg.norm(result.vector[name] - expected) <= 1e-5 * torch.linalg.norm(expected)
    assert [row["epoch"] for row in result.trajectory] == pytest.approx([0, 10 / 24, 20 / 24, 30 / 24])


def test_evaluation_interval_may_be_a_fraction_of_an_epoch():
    config = settings(evaluate_every=0.25, batch_size=8)
    assert config.evaluation_interval(64) == 2
    assert config.evaluation_interval(8) == 1
    assert settings(evaluate_every=5).evaluation_interval(64) == 5


def test_predictions_sit_beside_the_measurement(model, data):
    """A path of zeros but for the intercept predicts the loss at the start."""
    b_hat = run(model, data, settings(steps=1)).intercept
    paths = {"test": np.tile(b_hat, (7, 16)), "train": np.tile(b_hat, (7, 24)), "distance": np.arange(7.0)}
    result = run(model, data, settings(), predicted=paths)
    first = result.trajectory[0]
    for row in result.trajectory:
        assert row["linearised_test_loss"] == pytest.approx(first["test_loss"], rel=1e-12)
        assert row["linearised_train_loss"] == pytest.approx(first["train_loss"], rel=1e-12)
        assert row["linearised_test_accuracy"] == pytest.approx(first["test_accuracy"])
        assert row["linearised_distance"] == row["step"]


def test_tangent_training_is_training_of_the_linearised_model(data):
    """The residual of every direction shrinks by exactly (1 - alpha lambda) a step."""
    model = pico_model("gpt2")
    parameters = select_parameters(model, "attention")
    f0 = outputs_one_by_one(model, data[0])
    from stopwise.network.forward import class_outputs

    for p in parameters.values():
        p.requires_grad_(True)
    f = class_outputs(model, data[0])
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(x, list(parameters.values()), retain_graph=True)])
        for x in f[:, 0]
    ]
    for p in parameters.values():
        p.requires_grad_(False)
    jacobian = torch.stack(rows).numpy()
    kernel = jacobian @ jacobian.T / len(f0)
    alpha = 1 / np.linalg.eigvalsh(kernel)[-1]
    result = run(model, data, settings(tangent=True, learning_rate=alpha, steps=5, evaluate_every=1))
    target = targets(data[0]["labels"].numpy(), 2) - result.intercept
    expected = f0.copy()
    for measured in result.outputs["train"]:
        np.testing.assert_allclose(measured, expected, rtol=1e-10, atol=1e-12)
        expected = expected + alpha * kernel @ (target - expected)
    real = run(model, data, settings(learning_rate=alpha * 20, steps=5, evaluate_every=1))
    assert real.vector.norm() > 0


def test_a_sweep_is_its_single_runs(model, data):
    config = settings(learning_rate=None)
    spectra = {n: SimpleNamespace(eigenvalues=[2.0]) for n in (8, 24)}
    swept = dict(sweep(model, *data, config, (8, 24), spectra=spectra, progress=False))
    for n in (8, 24):
        single = finetune(model, first_examples(data[0], n), *data[1:], config, spectrum=spectra[n], progress=False)
        assert swept[n].table_rows() == single.table_rows()
        assert all(torch.equal(swept[n].vector[name], single.vector[name]) for name in single.vector)


def test_a_sweep_computes_no_outputs_at_the_start_that_it_was_given(model, data, monkeypatch):
    config, spectra = settings(learning_rate=None), {n: SimpleNamespace(eigenvalues=[2.0]) for n in (8, 24)}
    plain = dict(sweep(model, *data, config, (8, 24), spectra=spectra, progress=False))
    largest = plain[24].outputs
    known = {name: values[0] for name, values in largest.items()}
    calls, predict = [], Learner.predict
    monkeypatch.setattr(Learner, "predict", lambda self, prompts: calls.append(len(prompts)) or predict(self, prompts))
    given = dict(sweep(model, *data, config, (8, 24), spectra=spectra, start_outputs=known, progress=False))
    evaluations = sum(len(result.trajectory) for result in given.values())
    # Held-out outputs at every evaluation but the first, training outputs only after the last step of a size.
    assert len(calls) == 2 * (evaluations - 2) + 2
    for n in (8, 24):
        assert given[n].table_rows() == plain[n].table_rows()


def test_autocast_is_near_and_keeps_float32_weights(data):
    model = pico_model("llama", dtype="float32")
    plain = run(model, data, settings(steps=2))
    mixed = run(model, data, settings(steps=2, autocast="bfloat16"))
    assert mixed.vector["model.layers.0.self_attn.q_proj.weight"].dtype == torch.float32
    difference = (plain.vector - mixed.vector).norm() / plain.vector.norm()
    assert 0 < difference < 0.1  # bfloat16 has 8 bits of mantissa: a percent or so


BAD = [
    ({"optimizer": "sgdd"}, "finetune.optimizer: 'sgdd'"),
    ({"objective": "hinge"}, "finetune.objective: 'hinge'"),
    ({"momentum": 1.0}, "finetune.momentum: found 1.0"),
    ({"step_size": 1.5}, "finetune.step_size: found 1.5"),
    ({"steps": 0}, "finetune.steps: found 0"),
    ({"batch_size": 0}, "finetune.batch_size: found 0"),
    ({"evaluate_every": 1.5}, "finetune.evaluate_every: found 1.5"),
    ({"evaluate_every": 0}, "finetune.evaluate_every: found 0"),
    ({"patience": 0}, "finetune.patience"),
    ({"min_delta": -1.0}, "finetune.min_delta"),
    ({"schedule": "step"}, "finetune.schedule: 'step'"),
    ({"warmup": 3}, "finetune.warmup: found 3"),
    ({"autocast": "float16"}, "finetune.autocast: 'float16'"),
    ({"optimizer": "adamw", "learning_rate": None}, "finetune.learning_rate"),
    ({"outputs": "logits"}, "finetune.objective"),
    ({"stop": "oracle"}, "finetune.stop: 'oracle'"),
    ({"stop": {"rule": "holdout", "wait": 3}}, "finetune.stop: unknown key 'wait'"),
    ({"patients": 3}, "finetune: unknown key 'patients'"),
    ({"weight_decay": -1.0}, "finetune.weight_decay"),
    ({"tokens_per_batch": 0}, "finetune.tokens_per_batch"),
    ({"target_scale": 0.0}, "finetune.target_scale"),
    ({"learning_rate": 0.0}, "finetune.learning_rate"),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=[str(sorted(v)[0]) + str(i) for i, (v, _) in enumerate(BAD)])
def test_a_wrong_setting_is_named(values, message):
    with pytest.raises(ValueError, match="^" + message.replace("'", ".").replace(".", r".")):
        settings(**values)


def test_what_a_run_lacks_is_named(model, data):
    with pytest.raises(ValueError, match=r"finetune.step_size needs the kernel's spectrum"):
        run(model, data, settings(learning_rate=None))
    with pytest.raises(ValueError, match=r"largest eigenvalue is 0\.0"):
        run(model, data, settings(learning_rate=None), spectrum=SimpleNamespace(eigenvalues=[0.0]))
    with pytest.raises(ValueError, match="rule 'holdout' needs validation data"):
        run(model, (data[0], None, None), settings(stop="holdout"))
    with pytest.raises(ValueError, match="rule 'sure' needs the step it predicted"):
        run(model, data, settings(stop="sure"))
    with pytest.raises(ValueError, match="sizes: 30 training examples wanted, the sample has 24"):
        first_examples(data[0], 30)


def joint_data():
    return [
        {"a": made_up_batch(n, seed=10 + n, classes=2), "b": made_up_batch(n + 5, seed=20 + n, classes=3)}
        for n in (10, 6, 8)
    ]


@pytest.mark.parametrize("batch_size", [None, 7])
def test_joint_training_descends_the_mean_over_all_rows(model, batch_size):
    """The first step against the weighted sum of the tasks' own gradients."""
    train = joint_data()[0]
    config = settings(steps=1, learning_rate=0.5, batch_size=batch_size)
    result = finetune(model, train, None, None, config, progress=False, seed=3)
    index = np.arange(25)
    if batch_size:
        from stopwise.linearized.replay import draw_batches

        index = draw_batches(25, batch_size, 1, 3)[0]
    parameters = select_parameters(model, "attention")
    expected, rows = [0.0] * len(parameters), 0
    intercepts = result.vector.metadata["intercepts"]
    for task, first, last in (("a", 0, 10), ("b", 10, 25)):
        own = index[(index >= first) & (index < last)] - first
        part = {key: value if key == "verbalizers" else value[own] for key, value in train[task].items()}
        size = len(own) * len(intercepts[task])
        gradient = plain_gradient(model, parameters, part, intercepts[task])
        expected = [total + size * g for total, g in zip(expected, gradient, strict=True)]
        rows += size
    for name, total in zip(parameters, expected, strict=True):
        step = -0.5 * total / rows
        assert torch.linalg.norm(result.vector[name] - step) <= 1e-6 * torch.linalg.norm(step)


def test_joint_training_reports_each_task(model, tmp_path):
    train, validation, test = joint_data()
    config = settings(stop="holdout", steps=4, learning_rate=0.3)
    path = tmp_path / "run.safetensors"
    result = finetune(model, train, validation, test, config, progress=False, checkpoint=path)
    for row in result.trajectory:
        for split, batches in (("train", train), ("test", test)):
            own = {r["task"]: r for r in result.tasks if r["step"] == row["step"] and r["split"] == split}
            sizes = {"a": len(batches["a"]["labels"]), "b": 2 * len(batches["b"]["labels"])}
            mean = sum(own[task]["loss"] * size for task, size in sizes.items()) / sum(sizes.values())
            assert row[f"{split}_loss"] == pytest.approx(mean)
    np.testing.assert_allclose(result.vector.intercept("b"), result.intercept[1:])
    alone = outputs_one_by_one(model, test["b"])
    np.testing.assert_allclose(result.outputs["test"][0][8:].reshape(-1, 2), alone, atol=1e-6)
