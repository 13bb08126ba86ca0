"""A person's file becomes a task, or one line says which option to change."""

import csv
import json
import re

import pytest

from stopwise.advice.data import AdviceError, default_template, given_words, in_options, make_task, read_file
from stopwise.network.pico import pico_tokenizer
from stopwise.tasks.prompts import Encoder, PromptError

WORDS = "rose fire ruby brick cherry sea sky ocean ink denim"
TEXTS = [f"we saw the {word} in the day" for word in WORDS.split()]


@pytest.fixture(scope="module")
def tokenizer():
    return pico_tokenizer()


def write(path, rows, header=("text", "label")):
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([header, *rows])
    return path


def labelled(*labels):
    return [(text, labels[i % len(labels)]) for i, text in enumerate(TEXTS)]


def test_labels_stand_for_themselves_and_columns_name_the_prompt(tmp_path, tokenizer):
    path = write(tmp_path / "d.csv", labelled("good", "bad"), ("review_text", "mood"))
    task = make_task(read_file(path, ["review_text"], "mood"), tokenizer)
    assert dict(task.verbalizers) == {"bad": " bad", "good": " good"}
    sample = task.sample(tokenizer)
    assert sample["prompt"][0].as_py().startswith("Review text: we saw the ")
    assert sample["prompt"][0].as_py().endswith("\nMood:")
    assert sample["split"].to_pylist() == ["train"] * 10  # every example serves


def test_a_sample_is_as_even_as_the_file_allows(tmp_path, tokenizer):
    rows = [(text, "good" if i < 7 else "bad") for i, text in enumerate(TEXTS)]
    file = read_file(write(tmp_path / "d.csv", rows), ["text"], "label")
    assert make_task(file, tokenizer, max_examples=6).sample(tokenizer)["label_name"].to_pylist().count("bad") == 3
    assert make_task(file, tokenizer, max_examples=9).sample(tokenizer)["label_name"].to_pylist().count("bad") == 3


@pytest.mark.parametrize("suffix", ["tsv", "jsonl", "parquet"])
def test_the_suffix_says_how_a_file_is_read(tmp_path, suffix):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, rows = tmp_path / f"d.{suffix}", labelled("good", "bad")
    if suffix == "tsv":
        path.write_text("text\tlabel\n" + "".join(f"{t}\t{name}\n" for t, name in rows), encoding="utf-8")
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps({"text": t, "label": name}) + "\n" for t, name in rows), encoding="utf-8")
    else:
        pq.write_table(pa.table({"text": [t for t, _ in rows], "label": [name for _, name in rows]}), path)
    assert read_file(path, ["text"], "label").shares == {"bad": 5, "good": 5}


def test_files_that_cannot_be_used_are_one_line_that_names_the_option(tmp_path, tokenizer):
    good = write(tmp_path / "d.csv", labelled("good", "bad"))
    one = write(tmp_path / "one.csv", labelled("good"))
    many = write(tmp_path / "many.csv", [(f"{t} {i}", f"{i}") for i, t in enumerate(TEXTS * 3)])
    few = write(tmp_path / "few.csv", labelled("good", "bad")[:6])
    lonely = write(tmp_path / "lonely.csv", [*labelled("good"), ("the last", "bad")])
    latin = tmp_path / "latin.csv"
    latin.write_bytes("text,label\ncafé,good\n".encode("latin-1"))
    cases = [
        ((tmp_path / "none.csv", ["text"], "label"), r"^--data: there is no file"),
        (
            (tmp_path / "d.xlsx", ["text"], "label"),
            r"^--data: .*does not end in \.csv, \.txt, \.tsv, .*save the sheet as CSV",
        ),
        ((good, ["txt"], "label"), r"^--data: there is no column 'txt'; found: text, label"),
        ((good, ["text"], "class"), r"^--data: there is no column 'class'"),
        ((latin, ["text"], "label", "utf-8"), r"^--data: latin\.csv is not utf-8: .*give --encoding"),
        ((one, ["text"], "label"), r"^--label: column 'label' holds one label only, 'good'"),
        ((many, ["text"], "label"), r"^--label: column 'label' holds 30 labels .*, fewer than 2 of which have 2 texts"),
        ((few, ["text"], "label"), r"^--data: .* 6 distinct labelled texts; needs 8"),
        ((lonely, ["text"], "label"), r"^--label: column 'label' holds 2 labels .* is it the label column\?"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=r"\S") as caught:
            make_task(read_file(*arguments), tokenizer)
        said = in_options(str(caught.value))
        assert len(said.splitlines()) == 1
        assert re.search(message, said), said


def test_an_encoding_makes_another_file_readable(tmp_path):
    path = tmp_path / "latin.csv"
    rows = [f"café {i},good\nthé {i},bad\n" for i in range(4)]
    path.write_bytes(("text,label\n" + "".join(rows)).encode("latin-1"))
    assert read_file(path, ["text"], "label", "latin-1").rows == 8


def test_a_word_of_several_tokens_is_refused_with_words_that_work(tmp_path, tokenizer):
    rows = labelled("very good", "bad day indeed")
    file = read_file(write(tmp_path / "d.csv", rows), ["text"], "label")
    with pytest.raises(AdviceError, match="one token of the model") as caught:
        make_task(file, tokenizer, verbalizers=["very good=wonderful,bad day indeed=terrible"])
    hint = str(caught.value).split('--verbalizers "')[1].split('"')[0]
    assert hint == "very good=very,bad day indeed=bad"  # the first single-token word of each
    task = make_task(file, tokenizer, verbalizers=[hint])  # what it proposes is accepted
    assert list(task.verbalizers.items()) == [("very good", " very"), ("bad day indeed", " bad")]
    assert {task.examples[0].label: "very good"} == {0: rows[0][1]}  # classes are numbered in the order of the words


def test_words_come_in_pairs_for_every_label():
    shares = {"0": 5, "1": 5}
    assert given_words(["0=bad,1= good"], shares) == {"0": " bad", "1": " good"}
    assert given_words(["1=yes", "0=no"], shares) == {"1": " yes", "0": " no"}
    for pairs, message in [
        (["0"], "is not label=word"),
        (["0="], "is not label=word"),
        (["0=bad"], "no word for '1'"),
        (["0=bad,2=good"], "'2' is no label of the data; found: '0', '1'"),
        (["0=bad,0=good"], "'0' is given twice"),
    ]:
        with pytest.raises(PromptError, match=message):
            given_words(pairs, shares)


def test_a_prompt_of_several_columns_names_each():
    assert default_template(["title", "body_text"], "is spam?") == "Title: {title}\nBody text: {body_text}\nIs spam:"


def test_a_template_is_the_persons_own(tmp_path, tokenizer):
    file = read_file(write(tmp_path / "d.csv", labelled("good", "bad")), ["text"], "label")
    task = make_task(file, tokenizer, template="Message: {text}\nType:")
    assert Encoder(tokenizer).encode(task.template, [{"text": "a sea"}], 40)[0].prompt == "Message: a sea\nType:"
    with pytest.raises(ValueError, match=r"\{body\}") as caught:
        make_task(file, tokenizer, template="Message: {body}\nType:")
    assert in_options(str(caught.value)).startswith("--template: ")
