"""The kernel of AdamW: what its diagonal is, and that training with AdamW follows the path that its kernel predicts."""

import numpy as np
import pytest
import torch

from kernel_reference import plain_jacobian
from stopwise.artifacts.gram import AssembledKernel
from stopwise.kernel.batch_metric import BatchMetric
from stopwise.kernel.engine import Engine
from stopwise.kernel.ntk import empirical_ntk, kernel_layers, train_and_new_kernels
from stopwise.linearized.coding import targets
from stopwise.linearized.filters import AdamMean
from stopwise.linearized.objectives import Objective
from stopwise.linearized.replay import draw_batches
from stopwise.network.parameters import select_parameters
from stopwise.network.pico import pico_classifier, pico_model
from stopwise.training.adam_preconditioner import Preconditioner, adam_preconditioner, own_metric
from stopwise.training.decayed import weights_move
from stopwise.training.finetune import FinetuneSettings, finetune
from stopwise.training.prediction import predicted_paths, start_outputs, step_eigenvalue
from stopwise.training.settings import ADAM_BETAS, ADAM_EPS
from training_reference import made_up_batch

SEED, N, BATCH, STEPS = 3, 16, 4, 12


def settings(**values):
    section = {"optimizer": "adamw", "batch_size": BATCH, "steps": STEPS, "evaluate_every": 1, "stop": "none"}
    return FinetuneSettings.from_config(section | values, formula="adam")


@pytest.fixture(scope="module")
def made():
    """Return (model, batches, J of the training rows [16, P]) in float64."""
    model = pico_model("llama")
    batches = tuple(made_up_batch(n, seed=i) for i, n in enumerate((N, 8, 8)))
    return model, batches, plain_jacobian(model, batches[0], list(select_parameters(model, "attention")))


def kernel_of(model, batches, own):
    options = {"formula": "adam", "preconditioner": adam_preconditioner(model, batches[0], own, SEED)}
    inside = empirical_ntk(model, batches[0], **options)
    new = [empirical_ntk(model, batch, batches[0], **options) for batch in batches[1:]]
    f0, cross = np.concatenate([k.outputs for k in new]), np.concatenate([k.matrix for k in new])
    return AssembledKernel(inside.matrix, cross, inside.outputs, f0, {})


def objective(batches, own):
    return Objective(own.objective, batches[0]["labels"].numpy(), 2, "contrast", 1.0, np.zeros(1))


@pytest.mark.parametrize("kind", ["squared", "cross_entropy"])
@pytest.mark.parametrize("size", [4, 5, None])
def test_the_diagonal_is_that_of_the_first_epochs_gradients(made, size, kind):
    model, batches, jacobian = made
    own = settings(batch_size=size, objective=kind)
    found = adam_preconditioner(model, batches[0], own, SEED)
    f0, goal = empirical_ntk(model, batches[0]).outputs, objective(batches, own)
    if kind == "squared":
        goal = goal.with_intercept((targets(batches[0]["labels"].numpy(), 2) - f0).mean(axis=0))
    drawn = draw_batches(N, size, N // (size or N), SEED)
    squares = [
        (torch.as_tensor(goal.rows(b).gradient(f0[b], np.arange(len(b)))).T @ jacobian[b]).square() for b in drawn
    ]
    expected = torch.stack(squares).mean(0).sqrt().flatten() + ADAM_EPS
    divisor = 1 / torch.cat([d.flatten() for d in found.values()])
    assert torch.allclose(divisor, expected, rtol=1e-4, atol=1e-6 * float(expected.max()))
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_a_shard_has_the_diagonal_of_its_own_layers(made):
    model, batches, _ = made
    whole = adam_preconditioner(model, batches[0], settings(), SEED)
    found = {}
    for layer in kernel_layers(model):
        part = adam_preconditioner(model, batches[0], settings(), SEED, [layer])
        assert all(name.startswith(layer) for name in part)
        found |= part
    assert found.keys() == whole.keys()
    assert all(torch.allclose(found[name], whole[name], rtol=1e-9) for name in whole)


# Llama computes its norms in float32, whatever the weights are in.
@pytest.mark.parametrize(
    ("model", "kind", "size", "error"),
    [
        ("gpt2", "squared", None, 1e-9),
        ("gpt2", "cross_entropy", None, 1e-9),
        ("gpt2", "cross_entropy", 9, 1e-9),
        ("llama", "squared", None, 2e-5),
        ("bert classifier", "cross_entropy", None, 1e-9),
        ("deberta-v2 classifier", "cross_entropy", None, 1e-9),
    ],
)
def test_a_kernel_reads_its_diagonal_from_its_own_rows(model, kind, size, error, monkeypatch):
    arch, _, head = model.partition(" ")
    network = pico_classifier(arch, 3) if head else pico_model(arch)
    batches = [made_up_batch(n, seed=i, classes=3) for i, n in enumerate((N, 8))]
    own, options = settings(objective=kind, parameters="all"), {"parameters": "all", "formula": "adam"}
    if head:
        batches = [{name: value for name, value in one.items() if name != "verbalizers"} for one in batches]
    apart = adam_preconditioner(network, batches[0], own, SEED)
    expected = train_and_new_kernels(network, *batches, preconditioner=apart, **options)
    read = own_metric(network, batches[0], own, SEED)
    monkeypatch.setattr(Engine, "tile", lambda self: size)
    along = select_parameters(network, "all")
    found = train_and_new_kernels(network, *batches, preconditioner=read, along=along, **options)
    assert isinstance(read, BatchMetric)
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one.matrix - other.matrix).max() < error * np.abs(expected[0].matrix).max()
    for one, batch in zip(found, batches, strict=True):
        moved = weights_move(network, batch, {"parameters": "all", "outputs": "contrast"})
        assert np.allclose(one.moves, moved, rtol=error, atol=error * np.abs(moved).max())


@pytest.mark.parametrize("option", [{"clip_norm": 1.0}, {"autocast": "bfloat16"}])
def test_what_a_kernels_rows_do_not_tell_has_passes_of_its_own(made, option):
    model, batches, _ = made
    assert isinstance(own_metric(model, batches[0], settings(**option), SEED), Preconditioner)


def test_a_direction_is_refused_where_rows_are_not_formed(made):
    model, batches, _ = made
    with pytest.raises(ValueError, match="along a direction: for the formula adam"):
        empirical_ntk(model, batches[0], along=select_parameters(model, "attention"))


def test_a_kernel_says_which_parameters_its_own_rows_leave_still():
    model, batch = pico_model("llama"), made_up_batch(N)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
    read = own_metric(model, batch, settings(), SEED)
    empirical_ntk(model, batch, formula="adam", preconditioner=read)
    assert read.still == {name for name in select_parameters(model, "attention") if "o_proj" not in name}


def test_what_no_batch_moves_stays():
    model, batch = pico_model("llama"), made_up_batch(N)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()  # nothing reaches q, k and v
    found = adam_preconditioner(model, batch, settings(), SEED)
    assert all(bool((d == 0).all()) == ("o_proj" not in name) for name, d in found.items())


@pytest.mark.parametrize("kind", ["squared", "cross_entropy"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_path_is_adam_with_its_division_held(made, kind, schedule):
    """The replay on J D J' against Adam's own formulas in the parameters, with v of the start in every step."""
    model, batches, jacobian = made
    own = settings(objective=kind, schedule=schedule, learning_rate=1e-3)
    kernel = kernel_of(model, batches, own)
    spec, goal = kernel.spectrum("fitted"), objective(batches, own)
    path = predicted_paths(kernel, spec, goal, own, 8, SEED)["train"]
    diagonal = torch.cat([d.flatten() for d in adam_preconditioner(model, batches[0], own, SEED).values()])
    f0, offset = kernel.outputs, np.zeros(1)
    if kind == "squared":
        offset = (goal.targets - f0).mean(axis=0)
        goal = goal.with_intercept(offset)
    moved, mean, beta = torch.zeros_like(diagonal), torch.zeros_like(diagonal), ADAM_BETAS[0]
    for t, (batch, alpha) in enumerate(zip(draw_batches(N, BATCH, STEPS, SEED), own.step_sizes(), strict=True)):
        f = f0 + (jacobian @ moved).numpy()[:, None]
        gradient = torch.as_tensor(goal.rows(batch).gradient(f[batch], np.arange(BATCH))).T @ jacobian[batch]
        mean = beta * mean + (1 - beta) * gradient.flatten()
        moved -= alpha * diagonal * mean / (1 - beta ** (t + 1))
        assert np.allclose((jacobian @ moved).numpy() + offset, path[t + 1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["squared", "cross_entropy"])
def test_training_with_adamw_follows_the_path(made, kind):
    """Twelve real steps: the moves of the outputs agree the better, the smaller the steps.

    What stays for the smallest is that Adam's v is one of few batches at first, and the kernel's that of all of them.
    """
    large, small = (error_of(made, settings(objective=kind, step_size=c)) for c in (0.1, 0.01))
    assert small < 0.15
    assert small < 0.6 * large < 0.3


def error_of(made, own):
    """Return how far real outputs end from their path, relative to their move: the worse of train and test."""
    model, batches, _ = made
    kind = own.objective
    kernel = kernel_of(model, batches, own)
    spec = kernel.spectrum("fitted")
    found = finetune(
        model,
        *batches,
        own,
        spectrum=step_eigenvalue(spec, BATCH),
        predicted=(paths := predicted_paths(kernel, spec, objective(batches, own), own, 8, SEED)),
        start_outputs=start_outputs(kernel, 8),
        progress=False,
        seed=SEED,
    )
    assert "linearised_distance" not in found.trajectory[-1]
    errors = []
    for split in ("train", "test"):
        real = (found.outputs[split] - found.outputs[split][0]).reshape(STEPS + 1, -1)[-1]
        offset = found.intercept if kind == "squared" else 0.0
        errors.append(float(np.linalg.norm(real - (paths[split][-1] - offset)) / np.linalg.norm(real)))
    return max(errors)


def test_the_learning_rate_is_taken_from_the_kernel(made):
    model, batches, _ = made
    spec = kernel_of(model, batches, settings()).spectrum("fitted")
    top = step_eigenvalue(spec, BATCH)
    assert np.allclose(settings(step_size=0.5).step_sizes(top), 0.5 / top)
    assert np.allclose(settings(learning_rate=1e-4).step_sizes(top), 1e-4)
    with pytest.raises(ValueError, match=r"or kernel\.formula: adam"):
        FinetuneSettings(optimizer="adamw")


def test_time_runs_as_fast_as_adam(made):
    """A vanishing eigenvalue sees the sum of Adam's steps, its bias correction included."""
    filter = settings(learning_rate=1e-3).filter()
    assert isinstance(filter, AdamMean)
    gradient, mean, moved, beta = 1.0, 0.0, 0.0, ADAM_BETAS[0]
    for t in range(40):
        mean = beta * mean + (1 - beta) * gradient
        moved += 1e-3 * mean / (1 - beta ** (t + 1))
        assert filter.eta(t + 1) == pytest.approx(moved, rel=1e-12)


@pytest.mark.parametrize(("product", "diverges"), [(37.0, False), (39.0, True)])
def test_adam_diverges_where_its_bound_says(product, diverges):
    s = AdamMean(product, 0.9).shrinkage(np.ones(1), np.arange(2000))[:, 0]
    assert (abs(s[-1] - 1) > 1) == diverges
    assert AdamMean(product, 0.9).stability == pytest.approx(38)
