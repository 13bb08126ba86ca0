"""Bad data, models, artifacts and addresses: who reads them, what is wrong, and what the message must say."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq

from stopwise.artifacts import tables as artifacts
from stopwise.assets import wheels as assets

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


# --- Data ------------------------------------------------------------------


def task(folder: Path, content: str | bytes = SENTENCES, kind: str = "csv", **changes: Any) -> Any:
    """Return the sample of a small task whose rows are this content."""
    from stopwise.network import pico
    from stopwise.tasks.task import Task

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


def strict(folder: Path) -> dict[str, Any]:
    """Return the source of a csv file that takes nothing for granted."""
    return {"csv": str(folder / "rows.csv"), "strict": True}


def tabbed() -> str:
    """Return the sentences as a tsv file."""
    return SENTENCES.replace(",", "\t")


def json_lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet_bytes(columns: dict[str, list]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def unseen(folder: Path) -> Any:
    words = {"red": " red", "blue": " blue", "green": " green"}
    return task(folder, SENTENCES + "a moss,green,b9\n", verbalizers=words)


def many_labels(folder: Path) -> Any:
    from stopwise.tasks.head import head_task

    (folder / "rows.csv").write_text("text,label\n" + "".join(f"a sky {i},topic {i % 5}\n" for i in range(40)))
    definition = {"source": {"csv": str(folder / "rows.csv")}, "text": "text", "label": "label"}
    return head_task(definition, {"max_tokens": 24, "validation": 8, "test": 8, "train": 4}, name="mine")


def data_cases() -> list[Case]:
    """Return the bad data sources, columns, prompts and words."""
    few = "\n".join(SENTENCES.splitlines()[:20]) + "\n"
    third = SENTENCES.replace(",red,a1\n", ",green,a1\n")
    hub = {"hub": "owner/reviews", "split": "train"}
    several = "text,label\n" + "".join(f"a sky {i},{'red;blue' if i % 3 else 'red'}\n" for i in range(9)) + "x,blue\n"
    latin = SENTENCES.encode() + b"\xe9,red,a\n"
    twin = {"red": " red", "blue": " red"}
    return [
        Case("csv", "no such file", lambda d: task(d, source={"csv": str(d / "no.csv")}), "there is no file"),
        Case("csv", "an empty file", lambda d: task(d, ""), "the file is empty"),
        Case("csv", "a header without rows", lambda d: task(d, "text,label,author\n"), "there are no rows"),
        Case("csv", "a row with a field too many", lambda d: task(d, SENTENCES + "a,b,c,d\n"), "has 4 fields"),
        Case("csv", "bytes that are not UTF-8", lambda d: task(d, latin, source=strict(d)), "not utf-8"),
        Case("csv", "a column that is not there", lambda d: task(d, label="colour"), "there is no column 'colour'"),
        Case("csv", "an empty cell", lambda d: task(d, SENTENCES + ",red,a\n"), "needs text or a number"),
        Case("tsv", "a row with a field too few", lambda d: task(d, tabbed() + "a\tred\n", "tsv"), "has 2 fields"),
        Case("tsv", "a header that names a column twice", lambda d: task(d, "text\ttext\n", "tsv"), "a column twice"),
        Case("json", "text that is not JSON", lambda d: task(d, "{\n", "json"), "is not JSON"),
        Case("csv", "an Excel workbook", lambda d: task(d, b"PK\x03\x04" + bytes(50)), "save its sheet as CSV"),
        Case("csv", "a cell of several labels", lambda d: task(d, several, verbalizers="auto"), "several labels"),
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
        Case("task", "a label that only held-out rows have", unseen, "'green' is in no training example"),
        Case("task", "more labels than training examples", many_labels, "more than the 4 training examples"),
        Case("task", "a score that is no number", lambda d: scored(d), "is no number"),
        Case("wheel", "a package that is not built in", lambda d: task(d, source=package("numpy")), "is not one of"),
        Case("wheel", "another sha256", lambda d: from_wheel(d, "a", damage=b"!"), "the file was removed"),
        Case("wheel", "a member that is not there", lambda d: from_wheel(d, "no.csv", "csv"), "has no member 'no.csv'"),
        Case("wheel", "a format of unknown kind", lambda d: from_wheel(d, "a", "xlsx"), "and 'format' out of csv"),
        Case("wheel: questions", "a line of another form", lambda d: from_wheel(d, "a"), "expected 'COARSE:fine text'"),
        Case("wheel: snippets", "another header", lambda d: from_wheel(d, "a", "snippets"), "expected the header id"),
        Case("wheel: messages", "other columns", lambda d: from_wheel(d, "a", "messages"), "expected the columns spam"),
        Case("wheel: orange", "other columns", lambda d: from_wheel(d, "a", "orange"), "there is no column 'text'"),
        Case("wheel: topics", "a folder without texts", lambda d: from_wheel(d, "no/", "topics"), "has no text files"),
        Case("hub data", "no network", lambda d: task(d, source=hub), "the hub cannot be reached"),
        Case("hub data", "a name that leaves the folder", lambda d: task(d, source={"hub": "../../x"}), "hub"),
    ]


def package(name: str) -> dict[str, str]:
    return {"package": name, "member": "x.csv", "format": "csv"}


def from_wheel(folder: Path, member: str, form: str = "questions", damage: bytes = b"") -> Any:
    """Read a task from a made-up wheel whose member `a` is a small csv table, with bytes added after it was hashed."""
    path = folder / "assets" / "wheels" / "toy-1-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a"), SENTENCES)  # its fixed date keeps the hash in the message the same
    wheel = assets.Wheel("toy==1", path.name, assets.sha256_of(path))
    path.write_bytes(path.read_bytes() + damage)
    with patch.dict(assets.WHEELS, toy=wheel):
        return task(folder, source={"package": "toy", "member": member, "format": form})


def scored(folder: Path) -> Any:
    words = {"positive": " positive", "negative": " negative"}
    return task(folder, minimum_abs_score=1, verbalizers=words)


# --- Models ----------------------------------------------------------------


def model(folder: Path, source: str | Path, **options: Any) -> Any:
    from stopwise.network.loading import load_model

    return load_model(source, assets=folder / "assets", **options)


def saved(folder: Path) -> Path:
    """Return a folder with a small saved model."""
    from stopwise.network import pico

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


def encoder(folder: Path) -> Any:
    from stopwise.network.folders import prepare_model

    return model(folder, prepare_model("pico-bert", folder / "assets"))


def encoder_decoder(folder: Path, **options: Any) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 16}
    T5ForConditionalGeneration(T5Config(**shape)).save_pretrained(folder / "t5")
    return model(folder, folder / "t5", **options)


def optimizer_without_kernel(_: Path) -> Any:
    import torch

    from stopwise.integrations.trainer_schedule import optimizer_metric

    return optimizer_metric(torch.optim.Adagrad([torch.zeros(1, requires_grad=True)]))


def frozen_adapter(_: Path) -> Any:
    from stopwise.network import pico
    from stopwise.network.adapters import with_adapter
    from stopwise.network.parameters import select_parameters

    return select_parameters(with_adapter(pico.pico_model("llama"), {}).requires_grad_(False), "trainable")


def adapter_without_model(folder: Path) -> Any:
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    return model(folder, folder / "adapter")


def chosen(parameters: Any) -> Any:
    from stopwise.network import pico
    from stopwise.network.parameters import select_parameters

    return select_parameters(pico.pico_model("llama"), parameters)


def too_long(folder: Path) -> None:
    from stopwise.network.loading import check_positions, prepare_model

    check_positions(100_000, prepare_model("pico-gpt2", folder / "assets"))


def model_cases() -> list[Case]:
    """Return the bad model sources and parameter choices."""
    return [
        Case("model", "a folder that is not there", lambda d: model(d, d / "no"), "there is no folder"),
        Case("model", "a folder without config.json", without_config, "needs config.json"),
        Case("model", "pickled weights only", pickled, "pickled weights can run code and are refused"),
        Case("model", "truncated weights", damaged, "could not be loaded"),
        Case("model", "no tokenizer", without_tokenizer, "tokenizer"),
        Case("model", "prompts longer than its positions", too_long, "data.max_tokens: 100000 is more than the"),
        Case("model", "a revision of a built-in", lambda d: model(d, "pico-llama", revision="main"), "is not a hub id"),
        Case("model", "an encoder and no head", lambda d: model(d, "minilm"), "has no language-model head"),
        Case("model", "an encoder's folder and no head", encoder, "holds no language-model head"),
        Case("model", "an encoder-decoder", encoder_decoder, "is an encoder-decoder"),
        Case(
            "model",
            "an encoder-decoder for a head",
            lambda d: encoder_decoder(d, num_labels=3),
            "is an encoder-decoder",
        ),
        Case("model", "an adapter that names no model", adapter_without_model, "does not name the adapter's model"),
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
        Case("kernel", "nothing that is trainable", lambda _: chosen("trainable"), "requires a gradient"),
        Case("kernel", "an adapter that is frozen", frozen_adapter, "requires a gradient"),
        Case("Trainer", "an optimizer that has no kernel", optimizer_without_kernel, "optim: Adagrad has no kernel"),
        Case("kernel", "an adapter that no configuration makes", lambda _: chosen("lora"), "put one on the model with"),
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

    from stopwise.artifacts.gram import shard_table

    block, outputs = {layer: np.ones((2, 2))}, np.full((2, 1), f0)
    return shard_table(block, block, outputs, outputs, {layer: np.ones(2)})


def assembled(second: pa.Table) -> Any:
    from stopwise.artifacts.gram import assemble

    return assemble({"shard0of2.parquet": shard("a", 0.0), "shard1of2.parquet": second})


def in_blocks(block: int, f0: float) -> Any:
    """Assemble a kernel in two blocks of two examples from a file of one of them, and f0 told otherwise in another."""
    import numpy as np

    from stopwise.artifacts.blocks import assemble_blocks, block_table

    kernels = {("train", "a", block, block): np.ones((2, 2)), ("new", "a", 0, 0): np.ones((2, 2))}
    files = {
        "blocks0-1of2.parquet": block_table({("outputs", "", 0, 0): np.zeros((2, 1))}),
        "blocks0-2of2.parquet": block_table({("outputs", "", 0, 0): np.full((2, 1), f0), **kernels}),
    }
    return assemble_blocks(files, 2, 4, 2)


def vector(folder: Path) -> Any:
    import torch

    from stopwise.network.task_vectors import TaskVector

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
        Case("blocks", "one is missing", lambda _: in_blocks(0, 0.0), "is in none of the files"),
        Case("blocks", "of other blocks", lambda _: in_blocks(5, 0.0), "does not belong to 2 blocks"),
        Case("blocks", "of different models", lambda _: in_blocks(0, 1.0), "the files are of different models"),
        Case("task vector", "a truncated file", vector, "not a whole safetensors file"),
        Case("checkpoint", "a truncated file", checkpoint, "not a readable checkpoint"),
    ]


def without_device(_: Path) -> Any:
    """Ask for a GPU in a job where torch sees none."""
    from stopwise.pipeline.job import use_device

    job = SimpleNamespace(snakemake=SimpleNamespace(threads=1))
    with patch("torch.cuda.is_available", return_value=False), patch.dict("os.environ", {"CUDA_VISIBLE_DEVICES": ""}):
        return use_device(job, "cuda")


def checkpoint(folder: Path) -> Any:
    """Read a fine-tuning checkpoint that was cut short."""
    import torch

    from stopwise.training.checkpoint import load_checkpoint, save_checkpoint

    path = folder / "run.safetensors"
    save_checkpoint(path, {"theta": torch.ones(9)}, {"step": 3})
    path.write_bytes(path.read_bytes()[:-4])
    return load_checkpoint(path)


def machine_cases() -> list[Case]:
    """Return what a job asks of its machine and does not get: a device, an address for the record."""
    from stopwise.tracking.store import resolve_uri

    return [
        Case("device", "cuda where torch sees no device", without_device, "torch sees no CUDA device"),
        Case(
            "record", "an address that is not set", lambda d: resolve_uri("env", d), "MLFLOW_TRACKING_URI, which is not"
        ),
        Case("record", "an address of unknown kind", lambda d: resolve_uri("ftp://x", d), "is not an address of"),
    ]


def file_cases() -> list[Case]:
    """Return the bad inputs that are no config keys."""
    return [*data_cases(), *model_cases(), *artifact_cases(), *machine_cases()]
