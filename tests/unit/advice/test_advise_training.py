"""Advice for the Trainer's training: the answer, the script that trains, data at hand, one clear line for bad input."""

import copy
import os
import re
import runpy
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments, pipeline
from typer.testing import CliRunner

import stopwise
from made_up_topics import TOPICS, encoder_folder, topic_rows, write_topics
from stopwise.advice.choice import chosen
from stopwise.advice.labelled import labelled
from stopwise.advice.plan import Plan
from stopwise.advice.training_text import headline
from stopwise.advice.under_schedule import advise_training
from stopwise.artifacts.tables import read_table
from stopwise.cli import app
from stopwise.network.classifiers import load_classifier
from stopwise.network.pico import pico_model, pico_tokenizer
from stopwise.training.settings import FinetuneSettings
from warm import executable

LABELS = sorted(TOPICS)
MOODS = Path(__file__).parents[2] / "data" / "moods.csv"
PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "advice-for-a-classifier.md"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return encoder_folder(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="module")
def answer(encoder, tmp_path_factory):
    """The console script on a file, and its script trained: (folder, what the first printed)."""
    folder = tmp_path_factory.mktemp("topics")
    data = write_topics(folder / "topics.csv")
    options = ["--data", data, "--text", "text", "--label", "label", "--model", encoder, "--head", "--epochs", "3"]
    before = Path.cwd()
    os.chdir(folder)
    try:
        done = CliRunner().invoke(app, ["advise", *options])
    finally:
        os.chdir(before)
    assert done.exit_code == 0, done.output
    script = [executable(), "advice/train.py"]
    environment = os.environ | {"PYTHONPATH": ""}  # the script for a head needs no stopwise
    trained = subprocess.run(
        script, capture_output=True, text=True, check=False, timeout=300, cwd=folder, env=environment
    )
    assert trained.returncode == 0, trained.stderr
    (folder / "advice" / "train.log").write_text(trained.stdout)
    return folder / "advice", done.stdout


@pytest.mark.slow
def test_the_answer_says_how_long_in_what_range_and_what_to_expect(answer):
    folder, said = answer
    assert "epochs" in said
    assert "within 5 % of the lowest" in said
    assert "Expect an accuracy of about" in said
    assert "always the most frequent label: 33 %" in said
    assert "epochs that you plan" in said
    text = (folder / "advice.md").read_text()
    assert "late delivery (10)" in text
    assert (folder / "advice.svg").is_file()
    rows = read_table(folder / "lengths.parquet", "advice_lengths").to_pandas()
    summary = read_table(folder / "summary.parquet", "advice_training").to_pylist()[0]
    assert rows["chosen"].sum() == 1
    assert rows.loc[rows["chosen"], "steps"].iloc[0] == summary["step"]
    assert rows["steps"].iloc[-1] == 80  # 40 epochs of 30 examples in batches of 16
    assert summary["low_epochs"] <= summary["epochs"] <= summary["high_epochs"]


def test_the_script_leaves_a_model_that_a_pipeline_loads_with_its_label_names(answer):
    folder, _ = answer
    found = pipeline("text-classification", model=str(folder / "model"), device="cpu")
    assert found("refund for the broken parcel")[0]["label"] in LABELS
    assert set(found.model.config.label2id) == set(LABELS)


def test_a_script_that_trains_nothing_says_why_and_where_the_model_is(answer):
    folder, _ = answer
    said = (folder / "train.log").read_text()
    assert f"The model is in {folder / 'model'}; use it with pipeline('text-classification', model=...)" in said
    assert said.startswith("Training was advised against: these examples do not pay for it.\n")
    assert "Trained for" not in said


def test_the_script_is_short(answer):
    lines = (answer[0] / "train.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 70


def words_plan(**changes):
    given = {"head": False, "max_examples": 16, "size": 16, "learning_rate": 1e-3}
    return Plan("pico-llama", str(MOODS), ("text",), "label", **given | changes)


def let_train(found):
    """Return advice to train for as long as was looked at, whatever the kernel of a random network says."""
    stop = replace(found.stop, best=len(found.stop.steps) - 1, losses=0 * found.stop.losses)
    return replace(found, stop=stop)


@pytest.mark.slow
def test_words_of_a_language_model_are_trained_by_the_script_too(tmp_path, capsys):
    found = advise_training(words_plan())
    assert "subset" not in found.stop.flags
    assert "other_loss" not in found.stop.flags  # the script's loss is the one that the kernel was read for
    assert set(found.levels) == {"shares", "prompt", "with_offset"}
    said = " ".join(headline(found))
    assert "the prompt alone:" in said
    assert "with a fitted offset and temperature:" in said
    found = let_train(found)
    folder = found.write(tmp_path / "advice")
    ran = runpy.run_path(str(folder / "train.py"))
    assert ran["trainer"].state.global_step == found.stop.t == 40
    said = capsys.readouterr().out
    assert re.search(r"^Trained for 40 steps in \d+ s\.$", said, re.M), said
    assert f"The model is in {folder / 'model'}; its answer is the most probable of LABELS" in said
    assert re.search(r"^Expected on new texts: an accuracy of \d+ % \(\d+ % to \d+ %\)\.$", said, re.M), said
    before, after = pico_model("llama").state_dict(), load_file(folder / "model" / "model.safetensors")
    moved = {name for name, value in after.items() if not torch.equal(before[name], value)}
    assert moved  # the attention layers, and nothing else
    assert all("self_attn" in name for name in moved)


def test_labels_that_say_nothing_are_not_trained_on(tmp_path):
    rows = topic_rows(40)
    labels = np.random.default_rng(0).permutation([i % 2 for i in range(40)])
    mixed = [
        {"text": row["text"], "label": "good" if label else "bad"} for row, label in zip(rows, labels, strict=True)
    ]
    found = stopwise.advise("pico-llama", mixed, max_examples=40)
    assert found.kind == "do_not_train"
    assert headline(found)[0].startswith("Do not train: ")
    assert "# trainer.train()  # advised against" in (found.write(tmp_path / "advice") / "train.py").read_text()
    with pytest.raises(ValueError, match="it is not to train"):
        found.training_arguments()


@pytest.mark.slow
def test_more_labels_than_the_kernel_holds_are_answered_for(encoder, tmp_path):
    options = {"max_examples": 24, "learning_rate": 1e-3}
    found = stopwise.advise(encoder, topic_rows(60), **options)
    more = found.larger
    assert more.size == 60
    if found.stop.t:
        assert more.steps > found.stop.t
        assert any(line.startswith("With 60 labels train for about") for line in headline(found))
        assert len(found.examples) == 60
        assert found.steps == round(more.steps)
    assert read_table(found.write(tmp_path / "a") / "summary.parquet", "advice_training").to_pylist()[0]["size"] == 60
    with pytest.raises(ValueError, match=r"^--size: found 12, must be at least the 24 examples"):
        stopwise.advise(encoder, topic_rows(60), **options, size=12)


@pytest.fixture(scope="module")
def folded(encoder):
    """Advice with real folds: of a head, and of words; and what was said on the way."""
    said, options = [], {"learning_rate": 5e-3, "epochs": 2.0, "verify": 2, "batch_size": 6}
    head = advise_training(Plan(encoder, "rows", ("text",), "label", **options), topic_rows(18), say=said.append)
    return head, advise_training(words_plan(max_examples=12, size=12, **options)), said


@pytest.mark.slow
def test_real_folds_are_trained_and_followed(folded, tmp_path):
    found, _, said = folded
    folds = found.folds
    assert folds.losses.shape == (5, 18)  # every half epoch, and the start
    assert np.isfinite(folds.losses).all()
    assert not np.allclose(folds.losses[0], folds.losses[-1])
    assert sum("of 2 after" in line and "left" in line for line in said) == 2
    text = " ".join(headline(found))
    assert "Verified by 2 real folds of 2 epochs" in text
    assert "The folds took" in text
    folder = found.write(tmp_path / "advice")
    table = read_table(folder / "folds.parquet", "advice_folds").to_pandas()
    assert table.loc[table["chosen"], "epochs"].iloc[0] == folds.epoch
    script = (folder / "train.py").read_text()
    assert ("class Stop(TrainerCallback)" in script) == (found.stop_at is not None)
    assert "num_train_epochs=2," in script


def test_the_folds_start_where_training_starts_without_the_examples_left_out(folded):
    head, words, _ = folded
    assert np.allclose(words.folds.losses[0], words.stop.losses[0], atol=1e-5)  # float32 outputs
    assert not np.allclose(head.folds.losses[0], head.stop.losses[0])  # the head is fitted to half of the examples


def test_the_script_stops_where_the_folds_were_best(folded, tmp_path):
    found = folded[0]
    losses = found.folds.losses.copy()
    losses[2] = 0.01  # as if the folds had been best after one epoch of two
    found = replace(found, folds=replace(found.folds, losses=losses))
    assert found.stop_at == 3
    ran = runpy.run_path(str(found.write(tmp_path / "advice") / "train.py"))
    assert ran["trainer"].state.global_step == 3
    assert ran["trainer"].state.max_steps == 6


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.slow
def test_an_adapter_is_read_written_and_trained(encoder, tmp_path, head):
    options = {"adapter": "lora", "rank": 4, "learning_rate": 1e-3, "max_examples": 12, "size": 12}
    rows = topic_rows(12)
    found = stopwise.advise(encoder, rows, **options) if head else advise_training(words_plan(**options))
    assert "second_order_left_out" in found.stop.flags
    assert "LoRA of rank 4" in headline(found)[0] or found.kind == "do_not_train"
    assert any("lora_B" in name for name in found.trained)
    folder = let_train(found).write(tmp_path / "advice")
    assert "Half of the adapter" in (folder / "advice.md").read_text()
    ran = runpy.run_path(str(folder / "train.py"))
    assert ran["trainer"].state.global_step == 40
    assert (folder / "adapter" / "adapter_config.json").is_file()
    if head:
        answer = pipeline("text-classification", model=str(folder / "model"), device="cpu")("refund for the parcel")
        assert answer[0]["label"] in LABELS
    else:
        assert not any("lora" in name for name in load_file(folder / "model" / "model.safetensors"))


def test_a_peft_model_at_hand_trains_its_adapter_and_comes_back(encoder):
    from peft import LoraConfig, TaskType, get_peft_model

    model, tokenizer = load_classifier(encoder, 3, labels=LABELS)
    wrapped = get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules="all-linear"))
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in wrapped.named_parameters()}
    found = stopwise.advise(wrapped, topic_rows(18), tokenizer=tokenizer, learning_rate=1e-3, epochs=1)
    assert set(found.trained) == {name for name, (trained, _) in before.items() if trained}
    for name, parameter in wrapped.named_parameters():
        assert parameter.requires_grad == before[name][0]
        assert torch.equal(parameter, before[name][1])
    wrapped.requires_grad_(False)
    with pytest.raises(ValueError, match=r"^model: nothing of this PEFT model is trainable"):
        stopwise.advise(wrapped, topic_rows(18), tokenizer=tokenizer, learning_rate=1e-3)


def test_a_language_model_at_hand_answers_with_words():
    model = pico_model("llama").float()
    found = stopwise.advise(model, pd.read_csv(MOODS), tokenizer=pico_tokenizer(), max_examples=16, size=16)
    assert found.words == (" negative", " positive")
    assert not any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.slow
def test_data_at_hand_give_the_answer_of_the_file(encoder, tmp_path):
    path, options = write_topics(tmp_path / "topics.csv"), {"max_examples": 24, "learning_rate": 1e-3}
    frame = pd.DataFrame(topic_rows())
    one, other = (stopwise.advise(encoder, data, **options) for data in (path, frame))
    assert one.stop.steps.tolist() == other.stop.steps.tolist()
    assert np.array_equal(one.stop.losses, other.stop.losses)
    import datasets

    third = stopwise.advise(encoder, datasets.Dataset.from_pandas(frame).class_encode_column("label"), **options)
    assert third.data.classes == one.data.classes
    assert np.array_equal(third.stop.losses, one.stop.losses)
    assert one.figure().axes


@pytest.mark.slow
def test_the_code_of_the_page_runs(encoder, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    pd.DataFrame(topic_rows(18)).rename(columns={"text": "message", "label": "topic"}).to_csv("tickets.csv")
    exec(compile(code.replace('"minilm"', repr(encoder)), PAGE.name, "exec"), {})
    assert {"advice.md", "train.py"} < {path.name for path in (tmp_path / "advice").iterdir()}
    assert (tmp_path / "lengths.png").is_file()


def test_training_arguments_carry_the_answer(encoder, tmp_path):
    given = TrainingArguments(
        str(tmp_path),
        num_train_epochs=2,
        learning_rate=2e-3,
        per_device_train_batch_size=8,
        warmup_steps=2,
        use_cpu=True,
    )
    found = stopwise.advise(encoder, pd.DataFrame(topic_rows()), training=given)
    assert found.stop.learning_rate == pytest.approx(2e-3)
    assert found.stop.steps_per_epoch == 4
    if found.stop.t:
        args = found.training_arguments(given)
        assert args.num_train_epochs * 4 == pytest.approx(found.stop.t, abs=1e-3)
        assert given.num_train_epochs == 2
    settings = FinetuneSettings(
        optimizer="adamw", objective="cross_entropy", learning_rate=2e-3, batch_size=8, schedule="linear", warmup=2
    )
    same = stopwise.advise(encoder, pd.DataFrame(topic_rows()), training=settings)
    assert same.stop.learning_rate == pytest.approx(2e-3)
    assert same.stop.steps_per_epoch == 4


def test_a_head_at_random_and_large_steps_are_not_to_be_trusted(encoder):
    rows = topic_rows(18)
    small = stopwise.advise(encoder, rows, head_start="random", learning_rate=1e-5, epochs=1)
    large = stopwise.advise(encoder, rows, learning_rate=0.5, epochs=1)
    assert small.stop.largest_step < 4 < large.stop.largest_step
    for one in (small, large):
        assert headline(one)[-1].startswith("Not to be trusted")
        assert "`--verify 4`" in headline(one)[-1]


def test_a_model_at_hand_comes_back_as_it_was(encoder):
    model, tokenizer = load_classifier(encoder, 3, labels=LABELS)
    before = copy.deepcopy(model.state_dict())
    found = stopwise.advise(model, pd.DataFrame(topic_rows()), tokenizer=tokenizer, epochs=1)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    found.start(model)
    assert not torch.equal(before["classifier.weight"], model.state_dict()["classifier.weight"])


def test_examples_are_drawn_with_two_of_every_class_and_without_contradictions():
    rows = [{"text": f"a {i}", "label": "common"} for i in range(90)]
    rows += [{"text": f"b {i}", "label": "rare one"} for i in range(2)]
    rows += [{"text": "both", "label": "common"}, {"text": "both", "label": "rare one"}]
    found = labelled(Plan("m", "rows", ("text",), "label", max_examples=20), rows)
    assert len(found.labels) == 20
    assert found.names.count("rare one") == 2
    assert found.distinct == 92
    assert ("both",) not in found.texts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -1.0}, "--learning-rate: found -1.0, must be in (0, 1)"),
        ({"head_start": "random"}, "--learning-rate: a head that starts at random needs one"),
        ({"schedule": "step"}, "--schedule: 'step' is not one of linear, cosine, constant"),
        ({"warmup": 1.5}, "--warmup: found 1.5, must be a share"),
        ({"verbalizers": ("a=b",)}, "--verbalizers: a classification head has no words"),
        ({"text": ("a", "b", "c")}, "--text: a classification head reads one column or a pair, found 3"),
        ({"text": ("a", "a")}, "--text: a, a names a column twice"),
        ({"parameters": "head"}, "--parameters: 'head' is not one of all, attention, linear"),
        ({"adapter": "ia3"}, "--adapter: 'ia3' is not one of lora"),
        ({"adapter": "lora", "parameters": "all"}, "--parameters: an adapter is trained instead of the weights"),
        ({"alpha": 4.0}, "--alpha: belongs to --adapter lora"),
        ({"size": 4}, "--size: found 4, must be 8 or more"),
        ({"verify": 1}, "--verify: found 1, must be 2 to 20 folds"),
    ],
)
def test_a_wrong_plan_is_one_clear_line(options, message):
    with pytest.raises(ValueError, match=r"^--") as error:
        Plan(**{"model": "m", "data": "d", "text": ("text",), "label": "label"} | options)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": f"t {i}", "label": "one"} for i in range(9)], "--label: column 'label' holds one label only, 'one'"),
        (
            [{"text": f"t {i}", "label": f"l {i}"} for i in range(9)],
            "--label: column 'label' holds 9 labels ('l 0', 'l 1',",
        ),
        ([{"text": "t", "label": "a"}, {"text": "u"}], "--data: row 2: column 'label' holds nothing"),
        (
            [{"text": f"t {i}", "label": "b" if i == 8 else "a"} for i in range(9)],
            "--label: column 'label' holds 2 labels ('a', 'b', …), fewer than 2 of which have 2 texts",
        ),
        ([{"text": f"t {i}", "topic": "a"} for i in range(9)], "--label: name the column, found: text, topic"),
        ([{"text": f"t {i}", "label": "ab"[i % 2]} for i in range(6)], "--data: list holds 6 distinct labelled texts"),
        ({"train": [], "test": []}, "data: a mapping of train, test: give one of its splits"),
    ],
)
def test_wrong_data_are_one_clear_line(rows, message):
    with pytest.raises(ValueError, match=r"^(--)?(data|label)") as error:
        stopwise.advise("pico-bert", rows)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_what_no_training_can_be_read_of_is_one_clear_line(encoder, tmp_path):
    rows = topic_rows(18)

    def said(model=encoder, data=rows, **options):
        with pytest.raises(ValueError, match=r"^[\w-]+: ") as error:
            stopwise.advise(model, data, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    # a model with no head and no words
    assert "no language-model head" in said(head=False)
    bare, tokenizer = load_classifier(encoder, 3)
    assert said(bare.base_model, tokenizer=tokenizer, head=False).startswith("model: BertModel has no words")
    # classes that the head does not have
    assert "needs a classification head of 3 labels" in said(load_classifier(encoder, 2)[0], tokenizer=tokenizer)
    # more classes than examples
    many = [{"text": f"t {i}", "label": f"l {i % 10}"} for i in range(60)]
    assert said(data=many, max_examples=8) == "--max-examples: 8 examples are too few for 10 labels; give 20 or more"
    # a schedule longer than the data
    assert said(warmup=30, epochs=2, learning_rate=1e-3).startswith("--warmup: 30 steps are no fewer than the 4 of 2")
    # an optimizer with no kernel
    args = TrainingArguments(str(tmp_path), optim="adafactor", use_cpu=True, num_train_epochs=1)
    assert "optim: Adafactor has no kernel" in said(training=args)
    steps = TrainingArguments(str(tmp_path), max_steps=5, use_cpu=True)
    assert said(training=steps).startswith("training: max_steps 5 is given")
    # an encoder-decoder
    from transformers import T5Config

    T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1, vocab_size=32).save_pretrained(tmp_path / "t5")
    (tmp_path / "t5" / "model.safetensors").write_bytes(b"")
    assert "is an encoder-decoder (t5)" in said(str(tmp_path / "t5"))
    # options that are none, and layers that are not there
    assert said(epoch=3).startswith("advise: unknown option 'epoch'; allowed: model, data, text")
    assert said(adapter="lora", target="nowhere", learning_rate=1e-3).startswith("--target: ")
    assert said(bare, tokenizer=tokenizer, adapter="lora").startswith("adapter: a model that is given itself")


def test_a_data_set_of_the_hub_is_read_where_hugging_face_keeps_it(monkeypatch, tmp_path):
    import datasets

    from stopwise.advice.rows import read_data, with_columns
    from stopwise.assets import hub

    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    asked = []

    def load_dataset(hub_id, *, name, revision, split, cache_dir):
        asked.append((hub_id, name, split))
        names = datasets.ClassLabel(names=["bad", "good"])
        features = datasets.Features({"sentence": datasets.Value("string"), "label": names})
        rows = {"sentence": [f"text {i}" for i in range(12)], "label": [i % 2 for i in range(12)]}
        return datasets.Dataset.from_dict(rows, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "resolve", lambda *given: ("a" * 40, []))
    plan = with_columns(Plan("m", "", (), "", dataset="owner/reviews:small", split="test"))
    assert (plan.text, plan.label) == (("sentence",), "label")
    file = read_data(plan)
    assert (file.path, dict(file.shares)) == ("owner/reviews:small", {"bad": 6, "good": 6})
    assert asked == [("owner/reviews", "small", "test")]  # once: the second time it is there
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_hub_that_cannot_be_reached_is_one_clear_line(monkeypatch, tmp_path):
    from stopwise.advice.rows import read_data

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"^--dataset: 'owner/reviews' is not in the .* cannot be reached"):
        read_data(Plan("m", "", ("text",), "label", dataset="owner/reviews"))


def test_the_objective_follows_from_the_model_and_the_options(encoder):
    options = {"model": encoder, "revision": None}
    nothing = dict.fromkeys(("learning_rate", "epochs"))
    assert chosen(options, nothing, {"momentum": None}) == ("cross_entropy", {"head": True})
    assert chosen({"model": "smollm2-135m", "revision": None}, nothing, {"momentum": None})[0] == "cross_entropy"
    assert chosen(options, nothing, {"momentum": 0.5}, objective="squared") == ("squared", {"momentum": 0.5})
    assert chosen(options, nothing, {"optimizer": "adamw"})[0] == "cross_entropy"
    with pytest.raises(ValueError, match=r"^--momentum: belongs to --objective squared"):
        chosen(options, nothing, {"momentum": 0.5}, head=True)
    with pytest.raises(ValueError, match=r"^--head: a head is trained on cross_entropy"):
        chosen(options, nothing, {}, head=True, objective="squared")


def test_settings_without_such_advice_are_refused(encoder):
    with pytest.raises(ValueError, match=r"^training: this advice is for adamw on cross_entropy, found heavy_ball"):
        stopwise.advise(encoder, pd.DataFrame(topic_rows()), training=FinetuneSettings())
