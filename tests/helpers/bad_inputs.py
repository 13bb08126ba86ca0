"""The table of bad inputs: every config key here, every reader in bad_files.py; each with what the message must say."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import yaml

from bad_files import Case, file_cases
from stopwise.pipeline.config import validated
from stopwise.pipeline.config_messages import schema

ROOT = Path(__file__).resolve().parents[2]

# --- Configuration: key -> bad values --------------------------------------

CONFIG: list[tuple[str, Any, str]] = [
    ("name", "../up", "not a safe name"),
    ("name", None, "is not of type 'string'"),
    ("name", 3, "is not of type 'string'"),
    ("nmae", "x", "'nmae' was unexpected"),
    ("seeds", [0, 0], "non-unique"),
    ("seeds", [-1], "less than the minimum"),
    ("sizes", [], "should be non-empty"),
    ("sizes", [2], "less than the minimum"),
    ("starts", ["pretrianed"], "is not one of"),
    ("starts", ["mixed"], "'mixed' needs model.reinit"),
    ("starts", {"pretrained": ["colour"]}, "starts.pretrained: 'colour' is not among tasks"),
    ("starts", {"pretrained": "some"}, "to all or a list of task names"),
    ("starts", {"pretrianed": "all"}, "is not one of"),
    ("device", "gpu", "auto, cpu or cuda"),
    ("model", None, "is not of type 'object'"),
    ("model.source", "", "should be non-empty"),
    ("model.revision", 7, "is not of type"),
    ("model.dtype", "float16", "float32, float64 or bfloat16"),
    ("model.attn_implementation", "flash", "eager or sdpa"),
    ("model.trust_remote_code", "yes", "is not of type 'boolean'"),
    ("model.reinit", "attn", "is not of type 'array'"),
    ("model.reinit", ["(attn"], "is not a 'regex'"),
    ("model.head", "linear", "words (when left out"),
    ("model", {"source": "minilm", "head": "words"}, "'minilm' has no language-model head that could say words"),
    ("tasks", {}, "should be non-empty"),
    ("tasks.a/b", {}, "not a safe name"),
    ("tasks.colours", [], "is not of type"),
    ("tasks.colours.source", "rows.csv", "is not of type 'object'"),
    ("tasks.colours.text", 3.5, "is not of type"),
    ("tasks.colours.label", 3.5, "a column name"),
    ("tasks.colours.template", "", "a prompt with {column} placeholders"),
    ("tasks.colours.verbalizers", {"red": " red"}, "a mapping from label value"),
    ("tasks.colours.verbalizers", {"red": " red", "blue": 2}, "is not of type 'string'"),
    ("tasks.colours.verbalizers", "letters", "or auto"),
    ("tasks.colours.other_labels", "drop", "error or leave_out"),
    ("tasks.colours.group", 3.5, "a column name (or its number) or null"),
    ("tasks.colours.minimum_abs_score", -1, "less than the minimum"),
    ("data", 3, "is not of type 'object'"),
    ("data.max_tokens", 0, "an integer >= 4"),
    ("data.validation", 1, "an integer >= 2"),
    ("data.test", "many", "an integer >= 2"),
    ("data.chat_template", "yes", "as its tokenizer's chat template has"),
    ("kernel", [], "is not of type 'object'"),
    ("kernel.parameters", "attentoin", "attention, linear, all, lora, head, trainable"),
    ("kernel.parameters", {"peft": {"rnk": 2}}, "unknown option 'rnk'"),
    ("kernel.parameters", {"peft": {"target": "(q"}}, "an expression for whole names of layers"),
    ("kernel.parameters", {"lora": {"alpha": 2}}, "unknown option 'alpha'; allowed: rank, scale, target, seed"),
    ("kernel.parameters", {"adapter": {}}, "a mapping of peft alone"),
    ("kernel.parameters", {"peft": {"rank": 0}}, "kernel.parameters.peft.rank: found 0; allowed: an integer >= 1"),
    ("kernel.outputs", "contrasts", "contrast, head, logits or vocabulary"),
    ("kernel.outputs", "head", "needs a head on the model"),
    ("kernel.outputs", "logits", "'logits' has singular noise under squared loss"),
    ("kernel.outputs", "vocabulary", "the loss of a language model's label token"),
    ("kernel.formula", "adamw", "sgd, signgd or adam"),
    ("kernel.formula", "adam", "the kernel of AdamW, and finetune.optimizer is"),
    ("kernel.shards", 0, "an integer >= 1"),
    ("kernel.blocks", 0, "an integer >= 1"),
    ("kernel.blocks", 3, "3 blocks of examples beside 2 shards of layers"),
    ("kernel.processes", 0, "an integer >= 1"),
    ("kernel.memory_gb", 0, "a number > 0 or null"),
    ("kernel.layers", "yes", "true, false"),
    ("kernel.products", "fp4", "is not one of"),
    ("stopping", "sure", "is not of type 'object'"),
    ("stopping.intercept", "free", "fitted or none"),
    ("stopping.target_scale", 0, "a number > 0"),
    ("stopping.target_scale", "auto", "arithmetic.enabled needs one for all"),
    ("stopping.noise", "ml", "reml or gcv"),
    ("stopping.radius", 1.0, "prior or fit"),
    ("stopping.rules", ["sur"], "'sur' is not one of"),
    ("stopping.t_max", 0, "the longest time a rule may name"),
    ("finetune", 3, "is not of type 'object'"),
    ("finetune.objective", "mse", "squared or cross_entropy"),
    ("finetune.optimizer", "sgd", "gradient_descent, heavy_ball, nesterov or adamw"),
    ("finetune", {"optimizer": "adamw", "learning_rate": None}, "adamw needs a number > 0"),
    ("finetune.momentum", 1.0, "a number in [0, 1)"),
    ("finetune.step_size", 1.5, "c in alpha = c / lambda_1"),
    ("finetune.learning_rate", -0.1, "a number > 0 or null"),
    ("finetune.steps", 0, "an integer >= 1"),
    ("finetune.batch_size", 0, "an integer >= 1"),
    ("finetune.evaluate_every", 0, "steps (an integer >= 1)"),
    ("finetune.evaluate_every", 2.5, "neither a whole number of steps"),
    ("finetune.patience", 0, "an integer >= 1"),
    ("finetune.min_delta", -1, "a number >= 0"),
    ("finetune.stop", "best", "or the name of a kernel rule"),
    ("finetune.stop", "loo", "is not among stopping.rules"),
    ("finetune.continue_after_stop", 1, "true or false"),
    ("finetune.autocast", "float16", "null or bfloat16"),
    ("finetune.schedule", "step", "constant (when left out), linear or cosine"),
    ("finetune.warmup", -1, "steps of rising step size"),
    ("finetune.warmup", 2, "2 steps given for a constant schedule"),
    (
        "finetune",
        {"schedule": "linear", "steps": 8, "warmup": 8},
        "8 steps of warm-up leave nothing of finetune.steps 8",
    ),
    ("finetune.weight_decay", -1, "a number >= 0"),
    ("finetune.weight_decay", 0.1, "0.1 given for heavy_ball"),
    ("finetune.clip_norm", 0, "the norm that the gradient of a step is cut down to"),
    ("finetune.tokens_per_batch", 0, "padded tokens of one pass"),
    ("finetune.tangent", "yes", "linearised at its start"),
    ("finetune.epochs", 0, "a number > 0, which stop: epochs needs"),
    ("finetune.folds", 1, "an integer >= 2"),
    ("study", True, "is not of type 'object'"),
    ("study.set_aside", "movie", "a list of names of tasks"),
    ("study.recipes", [], "a mapping from names to recipes"),
    ("study.recipes.colours", 1, "is not of type 'object'"),
    ("study.recipes.colours.learning_rate", 0, "a number > 0"),
    ("study.recipes.colours.step_size", 0, "a number > 0"),
    ("study.recipes.colours.schedule", "step", "constant"),
    ("study.recipes.colours.start", "zero", "random, probe or pretrained"),
    ("study.recipes.colours.clip_norm", 0, "a number > 0"),
    ("study.primary", "1e-4", "a list of names of recipes"),
    ("study.others_size", "small", "one of sizes"),
    ("study.usual", 3, "the name of a primary recipe"),
    ("study.steps", 1, "an integer >= 4"),
    ("study.epochs", 0, "an integer >= 1"),
    ("study.lengths", [0], "a list of integers >= 1"),
    ("study.evaluations", 0, "an integer >= 1"),
    ("study.fixed_epochs", [0], "a list of integers >= 1"),
    ("study.folds_size", "small", "one of sizes, 0 or null"),
    ("study.kernel_rows", 1, "an integer >= 4"),
    ("study.test_rows", {"movie": 1}, "integers >= 2"),
    ("drift", True, "is not of type 'object'"),
    ("drift.enabled", "on", "true or false"),
    ("drift", {"enabled": True, "seeds": [7]}, "drift.seeds: 7 is not among seeds"),
    ("drift.seeds", [], "should be non-empty"),
    ("drift", {"enabled": True, "size": 5}, "drift.size: 5 is not among sizes"),
    ("drift.size", "large", "one of sizes, or null for the smallest"),
    ("drift.examples", 1, "an integer >= 2"),
    ("drift.checkpoints", 0, "kernels between start and end"),
    ("joint", True, "is not of type 'object'"),
    ("joint.enabled", "on", "true or false"),
    ("joint", {"enabled": True, "seeds": [7]}, "joint.seeds: 7 is not among seeds"),
    ("joint.seeds", [-1], "less than the minimum"),
    ("joint.size", 5.5, "examples of each task"),
    ("arithmetic", True, "is not of type 'object'"),
    ("arithmetic.enabled", "on", "true or false"),
    ("arithmetic.seeds", [7], "7 is not among seeds"),
    ("arithmetic.size", 5, "5 is not among sizes"),
    ("arithmetic.coefficients", [0], "less than or equal to the minimum of 0"),
    ("arithmetic.control_tolerance", 2, "a share in [0, 1]"),
    ("arithmetic.predict", "yes", "whether the kernels between tasks predict"),
    ("arithmetic.shards", 0, "jobs per seed for the kernels between tasks"),
    ("arithmetic.disentanglement", 0.5, "a list of numbers ([] for none)"),
    ("arithmetic.tangent", 1, "whether tangent vectors are trained"),
    ("theory", 3, "is not of type 'object'"),
    ("theory.repeats", 1, "an integer >= 2"),
    ("theory.sizes", [64], "at least two sizes"),
    ("theory.seed", -1, "an integer >= 0"),
    ("mlflow", "http://x", "is not of type 'object'"),
    ("mlflow.tracking_uri", 3, "an http(s) address"),
]


def schema_keys() -> set[str]:
    """Return every key that the schema declares, a task's keys under the name `colours`."""

    def walk(node: dict, path: str) -> set[str]:
        node = schema()["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node
        found = set()
        for key, child in node.get("properties", {}).items():
            found |= {path + key} | walk(child, f"{path}{key}.")
        if isinstance(node.get("additionalProperties"), dict):
            found |= walk(node["additionalProperties"], f"{path}colours.")
        return found

    return walk(schema(), "")


def configured(key: str, value: Any) -> dict[str, Any]:
    """Return the test configuration with one key changed."""
    config = copy.deepcopy(yaml.safe_load((ROOT / "config" / "test.yaml").read_text(encoding="utf-8")))
    node = config
    *parents, last = key.split(".")
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    return config


def config_cases() -> list[Case]:
    """Return one case for each bad value of a config key."""
    return [
        Case(
            "configuration", f"{key}: {json.dumps(value)}", lambda _, k=key, v=value: validated(configured(k, v)), says
        )
        for key, value, says in CONFIG
    ]


def all_cases() -> list[Case]:
    """Return the whole table."""
    return [*config_cases(), *file_cases()]


def message_of(case: Case, folder: Path) -> str:
    """Return the one message of a case, folders made anonymous. Raises AssertionError when nothing is refused."""
    try:
        case.meet(folder)
    except (ValueError, OSError) as error:
        return str(error).replace(str(folder), "...").replace(str(Path.cwd()), "the working folder")
    raise AssertionError(f"{case.name}: accepted")


def document(folder: Path) -> str:
    """Return docs/reference/messages.md: every case with its message."""
    lines = [
        "# Bad inputs and what they say",
        "",
        "Written by `tests/workflow/test_bad_inputs.py`, which runs every line (STOPWISE_WRITE_DOCS=1 writes it anew).",
        "A job that meets one ends with the message as its only line, exit code not zero, and nothing half-written.",
        "",
        "| Read by | What is wrong | Message |",
        "|---|---|---|",
    ]
    for number, case in enumerate(all_cases()):
        place = folder / str(number)
        place.mkdir()
        cells = (case.reader, case.wrong, message_of(case, place))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
