"""The configuration: checked against its models, completed with their defaults, and checked across sections."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from stopwise.pipeline import config_auto
from stopwise.pipeline.config_fields import LEFT_OUT, Section
from stopwise.pipeline.config_messages import message
from stopwise.pipeline.config_models import SECTIONS, Config
from stopwise.pipeline.config_study import Study
from stopwise.stopping.registry import FIXED_STOP, FOLDED_STOPS
from stopwise.tasks.names import names_of

# Built-in models without a language-model head.
ENCODERS = ("minilm", "pico-bert")
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def _is_expression(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(value) and bool(re.compile(value))
    except re.error:
        return False


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


Options = dict[str, tuple[Callable[[Any], bool], str]]
_RANK = (lambda v: type(v) is int and v >= 1, "an integer >= 1")
_POSITIVE = (lambda v: type(v) in (int, float) and v > 0, "a number > 0")
_SEED = (lambda v: type(v) is int and v >= 0, "an integer >= 0")
# The options of an adapter: what is right, and in words.
PEFT: Options = {
    "rank": _RANK,
    "alpha": _POSITIVE,
    "rslora": (lambda v: isinstance(v, bool), "true or false"),
    "target": (
        lambda v: _is_expression(v) or _are_texts(v),
        "all-linear, attention, an expression for whole names of layers, or a list of names of layers",
    ),
    "seed": _SEED,
}
# The same of the older way to say it.
LORA: Options = {
    "rank": _RANK,
    "scale": _POSITIVE,
    "target": (
        lambda v: _is_expression(v) or (_are_texts(v) and all(map(_is_expression, v))),
        "an expression that is searched in names of linear layers, or a list of them",
    ),
    "seed": _SEED,
}


class ConfigError(ValueError):
    """A configuration that cannot be run: the message names the key, the value found and what is allowed."""


def validated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a completed copy of the configuration.

    Missing keys take the models' defaults. Raises ConfigError for an unknown key, a value of the wrong type or range,
    a name that could leave the results folder, or sections that contradict each other.
    """
    completed: dict[str, Any] = copy.deepcopy(dict(config))
    if isinstance(completed.get("tasks"), Mapping):
        try:
            completed["tasks"] = names_of(completed["tasks"])
        except ValueError as error:
            raise ConfigError(f"config key tasks: {error}") from None
    try:
        Config.model_validate(completed)
    except ValidationError as error:
        raise ConfigError(message(error)) from None
    _settle_head(completed)
    _settle_adapter(completed)
    _fill(completed, Config)
    config_auto.settle(completed)
    completed["tasks"] = {task: definition or {} for task, definition in completed["tasks"].items()}
    _cross_checks(completed)
    return completed


def _settle_head(config: dict[str, Any]) -> None:
    """Give an encoder its head, and leave out what needs one model of all tasks, unless it is asked for."""
    model = config.setdefault("model", {})
    if model.get("source") in ENCODERS and model.setdefault("head", "classification") == "words":
        raise ConfigError(
            f"config key model.head: {model['source']!r} has no language-model head that could say words; allowed:"
            " classification"
        )
    if model.get("head") == "classification":
        if config.get("data", {}).get("chat_template"):
            raise ConfigError("config key data.chat_template: a head reads texts, not a chat; allowed: false")
        _without_merging(config, "model.head", "'classification' gives every task a head of its own")


def _settle_adapter(config: dict[str, Any]) -> None:
    """Check the adapter that is asked for, and say in peft's words what ``lora`` is short for."""
    parameters = config.get("kernel", {}).get("parameters")
    if parameters == "trainable":
        _without_merging(
            config, "kernel.parameters", "'trainable' may be the two factors of an adapter, which do not add"
        )
    if parameters == "lora":
        parameters = {"lora": {}}
    if not isinstance(parameters, Mapping):
        return
    if set(parameters) not in ({"peft"}, {"lora"}):
        raise ConfigError(
            f"config key kernel.parameters: found {dict(parameters)!r}; allowed: a mapping of peft alone, such as"
            " {peft: {rank: 8, target: all-linear}}"
        )
    name, options = next(iter(parameters.items()))
    _check_options(f"config key kernel.parameters.{name}", options or {}, LORA if name == "lora" else PEFT)
    config["kernel"]["parameters"] = _in_peft_words(options or {}) if name == "lora" else parameters
    _without_merging(config, "kernel.parameters", "an adapter trains products of two factors, which do not add")


def _check_options(key: str, options: Any, known: Options) -> None:
    """Check the options of an adapter; ConfigError naming the one that is wrong."""
    if not isinstance(options, Mapping):
        raise ConfigError(f"{key}: found {options!r}; allowed: a mapping of {', '.join(known)}")
    for name, value in options.items():
        if name not in known:
            raise ConfigError(f"{key}: unknown option {name!r}; allowed: {', '.join(known)}")
        right, allowed = known[name]
        if not right(value):
            raise ConfigError(f"{key}.{name}: found {value!r}; allowed: {allowed}")


def _in_peft_words(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{lora: options}`` as ``{peft: ...}``: the same layers, update and seed; alpha/rank is the scale."""
    rank, target = options.get("rank", 8), options.get("target")
    alpha = options.get("scale", 1) * rank
    if target is not None:
        parts = [target] if isinstance(target, str) else target
        target = f".*(?:{'|'.join(f'(?:{part})' for part in parts)}).*"
    return {
        "peft": {"rank": rank, "alpha": alpha, "target": target or "attention", "seed": options.get("seed", 0)},
    }


def _without_merging(config: dict[str, Any], key: str, why: str) -> None:
    """Switch off the stages over several tasks at once; ConfigError where one of them was asked for."""
    for stage in ("arithmetic", "joint"):
        section = config.setdefault(stage, {})
        if section.get("enabled"):
            raise ConfigError(
                f"config key {stage}.enabled: {key} {why}, and there are no common weights to add or train; allowed:"
                " false"
            )
        section["enabled"] = False


def _fill(section: dict[str, Any], model: type[Section]) -> None:
    """Set missing keys to the model's defaults, section by section; values given stay as they were written."""
    for key, field in model.model_fields.items():
        if key not in section and LEFT_OUT not in field.metadata:
            section[key] = {} if key in SECTIONS and model is Config else copy.deepcopy(field.default)
    if model is Config:
        for key, part in SECTIONS.items():
            if key in section:
                _fill(section[key], part)


def _cross_checks(config: dict[str, Any]) -> None:
    middle = sorted(config["sizes"])[len(config["sizes"]) // 2]
    for key, name in [("name", config["name"]), *((f"tasks.{task}", task) for task in config["tasks"])]:
        if not SAFE_NAME.fullmatch(name):
            raise ConfigError(f"config key {key}: {name!r} is not a safe name; allowed: letters, digits, - and _")
    _complete_stage(config, "arithmetic", middle)
    _complete_stage(config, "drift", min(config["sizes"]))
    _complete_stage(config, "joint", min(config["sizes"]))
    if (folds := config["finetune"].get("folds", 2)) > min(config["sizes"]):
        raise ConfigError(
            f"config key finetune.folds: {folds} parts of {min(config['sizes'])} examples, the smallest of sizes;"
            " allowed: at most one part an example"
        )
    if config["arithmetic"]["disentanglement"] and not config["arithmetic"]["predict"]:
        raise ConfigError(
            "config key arithmetic.disentanglement: the plane is held against its prediction; allowed: [], or"
            " arithmetic.predict: true"
        )
    for start, tasks in start_tasks(config).items():
        for task in tasks:
            if task not in config["tasks"]:
                raise ConfigError(
                    f"config key starts.{start}: {task!r} is not among tasks {list(config['tasks'])}; allowed: all or"
                    " a list of them"
                )
    if "mixed" in config["starts"] and not config["model"]["reinit"]:
        raise ConfigError(
            "config key starts: 'mixed' needs model.reinit, a list of parameter-name patterns; found none"
        )
    _check_blocks(config["kernel"], max(config["sizes"]))
    _check_finetune(config["finetune"], config["stopping"]["rules"], config["kernel"]["formula"])
    _check_training(config["kernel"], config["finetune"], config["model"].get("head") == "classification")
    if config["kernel"]["formula"] == "adam":
        _check_adam(config)
    if config["stopping"]["target_scale"] == config_auto.AUTO:
        _check_fitted_scale(config)


def _complete_stage(config: dict[str, Any], name: str, size: int) -> None:
    """Check the seeds and the size of a stage that is asked for; a size of null becomes ``size``."""
    stage = config[name]
    if not stage["enabled"]:
        return
    for seed in stage["seeds"]:
        if seed not in config["seeds"]:
            raise ConfigError(f"config key {name}.seeds: {seed} is not among seeds {config['seeds']}")
    if stage["size"] is None:
        stage["size"] = size
    if stage["size"] not in config["sizes"]:
        raise ConfigError(
            f"config key {name}.size: {stage['size']} is not among sizes {config['sizes']}; allowed: one of the trained"
            " sizes"
        )


def _check_blocks(kernel: Mapping[str, Any], examples: int) -> None:
    """Refuse blocks of examples beside shards of layers, and more blocks than examples."""
    blocks, shards = kernel.get("blocks", 1), kernel["shards"]
    if blocks > 1 and shards > 1:
        raise ConfigError(
            f"config key kernel.blocks: {blocks} blocks of examples beside {shards} shards of layers (kernel.shards);"
            " allowed: one of the two, the other 1"
        )
    if blocks > examples:
        raise ConfigError(
            f"config key kernel.blocks: {blocks} blocks of {examples} examples, the largest of sizes; allowed: at most"
            " one block an example"
        )


def _check_finetune(section: Mapping[str, Any], rules: Sequence[str], formula: str) -> None:
    stop, schedule, every = section["stop"], section.get("schedule", "constant"), section["evaluate_every"]
    if section["optimizer"] == "adamw" and formula != "adam" and section["learning_rate"] is None:
        raise ConfigError(
            "config key finetune.learning_rate: adamw needs a number > 0, or kernel.formula: adam to take it from;"
            " found null"
        )
    if section.get("weight_decay") and section["optimizer"] != "adamw":
        raise ConfigError(
            f"config key finetune.weight_decay: {section['weight_decay']} given for {section['optimizer']}; allowed:"
            " 0, or adamw as the optimizer"
        )
    if section.get("warmup") and schedule == "constant":
        raise ConfigError(
            f"config key finetune.warmup: {section['warmup']} steps given for a constant schedule; allowed: 0, or"
            " linear or cosine as the schedule"
        )
    if section.get("warmup", 0) >= section["steps"]:
        raise ConfigError(
            f"config key finetune.warmup: {section['warmup']} steps of warm-up leave nothing of finetune.steps"
            f" {section['steps']}; allowed: fewer"
        )
    if every > 1 and every != int(every):
        raise ConfigError(
            f"config key finetune.evaluate_every: {every} is neither a whole number of steps nor a fraction of an"
            " epoch below 1"
        )
    if (stop == FIXED_STOP) != ("epochs" in section):
        raise ConfigError(
            f"config key finetune.epochs: found {section.get('epochs')!r} with finetune.stop {stop!r}; allowed: a"
            " number > 0 with stop: epochs, and none with another stop"
        )
    if "folds" in section and stop != "cross_validation":
        raise ConfigError(
            f"config key finetune.folds: {section['folds']} given for finetune.stop {stop!r}; allowed: stop:"
            " cross_validation, or no folds"
        )
    if stop not in ("holdout", "none", FIXED_STOP, *FOLDED_STOPS, *rules):
        raise ConfigError(
            f"config key finetune.stop: {stop!r} is not among stopping.rules {list(rules)}, so nothing predicts its"
            f" time; allowed: holdout, none, {FIXED_STOP}, {', '.join(FOLDED_STOPS)}, or one of these kernel rules"
        )


def _check_training(kernel: dict[str, Any], section: Mapping[str, Any], head: bool) -> None:
    """Refuse what no step of the workflow can train, before any kernel is computed."""
    if kernel["outputs"] == "head" and not head:
        raise ConfigError(
            "config key kernel.outputs: 'head' needs a head on the model; allowed: model.head: classification, or"
            " contrast, or logits with finetune.objective: cross_entropy"
        )
    if kernel["outputs"] == "vocabulary" and (head or section["objective"] == "squared"):
        raise ConfigError(
            "config key kernel.outputs: 'vocabulary' is the loss of a language model's label token; allowed: contrast,"
            " or finetune.objective: cross_entropy and no model.head"
        )
    if kernel["outputs"] == "logits" and section["objective"] == "squared":
        raise ConfigError(
            "config key kernel.outputs: 'logits' has singular noise under squared loss; allowed: contrast, or"
            " finetune.objective: cross_entropy"
        )
    if section.get("tangent") and isinstance(kernel["parameters"], Mapping):
        raise ConfigError(
            "config key finetune.tangent: adapters have no tangent training; allowed: other kernel.parameters"
        )


def _check_adam(config: Mapping[str, Any]) -> None:
    """Refuse what the kernel of AdamW does not describe."""
    if config["finetune"]["optimizer"] != "adamw":
        raise ConfigError(
            f"config key kernel.formula: 'adam' is the kernel of AdamW, and finetune.optimizer is"
            f" {config['finetune']['optimizer']!r}; allowed: sgd, or adamw as the optimizer"
        )
    predicted = config["arithmetic"]["enabled"] and config["arithmetic"]["predict"] and len(config["tasks"]) > 1
    for stage, asked in (("arithmetic.predict", predicted), ("joint.enabled", config["joint"]["enabled"])):
        if asked:
            raise ConfigError(
                f"config key {stage}: every task has an 'adam' kernel of its own, and none between tasks; allowed:"
                " false, or kernel.formula: sgd"
            )


def _check_fitted_scale(config: Mapping[str, Any]) -> None:
    """Refuse a scale of the targets that is to be fitted where one number must hold before any kernel."""
    key = "config key stopping.target_scale: 'auto'"
    if config["kernel"]["formula"] == "adam":
        raise ConfigError(
            f"{key} is read off the kernel, and under squared loss AdamW's own kernel (kernel.formula: adam) off the"
            " targets; allowed: a number (4, say), finetune.objective: cross_entropy, or kernel.formula: sgd"
        )
    for stage in ("arithmetic", "joint"):
        if config[stage]["enabled"] and len(config["tasks"]) > 1:
            raise ConfigError(
                f"{key} is another number for each task, and {stage}.enabled needs one for all; allowed: a number, or"
                f" {stage}.enabled: false"
            )


def start_tasks(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the tasks of each start, in the order of ``tasks``: ``starts`` is a list (all tasks each) or a mapping."""
    starts, every = config["starts"], list(config["tasks"])
    if not isinstance(starts, Mapping):
        return dict.fromkeys(starts, every)
    chosen = {start: every if tasks == "all" else tasks for start, tasks in starts.items()}
    return {start: sorted(tasks, key=lambda t: every.index(t) if t in every else -1) for start, tasks in chosen.items()}


def completed_study(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the study section of a completed configuration with its defaults, which a run without one has too.

    Raises ConfigError for a recipe whose start does not fit what answers, words or a head of classes.
    """
    section = {name: field.default for name, field in Study.model_fields.items()} | dict(config.get("study") or {})
    answers = config["model"].get("head", "words")
    allowed = ["random", "probe"] if answers == "classification" else ["pretrained"]
    found = section["recipes"]
    if answers == "words":
        found = {name: {**own, "start": own.get("start", allowed[0])} for name, own in found.items()}
    for name, own in found.items():
        if (start := own.get("start", allowed[0])) not in allowed:
            raise ConfigError(
                f"config key study.recipes.{name}.start: found {start!r} with model.head {answers!r}; allowed:"
                f" {' or '.join(allowed)}"
            )
    return {**section, "recipes": found}


def config_digest(config: Mapping[str, Any]) -> str:
    """Return a short digest of the completed configuration: the identity of a pipeline run."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
