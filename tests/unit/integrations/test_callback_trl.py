"""The callback in TRL's SFTTrainer: answers of one token among the words, and over the vocabulary."""

import pytest
from datasets import Dataset
from transformers import TrainerCallback

from stopwise.integrations.callback import StopwiseCallback
from stopwise.integrations.losses import answer_loss
from stopwise.integrations.preview import preview
from stopwise.network.pico import pico_tokenizer
from trainer_runs import VERBALIZERS, network, rows_of

trl = pytest.importorskip("trl")


def make(folder, loss, callbacks, kind="words", **values):
    rows = [
        {"input_ids": row["input_ids"], "completion_mask": [int(label >= 0) for label in row["labels"]]}
        for row in rows_of("words")
    ]
    own = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none", "bf16": False}
    own |= {"save_strategy": "no", "disable_tqdm": True, "completion_only_loss": True, "gradient_checkpointing": False}
    own |= {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "logging_steps": 4}
    return trl.SFTTrainer(
        network(kind, dtype="float32"),
        trl.SFTConfig(str(folder), **own | values),
        train_dataset=Dataset.from_list(rows),
        processing_class=pico_tokenizer(),
        compute_loss_func=answer_loss(VERBALIZERS[:2]) if loss == "words" else None,
        callbacks=callbacks,
    )


@pytest.mark.parametrize("loss", ["words", "vocabulary"])
@pytest.mark.parametrize("kind", ["words", "lora-words"])
@pytest.mark.slow
def test_an_sft_trainer_ends_at_the_step_that_the_preview_names(kind, loss, tmp_path):
    callback = StopwiseCallback()
    trainer = make(tmp_path, loss, [callback], kind)
    foreseen = preview(trainer)
    assert "other_loss" not in foreseen.flags
    trainer.train()
    assert callback.answer == foreseen
    assert trainer.state.global_step == max(1, foreseen.t)


class Logs(TrainerCallback):
    """Keep what is logged but the time it took."""

    def __init__(self):
        self.rows = []

    def on_log(self, args, state, control, logs=None, **_):
        self.rows.append({k: v for k, v in logs.items() if not k.startswith(("stopwise", "train_"))})


def test_reporting_changes_no_number_that_is_logged(tmp_path):
    runs = []
    for callbacks in ([], [StopwiseCallback(stop=False, when=5)]):
        kept = Logs()
        make(tmp_path, "vocabulary", [*callbacks, kept]).train()
        runs.append([row for row in kept.rows if "loss" in row])
    assert runs[0] == runs[1]
    assert len(runs[0]) == 3
