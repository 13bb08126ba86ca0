"""A person's file as a task: which columns, which words stand for the labels, and one clear error when that fails."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stopwise.advice.settings import AdviceError
from stopwise.assets.wheels import ASSETS
from stopwise.tasks.answers import LETTERS, OPPOSITES, example, given_words, single_tokens
from stopwise.tasks.prompts import Encoder, PromptError, default_template
from stopwise.tasks.sources import SourceError, source_of
from stopwise.tasks.splits import Rows, SplitError, split_rows
from stopwise.tasks.task import Example, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from stopwise.advice.plan import Plan
    from stopwise.advice.settings import Settings

__all__ = [
    "AdviceError",
    "File",
    "asked_task",
    "default_template",
    "given_words",
    "in_options",
    "make_task",
    "read_file",
]

NAME = "advice"
FEWEST_EXAMPLES = 8
LONGEST = 512  # tokens to which --max-tokens is raised for texts whose first tokens are the same
# What the library calls a setting, and the option that sets it here.
_OPTIONS = {
    r"set 'header: true' in the source if it is one": "give --header if it is one",
    rf"tasks\.{NAME}\.source\.delimiter": "--delimiter",
    rf"tasks\.{NAME}\.source\.encoding": "--encoding",
    rf"tasks\.{NAME}\.source\.\w+": "--data",
    rf"tasks\.{NAME}\.verbalizers": "--verbalizers",
    rf"tasks\.{NAME}\.template": "--template",
    rf"tasks\.{NAME}\.text": "--text",
    rf"tasks\.{NAME}\.label": "--label",
    r"data\.max_tokens": "--max-tokens",
    r"model\.source": "--model",
    r"model\.revision": "--revision",
    r"kernel\.parameters\.peft\.target": "--target",
    r"kernel\.parameters: peft is": "--adapter: peft is",
    r"kernel\.parameters": "--parameters",
    r"model\.head: classification": "--head",
    r"finetune\.(\w+)": r"--\1",
    r"set 'encoding' in the source": "give --encoding",
    rf" \(task '{NAME}'\)": "",
}


def in_options(message: str) -> str:
    """Return an error of the library with the names of config keys turned into those of options."""
    for key, option in _OPTIONS.items():
        message = re.sub(key, option, message)
    return re.sub(r"--(\w+)_(\w+)", r"--\1-\2", message)


@dataclass(frozen=True)
class File:
    """A file read: its source section, its columns, how many rows each label has (sorted by label), and what was said.

    ``task`` is the file as a task whose words are not chosen yet; ``classes`` the labels that are used.
    """

    path: str
    source: Mapping[str, Any]
    text: tuple[str, ...]
    label: str
    shares: Mapping[str, int]
    task: Task
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """The number of rows."""
        return sum(self.shares.values())

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels that are used, in class order."""
        return self.task.classes.labels

    @property
    def used(self) -> dict[str, int]:
        """How many rows each label that is used has."""
        return {label: self.shares[label] for label in self.classes}


def read_file(
    path: str | Path,
    text: Sequence[str],
    label: str,
    encoding: str | None = None,
    *,
    template: str | None = None,
    head: bool = False,
    name: str | None = None,
    **options: Any,
) -> File:
    """Return what a file holds in these columns; needs no model. ``options``: delimiter, header and strict.

    ``head``: labels need no words, so that all that have two texts count (``labelled``); ``name``: what the file is
    called. Raises AdviceError, SourceError or TaskError, in one line, for a file that cannot be read, a missing column,
    too many bad rows, a template that does not fit the columns, or a label column that is none.
    """
    try:
        source = source_of(path, {"encoding": encoding, **options})
    except SourceError as error:
        raise AdviceError(f"--data: {error}") from None
    cfg: dict[str, Any] = {"source": source, "text": list(text), "label": label}
    if template is not None:
        cfg["template"] = template
    task = Task.from_config(cfg, name=NAME, assets=ASSETS)
    shares = dict(sorted(Counter(row[label].strip() for row in task.rows).items()))
    classes = task.classes
    notes = (*task.read.said, *(() if head else classes.said))
    file = File(name or str(path), source, tuple(text), label, shares, task, notes)
    count = len(task.read.rows if head else task.examples)
    if count < FEWEST_EXAMPLES:
        raise AdviceError(f"--data: {file.path} holds {count} distinct labelled texts; needs {FEWEST_EXAMPLES} or more")
    return file


def words_of(file: File, verbalizers: Sequence[str]) -> dict[str, str]:
    """Return the words given for a file's labels, none when none are given; raises AdviceError for wrong ones."""
    if not verbalizers:
        return {}
    try:
        return given_words(verbalizers, file.classes, file.task.classes.left_out)
    except PromptError as error:
        raise AdviceError(str(error)) from None


def asked_task(file: File, tokenizer: PreTrainedTokenizerBase, asked: Settings | Plan, positions: int | None) -> Task:
    """Return the file as the task that settings or a plan ask for; see ``make_task``."""
    return make_task(
        file,
        tokenizer,
        template=asked.template,
        verbalizers=asked.verbalizers,
        max_tokens=asked.max_tokens,
        max_examples=asked.max_examples,
        seed=asked.seed,
        positions=positions,
    )


def make_task(
    file: File,
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str | None = None,
    verbalizers: Sequence[str] = (),
    max_tokens: int = 64,
    max_examples: int = 64,
    seed: int = 0,
    positions: int | None = None,
) -> Task:
    """Return the file as a task whose examples all train, at most ``max_examples`` of them.

    Without a template the prompt names the columns (``default_template``); without verbalizers (``label=word`` pairs, a
    JSON object or a file of one) words are chosen (``answers.choose_answers``). Texts whose first ``max_tokens`` tokens
    are the same get more of them, up to 512 or the model's ``positions``. Raises AdviceError, or a ValueError of the
    library, in one line.
    """
    base = file.task
    if template is not None:
        key = f"tasks.{NAME}.template"
        base = replace(base, template=type(base.template).parse(template, base.text, key))
    base = carried(file.task, replace(base, max_tokens=max_tokens, validation=0, test=0))
    words = words_of(file, verbalizers)
    if words:
        task = carried(base, replace(base, verbalizers=words, leave_out=True))
        _check_words(task, words, tokenizer)
    else:
        task = base.resolved(tokenizer, positions)
    return _distinguished(task, tokenizer, max_examples, seed, min(LONGEST, positions or LONGEST))


def carried(read: Task, task: Task) -> Task:
    """Return the task with what was read for another: rows, distinct texts, and the classes of the same words."""
    names = ["read", "_distinct"] + (["classes", "examples"] if read.verbalizers == task.verbalizers else [])
    task.__dict__.update({name: read.__dict__[name] for name in names if name in read.__dict__})
    return task


def _distinguished(task: Task, tokenizer: PreTrainedTokenizerBase, wanted: int, seed: int, longest: int) -> Task:
    """Return the task with as many training examples as look different, and with more tokens where too few do.

    All examples train: every estimate of the advice leaves examples out by itself.
    """
    encoder, given = Encoder(tokenizer), task.max_tokens - task.options
    wanted, budget = min(wanted, len(task.examples)), given
    while True:
        few = _few(task, wanted)
        seen = _looks(task, few, encoder)
        if sum(seen.values()) >= max(FEWEST_EXAMPLES, min(wanted, len(few)) / 2) and min(seen.values()) >= 2:
            break
        if 2 * budget + task.options > longest:
            raise AdviceError(
                f"--max-tokens: to the model, {sum(seen.values())} of {len(few)} texts look different in their first"
                f" {budget} tokens ({given} asked for); give more than {budget}, or a column whose texts differ at"
                " their beginning"
            )
        budget *= 2
        task = carried(task, replace(task, max_tokens=budget + task.options))
    raised = ""
    if budget > given:
        raised = f"the first {given} tokens of too many texts are the same: --max-tokens raised to {budget}"
    said = "; ".join(filter(None, (task.answers, raised)))
    task = carried(task, replace(task, answers=said))
    return carried(task, replace(task, train=_drawn(task, encoder, wanted, seed)))


def _few(task: Task, wanted: int) -> list[Example]:
    """Return twice as many examples as are wanted, spread evenly over the file and over the classes."""
    classes = len(task.verbalizers)
    by_class: list[list[Example]] = [[] for _ in range(classes)]
    for one in task.examples:
        by_class[one.label].append(one)
    share = 2 * wanted // classes + FEWEST_EXAMPLES
    return [one for own in by_class for one in own[:: max(1, len(own) // share)][:share]]


def _looks(task: Task, examples: Sequence[Example], encoder: Encoder) -> dict[int, int]:
    """Return how many examples of each class look different from all others to the model."""
    counts = dict.fromkeys(range(len(task.verbalizers)), 0)
    seen: set[tuple[int, ...]] = set()
    found = encoder.encode(task.template, [one.texts for one in examples], task.max_tokens)
    for encoded, one in zip(found, examples, strict=True):
        look = tuple(encoded.input_ids)
        counts[one.label] += look not in seen
        seen.add(look)
    return counts


def _drawn(task: Task, encoder: Encoder, wanted: int, seed: int) -> int:
    """Return how many of the wanted examples can be drawn, no two of which look the same."""
    known = task.examples
    rows = Rows([e.label for e in known], [e.group for e in known], [e.key for e in known])

    def look(i: int) -> tuple[int, ...]:
        return tuple(encoder.encode(task.template, [known[i].texts], task.max_tokens)[0].input_ids)

    try:
        return len(split_rows(rows, train=wanted, validation=0, test=0, seed=seed, look=look)["train"])
    except SplitError as error:
        return error.available


def _check_words(task: Task, words: Mapping[str, str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise one error that shows what to type when a label's word is not a single token after the prompt."""
    try:
        encoder = Encoder(tokenizer)
        prompts = [
            found.prompt
            for found in encoder.encode(task.template, [e.texts for e in task.examples[:4]], task.max_tokens)
        ]
        encoder.verbalizer_ids(words, prompts)
        return
    except PromptError as error:
        reason = str(error)
        if not reason.startswith("verbalizers"):
            raise
    proposed = propose_words(list(words), encoder, prompts)
    what = reason.split(": ", 1)[1].split("; allowed", maxsplit=1)[0]
    hint = ",".join(f"{name}={word.strip()}" for name, word in proposed.items()) if proposed else example(words)
    raise AdviceError(
        f"--verbalizers: every label needs a word that is one token of the model, and {what}; choose words that a"
        f' reader would expect after the prompt, for example: --verbalizers "{hint}", or none to have them chosen'
    )


def propose_words(labels: Sequence[str], encoder: Encoder, prompts: Sequence[str]) -> dict[str, str] | None:
    """Return single-token words for all labels, or None: near spellings first, then opposites, then letters."""
    near: dict[str, str] = {}
    for name in labels:
        spellings = [name, name.lower(), name.capitalize(), *re.findall(r"[^\W\d_]+", name.lower())]
        words = [f" {word}" for word in spellings if word and f" {word}" not in near.values()]
        found = next((word for word in words if single_tokens({"word": word}, encoder, prompts)), None)
        if found is None:
            break
        near[name] = found
    sets = [near] if len(near) == len(labels) else []
    pairs = OPPOSITES if len(labels) == 2 else ()
    sets += [dict(zip(labels, (f" {word}" for word in words), strict=True)) for words in pairs]
    sets.append({name: f" {letter}" for name, letter in zip(labels, LETTERS, strict=False)})
    return next((words for words in sets if single_tokens(words, encoder, prompts)), None)
