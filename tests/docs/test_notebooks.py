"""The notebooks run from the first cell to the last, on pico models, and their pages hold them as they are."""

import os
import re
import subprocess

import pytest

from doc_reference import notebook
from pages import ROOT
from stopwise.network.pico import pico_classifier, pico_tokenizer
from warm import executable

NOTEBOOKS = ROOT / "docs" / "notebooks"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    pico_classifier("bert", 2, dtype="float32").save_pretrained(folder)
    pico_tokenizer().save_pretrained(folder)
    return folder


def run(name, folder, first="", **stand_ins):
    """Run a notebook's cells as one program after ``first``, some assignments replaced; return what it prints."""
    code = (NOTEBOOKS / name).read_text(encoding="utf-8")
    for key, value in stand_ins.items():
        code, count = re.subn(rf"^{key} = [^#\n]*", f"{key} = {value!r}  ", code, flags=re.MULTILINE)
        assert count == 1, key
    (folder / name).write_text(code, encoding="utf-8")
    done = subprocess.run(
        [executable(), "-c", f"import runpy\n{first}\nrunpy.run_path({name!r}, run_name='__main__')"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_advice_for_a_csv_runs_and_leaves_its_folder(tmp_path):
    (tmp_path / "reviews.csv").write_text((ROOT / "tests/data/feelings.csv").read_text(encoding="utf-8"))
    out = run("advice_for_your_csv.py", tmp_path, MODEL="pico-bert")
    assert re.search(r"^(Train for|It is unclear|Do not train)", out, re.M)
    assert "Expect an accuracy of about" in out
    assert re.search(r"^(train|unclear|do_not_train) [\d.]+ \d+ \(", out, re.M)
    assert (tmp_path / "advice.png").stat().st_size > 10_000
    assert (tmp_path / "advice" / "advice.md").is_file()


def test_a_trainer_is_stopped_where_the_preview_said(tmp_path, model):
    code = (NOTEBOOKS / "stop_a_trainer.py").read_text(encoding="utf-8")
    assert "from stopwise import Task\n" in code
    # Made-up rows stand for the reviews.
    (tmp_path / "standin.py").write_text(
        "class Task:\n"
        "    rows = [{'text': f'we saw the {(\"gift\", \"storm\")[i % 2]} day {i}', 'sentiment': (2, -2)[i % 2]}"
        " for i in range(40)]\n"
        "    from_config = classmethod(lambda cls, name: cls)\n",
        encoding="utf-8",
    )
    first = "import stopwise, standin\nstopwise.Task = standin.Task"
    out = run("stop_a_trainer.py", tmp_path, first, MODEL=str(model), ROWS=16, EPOCHS=3)
    said = float(re.search(r"stop after ([\d.]+) of 3 epochs", out)[1])
    done = float(re.search(r"stopped after ([\d.]+) epochs", out)[1])
    # Both are rounded to a tenth, and a run ends with a whole step: 16 rows in batches of 8 are two steps an epoch.
    assert abs(said - done) <= 0.5 + 0.1


@pytest.mark.parametrize("name", sorted(path.stem for path in NOTEBOOKS.glob("*.py")))
def test_a_notebook_is_its_page(name):
    page = (NOTEBOOKS / f"{name.replace('_', '-')}.md").read_text(encoding="utf-8")
    assert notebook(name) in page, "run `python tools/docs.py`"
    code = (NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8")
    assert code.startswith("# %% [markdown]\n# # ")
    for cell in re.findall(r"^# %%\n(.*?)(?=^# %%|\Z)", code, re.MULTILINE | re.DOTALL):
        assert cell.strip() in page
