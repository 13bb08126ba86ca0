"""The configuration: every file in the repository is valid, every mistake is named with its key."""

import copy
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from snakemake.common.configfile import load_configfile
from snakemake.utils import update_config

from stopwise.pipeline.config import ConfigError, completed_study, config_digest, start_tasks, validated
from stopwise.pipeline.config_messages import schema

ROOT = Path(__file__).resolve().parents[3]
BASE = ROOT / "config" / "studies" / "base.yaml"
WORDS = ROOT / "config" / "studies" / "language-model.yaml"
WORDED = sorted((ROOT / "config" / "studies").glob("language-model-*.yaml"))
OVERLAYS = sorted(set((ROOT / "config" / "studies").glob("*.yaml")) - {BASE, WORDS, *WORDED})
# Each configuration is one file, or a base of studies with an overlay.
READY = [(ROOT / "config.yaml",), *((path,) for path in sorted((ROOT / "config").glob("*.yaml")))]
READY += [(BASE, path) for path in OVERLAYS] + [(WORDS, path) for path in WORDED]
MINIMAL = {"name": "x", "model": {"source": "pico-llama"}, "tasks": {"movie": {}}, "arithmetic": {"enabled": False}}


def read(paths):
    """Return the files of one configuration merged as snakemake merges them."""
    merged = {}
    for path in paths:
        update_config(merged, load_configfile(path))
    return merged


@pytest.mark.parametrize("paths", READY, ids=lambda paths: paths[-1].stem)
def test_every_configuration_is_valid_for_the_workflow_and_for_editors(paths):
    completed = validated(read(paths))
    assert validated(completed) == completed  # completing twice changes nothing
    assert not list(jsonschema.Draft202012Validator(schema()).iter_errors(read(paths)))


def test_names_of_the_ready_configurations_differ():
    names = [read(paths)["name"] for paths in READY]
    assert len(set(names)) == len(names)


def test_the_base_of_the_studies_does_not_run_alone_and_has_no_tasks_to_mix():
    assert "tasks" not in read([BASE])
    with pytest.raises(ConfigError, match=r"config key (name|tasks): is required"):
        validated(read([BASE]))


def test_the_start_of_a_recipe_fits_what_answers():
    """Words have no head that could be drawn or fitted, and a new head has no pretrained weights."""
    words, head = {"source": "pico-llama"}, {"source": "pico-llama", "head": "classification"}
    for model, start, filled, wrong in (
        (words, "pretrained", "pretrained", "probe"),
        (head, "random", None, "pretrained"),
    ):
        recipe = {"learning_rate": 1e-4}
        config = validated({**MINIMAL, "model": model, "study": {"recipes": {"r": recipe}}})
        assert completed_study(config)["recipes"]["r"].get("start") == filled
        config["study"]["recipes"]["r"] = {**recipe, "start": start}
        assert completed_study(config)["recipes"]["r"]["start"] == start
        config["study"]["recipes"]["r"] = {**recipe, "start": wrong}
        with pytest.raises(ConfigError, match=rf"study\.recipes\.r\.start: found '{wrong}'.*allowed: {start}"):
            completed_study(config)


def recorded_as(paths):
    """Return the name of a configuration and what ran under it: task arithmetic was the demo when it was recorded."""
    config = read(paths)
    name = config.get("name")
    return name, config | {"name": "demo"} if name == "demo-arithmetic" else config


def test_a_study_is_the_configuration_that_its_record_names():
    digests = {name: config_digest(validated(config)) for name, config in map(recorded_as, READY)}
    recorded = set()
    for page in (ROOT / "docs").rglob("README.md"):
        name = next((part for part in reversed(page.parts) if part in digests), None)
        found = re.search(
            r"^Made by `snakemake .*`, configuration (\w{16}),", page.read_text(encoding="utf-8"), re.MULTILINE
        )
        if name and found:
            assert found[1] == digests[name], page
            recorded.add(name)
    assert {
        "demo-arithmetic",
        "paper-small",
        "stopping-study",
        "set-aside",
        "study-sgd",
        "study-adam",
        "study-adamw",
    } <= recorded


def test_auto_is_what_people_train_with_under_adamw_and_what_the_theory_speaks_of_otherwise():
    usual = validated(MINIMAL)
    assert usual["kernel"]["formula"] == "adam"
    assert (usual["finetune"]["learning_rate"], usual["finetune"]["batch_size"]) == (1e-4, 8)
    assert usual["finetune"]["steps"] == 4 * usual["finetune"]["evaluate_every"]
    assert usual["stopping"]["target_scale"] == 1.0  # cross-entropy has no targets to scale
    plain = validated(MINIMAL | {"finetune": {"optimizer": "heavy_ball", "objective": "squared"}})
    assert plain["kernel"]["formula"] == "sgd"
    assert (plain["finetune"]["learning_rate"], plain["finetune"]["batch_size"]) == (None, None)
    assert plain["stopping"]["target_scale"] == "auto"  # fitted by the jobs, to each task
    said = validated(MINIMAL | {"kernel": {"formula": "sgd"}, "finetune": {"learning_rate": 0.01, "steps": 6}})
    assert said["kernel"]["formula"] == "sgd"
    assert (said["finetune"]["learning_rate"], said["finetune"]["steps"]) == (0.01, 6)
    adapters = validated(MINIMAL | {"kernel": {"parameters": {"lora": {}}}})
    assert adapters["kernel"]["formula"] == "adam"  # of what moves at the start


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"finetune": {"objective": "squared"}}, "AdamW's own kernel"),
        (
            {
                "finetune": {"objective": "squared", "optimizer": "heavy_ball"},
                "tasks": {"movie": {}, "spam": {}},
                "arithmetic": {"enabled": True},
            },
            "arithmetic.enabled needs one for all",
        ),
    ],
)
def test_a_scale_that_is_fitted_too_late_is_refused(sections, says):
    with pytest.raises(ConfigError, match=says):
        validated(MINIMAL | sections)
    assert validated(MINIMAL | sections | {"stopping": {"target_scale": 4.0}})


def test_defaults_are_filled_at_every_level():
    completed = validated(MINIMAL)
    assert completed["finetune"]["momentum"] == 0.9
    assert completed["model"]["dtype"] == "float32"
    assert completed["seeds"] == [0]


BAD = [
    (("nmae",), "x", "nmae"),
    (("name",), "../up", "name: '../up' is not a safe name"),
    (("tasks",), {}, "tasks"),
    (("tasks", "a/b"), {}, "tasks.a/b: 'a/b' is not a safe name"),
    (("tasks", "movie", "labell"), "y", "tasks.movie"),
    (("seeds",), [0, 0], "seeds"),
    (("sizes",), [1], "sizes"),
    (("starts",), ["pretrianed"], "starts"),
    (("starts",), ["mixed"], "starts: 'mixed' needs model.reinit"),
    (("model", "dtype"), "float16", "model.dtype"),
    (("data", "max_tokens"), 0, "data.max_tokens"),
    (("kernel", "outputs"), "contrasts", "kernel.outputs"),
    (("kernel", "shards"), 0, "kernel.shards"),
    (("kernel",), {"blocks": 3, "shards": 2}, "kernel.blocks: 3 blocks of examples beside 2 shards of layers"),
    (("kernel",), {"blocks": 65}, "kernel.blocks: 65 blocks of 64 examples, the largest of sizes"),
    (("stopping", "rules"), ["sur"], "stopping.rules"),
    (("finetune", "step_size"), 1.5, "finetune.step_size"),
    (("finetune", "momentum"), 1.0, "finetune.momentum"),
    (("arithmetic", "coefficients"), [0], "arithmetic.coefficients"),
    (("mlflow", "tracking_uri"), 3, "mlflow.tracking_uri"),
    (
        ("finetune",),
        {"stop": "epochs"},
        "finetune.epochs: found None with finetune.stop 'epochs'; allowed: a number > 0",
    ),
    (("finetune",), {"stop": "bayes", "epochs": 3}, "finetune.epochs: found 3 with finetune.stop 'bayes'"),
    (("finetune",), {"stop": "bayes", "folds": 4}, "finetune.folds: 4 given for finetune.stop 'bayes'"),
    (("finetune",), {"stop": "cross_validation", "folds": 400}, "finetune.folds: 400 parts of"),
    (("finetune",), {"stop": "cross_validation", "folds": 1}, "finetune.folds: 1 is less than the minimum of 2"),
    (("kernel",), {"outputs": "head"}, "kernel.outputs: 'head' needs a head on the model"),
    (("arithmetic",), {"seeds": [7], "enabled": True}, "arithmetic.seeds: 7 is not among seeds"),
    (("arithmetic",), {"size": 5, "enabled": True}, "arithmetic.size: 5 is not among sizes"),
    (("arithmetic",), {"disentanglement": [1], "predict": False}, "arithmetic.disentanglement: the plane is held"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD, ids=lambda item: str(item)[:40])
def test_a_mistake_is_named_with_its_key(key, value, message):
    config = copy.deepcopy(MINIMAL)
    node = config
    for part in key[:-1]:
        node = node.setdefault(part, {})
    node[key[-1]] = value
    with pytest.raises(ConfigError) as caught:
        validated(config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_that_were_given_stay_as_they_were_written():
    given = MINIMAL | {"kernel": {"memory_gb": 3}, "finetune": {"min_delta": 0}, "tasks": {"movie": None}}
    completed = validated(given)
    assert repr(completed["kernel"]["memory_gb"]) == "3"  # a digest tells 3 from 3.0
    assert repr(completed["finetune"]["min_delta"]) == "0"
    assert completed["tasks"] == {"movie": {}}
    assert given["tasks"] == {"movie": None}


def test_the_vectors_of_task_arithmetic_have_the_middle_size_unless_one_is_named():
    def size(sizes, **own):
        return validated(MINIMAL | {"sizes": sizes, "arithmetic": own | {"enabled": True}})["arithmetic"]["size"]

    assert size([64, 16, 32]) == 32
    assert size([8, 16]) == 16
    assert size([8]) == 8
    assert size([16, 32, 64], size=64) == 64


def test_every_key_of_the_schema_is_described_or_has_parts():
    def walk(node, path):
        for key, child in node.get("properties", {}).items():
            assert "$ref" in child or "description" in child, f"{path}.{key}"
        for key, child in node.get("$defs", {}).items():
            walk(child, key)

    walk(schema(), "")


def test_the_digest_follows_the_content_only():
    first, second = validated(MINIMAL), validated(dict(reversed(list(MINIMAL.items()))))
    assert config_digest(first) == config_digest(second)
    assert config_digest(first) != config_digest(validated({**MINIMAL, "seeds": [1]}))


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        (["pretrained", "random"], {"pretrained": ["movie", "spam"], "random": ["movie", "spam"]}),
        ({"pretrained": "all", "random": ["spam"]}, {"pretrained": ["movie", "spam"], "random": ["spam"]}),
        ({"pretrained": ["spam", "movie"]}, {"pretrained": ["movie", "spam"]}),
    ],
)
def test_starts_are_a_list_or_say_which_tasks(starts, expected):
    config = validated({**MINIMAL, "tasks": {"movie": {}, "spam": {}}, "starts": starts})
    assert start_tasks(config) == expected


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ("lora", {"rank": 8, "alpha": 8, "target": "attention", "seed": 0}),
        ({"lora": None}, {"rank": 8, "alpha": 8, "target": "attention", "seed": 0}),
        (
            {"lora": {"rank": 2, "scale": 0.5, "target": ["q_proj", "^x"], "seed": 3}},
            {"rank": 2, "alpha": 1.0, "target": ".*(?:(?:q_proj)|(?:^x)).*", "seed": 3},
        ),
    ],
)
def test_lora_is_short_for_an_adapter_of_peft(asked, options):
    completed = validated(MINIMAL | {"kernel": {"parameters": asked}})
    assert completed["kernel"]["parameters"] == {"peft": options}
    assert validated(completed) == completed
    assert completed["arithmetic"]["enabled"] is False


def test_what_may_be_an_adapter_is_not_merged():
    assert validated(MINIMAL | {"kernel": {"parameters": "trainable"}})["arithmetic"]["enabled"] is False
    with pytest.raises(
        ConfigError, match=r"arithmetic\.enabled: kernel\.parameters 'trainable' may be .* allowed: false"
    ):
        validated(MINIMAL | {"kernel": {"parameters": "trainable"}, "arithmetic": {"enabled": True}})


def test_adapters_have_no_tangent_training():
    with pytest.raises(ConfigError, match=r"finetune\.tangent: adapters"):
        validated(MINIMAL | {"kernel": {"parameters": "lora"}, "finetune": {"tangent": True}})


def test_logits_are_for_cross_entropy():
    training = {"objective": "cross_entropy", "optimizer": "adamw", "learning_rate": 0.001}
    completed = validated(MINIMAL | {"kernel": {"outputs": "logits"}, "finetune": training})
    assert completed["kernel"]["outputs"] == "logits"
    with pytest.raises(ConfigError, match=r"kernel\.outputs: 'logits' has singular noise"):
        validated(MINIMAL | {"kernel": {"outputs": "logits"}, "finetune": training | {"objective": "squared"}})


ADAM = {"kernel": {"formula": "adam"}, "finetune": {"optimizer": "adamw", "learning_rate": None}}


def test_the_kernel_of_adamw_gives_its_learning_rate():
    assert validated(MINIMAL | ADAM)["finetune"]["learning_rate"] is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"finetune": {"optimizer": "heavy_ball"}}, r"kernel\.formula: 'adam' .* finetune\.optimizer is 'heavy_ball'"),
        ({"joint": {"enabled": True}}, r"joint\.enabled: .* allowed: false"),
        (
            {"arithmetic": {"enabled": True}, "tasks": {"movie": {}, "spam": {}}},
            r"arithmetic\.predict: .* allowed: false",
        ),
        ({"kernel": {"formula": "sgd"}}, r"finetune\.learning_rate: .* kernel\.formula: adam"),
    ],
)
def test_what_the_kernel_of_adamw_does_not_describe_is_refused(changed, message):
    with pytest.raises(ConfigError, match=message):
        validated(MINIMAL | ADAM | changed)


def test_names_of_tasks_are_names_whatever_yaml_makes_of_them():
    tasks = yaml.safe_load("no: {}\non: {}\n2: {}\n")
    definition = {"source": {"csv": "x.csv"}, "text": "text", "label": "label"}
    completed = validated({"name": "x", "tasks": dict.fromkeys(tasks, definition)})
    assert list(completed["tasks"]) == ["no", "yes", "2"]
    with pytest.raises(ConfigError, match=r"config key tasks: the name 'yes' is given twice"):
        validated({"name": "x", "tasks": {True: definition, "yes": definition}})
