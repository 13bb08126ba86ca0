"""The callback of a Trainer: what it predicts, against linearised training on the batches drawn; what it leaves be."""

import json
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainerCallback, get_scheduler

from stopwise.integrations.callback import StopwiseCallback
from stopwise.integrations.preview import predict_stop, preview
from stopwise.integrations.trainer_schedule import learning_rates, optimizer_metric
from stopwise.linearized.coding import columns
from stopwise.linearized.objectives import Objective
from stopwise.stopping.scheduled import trained_path
from trainer_runs import VERBALIZERS, Collate, N, Reader, drawn_by, jacobian, make, network, rows_of
from warm import executable

KINDS = ["words", "bert", "gpt2", "lora-words", "lora-bert"]


def simulated(trainer, kind, drawn, diagonal, classes=2, coding="contrast", mean_of_means=False):
    """Train the linearised network in its parameters on the batches that were drawn; [steps + 1, n, columns].

    The losses are summed over micro-batches as the Trainer does, rates are those of a real scheduler, D is held.
    """
    args, rows = trainer.args, trainer.train_dataset
    chosen = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    names = sorted(chosen)
    options = {"classes": classes, "kind": kind.removeprefix("lora-"), "coding": coding}
    j, f0 = jacobian(trainer.model, rows, [chosen[name] for name in names], **options)
    theta = torch.cat([chosen[name].detach().flatten() for name in names]).double().numpy()
    decay = trainer.get_decay_parameter_names(trainer.model)
    decays = np.concatenate([np.full(chosen[n].numel(), args.weight_decay if n in decay else 0.0) for n in names])
    d = np.concatenate([diagonal[name].flatten().double().numpy() for name in names])
    labels = np.array([VERBALIZERS.index(max(row["labels"])) if "words" in kind else row["labels"] for row in rows])
    objective = Objective("cross_entropy", labels, classes, coding, 1.0, np.zeros(columns(classes, coding)))
    steps, dummy = trainer.state.max_steps, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    warm = args.get_warmup_steps(steps)
    scheduler = get_scheduler(args.lr_scheduler_type, dummy, num_warmup_steps=warm, num_training_steps=steps)
    delta, mean, out, q = np.zeros(len(theta)), np.zeros(len(theta)), [], f0.shape[1]
    for t, micro in enumerate(drawn):
        f = f0 + (j @ delta).reshape(-1, q)
        out.append(f)
        gradient, total = np.zeros(len(theta)), sum(map(len, micro))
        for batch in micro:
            share = len(batch) / total if not mean_of_means else 1.0
            rowwise = objective.rows(batch).gradient(f[batch], np.arange(len(batch))) * share
            gradient += rowwise.ravel() @ j[(batch[:, None] * q + np.arange(q)).ravel()]
        if args.max_grad_norm:
            gradient *= min(1.0, args.max_grad_norm / (np.linalg.norm(gradient) + 1e-6))
        mean = 0.9 * mean + 0.1 * gradient
        rate = scheduler.get_last_lr()[0]
        delta = (1 - rate * decays) * (theta + delta) - theta - rate * d * mean / (1 - 0.9 ** (t + 1))
        dummy.step()
        scheduler.step()
    return np.array([*out, f0 + (j @ delta).reshape(-1, q)])


def diagonal_of(trainer, reader, kind, coding="contrast", classes=2):
    """D from the definition: the mean square of the clipped gradients of the first epoch's batches, by autograd."""
    _, objective, schedule, _, _ = reader.read
    chosen = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    names = sorted(chosen)
    options = {"classes": classes, "kind": kind.removeprefix("lora-"), "coding": coding}
    j, f0 = jacobian(trainer.model, trainer.train_dataset, [chosen[n] for n in names], **options)
    q, squares, limit = f0.shape[1], 0.0, trainer.args.max_grad_norm or np.inf
    first = range(round(schedule.epoch))
    for s in first:
        batch, weights = schedule.batches[s], schedule.weights[s]
        rowwise = objective.rows(batch).gradient(f0[batch], np.arange(len(batch))) * len(batch) * weights[:, None]
        g = rowwise.ravel() @ j[(batch[:, None] * q + np.arange(q)).ravel()]
        squares += (g * min(1.0, limit / (np.linalg.norm(g) + 1e-6))) ** 2 / len(first)
    d = np.where(squares > 0, 1 / (np.sqrt(squares) + 1e-8), 0.0)
    cuts = np.cumsum([0, *(chosen[n].numel() for n in names)])
    return {n: torch.as_tensor(d[a:b]) for n, a, b in zip(names, cuts, cuts[1:], strict=False)}


def first_norm(trainer, reader, kind):
    """The norm of the first step's gradient by autograd, before it is clipped."""
    _, objective, schedule, _, _ = reader.read
    chosen = dict(sorted((name, p) for name, p in trainer.model.named_parameters() if p.requires_grad))
    j, f0 = jacobian(trainer.model, trainer.train_dataset, list(chosen.values()), kind=kind.removeprefix("lora-"))
    batch, weights = schedule.batches[0], schedule.weights[0]
    rowwise = objective.rows(batch).gradient(f0[batch], np.arange(len(batch))) * len(batch) * weights[:, None]
    return np.linalg.norm(rowwise.ravel() @ j[batch])


RUNS = {
    "plain": {"max_grad_norm": 0.0, "logging_steps": 1},
    "everything": {
        "logging_steps": 1,
        "gradient_accumulation_steps": 2,
        "warmup_steps": 2,
        "weight_decay": 0.5,
        "max_grad_norm": 0.2,
        "lr_scheduler_type": "cosine",
        "data_seed": 11,
    },
}


@pytest.mark.parametrize("settings", RUNS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_path_is_that_of_linearised_training_on_the_batches_drawn(kind, settings, tmp_path):
    """The kernel's path against the parameters' own, with the micro-batches that the real Trainer then drew."""
    values = RUNS[settings]
    trainer = make(kind, tmp_path, **values)
    reader = Reader(trainer)
    model = trainer.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer.train()
    drawn = drawn_by(trainer, values.get("gradient_accumulation_steps", 1))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(before[name])
    _, objective, schedule, net, flags = reader.read
    known = ("clipped",) * (settings == "everything") + ("head_moves",) * ("words" not in kind)
    assert flags == known + ("second_order_left_out",) * ("lora" in kind)
    assert [sorted(np.concatenate(micro)) for micro in drawn] == [sorted(batch) for batch in schedule.batches]
    # These heads' losses ignore the number of items, and the Trainer leaves accumulated means undivided.
    means = trainer.args.gradient_accumulation_steps > 1 and "words" not in kind
    expected = simulated(trainer, kind, drawn, diagonal_of(trainer, reader, kind), mean_of_means=means)
    found = trained_path(net, objective, schedule, np.arange(schedule.last + 1))
    moved = np.abs(expected - expected[0]).max()
    # Kernels are sums of float32-sized tiles at worst (1e-6); biases and norms, which are not decayed, are replayed as
    # if they were: half a per cent of decay over the run.
    assert np.abs(found - expected).max() <= (1e-4 if settings == "plain" else 6e-3) * moved
    assert moved > 1e-3
    assert trainer.state.log_history[0]["grad_norm"] == pytest.approx(first_norm(trainer, reader, kind), rel=1e-3)


@pytest.mark.slow
def test_a_loss_over_the_vocabulary_is_recognised_and_replayed(tmp_path):
    """The Trainer's own loss of a language model, and ``answer_loss()``: -log softmax over all tokens."""
    for loss in ("model", "vocabulary"):
        trainer = make("words", tmp_path, loss=loss, max_grad_norm=0.0)
        reader = Reader(trainer)
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        trainer.train()
        drawn = drawn_by(trainer, 1)
        with torch.no_grad():
            for name, p in trainer.model.named_parameters():
                p.copy_(before[name])
        _, objective, schedule, net, flags = reader.read
        assert (objective.outputs, flags) == ("vocabulary", ())
        diagonal = diagonal_of(trainer, reader, "words", "vocabulary")
        expected = simulated(trainer, "words", drawn, diagonal, coding="vocabulary")
        found = trained_path(net, objective, schedule, np.arange(schedule.last + 1))
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected - expected[0]).max()


@pytest.mark.parametrize("kind", KINDS)
def test_training_ends_at_the_step_that_the_preview_names(kind, tmp_path):
    callback = StopwiseCallback()
    trainer = make(kind, tmp_path, [callback], lr_scheduler_type="constant", learning_rate=0.01, num_train_epochs=6)
    foreseen = preview(trainer)
    assert trainer.optimizer is None
    trainer.train()
    assert callback.answer == foreseen
    assert trainer.state.global_step == max(1, foreseen.t)
    assert foreseen.max_steps == 24
    logged = trainer.state.log_history[0]
    assert logged["stopwise/stop_step"] == foreseen.t
    assert logged["stopwise/predicted_loss"] == foreseen.expected_loss


class Weights(TrainerCallback):
    """Keep the bits of every weight at the end of every step."""

    def __init__(self):
        self.steps = []

    def on_step_end(self, args, state, control, model=None, **_):
        self.steps.append({name: p.detach().clone() for name, p in model.named_parameters()})


def recorded(kind, folder, *callbacks):
    """Run with dropout, clipping, shuffling and logging; (weights by step, logs, what requires a gradient)."""
    torch.manual_seed(0)
    options = {"attention_dropout": 0.1} if kind == "words" else {"hidden_dropout_prob": 0.1}
    model, kept = network(kind, dtype="float32", **options), Weights()
    values = {"warmup_steps": 3, "weight_decay": 0.01, "logging_steps": 3}
    trainer = make(kind, folder, [*callbacks, kept], model=model, **values)
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    return kept.steps, logs, [p.requires_grad for p in model.parameters()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The runs without a callback, by kind, each made once."""
    return cache(lambda kind: recorded(kind, tmp_path_factory.mktemp("undisturbed")))


@pytest.mark.parametrize("options", [{"when": "start"}, {"when": "warmup"}, {"left_out": "anchored", "anchors": 2}])
@pytest.mark.parametrize("kind", ["words", "bert", "lora-bert"])
def test_reporting_changes_no_bit(kind, options, tmp_path, undisturbed):
    """The run with the callback is the run without it."""
    callback = StopwiseCallback(stop=False, **options)
    steps, logs, flags = undisturbed(kind)
    other, other_logs, other_flags = recorded(kind, tmp_path, callback)
    assert len(steps) == len(other) == 12
    assert all(torch.equal(own[name], theirs[name]) for own, theirs in zip(steps, other, strict=True) for name in own)
    assert (logs, flags) == (other_logs, other_flags)
    assert callback.curve if "left_out" in options else callback.answer is not None


@pytest.mark.parametrize("restore", [False, True])
def test_a_resumed_run_has_the_same_stop_and_weights(restore, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant", "learning_rate": 0.003}
    options |= {"restore_callback_states_from_checkpoint": restore, "num_train_epochs": 2}

    def run(callback, resume=None):
        trainer = make("words", tmp_path / "out", [callback], dtype="float32", **options)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(first := Fixed(5))
    kept = {name: p.detach().clone() for name, p in whole.model.named_parameters()}
    assert whole.state.global_step == 5
    for step in (2, 4, 5):
        again = run(callback := Fixed(99), str(tmp_path / "out" / f"checkpoint-{step}"))
        own = next(c for c in again.callback_handler.callbacks if isinstance(c, Fixed))
        assert own.answer == first.answer
        assert restore or own is callback
        # A Trainer takes one step before it looks at its controls: from the checkpoint of the stop it moves nothing.
        assert again.state.global_step == max(5, step + 1)
        assert all(torch.equal(p, kept[name]) for name, p in again.model.named_parameters())


class Fixed(StopwiseCallback):
    """The callback with another step than it would name, so that a test can choose it."""

    def __init__(self, step=3, **options):
        super().__init__(**options)
        self.step = step

    def state(self):
        own = super().state()
        return own | {"args": own["args"] | {"step": self.step}}

    def _read(self, args, state, control, given):
        super()._read(args, state, control, given)
        self.found, self._answer = self.found | {"t": self.step}, None


def test_a_stop_at_zero_moves_nothing(tmp_path):
    trainer = make("words", tmp_path, [Fixed(0)])
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert trainer.optimizer.param_groups[0]["lr"] > 0


def test_warm_up_is_where_it_reads(tmp_path):
    callback = StopwiseCallback(when="warmup", stop=False)
    trainer = make("words", tmp_path, [callback], warmup_steps=3)
    trainer.train()
    assert callback.answer.read_at == 3
    assert callback.answer.times[0] == 3
    assert "labels_seen" in callback.answer.flags


@pytest.mark.parametrize(("when", "warm"), [(12, 0), ("warmup", 20)])
def test_a_reading_that_would_come_too_late_is_refused_at_once(when, warm, tmp_path):
    trainer = make("words", tmp_path, [StopwiseCallback(when=when)], warmup_steps=warm)
    with pytest.raises(ValueError, match=rf"when: {when!r} is step {warm or when}, and training ends with step 12"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("sampling", ["random", "sequential"])
@pytest.mark.parametrize("together", [1, 3])
def test_batches_are_those_that_the_trainer_draws(together, sampling, drop, tmp_path):
    values = {"gradient_accumulation_steps": together, "train_sampling_strategy": sampling}
    trainer = make("bert", tmp_path, dataloader_drop_last=drop, dtype="float32", **values)
    reader = Reader(trainer)
    trainer.train()
    drawn = drawn_by(trainer, together)
    schedule = reader.read[2]
    assert len(drawn) == len(schedule.batches) == trainer.state.max_steps
    for micro, batch in zip(drawn, schedule.batches, strict=True):
        assert sorted(np.concatenate(micro)) == batch.tolist()


def test_a_larger_training_set_is_reported_on_but_not_stopped(tmp_path):
    callback = StopwiseCallback(n_max=8)
    trainer = make("words", tmp_path, [callback], learning_rate=0.05, lr_scheduler_type="constant")
    trainer.train()
    assert "subset" in callback.answer.flags
    assert (callback.answer.examples, callback.answer.of) == (8, N)
    assert trainer.state.global_step == trainer.state.max_steps


def test_another_loss_is_noticed(tmp_path):
    smoothed, twice, own = (
        make("bert", tmp_path, label_smoothing_factor=0.3),
        make("bert", tmp_path),
        make("bert", tmp_path),
    )
    twice.compute_loss_func = lambda outputs, labels, **_: 2 * torch.nn.functional.cross_entropy(outputs.logits, labels)
    assert ["other_loss" in preview(trainer).flags for trainer in (smoothed, twice, own)] == [True, True, False]


@pytest.mark.parametrize(("rate", "flagged"), [(1e-4, False), (1e-3, True)])
def test_a_head_that_moves_far_is_noticed(rate, flagged, tmp_path):
    """Twelve steps of 1e-3 against weights of standard deviation 0.02: more than half; of 1e-4: six per cent."""
    found = preview(make("bert", tmp_path, learning_rate=rate, lr_scheduler_type="constant"))
    assert ("head_moves" in found.flags) == flagged


def test_the_answer_is_in_the_checkpoint_and_label_names_are_kept(tmp_path):
    model = network("bert", 3, "float32")
    model.config.id2label, model.config.label2id = {0: "a", 1: "b c", 2: "d"}, {"a": 0, "b c": 1, "d": 2}
    trainer = make("bert", tmp_path, [StopwiseCallback()], classes=3, model=model, save_strategy="epoch")
    trainer.train()
    folder = sorted(Path(tmp_path).glob("checkpoint-*"))[-1]
    saved = json.loads((folder / "trainer_state.json").read_text())["stateful_callbacks"]["StopwiseCallback"]
    assert saved["attributes"]["found"]["rule"] == "bayes"
    assert json.loads((folder / "config.json").read_text())["label2id"] == {"a": 0, "b c": 1, "d": 2}


def test_a_stop_can_be_asked_of_a_model_and_a_data_set(tmp_path):
    from datasets import Dataset

    trainer = make("bert", tmp_path, classes=3)
    rows = [{k: v for k, v in row.items() if k != "number"} for row in trainer.train_dataset]
    for given in (rows, Dataset.from_list(rows)):
        found = predict_stop(network("bert", 3), given, trainer.args, data_collator=Plain())
        assert found == preview(trainer)


class Plain(Collate):
    """Pad rows that have no number."""

    def __call__(self, rows):
        return super().__call__([row | {"number": 0} for row in rows])


class Unseeded(torch.utils.data.Dataset):
    """A training set whose rows draw from every random generator."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        torch.rand(1)
        np.random.rand()
        return self.rows[i]


def test_random_generators_are_left_as_they_were(tmp_path):
    trainer = make("words", tmp_path, rows=Unseeded(rows_of("words")))
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    preview(trainer)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim": "adafactor"}, r"optim: Adafactor has no kernel"),
        ({"classes": 1}, r"words: need at least 2 different"),
        ({"kind": "frozen"}, r"no parameter of .* requires a gradient"),
        ({"n": 1}, r"train_dataset: stopwise needs at least 2 examples, found 1"),
    ],
)
def test_a_run_that_cannot_be_predicted_is_refused_in_one_line(values, message, tmp_path):
    kind, values = values.get("kind", "words"), {k: v for k, v in values.items() if k != "kind"}
    model = network("words")
    if kind == "frozen":
        model.requires_grad_(False)
    if values.get("classes") == 1:
        values |= {"classes": 2, "rows": [row for row in rows_of("words") if VERBALIZERS[0] in row["labels"]]}
    trainer = make("words", tmp_path, [StopwiseCallback()], model=model, **values)
    with pytest.raises(ValueError, match=message) as caught:
        trainer.train() if kind != "frozen" else preview(trainer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"when": "later"}, r"when: 'later' is not start, warmup or a number"),
        ({"rule": "gcv"}, r"rule: 'gcv' is not one of"),
        ({"n_max": 1}, r"n_max: found 1"),
    ],
)
def test_wrong_options_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        StopwiseCallback(**values)


def test_a_scheduler_that_waits_for_results_is_refused():
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(ValueError, match=r"lr_scheduler_type: the rates of ReduceLROnPlateau are not known"):
        learning_rates(optimizer, scheduler, 3)


def test_sgd_has_its_own_kernel(tmp_path):
    trainer = make("words", tmp_path, optim="sgd", learning_rate=0.1, max_grad_norm=0.0)
    found = preview(trainer)
    assert found.t is not None
    assert optimizer_metric(trainer.create_optimizer()).adam is False


@pytest.mark.slow
def test_the_answer_reaches_mlflow(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "trainers")
    callback = StopwiseCallback()
    trainer = make("words", tmp_path / "out", [callback], dtype="float32", report_to="mlflow")
    trainer.train()
    run = mlflow.last_active_run()
    mlflow.end_run()
    assert run.data.metrics["stopwise/stop_step"] == callback.answer.t
    assert run.data.metrics["stopwise/predicted_loss"] == callback.answer.expected_loss


@pytest.mark.slow
def test_one_rank_reads_for_all(tmp_path):
    """Two processes: the second is told the answer, and the batches are those that both of them drew together."""
    command = [executable(), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = Path(__file__).parents[2] / "helpers" / "trainer_ranks.py"
    found = subprocess.run([*command, script, tmp_path], capture_output=True, text=True, check=False, timeout=300)
    assert found.returncode == 0, found.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first["answer"] == second["answer"]
    assert (first["read"], second["read"]) == ([0], [])
    per_epoch = len(first["seen"]) // 3
    for step, expected in enumerate(first["steps"]):
        epoch, place = divmod(step, len(first["steps"]) // 2)
        micro = slice(epoch * per_epoch + 2 * place, min(epoch * per_epoch + 2 * place + 2, (epoch + 1) * per_epoch))
        drawn = [i for rank in (first, second) for batch in rank["seen"][micro] for i in batch]
        assert sorted(drawn) == expected
