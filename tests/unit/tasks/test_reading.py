"""Reading what people have: encodings, delimiters, headers, names that YAML changes, words in every form."""

import gzip

import pytest
import yaml

from stopwise.network.pico import pico_tokenizer
from stopwise.tasks.answers import choose_answers, given_words
from stopwise.tasks.delimited import cannot_be_header, read_delimited
from stopwise.tasks.labels import choose_classes, several_labels
from stopwise.tasks.names import name_of, names_of, spelled
from stopwise.tasks.prompts import Encoder, PromptError, Template, default_template
from stopwise.tasks.reading import detected, without_strays
from stopwise.tasks.sources import SourceError, read_rows, read_table

SPOKEN = {
    "cp1252": "it’s a naïve café, “très bien”",
    "cp1251": "какой хороший день, плохая погода сегодня",
    "cp932": "これはとても良い映画です、悪い日だった",
    "gb18030": "这是一部很好的电影，今天天气很糟糕",
    "utf-16": "naïve café",
    "utf-16-le": "naive coffee without a mark",
    "utf-8-sig": "naïve café",
}


@pytest.mark.parametrize("encoding", SPOKEN)
def test_the_encoding_of_a_text_is_recognised(encoding):
    text = "text,label\n" + f"{SPOKEN[encoding]},good\n" * 5
    assert detected(text.encode(encoding), "source.csv", "d.csv")[0] == text


def test_a_few_damaged_bytes_do_not_change_the_encoding_of_the_rest():
    content = "très bien\n".encode() * 20 + b"caf\xe9\n"
    text, encoding = detected(content, "source.csv", "d.csv")
    assert text.startswith("très bien\n")
    assert "damaged" in encoding


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"PAR1", b"%PDF", bytes(range(1, 9)) * 9])
def test_a_file_that_is_no_text_is_named(start):
    with pytest.raises(SourceError, match=r"source\.csv: d\.csv is (an|a|not) "):
        detected(start + bytes(20) + b"\xff\xfe\x01" * 50, "source.csv", "d.csv")


def test_halves_of_pairs_and_nul_are_taken_out_and_whole_pairs_joined():
    assert without_strays("a\0b") == "ab"
    assert without_strays("\ud83d\ude00") == "😀"
    assert without_strays("a\ud83d").encode("utf-8")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_the_one_that_parts_every_row_alike(delimiter):
    rows = [f"some text, and {i} more{delimiter}{i % 2}" for i in range(9)]
    if delimiter == ",":
        rows = [f'"some text; and {i} more",{i % 2}' for i in range(9)]
    text = "\n".join([f"words{delimiter}label", *rows])
    found = read_delimited(text, ["words", "label"], "source.csv")
    assert [len(values) for values in found.values] == [2] * 9


def test_a_quote_that_is_never_closed_costs_one_row():
    lines = [f"text {i},a" for i in range(300)]
    lines[100] = '"text 100,a'
    found = read_delimited("\n".join(["text,label", *lines]), ["text", "label"], "source.csv")
    assert len(found.values) == 299
    assert [row for row, _, _ in found.bad] == [100]


def test_what_excel_says_of_its_separator_is_believed():
    assert read_delimited("sep=;\na;b\nx,y;1\n", ["a"], "source.csv").values == [["x,y", "1"]]


def test_a_first_row_is_data_when_a_value_recurs_or_is_a_number_or_a_sentence():
    rows = [["good day", "1"], ["bad day", "0"], ["fair day", "1"]]
    assert cannot_be_header(["fine day", "1"], rows)
    assert cannot_be_header(["a " * 12, "label"], rows)
    assert not cannot_be_header(["text", "label"], rows)
    assert not cannot_be_header(["0", "1"], rows)  # a table saved without names


def test_the_same_rows_are_read_whatever_the_file_is_packed_in(tmp_path):
    rows = "text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(9))
    (tmp_path / "a.csv").write_text(rows)
    (tmp_path / "b.csv").write_bytes(gzip.compress(rows.encode()))
    one, two = (read_rows({"csv": str(tmp_path / name)}, ["text", "label"]) for name in ("a.csv", "b.csv"))
    assert one == two
    (tmp_path / "c.csv").write_bytes(gzip.compress(rows.encode())[:-9])
    with pytest.raises(SourceError, match="damaged gzip"):
        read_rows({"csv": str(tmp_path / "c.csv")}, ["text"])


def test_rows_keep_their_place_in_the_source_when_others_are_passed_over(tmp_path):
    lines = [f"text {i},a" for i in range(200)]
    lines[50] = ",a"
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *lines]))
    found = read_table({"csv": str(tmp_path / "a.csv")}, ["text", "label"])
    assert found.places == [i for i in range(200) if i != 50]
    assert found.said == ("1 of 200 rows passed over, line 52 (column 'text' holds nothing)",)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("delimiter", ";;", "is not one character"),
        ("header", "no", "neither true nor false"),
        ("encoding", 8, "name of"),
    ],
)
def test_a_wrong_option_of_a_source_names_its_key(option, value, message):
    with pytest.raises(SourceError, match=rf"source\.{option}: .*{message}"):
        read_rows({"csv": "a.csv", option: value}, ["text"])


# --- labels and words


def test_the_commonest_twenty_labels_with_two_texts_are_classes():
    counts = {f"label {i:02d}": 30 - i for i in range(25)} | {"lonely": 1}
    found = choose_classes(counts)
    assert found.labels == tuple(f"label {i:02d}" for i in range(20))
    assert "lonely" in found.left_out
    assert any("26 labels: the commonest 20" in line for line in found.said)


@pytest.mark.parametrize(
    ("labels", "cell"),
    [
        (["red", "blue", "red;blue"], "red;blue"),
        (["red", "blue", "red, blue"], "red, blue"),
        (["a|b", "b|c", "a|c"], "a|b"),
        (["['a', 'b']", "['a']"], "['a', 'b']"),
        (["yes, surely", "no, never"], None),
        (["rock; roll", "jazz"], None),
        (["1", "0"], None),
    ],
)
def test_a_cell_holds_several_labels_when_every_part_of_it_recurs(labels, cell):
    assert several_labels(dict.fromkeys(labels, 3)) == cell


def test_labels_stand_for_themselves_where_they_are_single_tokens_and_for_letters_elsewhere():
    encoder, prompts = Encoder(pico_tokenizer()), ["Text: a sea\nLabel:"]
    assert choose_answers(["good", "bad"], encoder, prompts).words == {"good": " good", "bad": " bad"}
    assert choose_answers(["Good", "BAD"], encoder, prompts).words == {"Good": " good", "BAD": " bad"}
    found = choose_answers(["0", "very good"], encoder, prompts)
    assert found.words == {"0": "A", "very good": "B"}
    assert found.options == "Options: A = 0, B = very good"


def test_the_options_stand_before_the_last_line_of_the_prompt():
    template = Template.parse("Text: {text}\nLabel:", ["text"]).with_line("Options: {A}")
    assert template.render({"text": "x"})[0] == "Text: x\nOptions: {A}\nLabel:"
    assert Template.parse(template.text, ["text"]) == template
    assert Template.parse("{text} is", ["text"]).with_line("Options").render({"text": "x"})[0] == "Options\nx is"


@pytest.mark.parametrize("column", ["a:b", "what!", "{x}", "a}", "{", "b!r:>5", "x.y[0]"])
def test_a_column_of_any_name_is_a_field_of_the_default_template(column):
    template = Template.parse(default_template([column, "other"], column), [column, "other"])
    assert template.columns == (column, "other")
    assert Template.parse(template.text, [column, "other"]) == template


def test_words_are_given_as_pairs_an_object_or_a_file(tmp_path):
    path = tmp_path / "words.json"
    path.write_text('{"a,b": "x", "c=d": " y"}')
    expected = {"a,b": " x", "c=d": " y"}
    for given in ([path.read_text()], [f"@{path}"], [str(path)]):
        assert given_words(given, ["a,b", "c=d"]) == expected
    for bad, message in [
        (["{"], "is not JSON"),
        (['{"a,b": 1}'], "not a JSON object"),
        (['{"a,b": "x", "a,b": "y"}'], "given twice"),
        (["@none.json"], "cannot be read"),
        (["a,b=x"], "give a JSON object"),
    ]:
        with pytest.raises(PromptError, match=message):
            given_words(bad, ["a,b", "c=d"])


# --- names


def test_keys_are_names_whatever_yaml_makes_of_them():
    text = "tasks:\n  no: {}\n  on: {}\n  2: {}\n  null: {}\n"
    assert names_of(yaml.safe_load(text)["tasks"]) == {"no": {}, "yes": {}, "2": {}, "null": {}}
    assert name_of(1.5) == "1.5"
    with pytest.raises(ValueError, match="given twice"):
        names_of({True: 1, "yes": 2})


def test_a_label_is_found_under_the_key_that_yaml_changed():
    assert spelled("Yes", {"True": " yes", "False": " no"}) == "True"
    assert spelled("off", {"True": " yes", "False": " no"}) == "False"
    assert spelled("maybe", {"True": " yes", "False": " no"}) is None
