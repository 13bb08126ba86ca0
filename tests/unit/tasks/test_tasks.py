"""A task's definition is checked, its rows are cleaned, and its sample is what later stages need."""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import make_data
from stopwise import targets
from stopwise.assets.wheels import AssetError
from stopwise.network.pico import pico_tokenizer
from stopwise.tasks.batch import batch_from_table, verbalizers_of
from stopwise.tasks.prompts import PromptError
from stopwise.tasks.sources import SourceError
from stopwise.tasks.task import SAMPLE_SCHEMA, Task, TaskError

DATA = Path(__file__).parents[2] / "data"
TOKENIZER = pico_tokenizer()
SIZES = {"max_tokens": 24, "validation": 8, "test": 24, "train": 16}
MOODS = {
    "name": "feelings",
    "source": {"csv": str(DATA / "feelings.csv")},
    "text": "text",
    "label": "label",
    "template": "Text: {text}\nMood:",
    "verbalizers": {"happy": " happy", "sad": " sad", "calm": " calm"},
}


def task_of(rows, folder, sizes=SIZES, **changes):
    """Return a two-class task over (text, label) rows written to a csv file."""
    path = folder / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text", "label", "author"], *(([*row, "x"])[:3] for row in rows)])
    definition = MOODS | {"name": "mine", "source": {"csv": str(path)}, "verbalizers": {"a": " red", "b": " blue"}}
    return Task.from_config(definition | changes, sizes)


def test_the_generated_files_are_what_the_generator_writes():
    for name in make_data.FILES:
        assert (DATA / f"{name}.csv").read_text(encoding="utf-8") == make_data.content(name)


@pytest.mark.parametrize("name", list(make_data.FILES))
def test_the_label_of_a_generated_sentence_can_be_learned_from_its_words(name):
    with (DATA / f"{name}.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    words = {word: label for label, listed in make_data.FILES[name].items() for word in listed.split()}
    votes = [Counter(words[w] for w in row["text"].split() if w in words) for row in rows]
    right = [votes[i].most_common(1)[0][0] == row["label"] for i, row in enumerate(rows)]
    assert 0.75 < np.mean(right) < 0.95
    assert max(len(TOKENIZER(row["text"])["input_ids"]) for row in rows) <= 16


def test_a_sample_has_the_declared_columns_and_order():
    task = Task.from_config(MOODS, SIZES)
    table = task.sample(TOKENIZER, seed=1)
    assert table.schema.equals(SAMPLE_SCHEMA)
    assert table["split"].to_pylist() == ["train"] * 16 + ["validation"] * 8 + ["test"] * 24
    assert table["position"].to_pylist() == [*range(16), *range(8), *range(24)]
    rows = list(csv.DictReader((DATA / "feelings.csv").open(encoding="utf-8")))
    for row in table.to_pylist():
        source = rows[row["source_row"]]
        assert row["prompt"] == f"Text: {source['text']}\nMood:"
        assert row["label_name"] == source["label"] == list(task.verbalizers)[row["label"]]
        assert row["input_ids"] == TOKENIZER(row["prompt"])["input_ids"]
        assert row["group"] is None
        assert not row["cut"]
    assert TOKENIZER.convert_ids_to_tokens(verbalizers_of(table)) == ["Ġhappy", "Ġsad", "Ġcalm"]


def test_the_same_sample_comes_out_every_time_and_another_from_another_seed():
    first = Task.from_config(MOODS, SIZES).sample(TOKENIZER, seed=0)
    assert Task.from_config(MOODS, SIZES).sample(TOKENIZER, seed=0).equals(first)
    other = Task.from_config(MOODS, SIZES).sample(TOKENIZER, seed=1)
    assert other["prompt"].to_pylist()[:16] != first["prompt"].to_pylist()[:16]
    assert other["prompt"].to_pylist()[24:] == first["prompt"].to_pylist()[24:]


def test_no_author_is_on_two_sides_when_the_task_is_grouped():
    rows = Task.from_config(MOODS | {"group": "author"}, SIZES).sample(TOKENIZER, seed=2).to_pylist()
    sides = {}
    for row in rows:
        sides.setdefault(row["group"], set()).add(row["split"])
    assert all(len(found) == 1 for found in sides.values())
    assert all(group.startswith("author ") for group in sides)


def test_only_the_texts_of_long_rows_are_cut_and_the_cut_is_recorded():
    task = Task.from_config(MOODS, SIZES | {"max_tokens": 11})
    rows = task.sample(TOKENIZER).to_pylist()
    assert 0 < sum(row["cut"] for row in rows) < len(rows)
    for row in rows:
        assert len(row["input_ids"]) <= 11
        assert row["prompt"].startswith("Text: ")
        assert row["prompt"].endswith("\nMood:")


def test_copies_count_once_whatever_their_case_and_spacing_and_contradicting_ones_not_at_all(tmp_path):
    rows = [(f"text {i}", "ab"[i % 2]) for i in range(60)]
    rows += [("TEXT  3", "b"), (" text\n3 ", "b"), ("text 4", "b"), ("Ｔext 5", "b")]
    task = task_of(rows, tmp_path)
    assert task.counts == {"rows": 64, "labelled": 64, "duplicates": 4, "conflicts": 1, "examples": 59}
    assert "text 4" not in {e.texts["text"] for e in task.examples}


def test_texts_that_differ_only_in_what_is_cut_off_are_one_example(tmp_path):
    same = "the same long beginning of a text that will be cut before it differs in anything at all"
    rows = [(f"text {i}", "ab"[i % 2]) for i in range(60)] + [(f"{same} {i}", "ab"[i % 2]) for i in range(20)]
    task = task_of(rows, tmp_path, SIZES | {"max_tokens": 16})
    assert task.counts["examples"] == 80
    for seed in range(3):
        sample = task.sample(TOKENIZER, seed=seed)
        seen = Counter(map(tuple, sample["input_ids"].to_pylist()))
        assert len(seen) == sample.num_rows == 48
    with pytest.raises(TaskError, match=r"sizes: 40 train rows .*that are the same in data\.max_tokens 16 count once"):
        task.sample(TOKENIZER, train=40)


def test_a_score_becomes_the_sign_label_and_weak_scores_are_left_out(tmp_path):
    rows = [(f"text {i}", str(score)) for i, score in enumerate([-2, -1, -0.5, 0, 0.5, 1.0, 3e0])]
    changes = {"minimum_abs_score": 1, "verbalizers": {"negative": " negative", "positive": " positive"}}
    task = task_of(rows, tmp_path, **changes)
    assert [(e.source_row, e.label) for e in task.examples] == [(0, 0), (1, 0), (5, 1), (6, 1)]
    everything = task_of(rows, tmp_path, **(changes | {"minimum_abs_score": 0}))
    assert [e.source_row for e in everything.examples] == [0, 1, 2, 4, 5, 6]


@pytest.mark.parametrize("score", ["nan", "inf", "good", "1,5"])
def test_a_score_that_is_no_number_names_its_row(tmp_path, score):
    words = {"negative": " negative", "positive": " positive"}
    task = task_of([("x", "1"), ("y", score)], tmp_path, minimum_abs_score=1.0, verbalizers=words)
    with pytest.raises(TaskError, match=r"tasks\.mine\.label: row 2: '.*' in column 'label' is no number"):
        assert task.examples


def test_a_pair_of_texts_becomes_one_prompt(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"p": f"the sea {i}", "q": f"is it red {i}", "y": bool(i % 2)} for i in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    definition = {
        "source": {"jsonl": str(path)},
        "text": ["p", "q"],
        "label": "y",
        "template": "Passage: {p}\nQuestion: {q}\nAnswer:",
        "verbalizers": {True: " yes", False: " no"},
        "group": "p",
    }
    table = Task.from_config(definition, SIZES | {"max_tokens": 40}, name="pairs").sample(TOKENIZER)
    row = table.to_pylist()[0]
    i = row["source_row"]
    assert row["prompt"] == f"Passage: the sea {i}\nQuestion: is it red {i}\nAnswer:"
    assert row["label_name"] == str(bool(i % 2))
    assert row["group"] == f"the sea {i}"


def test_a_batch_is_padded_on_the_right_and_says_so_in_its_mask():
    task = Task.from_config(MOODS, SIZES)
    table = task.sample(TOKENIZER)
    batch = task.encode(TOKENIZER, "train", n=7)
    rows = table.to_pylist()[:7]
    assert {tensor.dtype for tensor in batch.values()} == {torch.long}
    width = max(len(row["input_ids"]) for row in rows)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (7, width)
    assert batch["labels"].tolist() == [row["label"] for row in rows]
    for ids, mask, row in zip(batch["input_ids"], batch["attention_mask"], rows, strict=True):
        assert ids[mask.bool()].tolist() == row["input_ids"]
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)


def test_a_table_without_metadata_gives_the_same_batch_when_told_the_verbalizers():
    task = Task.from_config(MOODS, SIZES)
    table = task.sample(TOKENIZER)
    bare = pa.Table.from_pylist(table.to_pylist()[::-1], schema=SAMPLE_SCHEMA)  # any row order will do
    batch = batch_from_table(bare, "test", verbalizers=task.verbalizer_ids(TOKENIZER))
    expected = task.encode(TOKENIZER, "test")
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    with pytest.raises(TaskError, match="carries no verbalizer ids"):
        batch_from_table(bare, "test")


@given(st.integers(1, 60))
@pytest.mark.slow
def test_a_training_batch_of_any_size_is_a_prefix_of_the_larger_ones(n):
    task = Task.from_config(MOODS, SIZES)
    small, large = (task.encode(TOKENIZER, "train", n=size) for size in (n, 60))
    width = small["input_ids"].shape[1]
    assert torch.equal(
        small["input_ids"] * small["attention_mask"], (large["input_ids"] * large["attention_mask"])[:n, :width]
    )
    assert torch.equal(small["labels"], large["labels"][:n])


@pytest.mark.parametrize(("split", "n"), [("dev", None), ("test", 25), ("test", 0), ("validation", -1)])
def test_a_split_or_size_that_is_not_there_is_named(split, n):
    with pytest.raises(TaskError, match="split"):
        Task.from_config(MOODS, SIZES).encode(TOKENIZER, split, n)


def test_targets_are_exported_beside_tasks():
    from stopwise.tasks import task as tasks

    assert tasks.targets is targets


BAD = {
    "unknown task": (
        {"name": "mnli", "source": None},
        {},
        r"tasks.mnli: not a built-in task \(movie, .*source is not given",
    ),
    "unknown key": ({"prompt": "x"}, {}, "tasks.mine: unknown key prompt; allowed: name, source"),
    "unknown data key": ({}, {"tests": 4}, "data: unknown key tests; allowed: max_tokens"),
    "unsafe name": ({"name": "../x"}, {}, "tasks: '../x' is not a safe name"),
    "no test rows": ({}, {"test": 0}, "data.test: 0 is not an integer >= 1"),
    "validation not a number": ({}, {"validation": "8"}, "data.validation: '8' is not an integer"),
    "text not a column": ({"text": 3.5}, {}, "tasks.mine.text: 3.5 is not a column name"),
    "text column twice": (
        {"text": ["text", "text"]},
        {},
        "tasks.mine.text: .* is not a column name or a list of distinct",
    ),
    "label not text": ({"label": ["label"]}, {}, "tasks.mine.label: .* is not text"),
    "empty template": ({"template": ""}, {}, "tasks.mine.template: '' is not text"),
    "template of other columns": ({"template": "{body}"}, {}, "tasks.mine.template: {body} is not a text column"),
    "one verbalizer": ({"verbalizers": {"a": " red"}}, {}, "tasks.mine.verbalizers: .* at least two labels"),
    "same verbalizer": (
        {"verbalizers": {"a": " red", "b": " red"}},
        {},
        "tasks.mine.verbalizers: .* stands for two labels",
    ),
    "same label": ({"verbalizers": {"1": " red", 1: " blue"}}, {}, "tasks.mine.verbalizers: .* stands for two labels"),
    "verbalizer not a word": ({"verbalizers": {"a": " red", "b": 3}}, {}, "tasks.mine.verbalizers.b: 3 is not a word"),
    "verbalizer of two tokens": (
        {"verbalizers": {"a": " red", "b": " bluish"}},
        {},
        "tasks.mine.verbalizers.b: ' bluish' is not one token",
    ),
    "verbalizer without space": (
        {"verbalizers": {"a": "red", "b": " blue"}},
        {},
        "tasks.mine.verbalizers.a: 'red' is not one token",
    ),
    "label without verbalizer": (
        {"verbalizers": {"a": " red", "c": " blue"}},
        {},
        "tasks.mine.verbalizers: row 2 has the label 'b', which has no",
    ),
    "verbalizer without label": (
        {"verbalizers": {"a": " red", "b": " blue", "c": " green"}},
        {},
        "tasks.mine.verbalizers: no row has the label 'c'",
    ),
    "score not a number": ({"minimum_abs_score": "1"}, {}, "tasks.mine.minimum_abs_score: '1' is not a number"),
    "score with other labels": (
        {"minimum_abs_score": 1},
        {},
        "tasks.mine.verbalizers: a score gives the labels negative, positive",
    ),
    "missing label column": (
        {"label": "klass"},
        {},
        "tasks.mine.source.csv: there is no column 'klass'; found: text, label",
    ),
    "missing group column": ({"group": "writer"}, {}, "tasks.mine.source.csv: there is no column 'writer'"),
    "missing file": ({"source": {"csv": "no/such.csv"}}, {}, "tasks.mine.source.csv: there is no file"),
    "too small a budget": ({}, {"max_tokens": 4}, "data.max_tokens: 4 leaves no room for the texts"),
    "too few to train": ({}, {"train": 60}, "sizes: 60 train rows asked for, but task 'mine' has 48 left of 80"),
    "too few to validate": (
        {},
        {"validation": 60},
        "data.validation: 60 validation rows asked for, but task 'mine' has 56",
    ),
    "too few to test": ({}, {"test": 81}, "data.test: 81 test rows asked for, but task 'mine' has 80"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_definition_names_the_key_the_value_and_what_is_allowed(name, tmp_path):
    changes, sizes, message = BAD[name]
    with pytest.raises((TaskError, SourceError, PromptError, AssetError), match=message) as caught:
        task_of([(f"text {i}", "ab"[i % 2]) for i in range(80)], tmp_path, SIZES | sizes, **changes).sample(TOKENIZER)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_a_group_that_is_switched_off_is_off():
    assert Task.from_config("amazon").group == "document"
    assert Task.from_config({"name": "amazon", "group": None}).group is None


def test_a_config_is_not_changed_by_reading_it(tmp_path):
    definition = json.loads(json.dumps(MOODS))
    Task.from_config(definition, SIZES).sample(TOKENIZER)
    assert definition == MOODS


def test_a_task_reads_its_file_only_when_it_is_needed(tmp_path):
    path = tmp_path / "rows.csv"
    task = Task.from_config(MOODS | {"source": {"csv": str(path)}}, SIZES)
    shutil.copy(DATA / "feelings.csv", path)
    assert len(task.examples) == 400
