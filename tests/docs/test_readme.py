"""The README is short, shows what it says, and its numbers are those of the records."""

import re
import subprocess

import pages
from pages import ROOT
from warm import executable

README = "README.md"
TRAINING = "docs/how-to/choose-training.md"
NUMBERS = r" \*{0,2}(\d+) %\*{0,2} \|" * 3 + r" ([\d.]+) \|" * 2
ROW = re.compile(rf"^\| [^|]+ \| (\d+) \|{NUMBERS}$", re.MULTILINE)


def test_the_readme_has_at_most_150_lines():
    assert len(pages.text(README).splitlines()) <= 150


def test_the_first_screen_has_install_one_command_its_answer_and_its_figure():
    screen = "\n".join(pages.text(README).splitlines()[:50])
    for part in ("make env", "stopwise advise --data", "Expect an accuracy of", "(docs/figures/advice.png)"):
        assert part in screen


def test_the_readme_says_what_the_built_in_model_is():
    from stopwise.network import folders

    member = folders._GGUF_MEMBER
    assert "Instruct" in member
    assert "Q4_1" in member
    assert "SmolLM2-135M-*Instruct*" in pages.text(README)
    assert "Q4_1" in pages.text(README)


def test_the_answer_in_the_readme_is_the_one_that_the_tutorial_gets():
    answer = [line.removeprefix("> ") for line in pages.text(README).splitlines() if line.startswith("> ")]
    assert len(answer) == 5
    assert "\n".join(answer) in "".join(pages.blocks("docs/tutorials/first-advice.md", "text"))


def test_the_measured_table_is_what_the_command_prints_from_the_records():
    code = "".join(pages.blocks(TRAINING, "python"))
    done = subprocess.run(
        [executable(), "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed = [tuple(line.replace("%", "").split()[1:]) for line in done.stdout.splitlines()]
    shown = ROW.findall(pages.text(README))
    assert len(shown) >= 6
    assert shown == printed


def test_the_measured_table_has_rows_where_the_rule_loses():
    shown = ROW.findall(pages.text(README))
    assert any(int(bayes) < int(holdout) for _, bayes, holdout, *_ in shown)
    assert any(float(after) < float(before) for *_, before, after in shown)
