"""The configuration has one source: what repeats its defaults elsewhere is written from it, or agrees with it."""

import copy
import inspect
from dataclasses import fields
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
import typer
import yaml

from bad_inputs import CONFIG, configured
from pipeline import checkout, snakemake
from stopwise.advice import findings as advise
from stopwise.cli import app
from stopwise.linearized import coding as outputs
from stopwise.pipeline.config import ConfigError, validated
from stopwise.pipeline.config_fields import LEFT_OUT
from stopwise.pipeline.config_messages import schema
from stopwise.pipeline.config_models import SECTIONS, Config, Data, Finetune, Kernel, Model, Stopping, Task
from stopwise.pipeline.config_reference import SCHEMA_FILE, key_table, page, schema_text
from stopwise.stopping.in_training import make_stop_rule
from stopwise.tasks import definition
from stopwise.tasks import task as tasks
from stopwise.training import settings as finetune_settings
from stopwise.training.settings import FinetuneSettings

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "reference" / "configuration.md"
OURS = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
THREE_LINES = "name: mine\ntasks:\n  trec: {}\n"


def default(section, key):
    return section.model_fields[key].default


def test_the_schema_that_editors_read_is_up_to_date():
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), "`make schema` writes it anew"


def test_the_page_of_the_configuration_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "`make schema` writes it anew"
    beside = ROOT / "config" / "README.md"
    assert beside.read_text(encoding="utf-8") == key_table(), "`make schema` writes it anew"


def test_the_schema_that_editors_read_is_named_in_config_yaml():
    first = (ROOT / "config.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=src/stopwise/schemas/config.schema.json"


def test_a_name_and_tasks_mean_what_config_yaml_says_of_every_other_key():
    assert validated({"name": OURS["name"], "tasks": OURS["tasks"]}) == validated(OURS)


@pytest.mark.parametrize("section", [key for key in OURS if key not in ("name", "tasks")])
def test_every_key_of_config_yaml_may_be_left_out_alone(section):
    parts = OURS[section] if isinstance(OURS[section], dict) else {}
    for key in (None, *parts):
        config = copy.deepcopy(OURS)
        if key is None:
            del config[section]
        else:
            del config[section][key]
        assert validated(config) == validated(OURS), (section, key)


def test_every_key_is_in_config_yaml_but_those_that_are_seldom_needed():
    unused = {
        f"{name}.{key}"
        for name, section in SECTIONS.items()
        for key, field in section.model_fields.items()
        if key not in OURS.get(name, {}) and LEFT_OUT not in field.metadata
    }
    drift = {f"drift.{key}" for key in ("seeds", "size", "examples", "checkpoints")}
    theory = {f"theory.{key}" for key in ("repeats", "sizes", "seed")}
    assert unused == drift | theory | {"joint.seeds", "joint.size", "finetune.autocast"}


@pytest.mark.pipeline
@pytest.mark.slow
def test_three_lines_plan_the_jobs_of_config_yaml_with_their_own_tasks_only(tmp_path):
    folder = checkout(tmp_path / "checkout")
    (folder / "three.yaml").write_text(THREE_LINES, encoding="utf-8")
    (folder / "whole.yaml").write_text(yaml.safe_dump(OURS | yaml.safe_load(THREE_LINES)), encoding="utf-8")
    three, whole = (snakemake(folder, "-n", config=path) for path in ("three.yaml", "whole.yaml"))
    assert three.code == 0, three.output[-3000:]
    assert three.jobs() == whole.jobs()
    assert three.jobs()["finetune"] == 1
    assert "results/mine/finetune/pretrained/trec/" in three.output
    assert "movie" not in three.output


@pytest.mark.pipeline
def test_a_study_is_planned_from_its_base_and_its_overlay(tmp_path):
    folder = checkout(tmp_path / "checkout")
    files = "config/studies/base.yaml config/studies/set-aside-adamw-own-kernel-squared.yaml"
    run = snakemake(folder, "-n", config=files)
    assert run.code == 0, run.output[-3000:]
    assert run.jobs()["finetune"] == 6  # three tasks, two seeds
    assert "arithmetic" not in run.jobs()


def test_a_key_left_out_of_the_completed_configuration_appears_when_it_is_given():
    left_out = [key for key, field in Finetune.model_fields.items() if LEFT_OUT in field.metadata]
    assert left_out == [
        "folds",
        "epochs",
        "schedule",
        "warmup",
        "weight_decay",
        "clip_norm",
        "tokens_per_batch",
        "tangent",
    ]
    assert not set(left_out) & set(validated(OURS)["finetune"])
    config = OURS | {"finetune": {"schedule": "linear", "warmup": 2}}
    assert {"schedule", "warmup"} <= set(validated(config)["finetune"])


def test_settings_of_fine_tuning_have_the_defaults_of_the_configuration():
    """But for the stop, which only the workflow predicts unasked, and for the training: theirs is the theory's.

    That is squared loss and full batches with momentum, and what `auto` stands for under that optimizer.
    """
    own = {"stop": "holdout", "continue_after_stop": False}
    theory = validated(
        {"name": "x", "tasks": {"movie": {}}, "finetune": {"objective": "squared", "optimizer": "heavy_ball"}}
    )
    own |= {key: theory["finetune"][key] for key in ("objective", "optimizer", "learning_rate", "steps", "batch_size")}
    own |= {"formula": theory["kernel"]["formula"], "target_scale": 1.0, "evaluate_every": 4}
    elsewhere = {"stop_at": None}
    sections = (Finetune, Kernel, Stopping)
    expected = {key: field.default for section in sections for key, field in section.model_fields.items()}
    for field in fields(FinetuneSettings):
        assert field.default == ({**expected, **own, **elsewhere})[field.name], field.name
    assert inspect.signature(make_stop_rule).parameters["patience"].default == default(Finetune, "patience")
    assert inspect.signature(make_stop_rule).parameters["min_delta"].default == default(Finetune, "min_delta")


def test_a_task_made_in_python_has_the_sizes_of_the_configuration():
    sizes = {key: field.default for key, field in Data.model_fields.items() if LEFT_OUT not in field.metadata}
    assert sizes | {"train": max(default(Config, "sizes"))} == definition.DEFAULTS
    assert set(Task.model_fields) | {"name"} == set(tasks._KEYS)


MIRRORED = [
    ("advise", "model", Model, "source"),
    ("advise", "revision", Model, "revision"),
    ("advise", "parameters", Kernel, "parameters"),
    ("advise", "momentum", Finetune, "momentum"),
    ("advise", "step_size", Finetune, "step_size"),
    ("advise", "device", Config, "device"),
    ("doctor", "revision", Model, "revision"),
    ("doctor", "dtype", Model, "dtype"),
    ("doctor", "parameters", Kernel, "parameters"),
]


@pytest.mark.parametrize(("command", "option", "section", "key"), MIRRORED)
def test_an_option_that_stands_for_a_key_has_its_default_and_names_its_choices(command, option, section, key):
    (found,) = [p for p in typer.main.get_command(app).commands[command].params if p.name == option]
    # An option of one kind of training is empty unless given, and its help names what it means then.
    value = default(section, key)
    written = f"{value:g}" if isinstance(value, float) else str(value)
    assert found.default == value or f"default {written}" in found.help or f"{written} (default)" in found.help
    if key in ("optimizer", "dtype", "device"):
        for choice in get_args(section.model_fields[key].annotation):
            assert choice in found.help


def test_the_settings_of_advice_repeat_the_same_defaults():
    own = {field.name: field.default for field in fields(advise.Settings)}
    for command, option, section, key in MIRRORED:
        if command == "advise" and option in own and option != "model":
            assert own[option] == default(section, key), option


@pytest.mark.parametrize(
    ("section", "key", "known"),
    [
        (Finetune, "objective", finetune_settings.OBJECTIVES),
        (Finetune, "optimizer", finetune_settings.OPTIMIZERS),
        (Finetune, "schedule", finetune_settings.SCHEDULES),
        (Finetune, "autocast", finetune_settings.AUTOCAST),
        (Stopping, "intercept", finetune_settings.INTERCEPTS),
        (Kernel, "outputs", outputs.OUTPUTS),
    ],
)
def test_a_choice_of_the_configuration_is_one_that_the_code_knows(section, key, known):
    assert set(get_args(section.model_fields[key].annotation)) == set(known)


def test_what_is_allowed_and_what_it_means_are_told_apart_by_one_mark():
    for section in (Config, Task, *SECTIONS.values()):
        for key, field in section.model_fields.items():
            if key not in SECTIONS:
                allowed, mark, meaning = field.description.rpartition(": ")
                assert mark, key
                assert allowed, key
                assert meaning, key


def test_editors_refuse_what_the_workflow_refuses():
    """All but what JSON Schema cannot say: regular expressions, safe names, and sections that contradict each other."""
    validator = jsonschema.Draft202012Validator(schema())
    seen = 0
    for key, value, _ in CONFIG:
        with pytest.raises(ConfigError) as refused:
            validated(configured(key, value))
        if "Allowed:" in str(refused.value) and "'regex'" not in str(refused.value):
            seen += 1
            assert list(validator.iter_errors(configured(key, value))), (key, value)
    assert seen > 80


def test_a_misspelt_key_is_named_before_the_key_that_it_should_have_been():
    config = {"name": "x", "taks": {"movie": {}}}
    with pytest.raises(ConfigError, match=r"'taks' was unexpected.*tasks"):
        validated(config)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("finetune.steps", 12.0, "12.0 is not of type 'string', 'integer'"),
        ("finetune.steps", True, "True is not of type 'string', 'integer'"),
        ("finetune.momentum", True, "True is not of type 'number'"),
        ("finetune.momentum", "0.9", "'0.9' is not of type 'number'"),
        ("finetune.min_delta", float("nan"), "nan is not a finite number"),
        ("drift.enabled", 1, "1 is not of type 'boolean'"),
        ("finetune.schedule", None, "None is not one of ['constant', 'linear', 'cosine']"),
        ("tasks", None, "config key tasks: None is not of type 'object'"),
    ],
)
def test_a_value_of_another_type_is_never_read_as_the_right_one(key, value, says):
    with pytest.raises(ConfigError) as refused:
        validated(configured(key, value))
    assert says in str(refused.value)
