"""The left-out curve of a Trainer: against its definition by autograd, its stop, its resumption, what it refuses."""

import shutil

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from stopwise.integrations import left_out
from stopwise.integrations.callback import StopwiseCallback
from stopwise.integrations.left_out import FILE, FOLDER
from stopwise.linearized.coding import columns
from stopwise.linearized.objectives import Objective
from stopwise.stopping.anchored import Anchors, Recorded, anchored_outputs, left_out_curve
from stopwise.stopping.schedule_path import Schedule
from stopwise.training import left_out_run
from stopwise.training.left_out_run import anchor_steps
from trainer_runs import VERBALIZERS, jacobian, make, outputs


class Watcher(TrainerCallback):
    """Keep, after every step, the weights, what AdamW divides by, and its learning rate before."""

    def __init__(self):
        self.weights, self.metrics, self.rates = [], [], []

    def note(self, model, optimizer):
        chosen = {name: p for name, p in sorted(model.named_parameters()) if p.requires_grad}
        self.weights.append({name: p.detach().clone() for name, p in chosen.items()})
        parts = []
        for p in chosen.values():
            own = optimizer.state.get(p, {})
            square = own["exp_avg_sq"] / (1 - 0.999 ** float(own["step"])) if own else torch.zeros_like(p)
            parts.append((1 / (square.sqrt() + 1e-8)).where(square > 0, torch.zeros_like(p)).flatten())
        self.metrics.append(torch.cat(parts).double().numpy())

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **_):
        self.note(model, getattr(optimizer, "optimizer", optimizer))

    def on_step_begin(self, args, state, control, optimizer=None, **_):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args, state, control, model=None, optimizer=None, **_):
        self.note(model, getattr(optimizer, "optimizer", optimizer))


def by_definition(trainer, watcher, callback, kind, classes=2):
    """The curve of a run from gradients by autograd at its checkpoints and outputs at every step."""
    following, rows = callback._following, trainer.train_dataset
    own, taken = following.schedule, (0, *following.plan.anchors)
    metrics = {t: watcher.metrics[t or taken[1]] for t in taken}  # the start has what was gathered by the second
    options, named = {"classes": classes, "kind": kind.removeprefix("lora-")}, dict(trainer.model.named_parameters())
    f, jacobians = [], {}
    for t, weights in enumerate(watcher.weights):
        with torch.no_grad():
            for name, value in weights.items():
                named[name].copy_(value)
        trainer.model.eval()
        with torch.no_grad():
            f.append(torch.stack(outputs(trainer.model, rows, **options)).double().numpy())
        if t in taken:
            jacobians[t] = jacobian(trainer.model, rows, [named[name] for name in weights], **options)[0]
    grams = [[(jacobians[a] * metrics[b]) @ jacobians[b].T for b in taken if b <= a] for a in taken]
    plain = [jacobians[a] @ jacobians[a].T for a in taken]
    labels = [VERBALIZERS.index(max(row["labels"])) if "words" in kind else row["labels"] for row in rows]
    q = columns(classes, "contrast")
    objective = Objective("cross_entropy", np.array(labels), classes, "contrast", 1.0, np.zeros(q))
    limit = trainer.args.max_grad_norm
    schedule = Schedule(
        np.array(watcher.rates), own.batches, own.weights, weight_decay=trainer.args.weight_decay, max_grad_norm=limit
    )
    run = Recorded(objective, schedule, np.array(f), Anchors(taken, grams, plain))
    times = np.array([0, *following.plan.values])
    return times, *left_out_curve(objective, anchored_outputs(run, times))


EVERYTHING = {"gradient_accumulation_steps": 2, "warmup_steps": 2, "weight_decay": 0.5, "max_grad_norm": 0.2}


@pytest.mark.parametrize(
    ("kind", "settings"), [("bert", EVERYTHING), ("words", {"max_grad_norm": 0.0}), ("lora-bert", {"warmup_steps": 3})]
)
@pytest.mark.slow
def test_the_curve_is_that_of_its_definition(kind, settings, tmp_path, monkeypatch):
    """Full, words and an adapter; accumulation, warm-up, decay and clipping; three checkpoints."""
    monkeypatch.setattr(left_out, "COHERENT", 0.0)  # large steps: the network becomes another
    callback, watcher = StopwiseCallback(left_out="anchored", anchors=3, stop=False), Watcher()
    trainer = make(kind, tmp_path, [callback, watcher], learning_rate=3e-3, num_train_epochs=4, **settings)
    trainer.train()
    times, losses, right = by_definition(trainer, watcher, callback, kind)
    found = np.array(callback.curve)
    assert found[:, 0].tolist() == times.tolist()
    assert len(callback._following.plan.anchors) == 2
    # Kernels are exact to 1e-6, and what they move is a part of the loss.
    np.testing.assert_allclose(found[:, 1], losses, rtol=1e-5)
    np.testing.assert_array_equal(found[:, 2], right)
    logged = {row["step"]: row for row in trainer.state.log_history if "stopwise/left_out_loss" in row}
    assert sorted(logged) == times[1:].tolist()
    assert all(logged[t]["stopwise/left_out_loss"] == loss for t, loss, *_ in callback.curve[1:])


class Kept(TrainerCallback):
    """Keep the weights after every step, by step."""

    def __init__(self):
        self.weights = {}

    def on_step_end(self, args, state, control, model=None, **_):
        self.weights[state.global_step] = {name: p.detach().clone() for name, p in model.named_parameters()}


def test_a_run_ends_where_the_curve_has_risen_with_the_weights_of_its_minimum(tmp_path, monkeypatch):
    monkeypatch.setattr(left_out, "has_risen", lambda losses: len(losses) == 5)
    monkeypatch.setattr(left_out, "COHERENT", 0.0)  # large steps: the network becomes another
    kept, callback = Kept(), StopwiseCallback(left_out="anchored", anchors=2)
    trainer = make("bert", tmp_path, [kept, callback], dtype="float32", learning_rate=0.01, save_strategy="epoch")
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    ended, best = callback.curve[4][0], min(callback.curve, key=lambda value: value[1])[0]
    assert trainer.state.global_step == callback.ended == ended < trainer.state.max_steps
    expected = kept.weights[best] if best else start
    assert all(torch.equal(p, expected[name]) for name, p in trainer.model.named_parameters())
    assert {"stopwise/stop_step": best}.items() <= trainer.state.log_history[-2].items()


def test_a_curve_that_never_rises_leaves_the_weights_of_its_minimum_too(tmp_path):
    callback, kept = StopwiseCallback(left_out="anchored", anchors=2), Kept()
    trainer = make("bert", tmp_path, [kept, callback], dtype="float32", learning_rate=1e-4)
    trainer.train()
    best = min(callback.curve, key=lambda value: value[1])[0]
    assert callback.ended == trainer.state.max_steps == trainer.state.global_step
    assert all(torch.equal(p, kept.weights[best or 12][name]) for name, p in trainer.model.named_parameters() if best)


def test_a_network_that_becomes_another_ends_the_curve_and_not_the_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(left_out, "COHERENT", 1.0)
    falling = property(lambda own: 2.0 - own.done / 5, lambda own, value: None)
    monkeypatch.setattr(left_out_run.LeftOut, "coherence", falling, raising=False)
    callback, kept = StopwiseCallback(left_out="anchored", anchors=2), Kept()
    trainer = make("bert", tmp_path, [kept, callback], dtype="float32", learning_rate=1e-4)
    trainer.train()
    logged = [row["step"] for row in trainer.state.log_history if "stopwise/left_out_loss" in row]
    assert logged == [step for step, *_ in callback.curve[1:] if step <= 5]
    assert (callback.ended, trainer.state.global_step) == (None, trainer.state.max_steps)
    assert all(torch.equal(p, kept.weights[12][name]) for name, p in trainer.model.named_parameters())
    assert sum("the left-out curve ends before step" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("step", [2, 6])
@pytest.mark.slow
def test_a_resumed_run_has_the_same_curve_and_weights(step, restore, tmp_path):
    """From a checkpoint before the curve's second, and from one between its second and its third."""
    options = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 3e-4, "dtype": "float32"}
    options |= {"restore_callback_states_from_checkpoint": restore, "max_grad_norm": 0.2}

    def run(callback, resume=None):
        trainer = make("bert", tmp_path / "out", [callback], **options)
        trainer.train(resume_from_checkpoint=resume)
        return trainer, next(c for c in trainer.callback_handler.callbacks if isinstance(c, StopwiseCallback))

    whole, first = run(StopwiseCallback(left_out="anchored", anchors=3, when=3))
    again, second = run(
        StopwiseCallback(left_out="anchored", anchors=3, when=3), str(tmp_path / f"out/checkpoint-{step}")
    )
    assert second.curve == first.curve
    assert second.ended == first.ended
    for name, p in again.model.named_parameters():
        assert torch.equal(p, dict(whole.model.named_parameters())[name])


def test_a_checkpoint_without_its_file_is_named(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 4, "dtype": "float32"}

    def run(resume=None):
        callback = StopwiseCallback(left_out="anchored", anchors=2, stop=False, when=2)
        make("bert", tmp_path / "out", [callback], **options).train(resume_from_checkpoint=resume)

    run()
    folder = tmp_path / "out" / "checkpoint-8"
    broken = tmp_path / "out" / FOLDER / "checkpoint-0.safetensors"
    shutil.copy(tmp_path / "out" / FOLDER / "checkpoint-1.safetensors", broken)
    with pytest.raises(ValueError, match="are of another run"):
        run(str(folder))
    (folder / FILE).unlink()
    with pytest.raises(ValueError, match=f"checkpoint-8 has no {FILE}, so the curve cannot go on"):
        run(str(folder))


def test_checkpoints_are_spaced_evenly_in_log_time():
    assert anchor_steps(4, 3, 108) == (4, 12, 36)
    assert anchor_steps(1, 4, 3) == (1, 2)
    with pytest.raises(ValueError, match="after step 5, must come before the last step, 5"):
        anchor_steps(5, 3, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"left_out": "folds"}, r"left_out: 'folds' is not None or 'anchored'"),
        ({"left_out": "anchored", "anchors": 1}, r"anchors: found 1"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        StopwiseCallback(**options)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("many", r"left_out: training has 14 examples and takes all of them, at most n_max = 8"),
        ("late", r"when: 50 is step 50, and training ends with step 12"),
        ("sampler", r"left_out: the order in which the Trainer's sampler draws"),
        ("memory", r"left_out: 4 checkpoints need .* GB of memory"),
    ],
)
def test_a_run_that_cannot_be_followed_is_refused_before_it_begins(case, message, tmp_path, monkeypatch):
    options = {"many": {"n_max": 8}, "late": {"when": 50}}.get(case, {})
    values = {"train_sampling_strategy": "group_by_length"} if case == "sampler" else {}
    trainer = make("bert", tmp_path, [StopwiseCallback(left_out="anchored", **options)], dtype="float32", **values)
    if case == "memory":
        monkeypatch.setattr(left_out.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1e3}))
    with pytest.raises(ValueError, match=message) as caught:
        trainer.train()
    assert "\n" not in str(caught.value)
    assert trainer.state.global_step == 0
