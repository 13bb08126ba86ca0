"""The table of bad inputs: what is wrong, how it is met, and what the message must say."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from stopwise import artifacts
from stopwise.config import schema, validated

ROOT = Path(__file__).resolve().parents[1]
SENTENCES = "text,label,author\n" + "".join(f"the sky {i},{'red' if i % 2 else 'blue'},a{i}\n" for i in range(80))


@dataclass(frozen=True)
class Case:
    """One bad input: who reads it, what is wrong, how to meet it in an empty folder, and what the message says."""

    reader: str
    wrong: str
    meet: Callable[[Path], Any]
    says: str

    @property
    def name(self) -> str:
        return re.sub(r"\W+", "-", f"{self.reader} {self.wrong}").strip("-")[:90]


# --- Configuration: key -> bad values --------------------------------------

CONFIG: list[tuple[str, Any, str]] = [
    ("name", "../up", "not a safe name"),
    ("name", 3, "is not of type 'string'"),
    ("nmae", "x", "'nmae' was unexpected"),
    ("seeds", [0, 0], "non-unique"),
    ("seeds", [-1], "less than the minimum"),
    ("sizes", [], "should be non-empty"),
    ("sizes", [2], "less than the minimum"),
    ("starts", ["pretrianed"], "is not one of"),
    ("starts", ["mixed"], "'mixed' needs model.reinit"),
    ("device", "gpu", "auto, cpu or cuda"),
    ("model", None, "is not of type 'object'"),
    ("model.source", "", "should be non-empty"),
    ("model.revision", 7, "is not of type"),
    ("model.dtype", "float16", "float32, float64 or bfloat16"),
    ("model.attn_implementation", "flash", "eager or sdpa"),
    ("model.trust_remote_code", "yes", "is not of type 'boolean'"),
    ("model.reinit", "attn", "is not of type 'array'"),
    ("model.reinit", ["(attn"], "is not a 'regex'"),
    ("tasks", {}, "should be non-empty"),
    ("tasks.a/b", {}, "not a safe name"),
    ("tasks.colours", [], "is not of type"),
    ("tasks.colours.source", "rows.csv", "is not of type 'object'"),
    ("tasks.colours.text", 3, "is not of type"),
    ("tasks.colours.label", 3, "a column name"),
    ("tasks.colours.template", "", "a prompt with {column} placeholders"),
    ("tasks.colours.verbalizers", {"red": " red"}, "a mapping from label value"),
    ("tasks.colours.verbalizers", {"red": " red", "blue": 2}, "is not of type 'string'"),
    ("tasks.colours.group", 3, "a column name or null"),
    ("tasks.colours.minimum_abs_score", -1, "less than the minimum"),
    ("data", 3, "is not of type 'object'"),
    ("data.max_tokens", 0, "an integer >= 4"),
    ("data.validation", 1, "an integer >= 2"),
    ("data.test", "many", "an integer >= 2"),
    ("kernel", [], "is not of type 'object'"),
    ("kernel.parameters", "attentoin", "attention, linear, all, lora, head"),
    ("kernel.outputs", "contrasts", "contrast, head or logits"),
    ("kernel.formula", "adam", "sgd or signgd"),
    ("kernel.shards", 0, "an integer >= 1"),
    ("kernel.memory_gb", 0, "a number > 0 or null"),
    ("stopping", "sure", "is not of type 'object'"),
    ("stopping.intercept", "free", "fitted or none"),
    ("stopping.target_scale", 0, "a number > 0"),
    ("stopping.noise", "ml", "reml or gcv"),
    ("stopping.radius", 1.0, "prior or fit"),
    ("stopping.rules", ["sur"], "'sur' is not one of"),
    ("stopping.t_max", 0, "the longest time a rule may name"),
    ("finetune", 3, "is not of type 'object'"),
    ("finetune.objective", "mse", "squared or cross_entropy"),
    ("finetune.optimizer", "sgd", "gradient_descent, heavy_ball, nesterov or adamw"),
    ("finetune.momentum", 1.0, "a number in [0, 1)"),
    ("finetune.step_size", 1.5, "c in alpha = c / lambda_1"),
    ("finetune.learning_rate", -0.1, "a number > 0 or null"),
    ("finetune.steps", 0, "an integer >= 1"),
    ("finetune.batch_size", 0, "an integer >= 1"),
    ("finetune.evaluate_every", 0, "steps (an integer >= 1)"),
    ("finetune.patience", 0, "an integer >= 1"),
    ("finetune.min_delta", -1, "a number >= 0"),
    ("finetune.stop", "best", "holdout, none or the name of a kernel rule"),
    ("finetune.continue_after_stop", 1, "true or false"),
    ("finetune.autocast", "float16", "null or bfloat16"),
    ("arithmetic", True, "is not of type 'object'"),
    ("arithmetic.enabled", "on", "true or false"),
    ("arithmetic.seeds", [7], "7 is not among seeds"),
    ("arithmetic.size", 5, "5 is not among sizes"),
    ("arithmetic.coefficients", [0], "less than or equal to the minimum of 0"),
    ("arithmetic.control_tolerance", 2, "a share in [0, 1]"),
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


# --- Data ------------------------------------------------------------------


def task(folder: Path, content: str | bytes = SENTENCES, kind: str = "csv", **changes: Any) -> Any:
    """Return the sample of a small task whose rows are this content."""
    from stopwise import pico
    from stopwise.tasks import Task

    path = folder / f"rows.{kind}"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    definition = {
        "source": {kind: str(path)},
        "text": "text",
        "label": "label",
        "template": "Text: {text}\nColour:",
        "verbalizers": {"red": " red", "blue": " blue"},
    } | changes
    sizes = {"max_tokens": 24, "validation": 8, "test": 24, "train": 16}
    built = Task.from_config(definition, sizes, name="mine", assets=folder / "assets")
    return built.encode(pico.pico_tokenizer(), "train")


def json_lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet_bytes(columns: dict[str, list]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def data_cases() -> list[Case]:
    """Return the bad data sources, columns, prompts and words."""
    few = "\n".join(SENTENCES.splitlines()[:20]) + "\n"
    third = SENTENCES.replace(",red,a1\n", ",green,a1\n")
    hub = {"hub": "owner/reviews", "split": "train"}
    twin = {"red": " red", "blue": " red"}
    return [
        Case("csv", "no such file", lambda d: task(d, source={"csv": str(d / "no.csv")}), "there is no file"),
        Case("csv", "an empty file", lambda d: task(d, ""), "the file is empty"),
        Case("csv", "a header without rows", lambda d: task(d, "text,label,author\n"), "there are no rows"),
        Case("csv", "a row with a field too many", lambda d: task(d, SENTENCES + "a,b,c,d\n"), "has 4 fields"),
        Case("csv", "bytes that are not UTF-8", lambda d: task(d, SENTENCES.encode() + b"\xe9,red,a\n"), "not utf-8"),
        Case("csv", "a column that is not there", lambda d: task(d, label="colour"), "there is no column 'colour'"),
        Case("csv", "an empty cell", lambda d: task(d, SENTENCES + ",red,a\n"), "needs text or a number"),
        Case("jsonl", "a line that is not JSON", lambda d: task(d, "{\n", "jsonl"), "is not JSON"),
        Case("jsonl", "a row that is a list", lambda d: task(d, json_lines([1]), "jsonl"), "not an object"),
        Case("parquet", "a file that is no Parquet", lambda d: task(d, SENTENCES, "parquet"), "not a Parquet file"),
        Case(
            "parquet",
            "a truncated file",
            lambda d: task(d, parquet_bytes({"text": ["a"], "label": ["red"]})[:-9], "parquet"),
            "damaged or not a Parquet file",
        ),
        Case(
            "parquet",
            "a column that is not there",
            lambda d: task(d, parquet_bytes({"text": ["a"]}), "parquet"),
            "there is no column 'label'",
        ),
        Case("task", "a source of unknown kind", lambda d: task(d, source={"xlsx": "a"}), "needs one of csv"),
        Case("task", "two sources", lambda d: task(d, source={"csv": "a", "tsv": "b"}), "needs one of csv"),
        Case("task", "a placeholder that is no column", lambda d: task(d, template="{txt}:"), "is not a text column"),
        Case(
            "task", "a template without the text", lambda d: task(d, template="Colour:"), "must name each of text once"
        ),
        Case("task", "a label without a verbalizer", lambda d: task(d, third), "has no verbalizer"),
        Case("task", "one word for two labels", lambda d: task(d, verbalizers=twin), "stands for two labels"),
        Case(
            "task",
            "a word of several tokens",
            lambda d: task(d, verbalizers={"red": " incomprehensibilities", "blue": " blue"}),
            "is not one token after the prompt",
        ),
        Case("task", "too few rows for the splits", lambda d: task(d, few), "rows asked for"),
        Case("task", "a score that is no number", lambda d: scored(d), "is no number"),
        Case("wheel", "a package that is not built in", lambda d: task(d, source=package("numpy")), "is not one of"),
        Case("hub data", "no network", lambda d: task(d, source=hub), "the hub cannot be reached"),
        Case("hub data", "a name that leaves the folder", lambda d: task(d, source={"hub": "../../x"}), "hub"),
    ]


def package(name: str) -> dict[str, str]:
    return {"package": name, "member": "x.csv", "format": "csv"}


def scored(folder: Path) -> Any:
    words = {"positive": " positive", "negative": " negative"}
    return task(folder, minimum_abs_score=1, verbalizers=words)


# --- Models ----------------------------------------------------------------


def model(folder: Path, source: str | Path, **options: Any) -> Any:
    from stopwise.models import load_model

    return load_model(source, assets=folder / "assets", **options)


def saved(folder: Path) -> Path:
    """Return a folder with a small saved model."""
    from stopwise import pico

    target = folder / "model"
    pico.pico_model("llama", dtype="float32").save_pretrained(target)
    pico.pico_tokenizer().save_pretrained(target)
    return target


def damaged(folder: Path) -> Any:
    target = saved(folder)
    weights = target / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return model(folder, target)


def pickled(folder: Path) -> Any:
    target = saved(folder)
    (target / "model.safetensors").rename(target / "pytorch_model.bin")
    return model(folder, target)


def without_tokenizer(folder: Path) -> Any:
    target = saved(folder)
    for path in target.glob("*token*"):
        path.unlink()
    return model(folder, target)


def without_config(folder: Path) -> Any:
    target = saved(folder)
    (target / "config.json").unlink()
    return model(folder, target)


def chosen(parameters: Any) -> Any:
    from stopwise import pico
    from stopwise.parameters import select_parameters

    return select_parameters(pico.pico_model("llama"), parameters)


def model_cases() -> list[Case]:
    """Return the bad model sources and parameter choices."""
    return [
        Case("model", "a folder that is not there", lambda d: model(d, d / "no"), "there is no folder"),
        Case("model", "a folder without config.json", without_config, "needs config.json"),
        Case("model", "pickled weights only", pickled, "pickled weights can run code and are refused"),
        Case("model", "truncated weights", damaged, "could not be loaded"),
        Case("model", "no tokenizer", without_tokenizer, "tokenizer"),
        Case("model", "a revision of a built-in", lambda d: model(d, "pico-llama", revision="main"), "is not a hub id"),
        Case("hub model", "no network", lambda d: model(d, "owner/model"), "the hub cannot be reached"),
        Case("hub model", "a name that leaves the folder", lambda d: model(d, "../up"), "there is no folder"),
        Case(
            "model",
            "reinit that matches nothing",
            lambda d: model(d, "pico-llama", start="mixed", reinit=["nothing"]),
            "matches none of",
        ),
        Case(
            "kernel", "an expression that matches nothing", lambda _: chosen(["nothing"]), "matches no parameter name"
        ),
        Case("kernel", "an expression that is none", lambda _: chosen(["(q"]), "is not a regular expression"),
        Case("kernel", "an unknown option of lora", lambda _: chosen({"lora": {"rnk": 2}}), "unknown option 'rnk'"),
    ]


# --- Artifacts -------------------------------------------------------------


def written(folder: Path) -> Path:
    """Return the path of a valid artifact."""
    path = folder / "gram.parquet"
    rows = [{"block": "train", "row": i, "values": Random(i).randbytes(320)} for i in range(40)]
    artifacts.write_table(path, rows, "gram")
    return path


def read_damaged(folder: Path, damage: Callable[[bytes], bytes], kind: str = "gram") -> Any:
    path = written(folder)
    path.write_bytes(damage(path.read_bytes()))
    return artifacts.read_table(path, kind)


def flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 16
    return bytes(changed)


def foreign(folder: Path) -> Any:
    path = folder / "gram.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    return artifacts.read_table(path, "gram")


def shard(layer: str, f0: float) -> pa.Table:
    """Return a Jacobian shard of one layer of two examples."""
    import numpy as np

    from stopwise.gram_assembly import shard_rows

    block, outputs = {layer: np.ones((2, 2))}, np.full((2, 1), f0)
    return artifacts.table_of(shard_rows(block, block, outputs, outputs, {layer: np.ones(2)}), "jacobian")


def assembled(second: pa.Table) -> Any:
    from stopwise.gram_assembly import assemble

    return assemble({"shard0of2.parquet": shard("a", 0.0), "shard1of2.parquet": second})


def vector(folder: Path) -> Any:
    import torch

    from stopwise.task_vectors import TaskVector

    path = folder / "n8.safetensors"
    TaskVector.between({"w": torch.zeros(9)}, {"w": torch.ones(9)}).save(path)
    path.write_bytes(path.read_bytes()[:-4])
    return TaskVector.load(path)


def artifact_cases() -> list[Case]:
    """Return the bad artifacts, shards and task vectors."""
    return [
        Case("artifact", "not there", lambda d: artifacts.read_table(d / "no.parquet", "gram"), "no such artifact"),
        Case("artifact", "truncated", lambda d: read_damaged(d, lambda b: b[:-20]), "damaged"),
        Case("artifact", "cut in half", lambda d: read_damaged(d, lambda b: b[: len(b) // 2]), "damaged"),
        Case("artifact", "a flipped bit", lambda d: read_damaged(d, flipped), "remove it and run again"),
        Case(
            "artifact", "of another kind", lambda d: read_damaged(d, bytes, "data"), "of kind 'gram', expected 'data'"
        ),
        Case("artifact", "a Parquet file of somebody else", foreign, "without stopwise provenance"),
        Case("shards", "a layer in two shards", lambda _: assembled(shard("a", 0.0)), "is in another shard too"),
        Case(
            "shards", "of different models", lambda _: assembled(shard("b", 1.0)), "the shards are of different models"
        ),
        Case("task vector", "a truncated file", vector, "not a whole safetensors file"),
    ]


def record_cases() -> list[Case]:
    """Return the bad addresses of the record."""
    from stopwise.tracking_store import resolve_uri

    return [Case("record", "an address of unknown kind", lambda d: resolve_uri("ftp://x", d), "is not an address of")]


def all_cases() -> list[Case]:
    """Return the whole table."""
    return [*config_cases(), *data_cases(), *model_cases(), *artifact_cases(), *record_cases()]


def message_of(case: Case, folder: Path) -> str:
    """Return the one message of a case, folders made anonymous. Raises AssertionError when nothing is refused."""
    try:
        case.meet(folder)
    except (ValueError, OSError) as error:
        return str(error).replace(str(folder), "...").replace(str(Path.cwd()), "the working folder")
    raise AssertionError(f"{case.name}: accepted")


def document(folder: Path) -> str:
    """Return docs/bad-inputs.md: every case with its message."""
    lines = [
        "# Bad inputs and what they say",
        "",
        "Written by `tests/test_bad_inputs.py`, which runs every line (STOPWISE_WRITE_DOCS=1 writes this page anew).",
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
