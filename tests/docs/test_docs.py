"""The documentation's generated parts are current, agree with the records, and every page has its place."""

import re
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

import doc_results
import docs
import site_hooks
from warm import executable

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path.relative_to(ROOT / "docs").as_posix() for path in docs.pages()}
# The summaries of runs that judged rules by start: the oldest record's has other columns and no intervals.
SUMMARISED = sorted(
    path.parent.name
    for path in doc_results.RECORDS.glob("*/summary.md")
    if "| start | rule |" in path.read_text(encoding="utf-8")
)


def nav():
    """Every page of the site's navigation, in order."""
    return re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_generated_block_is_current():
    done = subprocess.run(
        [executable(), "tools/docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=590
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_block_is_written_anew_and_the_rest_is_left_alone():
    page = "before\n<!-- BEGIN generated: targets -->\nold\n<!-- END generated -->\nafter\n"
    new = docs.filled(page, "page.md")
    assert new.startswith("before\n<!-- BEGIN generated: targets -->\n\n| target |")
    assert new.endswith("|\n\n<!-- END generated -->\nafter\n")
    assert "old" not in new
    assert docs.filled(new, "page.md") == new


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("<!-- BEGIN generated: nothing -->\n<!-- END generated -->", "no generator is called 'nothing'"),
        ("<!-- BEGIN generated: rules -->\n", "1 generated blocks begin and 0 are whole"),
        ("<!-- BEGIN generated: runs no-such-run -->\n<!-- END generated -->", "'runs no-such-run' cannot be written"),
    ],
)
def test_a_block_that_cannot_be_written_is_named(page, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        docs.filled(page, "page.md")
    assert str(error.value).startswith("page.md: ")


def test_every_page_is_once_in_the_navigation_and_in_the_index():
    assert set(nav()) >= PAGES
    assert len(nav()) == len(set(nav()))
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = re.findall(r"^- \[[^\]]+\]\(([^)#]+)\): .+\.$", index, re.MULTILINE)
    assert linked == [page for page in nav() if page != "index.md"]


@pytest.mark.parametrize("record", SUMMARISED)
def test_the_table_of_a_record_has_the_rows_that_its_own_summary_has(record):
    """The summary was written by the run; the page computes the same from the recorded rows, draws included."""
    own = doc_results.included(f"{record}/summary.md", "2", "pretrained").splitlines()[2:]
    computed = doc_results.runs(record).splitlines()
    rules = [line for line in own if line.split("|")[1].strip() != "oracle"]
    assert len(rules) >= 4
    for line in rules:
        assert line in computed


def test_the_goal_is_judged_on_the_numbers_of_the_recorded_study():
    rows = pq.read_table(doc_results.RECORDS / "stopping-study/study/methods.parquet").to_pylist()
    for objective in ("squared", "cross_entropy"):
        own = {r["measure"]: r["value"] for r in rows if (r["objective"], r["method"]) == (objective, "bayes")}
        name = doc_results.PATHS["stopping-study", objective]
        (line,) = (line for line in doc_results.goal().splitlines() if line.startswith(f"| {name} |"))
        shown = [float(number) for number in re.findall(r"([\d.]+) %", line)]
        wanted = [own[key] for key in ("hit_rate", "median_regret", "p90_regret", "beats_holdout")]
        assert shown == pytest.approx([100 * value for value in wanted], abs=0.5)  # as they are rounded


def test_tasks_in_other_words_are_the_data_set_that_they_ask_about():
    config = yaml.safe_load((ROOT / "config/studies/on-the-path.yaml").read_text(encoding="utf-8"))
    groups = doc_results.by_data_set([{"task": task} for task in config["tasks"]])
    assert list(groups) == ["movie", "amazon", "spam", "nyt", "trec"]
    assert sum(map(len, groups.values())) == 9


def test_the_loss_of_answering_0_is_that_of_the_targets():
    """s² / C for C classes in C - 1 contrasts, whatever the label."""
    from stopwise.linearized.coding import squared_loss, targets

    for classes in (2, 5, 6):
        y = targets([0, classes - 1], classes, scale=4.0)
        assert squared_loss(0 * y, y) == pytest.approx(16 / classes, rel=1e-12)


def test_a_link_out_of_the_site_becomes_its_words_and_others_stay():
    folder = ROOT / "docs" / "how-to"
    text = (
        "see [the text](../../README.md#install), [a page](../index.md), [none](../../nothing.md), ![p](../../LICENSE)"
    )
    found = site_hooks.unlinked(text, ROOT / "docs", folder)
    assert found == ("see the text (`README.md`), [a page](../index.md), [none](../../nothing.md), ![p](../../LICENSE)")


def test_the_files_and_names_of_the_index_are_there():
    table = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").partition("## Which file decides")[2]
    found = re.findall(r"`(src/[\w/]+\.py)`(?: \(`(\w+)`)?", table)
    assert len(found) > 5
    for path, name in found:
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8")), (path, name)


def test_modules_that_are_named_in_the_code_exist():
    """A dotted name in a docstring or a message leads to a module, or to a name in one."""
    source = ROOT / "src"
    public = set(re.findall(r'"(\w+)"', (source / "stopwise" / "__init__.py").read_text(encoding="utf-8")))
    for path in [*source.rglob("*.py"), *source.rglob("*.yaml")]:
        for dotted in re.findall(r"(?:`|-m |\()stopwise(?!\.json)((?:\.[a-z]\w*)+)", path.read_text(encoding="utf-8")):
            words = dotted.split(".")[1:]
            there = [source.joinpath("stopwise", *words[:k]) for k in range(len(words), 0, -1)]
            known = words[0] in public or any(one.is_dir() or one.with_suffix(".py").is_file() for one in there[:2])
            assert known, f"{path.relative_to(ROOT)}: stopwise{dotted}"
