"""The page on stopping a Trainer: its code runs as it is on pico models, and its tables name what there is."""

import inspect
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import DataCollatorWithPadding

import stock_trainer
from stopwise.integrations.callback import StopwiseCallback
from stopwise.network.pico import pico_tokenizer
from stopwise.training.adam_preconditioner import SECOND_ORDER
from trainer_runs import Collate, network, rows_of

PAGE = (Path(__file__).parents[2] / "docs/how-to/stop-a-trainer.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.S)


class Numberless(Collate):
    """The collator of a user, for rows with labels of a token each."""

    def __call__(self, rows):
        return super().__call__([row | {"number": 0} for row in rows])


def test_its_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tokenizer = pico_tokenizer()
    train = [{k: v for k, v in row.items() if k != "number"} for row in rows_of("bert")]
    names = {"model": network("bert", dtype="float32"), "train": train, "tokenizer": tokenizer}
    names |= {"collator": DataCollatorWithPadding(tokenizer), "answer_collator": Numberless()}
    names |= {"language_model": network("words", dtype="float32")}
    names |= {
        "examples": [(f"Review: the {w} day", i % 2) for i, w in enumerate(("rose", "fire", "sea", "sky", "ink"))]
    }
    for code in CODE:
        exec(compile(code, "stop-a-trainer.md", "exec"), names)
    assert "are within 5 % of the lowest" in capsys.readouterr().out
    assert names["trainer"].state.global_step >= 1
    assert (tmp_path / "out").is_dir()


def test_it_names_every_option_and_flag():
    library = Path(__file__).parents[2] / "src/stopwise"
    sources = "".join(
        p.read_text() for p in [*library.glob("integrations/*.py"), library / "stopping" / "scheduled.py"]
    )
    parts = re.findall(r"## (.*?)\n(.*?)(?=\n## |$)", PAGE, re.S)
    told = {title: set(re.findall(r"^\| `([a-z_]+)` \|", part, re.M)) for title, part in parts}
    assert told["Options"] == set(inspect.signature(StopwiseCallback).parameters)
    flags = told["What the flags say"] - {SECOND_ORDER}
    assert len(flags) == 10
    assert all(f'"{flag}"' in sources for flag in flags)


def recorded(name):
    return pq.read_table(stock_trainer.RECORD / f"{name}.parquet").to_pylist()


def test_the_recorded_page_is_made_of_the_recorded_rows():
    page = (stock_trainer.RECORD / "README.md").read_text(encoding="utf-8")
    assert stock_trainer.page(recorded("runs")) == page


def test_every_recorded_run_is_judged_on_its_own_curve():
    """The best step is that of the curve, and the cost is that of the step named; the run that stops ends there."""
    rows, curves = recorded("runs"), recorded("curves")
    known = {(case.name, task, seed) for case in stock_trainer.CASES for task, seed in case.runs}
    assert {(row["case"], row["task"], row["seed"]) for row in rows} <= known
    for row in rows:
        own = {at["step"]: at["loss"] for at in curves if all(at[key] == row[key] for key in ("case", "task", "seed"))}
        named = row["steps"] if row["predicted_step"] is None else row["predicted_step"]
        assert row["best_step"] == min(own, key=own.get)
        assert row["regret"] == pytest.approx(own[named] / min(own.values()) - 1)
        assert row["ended"] == max(1, named)
        assert row["loss_where_it_ended"] == pytest.approx(own[named], rel=1e-6)
