"""Bad inputs: each is refused with one clear message, quickly, and nothing half-written stays behind."""

import os
import resource
from pathlib import Path

import pytest
import yaml

from bad_inputs import CONFIG, ROOT, all_cases, configured, document, message_of, schema_keys
from stopwise.tasks import sources
from stopwise.tasks.wheel_formats import TEXT_FORMATS
from workshop import Workshop

PAGE = ROOT / "docs" / "reference" / "messages.md"
CASES = all_cases()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_bad_input_is_refused_with_one_clear_message(case, tmp_path):
    began = resource.getrusage(resource.RUSAGE_SELF)
    message = message_of(case, tmp_path)
    spent = resource.getrusage(resource.RUSAGE_SELF)
    assert case.says in message
    assert "\n" not in message
    assert len(message) < 500
    assert spent.ru_utime + spent.ru_stime - began.ru_utime - began.ru_stime < 10
    assert not [path for path in tmp_path.rglob("*") if ".part" in path.name]


def test_every_config_key_has_a_bad_value():
    covered = {key for key, _, _ in CONFIG}
    assert schema_keys() <= covered, sorted(schema_keys() - covered)


def test_every_reader_has_a_bad_input():
    readers = {*sources.KINDS} - {"hub", "package"} | {f"wheel: {form}" for form in (*TEXT_FORMATS, "topics")}
    readers |= {"hub data", "hub model", "wheel", "model", "artifact", "shards", "blocks", "task vector", "checkpoint"}
    readers |= {"record"}
    met = {case.reader for case in CASES}
    assert readers <= met, sorted(readers - met)


def test_a_message_about_a_config_key_names_it(tmp_path):
    for key, value, _ in CONFIG:
        section = key.split(".")[0]
        case = next(c for c in CASES if c.wrong.startswith(f"{key}: ") and c.says)
        message = message_of(case, tmp_path)
        assert "config key " in message, (key, value)
        assert section in message, (key, value)


def test_the_page_of_bad_inputs_is_up_to_date(tmp_path):
    text = document(tmp_path)
    if os.environ.get("STOPWISE_WRITE_DOCS"):
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text, "STOPWISE_WRITE_DOCS=1 renews it"


# What a user sees of the same errors: the command line, from an unknown key to a job that cannot read its input.
SEEN = [
    ("an unknown key", {"key": "nmae", "value": "x"}, "stopwise: config key (top level)"),
    ("a missing file", {"key": "tasks.colours.source", "value": {"csv": "no.csv"}}, "no.csv"),
    ("a missing column", {"key": "tasks.colours.label", "value": "shade"}, "stopwise: data: tasks.colours.source.csv"),
    ("a hub model without a network", {"key": "model.source", "value": "owner/model"}, "the hub cannot be reached"),
]


@pytest.mark.pipeline
@pytest.mark.parametrize(("change", "says"), [row[1:] for row in SEEN], ids=[row[0] for row in SEEN])
def test_the_command_line_fails_with_the_message_and_writes_nothing(change, says, tmp_path):
    workshop = Workshop.fresh(tmp_path / "w")
    Path(workshop.folder / "bad.yaml").write_text(yaml.safe_dump(configured(**change)), encoding="utf-8")
    workshop.config = "bad.yaml"
    outcome = workshop.run("results/test/data/colours/seed0.parquet", HF_HUB_OFFLINE="1")
    assert outcome.returncode != 0
    assert says in outcome.text
    assert "Traceback" not in outcome.text
    assert not list(workshop.results.rglob("*.part*"))
    assert not list(workshop.results.rglob("seed0.parquet"))
