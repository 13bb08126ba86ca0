"""Tasks for a head: labels of any words, texts as the tokenizer joins them, pairs with their token types."""

import csv

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from stopwise.tasks.batch import batch_from_table
from stopwise.tasks.head import head_task
from stopwise.tasks.task import TaskError

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b", "c", "d", "e", "f", "g"]
DATA = {"max_tokens": 8, "validation": 4, "test": 4, "train": 8}


@pytest.fixture(scope="module")
def tokenizer():
    """A word-level tokenizer that opens, separates and closes as BERT's does."""
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=inputs, **special)


def rows(path, labels=("very good", "not at all", "10", "9")):
    texts = [f"{x} {y} {z}" for x in "abcdefg" for y in "abcdefg" for z in "ab"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["first", "second", "label"])
        writer.writerows([text, text[::-1], labels[i % len(labels)]] for i, text in enumerate(texts))
    return {"source": {"csv": str(path)}, "label": "label"}


def test_labels_are_those_of_the_column_numbers_by_size_before_words(tmp_path, tokenizer):
    task = head_task(rows(tmp_path / "rows.csv") | {"text": "first"}, DATA, name="mine")
    assert list(task.verbalizers) == ["9", "10", "not at all", "very good"]
    table = task.sample(tokenizer)
    assert {row["label_name"]: row["label"] for row in table.to_pylist()} == {
        label: i for i, label in enumerate(task.verbalizers)
    }
    batch = batch_from_table(table, "train")
    assert batch["verbalizers"].tolist() == [0, 1, 2, 3]
    assert (batch["input_ids"][:, 0] == 1).all()
    last = batch["attention_mask"].sum(1) - 1
    assert (batch["input_ids"][torch.arange(8), last] == 2).all(), "closing tokens are kept: the tokenizer's own"
    assert "token_type_ids" not in batch


def test_two_columns_are_a_pair_with_token_types_and_are_cut_in_the_longer_text(tmp_path, tokenizer):
    table = head_task(rows(tmp_path / "rows.csv") | {"text": ["first", "second"]}, DATA, name="mine").sample(tokenizer)
    batch = batch_from_table(table, "train")
    ids, types = batch["input_ids"], batch["token_type_ids"]
    assert ids.shape == types.shape
    assert (ids.max(dim=1).values < len(WORDS)).all()
    separators = (ids == 2).cumsum(1) - (ids == 2).long()
    assert torch.equal(types[batch["attention_mask"] > 0], separators[batch["attention_mask"] > 0].clamp(max=1))
    assert ids.shape[1] == 8, "3 + 3 words and 3 special tokens are one more than allowed"
    assert all(table["cut"].to_pylist())


def test_a_template_that_is_given_makes_one_text_of_a_pair(tmp_path, tokenizer):
    given = rows(tmp_path / "rows.csv") | {"text": ["first", "second"], "template": "{second} g {first}"}
    table = head_task(given, {**DATA, "max_tokens": 12}, name="mine").sample(tokenizer)
    assert "token_type_ids" not in table.column_names
    assert all(ids[4] == WORDS.index("g") for ids in table["input_ids"].to_pylist())


def test_a_text_that_spells_a_special_token_has_none(tmp_path, tokenizer):
    found = head_task(rows(tmp_path / "rows.csv") | {"text": "first"}, DATA, name="mine")
    example = found.examples[0]
    spelled = type(example)(0, {"first": "a [SEP] b"}, 0, "", "")
    (encoded,) = found._encoded(tokenizer, [spelled])
    assert encoded.input_ids.count(2) == 1


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (tuple(f"label {i}" for i in range(9)), "9 different labels, more than the 8 training examples"),
        (("only",), "a head needs at least 2 labels"),
    ],
)
def test_labels_that_no_head_can_learn_are_one_line(labels, says, tmp_path):
    with pytest.raises(TaskError, match=says) as error:
        head_task(rows(tmp_path / "rows.csv", labels) | {"text": "first"}, DATA, name="mine")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("tasks.mine.label: ")
