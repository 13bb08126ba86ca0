"""Advice for the Trainer's training: the answer, the script that trains, data at hand, one clear line for bad input."""

import copy
import os
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

import stopwise
from made_up_topics import TOPICS, encoder_folder, topic_rows, write_topics
from stopwise.advice.choice import chosen
from stopwise.advice.labelled import labelled
from stopwise.advice.plan import Plan
from stopwise.advice.training_text import headline
from stopwise.advice.under_schedule import advise_training
from stopwise.artifacts.tables import read_table
from stopwise.network.classifiers import load_classifier
from stopwise.network.pico import pico_model, pico_tokenizer
from stopwise.training.settings import FinetuneSettings
from warm import executable

LABELS = sorted(TOPICS)
MOODS = Path(__file__).parents[2] / "data" / "moods.csv"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return encoder_folder(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="module")
def answer(encoder, tmp_path_factory):
    """The console script on a file, and its script trained: (folder, what the first printed)."""
    folder = tmp_path_factory.mktemp("topics")
    data = write_topics(folder / "topics.csv")
    options = ["--data", data, "--text", "text", "--label", "label", "--model", encoder, "--head", "--epochs", "3"]
    command = [executable(), "-c", "from stopwise.cli import main; main()", "advise", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr
    script = [executable(), "advice/train.py"]
    environment = os.environ | {"PYTHONPATH": ""}  # the script for a head needs no stopwise
    trained = subprocess.run(
        script, capture_output=True, text=True, check=False, timeout=300, cwd=folder, env=environment
    )
    assert trained.returncode == 0, trained.stderr
    return folder / "advice", done.stdout


def test_the_answer_says_how_long_in_what_range_and_what_to_expect(answer):
    folder, said = answer
    assert "epochs" in said
    assert "costs less than 5 %" in said
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
    assert rows["steps"].iloc[-1] == 40  # 20 epochs of 30 examples in batches of 16
    assert summary["low_epochs"] <= summary["epochs"] <= summary["high_epochs"]


def test_the_script_leaves_a_model_that_a_pipeline_loads_with_its_label_names(answer):
    folder, _ = answer
    found = pipeline("text-classification", model=str(folder / "model"), device="cpu")
    assert found("refund for the broken parcel")[0]["label"] in LABELS
    assert set(found.model.config.label2id) == set(LABELS)


def test_the_script_is_short(answer):
    lines = (answer[0] / "train.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 70


def test_words_of_a_language_model_are_trained_by_the_script_too(tmp_path):
    network = pico_model("llama").float()
    network.save_pretrained(tmp_path / "llama")
    pico_tokenizer().save_pretrained(tmp_path / "llama")
    plan = Plan(
        str(tmp_path / "llama"), str(MOODS), ("text",), "label", head=False, max_examples=12, learning_rate=1e-3
    )
    found = advise_training(plan)
    assert "subset" not in found.stop.flags
    assert "other_loss" not in found.stop.flags  # the script's loss is the one that the kernel was read for
    # A single step of a schedule with warm-up has the rate 0: let the script take as many as were looked at.
    found = replace(found, stop=replace(found.stop, best=len(found.stop.steps) - 1))
    folder = found.write(tmp_path / "advice")
    ran = runpy.run_path(str(folder / "train.py"))
    assert ran["trainer"].state.global_step == found.stop.t == 20
    trained = pico_tokenizer(), load_file(folder / "model" / "model.safetensors")
    assert any(not torch.equal(network.state_dict()[name], value) for name, value in trained[1].items())


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
    assert "quarter of the labels" in headline(large)[-1]


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
        ([{"text": f"t {i}", "label": f"l {i}"} for i in range(9)], "--label: column 'label' holds 9 different values"),
        ([{"text": "t", "label": "a"}, {"text": "u"}], "data: row 2: column 'label' holds nothing"),
        (
            [{"text": f"t {i}", "label": "b" if i == 8 else "a"} for i in range(9)],
            "--data: the label 'b' has one text only",
        ),
    ],
)
def test_wrong_data_are_one_clear_line(rows, message):
    with pytest.raises(ValueError, match=message.split("'", 1)[0].strip()) as error:
        labelled(Plan("m", "rows", ("text",), "label"), rows)
    assert str(error.value).startswith(message)


def test_the_objective_follows_from_the_model_and_the_options(encoder):
    options = {"model": encoder, "revision": None}
    nothing = dict.fromkeys(("learning_rate", "epochs"))
    assert chosen(options, nothing, {"momentum": None}) == ("cross_entropy", {"head": True})
    assert chosen({"model": "smollm2-135m", "revision": None}, nothing, {"momentum": 0.5})[0] == "squared"
    with pytest.raises(ValueError, match=r"^--momentum: belongs to --objective squared"):
        chosen(options, nothing, {"momentum": 0.5}, head=True)
    with pytest.raises(ValueError, match=r"^--head: a head is trained on cross_entropy"):
        chosen(options, nothing, {}, head=True, objective="squared")


def test_settings_without_such_advice_are_refused(encoder):
    with pytest.raises(ValueError, match=r"^training: this advice is for adamw on cross_entropy, found heavy_ball"):
        stopwise.advise(encoder, pd.DataFrame(topic_rows()), training=FinetuneSettings())
    with pytest.raises(ValueError, match=r"^label: name the column, found: text, topic"):
        stopwise.advise(encoder, pd.DataFrame([{"text": "a", "topic": "b"}]))
    assert Path(encoder).is_dir()
