"""A stopping rule added by the recipe, in a copy of the checkout, appears everywhere; half a rule is refused."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import stopwise
from stopwise.figures import style
from stopwise.linearized.filters import GradientDescent
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping import closed_form as rules
from stopwise.stopping import known
from stopwise.stopping import registry as rule_names
from stopwise.stopping.known import BeforeTraining, Known, path_moments
from stopwise.stopping.rule_table import rules_table, write_table
from stopwise.stopping.stops import stopping_time
from warm import executable

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists())
LIBRARY = Path(stopwise.__file__).resolve().parents[1]

FUNCTION = '''

@computes("half_life")
def half_life(known: Known) -> Choice:
    """Stop at the first step at which half of the predicted training residual is gone."""
    path = known.path
    gone = np.flatnonzero(path.training <= path.training[0] / 2)
    if not gone.size:
        return Choice(None, path.training, (BEYOND,))
    return Choice(int(path.times[gone[0]]), path.training)
'''
ROW = """    Rule(
        "half_life",
        words="stops when half of the training error is gone",
        stops="at the first step with half of the training residual of the start",
    ),
"""
LOOK = '    "half_life": ("green", "d"),\n'
TEST = '''"""The rule half_life against its definition, step by step."""

import numpy as np
from stopwise.linearized.filters import GradientDescent
from stopwise.linearized.spectrum import Spectrum
from stopwise.stopping.stops import stopping_time


def test_half_life_is_the_first_step_with_half_the_residual_and_never_beyond_the_last():
    rng = np.random.default_rng(0)
    a, r = rng.standard_normal((12, 12)), rng.standard_normal(12)
    spec = Spectrum.of(a @ a.T)
    filter = GradientDescent(0.5 / spec.lambda_max)
    left, t = r.copy(), 0
    while left @ left > r @ r / 2:
        left, t = left - filter.lr * spec.matrix @ left / 12, t + 1
    assert t > 1
    assert stopping_time(spec, r, "half_life", filter, t).t == t
    early = stopping_time(spec, r, "half_life", filter, t - 1)
    assert early.t is None
    assert "beyond_t_max" in early.flags
'''
# What someone sees who uses the new rule: every place that lists rules, in one process of the copy.
SEEN = """
import json, sys
import numpy as np
import pyarrow as pa
import yaml
from stopwise.advice.findings import Advice, Settings, findings
from stopwise.advice.data import make_task, read_file
from stopwise.advice.held_out import Problem
from stopwise.advice.text import document
from stopwise.advice.verdict import verdict_of
from stopwise.pipeline.config import validated
from stopwise.network.pico import pico_tokenizer
from stopwise.figures import f03_rules as f3, f10_known_truth as f10, style
from stopwise.stopping.rule_table import rules_table
from stopwise.studies.on_the_path import METHODS
from stopwise.studies.synthetic import study
from stopwise.studies.synthetic_tables import markdown, summarise

seen = {}
config = yaml.safe_load(open(sys.argv[1], encoding="utf-8"))
config["stopping"] = {**config.get("stopping", {}), "rules": ["half_life", "holdout", "oracle"]}
config["finetune"] = {**config.get("finetune", {}), "stop": "half_life"}
seen["configuration"] = validated(config)["finetune"]["stop"]

rows = study("beta1", [24, 48], 2, loo=False)
seen["theory"] = [line for line in markdown(summarise(rows)).splitlines() if line.startswith("| half_life |")]
seen["study"] = "half_life" in METHODS
picture = f10.draw(f10.table([pa.Table.from_pylist(rows)]))
seen["F10"] = [label.get_text() for ax in picture.axes for label in ax.get_yticklabels()]

judged = dict(start="pretrained", task="a", seed=0, n=16, t=3, t_oracle=4, loss=0.5, loss_oracle=0.49, flags=[])
judged |= dict(relative_regret=0.02, hit=True, ratio=0.75)
table = f3.table([({}, pa.Table.from_pylist([judged | {"rule": rule} for rule in ("gcv", "half_life", "holdout")]))])
picture = f3.draw(table)
style.save(picture, sys.argv[2] + "/F3")
seen["F3"] = [label.get_text() for label in picture.axes[0].get_yticklabels()]

rng = np.random.default_rng(0)
x = rng.standard_normal((24, 12)) / np.arange(1, 13)
labels = (x[:, 0] + 0.3 * rng.standard_normal(24) > 0).astype(int)
path = sys.argv[2] + "/texts.csv"
with open(path, "w", encoding="utf-8") as file:
    file.write("text,label\\n" + "".join(f"text {i},{'good' if label else 'bad'}\\n" for i, label in enumerate(labels)))
settings = Settings(model="pico-llama", data=path, text=("text",), label="label", max_examples=24)
file = read_file(path, settings.text, settings.label)
task = make_task(file, pico_tokenizer(), max_examples=24)
found = findings(Problem(x @ x.T, 0.1 * rng.standard_normal((24, 1)), labels, 2), settings)
advice = Advice(settings, file, task, task.sample(pico_tokenizer()), found, {"config": {}})
text = document(advice, verdict_of(advice))
seen["advice"] = [line for line in text.splitlines() if line.startswith("| half_life |")]

seen["docs"] = [line for line in rules_table().splitlines() if line.startswith("| `half_life` |")]
print(json.dumps(seen))
"""


def place(module):
    """Return a module's path inside the checkout."""
    return Path(module.__file__).resolve().relative_to(ROOT)


def insert(path, line, text):
    """Put text above the only line that starts with these words."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    (at,) = (i for i, found in enumerate(lines) if found.strip().startswith(line))
    path.write_text("".join([*lines[:at], text, *lines[at:]]), encoding="utf-8")


def follow_the_recipe(checkout):
    """Add the rule half_life to a checkout: a function, a row, a look and a test."""
    path = checkout / place(rules)
    path.write_text(path.read_text(encoding="utf-8") + FUNCTION, encoding="utf-8")
    path = checkout / place(rule_names)
    text = path.read_text(encoding="utf-8")
    above = '    Rule(\n        "holdout",'
    assert text.count(above) == 1
    path.write_text(text.replace(above, ROW + above), encoding="utf-8")
    insert(checkout / place(style), '"holdout": (', LOOK)
    (checkout / "tests").mkdir()
    (checkout / "tests" / "test_half_life.py").write_text(TEST, encoding="utf-8")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the library with the rule half_life, and what runs in it."""
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copytree(LIBRARY, copy / LIBRARY.relative_to(ROOT), ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    follow_the_recipe(copy)

    def run(*command):
        environment = os.environ | {"PYTHONPATH": str(copy / LIBRARY.relative_to(ROOT))}
        done = subprocess.run(
            [executable(), *command], cwd=copy, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_a_rule_added_by_the_recipe_appears_everywhere(checkout, tmp_path):
    seen = json.loads(checkout("-c", SEEN, str(ROOT / "config" / "test.yaml"), str(tmp_path)).splitlines()[-1])
    assert seen["configuration"] == "half_life"
    (theory,) = seen["theory"]
    assert theory.split("|")[2].strip() == "not used"  # it needs no sigma, so that one row says all
    assert seen["study"]
    assert "half life" in seen["F10"]
    assert seen["F3"] == ["gcv", "half life", "holdout"]
    (advice,) = seen["advice"]
    assert advice.endswith("| stops when half of the training error is gone |")
    assert int(advice.split("|")[2]) > 0
    (docs,) = seen["docs"]
    assert docs.endswith("| at the first step with half of the training residual of the start | – |")


def test_the_test_of_an_added_rule_passes(checkout):
    assert "1 passed" in checkout("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_half_life.py")


def test_a_rule_without_a_look_is_named_with_the_place_of_looks(monkeypatch):
    monkeypatch.setattr(rule_names, "RULES", (*rule_names.RULES, "half_life"))
    with pytest.raises(ValueError, match=rf"'half_life' .* no look: .* RULE_LOOKS of {style.__name__}"):
        style._rule_looks()


def test_a_row_without_a_function_and_a_function_without_a_row_are_refused(monkeypatch):
    spec = Spectrum.of(np.diag([3.0, 2.0, 1.0]))
    monkeypatch.delitem(known.COMPUTED, "gcv")
    with pytest.raises(ValueError, match=rf"'gcv' has a row .* no function: .*@computes\('gcv'\) in {rules.__name__}"):
        stopping_time(spec, np.ones(3), "gcv", GradientDescent(0.1), 5)
    with pytest.raises(ValueError, match=f"'half_life' has a function and no row .* in {rule_names.__name__}"):
        known.computes("half_life")
    with pytest.raises(ValueError, match="'gcv' has a function and no row of its kind"):
        known.reads("gcv")


def test_every_row_has_a_function_of_its_kind_and_a_look_of_its_own():
    assert set(known.COMPUTED) == set(rule_names.PREDICTED)
    assert set(known.READ) == set(rule_names.MEASURED)
    assert list(style.RULES) == list(rule_names.RULES) == list(rule_names.ROW)
    assert len(set(style.RULES.values())) == len(rule_names.RULES)
    assert set(style.RULE_LOOKS) == set(rule_names.RULES)


@pytest.mark.parametrize("rule", rule_names.PREDICTED)
def test_a_row_asks_for_noise_and_radius_just_where_the_answer_depends_on_them(rule):
    rng = np.random.default_rng(0)
    a, y = rng.standard_normal((16, 16)), rng.standard_normal(16)
    spec = Spectrum.of(a @ a.T)
    run = BeforeTraining(spec, y - 0.3, GradientDescent(0.5 / spec.lambda_max), 60, targets=y)
    path = path_moments(spec, run.residual, run.filter, run.steps)

    def answer(sigma, rkhs_norm):
        choice = known.COMPUTED[rule](Known(run, path, sigma, rkhs_norm))
        return choice.t, choice.curve.tolist()

    needs = rule_names.ROW[rule].needs
    assert (answer(0.5, 1.0) != answer(2.0, 1.0)) == (rule_names.SIGMA in needs)
    assert (answer(0.5, 1.0) != answer(0.5, 2.0)) == bool({rule_names.RADIUS, rule_names.SCALE} & set(needs))


def test_the_registry_needs_nothing_but_the_standard_library():
    imports = [
        line for line in (ROOT / place(rule_names)).read_text(encoding="utf-8").splitlines() if "import " in line
    ]
    assert imports == ["from __future__ import annotations", "from dataclasses import dataclass"]


def test_the_page_of_the_rules_holds_the_table_of_the_registry():
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("rules.md")]
    assert any(rules_table() in page for page in pages)


def test_a_page_gets_the_table_of_the_registry_in_the_place_of_its_old_one(tmp_path):
    page = tmp_path / "rules.md"
    page.write_text(f"# Rules\n\n{rules_table().splitlines()[0]}\n|---|\n| old |\n\nThe end.\n", encoding="utf-8")
    write_table(page)
    assert page.read_text(encoding="utf-8") == f"# Rules\n\n{rules_table()}\nThe end.\n"
    page.write_text("# Empty\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no table of the rules"):
        write_table(page)
    assert [path.name for path in tmp_path.iterdir()] == ["rules.md"]
