"""AdamW as people use it: training is torch's, and its path and stop are those of the linearised network."""

import numpy as np
import pytest
import torch

from stopwise.artifacts.gram import AssembledKernel
from stopwise.kernel.ntk import empirical_ntk, kernel_layers
from stopwise.linearized.coding import targets
from stopwise.linearized.objectives import Objective
from stopwise.linearized.replay import draw_batches
from stopwise.linearized.spectrum import Spectrum
from stopwise.network.adapters import with_adapter
from stopwise.network.learner import Learner, Prompts
from stopwise.network.parameters import held, select_parameters
from stopwise.network.pico import pico_classifier
from stopwise.stopping.cross_entropy import Replay, left_out_outputs
from stopwise.training.adam_preconditioner import adam_preconditioner
from stopwise.training.decayed import plain_kernel, weights_move
from stopwise.training.finetune import FinetuneSettings, finetune
from stopwise.training.prediction import predicted_paths, training_schedule
from training_reference import made_up_batch

STEPS, SIZE, CLASSES = 9, 4, 3
ADAMW = {
    "objective": "cross_entropy",
    "optimizer": "adamw",
    "learning_rate": 0.02,
    "weight_decay": 0.1,
    "clip_norm": 0.05,
    "schedule": "linear",
    "warmup": 2,
    "batch_size": SIZE,
    "steps": STEPS,
    "evaluate_every": 1,
    "stop": "none",
    "formula": "adam",
    "parameters": "head",
}
HEAVY = ADAMW | {"optimizer": "heavy_ball", "formula": "sgd", "learning_rate": 5.0, "weight_decay": 0.0}
KERNEL = {"parameters": "head", "outputs": "contrast", "memory_gb": None}


def batches(n=10, new=6):
    kept = ("input_ids", "attention_mask", "labels")
    made = made_up_batch(n, seed=1, classes=CLASSES), made_up_batch(new, seed=2, classes=CLASSES)
    return [{key: batch[key] for key in kept} | {"verbalizers": torch.arange(CLASSES)} for batch in made]


@pytest.fixture(scope="module")
def model():
    """A classifier whose head is large enough to move: drawn at standard deviation 0.3."""
    return pico_classifier("bert", CLASSES, seed=3, initializer_range=0.3).eval()


def jacobian(model, batch, names):
    """J [n columns, P] and f [n, columns] by autograd, one output at a time."""
    chosen = {name: model.get_parameter(name) for name in names}
    learner, rows = Learner(model, chosen, "contrast"), []
    with learner.trainable():
        f = learner.forward(Prompts.of(batch, 1024, model), torch.arange(len(batch["labels"])))
        for one in f.reshape(-1):
            found = torch.autograd.grad(one, list(chosen.values()), retain_graph=True)
            rows.append(torch.cat([g.reshape(-1) for g in found]))
    return torch.stack(rows).numpy(), f.detach().numpy()


def simulated(setting, J, J_new, f0, f0_new, theta, scales, labels, drawn):
    """Train the linearised network itself: its weights move, its outputs are f0 + J (theta - theta_0)."""
    start, mean, path = theta.copy(), np.zeros_like(theta), []
    objective = Objective("cross_entropy", labels, CLASSES, "contrast", 1.0, np.zeros(1))
    for t in range(STEPS + 1):
        moved = theta - start
        path.append((J @ moved, J_new @ moved))
        if t == STEPS:
            return [np.stack(part) for part in zip(*path, strict=True)]
        f = f0 + (J @ moved).reshape(f0.shape)
        part = objective.rows(drawn[t])
        cotangent = part.gradient(f[drawn[t]], np.arange(SIZE)).reshape(-1)
        g = J.reshape(len(labels), -1, len(theta))[drawn[t]].reshape(-1, len(theta)).T @ cotangent
        g = g * min(1.0, setting.clip_norm / (np.linalg.norm(g) + 1e-6))
        alpha = setting.step_sizes(1.0)[t]
        if setting.optimizer == "adamw":
            mean = 0.9 * mean + 0.1 * g
            theta = theta * (1 - alpha * setting.weight_decay) - alpha * scales * mean / (1 - 0.9 ** (t + 1))
        else:
            mean = 0.9 * mean + g
            theta = theta - alpha * mean
    raise AssertionError


@pytest.mark.parametrize("options", [ADAMW, HEAVY], ids=["adamw", "heavy_ball"])
def test_the_path_is_that_of_the_linearised_network_trained_directly(model, options):
    """Warm-up, clipping and weight decay included, on training and on new examples."""
    setting, (train, new) = FinetuneSettings(**options), batches()
    names = list(select_parameters(model, "head"))
    (J, f0), (J_new, f0_new) = jacobian(model, train, names), jacobian(model, new, names)
    theta = torch.cat([model.get_parameter(name).reshape(-1) for name in names]).detach().numpy()
    scales = np.ones_like(theta)
    if setting.formula == "adam":
        found = adam_preconditioner(model, train, setting, seed=5)
        scales = torch.cat([found[name].reshape(-1) for name in names]).numpy()
    labels, drawn = train["labels"].numpy(), draw_batches(10, SIZE, STEPS, 5)
    expected = simulated(setting, J, J_new, f0, f0_new, theta, scales, labels, drawn)

    layers = kernel_layers(model, "head")
    moves = [weights_move(model, batch, KERNEL, layers) for batch in (train, new)]
    np.testing.assert_allclose(moves[0].reshape(-1), J @ theta, atol=1e-10)
    plain = plain_kernel(model, train, KERNEL, layers, "cpu")
    np.testing.assert_allclose(plain, J @ J.T, atol=1e-10)
    matrix, cross = (J * scales) @ J.T, (J_new * scales) @ J.T
    decayed = moves if setting.weight_decay else (None, None)
    kernel = AssembledKernel(matrix, cross, f0, f0_new, {}, plain, *decayed)
    objective = Objective("cross_entropy", labels, CLASSES, "contrast", 1.0, np.zeros(2))
    paths = predicted_paths(kernel, kernel.spectrum("none"), objective, setting, 2, 5)
    np.testing.assert_allclose(paths["train"], expected[0], atol=1e-9)
    np.testing.assert_allclose(np.hstack([paths["validation"], paths["test"]]), expected[1], atol=1e-9)
    assert np.abs(expected[0][-1]).max() > 0.01
    assert "distance" in paths or setting.formula == "adam"

    # What the rules replay is the same training: left out alone, an example moves nothing of its own path.
    schedule = training_schedule(setting, 1.0, drawn)
    replayed = Replay(objective, drawn, schedule, plain, decayed[0])
    spec = Spectrum.of(matrix, 2, intercept=False)
    without = left_out_outputs(spec, f0, replayed, setting.filter(1.0), np.array([0, STEPS]))
    np.testing.assert_array_equal(without[0], f0)
    assert np.abs(without[1] - f0 - expected[0][-1].reshape(f0.shape)).max() > 1e-6


def test_training_is_torchs_own_step_by_step(model):
    """AdamW, clip_grad_norm_ and a linear schedule with warm-up, in torch's words."""
    setting, (train, new) = FinetuneSettings(**ADAMW | {"formula": "sgd"}), batches()
    run = finetune(model, train, None, new, setting, progress=False, seed=5)
    names = list(select_parameters(model, "head"))
    chosen = {name: model.get_parameter(name) for name in names}
    kept = {name: parameter.detach().clone() for name, parameter in chosen.items()}
    learner, prompts = Learner(model, chosen, "contrast"), Prompts.of(train, 1024, model)
    optimizer = torch.optim.AdamW(list(chosen.values()), lr=0.02, weight_decay=0.1)
    coding = torch.tensor(targets(np.arange(CLASSES), CLASSES))  # rows B e_c
    clipped = 0
    for step, index in enumerate(draw_batches(10, SIZE, STEPS, 5)):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * setting.step_sizes(1.0)[step] / setting.learning_rate
        with learner.trainable():
            f = learner.forward(prompts, torch.as_tensor(index))
            loss = torch.nn.functional.cross_entropy(f @ coding.T, train["labels"][index])
            optimizer.zero_grad()
            loss.backward()
            clipped += float(torch.nn.utils.clip_grad_norm_(list(chosen.values()), 0.05)) > 0.05
            optimizer.step()
    last = learner.predict(Prompts.of(new, 1024, model))
    with torch.no_grad():
        for name, parameter in chosen.items():
            parameter.copy_(kept[name])
    assert clipped > 0
    np.testing.assert_allclose(run.outputs["test"][-1], last, atol=1e-9)


def test_an_adapter_by_peft_has_a_kernel_and_is_trained():
    """At the start the kernel holds B's part and the head's; what is trained is the adapter and the head alone."""
    net = with_adapter(pico_classifier("bert", CLASSES, seed=3, initializer_range=0.3), {"rank": 2}, seed=4)
    again = with_adapter(pico_classifier("bert", CLASSES, seed=3, initializer_range=0.3), {"rank": 2}, seed=4)
    train, new = batches()
    names = held(net, "trainable")
    kernel = empirical_ntk(net, train, parameters="trainable")
    J, _ = jacobian(net, train, [name.strip("^$").replace("\\", "") for name in names])
    np.testing.assert_allclose(kernel.matrix, J @ J.T, atol=1e-10)
    setting = FinetuneSettings(**ADAMW | {"formula": "sgd", "parameters": "trainable"})
    first, second = (finetune(m, train, None, new, setting, progress=False, seed=5) for m in (net, again))
    assert all("lora_" in name or "classifier" in name for name in first.vector)
    assert first.table_rows() == second.table_rows(), "A is drawn from the seed"
    assert first.trajectory[-1]["train_loss"] < first.trajectory[0]["train_loss"]
