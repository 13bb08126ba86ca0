"""What people have works at the door: files and labels of each kind, from the command line and from a configuration."""

import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import door_files
from door import CASES, answer, document
from door_files import FOLDER
from stopwise.advice.data import AdviceError, in_options, make_task, read_file
from stopwise.advice.door import check_present
from stopwise.network.pico import pico_tokenizer
from stopwise.tasks.sources import source_of
from stopwise.tasks.task import Task

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "files.md"
TOKENIZER = pico_tokenizer()


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Return the answer to a case, found once: the page shows what the rows were tested on."""
    known = {}

    def found(case):
        if case not in known:
            folder = tmp_path_factory.mktemp("door") / "files"
            shutil.copytree(FOLDER, folder)
            before = Path.cwd()
            os.chdir(folder)
            try:
                known[case] = answer(case, folder)
            finally:
                os.chdir(before)
        return known[case]

    return found


def test_the_files_are_what_the_generator_writes():
    for name, content in door_files.FILES.items():
        path = FOLDER / name
        if path.suffix == ".parquet":  # the bytes are those of a version of pyarrow
            assert str(pq.read_table(path).to_pylist()) == str(pq.read_table(_bytes(content())).to_pylist())
        else:
            assert path.read_bytes() == content(), f"{name}: python tests/helpers/door_files.py writes the files anew"


def _bytes(content):
    import pyarrow as pa

    return pa.BufferReader(content)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
@pytest.mark.slow
def test_what_people_have_is_answered(case, answers):
    found = answers(case)
    assert case.says in found.said
    assert found.code == case.code
    assert not found.trace
    assert "\n" not in found.said
    assert len(found.said) < 600


def test_the_page_of_files_is_up_to_date(answers):
    text = document(answers)
    if os.environ.get("STOPWISE_WRITE_DOCS"):
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text, (
        "STOPWISE_WRITE_DOCS=1 pytest tests/unit/advice/test_door.py renews it"
    )


READ = [
    case for case in CASES if not set(case.options) & {"--device", "--max-tokens", "--max-examples", "--verbalizers"}
]


@pytest.mark.parametrize("case", READ, ids=[case.name for case in READ])
def test_a_configuration_reads_the_same_rows_and_chooses_the_same_words(case, monkeypatch):
    monkeypatch.chdir(FOLDER)
    options = dict(zip(case.options[::2], case.options[1::2], strict=False))
    reading = {"encoding": options.get("--encoding"), "delimiter": options.get("--delimiter")}
    reading |= {"strict": True} if "--strict" in case.options else {}
    reading |= {"header": False} if "--no-header" in case.options else {}
    text, label = case.columns
    cfg = {"source": source_of(case.file, reading), "text": text, "label": label}
    sizes = {"max_tokens": 128, "validation": 4, "test": 4, "train": 8}
    if case.code:
        with pytest.raises(ValueError, match=r"tasks\.mine") as caught:
            Task.from_config(cfg, sizes, name="mine").sample(TOKENIZER)
        assert case.says in in_options(str(caught.value).replace("tasks.mine", "tasks.advice"))
        return
    task = Task.from_config(cfg, sizes, name="mine").resolved(TOKENIZER)
    known = make_task(read_file(case.file, [text], label, **reading), TOKENIZER)
    assert dict(task.verbalizers) == dict(known.verbalizers)
    assert task.template == known.template
    assert task.rows == known.rows
    assert [note for note in task.notes if "--max-tokens" not in note] == list(task.notes)
    sample = task.sample(TOKENIZER)
    assert set(sample["label_name"].to_pylist()) <= set(task.verbalizers)


@pytest.mark.parametrize(("device", "there", "sees"), [("cuda", 0, "no CUDA device"), ("cuda:2", 1, "1 CUDA device")])
def test_a_device_that_is_not_there_is_refused_in_one_line(device, there, sees, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    with pytest.raises(AdviceError, match=rf"^--device: '{device}' is asked for, and torch sees {sees}; allowed: auto"):
        check_present(device)


def test_a_device_that_is_there_is_accepted(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    check_present("cuda:2")
    check_present("cpu")
