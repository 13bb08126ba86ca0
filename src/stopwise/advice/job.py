"""What is trained and on what: a model with a new head, with words or inside an adapter, and its Trainer's rows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stopwise.advice.data import File, asked_task
from stopwise.advice.held_out import stratified_order
from stopwise.advice.labelled import Labelled, labelled
from stopwise.advice.plan import Plan
from stopwise.advice.settings import AdviceError
from stopwise.tasks.prompts import Encoder
from stopwise.tasks.task import Task

Say = Callable[[str], None]
TRAINER = "the Trainer of transformers needs accelerate: pip install accelerate"


@dataclass
class Job:
    """A model, its tokenizer, and the rows that its Trainer is given.

    ``head``: the tensors of a new head at its start, by name; ``words`` and ``tokens``: of a language model, the words
    that answer and their ids, by class; ``probe``: the logistic regression that the head starts as; ``targets``: layers
    with an adapter; ``own`` and ``flags``: the weights of a model at hand and what it trains, which are put back.
    """

    model: Any
    tokenizer: Any
    folder: str
    data: Labelled
    rows: list[dict[str, Any]]
    words: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    head: dict[str, Any] = field(default_factory=dict, repr=False)
    probe: Any = field(default=None, repr=False)
    own: Mapping[str, Any] = field(default_factory=dict, repr=False)
    targets: tuple[str, ...] = ()
    flags: tuple[tuple[Any, bool], ...] = field(default=(), repr=False)

    @property
    def collate(self) -> Callable[[list[Any]], Any]:
        """The data collator that pads rows to a batch."""
        from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

        if self.words:
            if self.tokenizer.pad_token_id is None:
                self.tokenizer.pad_token = self.tokenizer.eos_token
            return DataCollatorForSeq2Seq(self.tokenizer)
        return DataCollatorWithPadding(self.tokenizer)

    def trainer(self, args: Any, rows: list[dict[str, Any]] | None = None, callbacks: Any = None) -> Any:
        """Return the Trainer that trains on the rows (None: all of them)."""
        from transformers import Trainer

        from stopwise.integrations.losses import answer_loss

        loss = answer_loss(self.tokens) if self.words else None
        rows = self.rows if rows is None else rows
        options: dict[str, Any] = {"data_collator": self.collate, "compute_loss_func": loss, "callbacks": callbacks}
        return Trainer(self.model, args, train_dataset=rows, **options)

    def put_back(self) -> None:
        """Give a model at hand the weights that it came with, and let it train what it trained."""
        if self.own:
            self.model.load_state_dict(self.own, strict=False)
        for parameter, flag in self.flags:
            parameter.requires_grad_(flag)


def make_job(plan: Plan, file: File, network: Any, tokenizer: Any, assets: str | None, say: Say) -> Job:
    """Return the model of a plan at its start, what is trained of it switched on, and its examples.

    ``network`` and ``tokenizer``: a model at hand (None: the plan's, from ``assets``). Raises ValueError, in one line,
    for what cannot be used.
    """
    given = network is not None
    if given and plan.adapter:
        raise AdviceError("adapter: a model that is given itself brings its own: peft.get_peft_model(model, config)")
    job = (_head_job if plan.head else _word_job)(plan, file, network, tokenizer, assets, say)
    if given:
        job.flags = tuple((parameter, parameter.requires_grad) for parameter in network.parameters())
        _keep_trainable(job, plan)
    _start_head(job, plan, say)
    if plan.lora is not None:
        from stopwise.network.adapters import with_adapter

        job.model = with_adapter(job.model, plan.lora, plan.seed)
        chosen = job.model.peft_config["default"].target_modules
        job.targets = (chosen,) if isinstance(chosen, str) else tuple(sorted(chosen))
    elif not given:
        _train_only(job.model, plan.trained)
    return job


def _head_job(plan: Plan, file: File, network: Any, tokenizer: Any, assets: str | None, say: Say) -> Job:
    """Load a classifier with a new head, and tokenize the examples."""
    examples = labelled(plan, file)
    say(f"{len(examples.labels)} examples with {len(examples.classes)} labels are used")
    from stopwise.network.classifiers import load_classifier
    from stopwise.network.heads import class_count, is_classifier

    folder, own = plan.model, {}
    if network is None:
        folder = model_folder(plan, assets, say)
        names = examples.classes
        network, tokenizer = load_classifier(folder, len(names), labels=names, seed=plan.seed, new_head=True)
    elif not is_classifier(network) or class_count(network) != len(examples.classes):
        found = class_count(network) if is_classifier(network) else 0
        raise AdviceError(
            f"model: needs a classification head of {len(examples.classes)} labels, as the data have; found"
            f" {type(network).__name__} with {found}"
        )
    else:
        own = copy.deepcopy({k: v.cpu() for k, v in network.state_dict().items() if k in _head_names(network)})
    _check_tokens(plan, network)
    rows = [
        {**tokenizer(*texts, truncation=True, max_length=plan.max_tokens), "labels": int(label)}
        for texts, label in zip(examples.texts, examples.labels, strict=True)
    ]
    return Job(network, tokenizer, folder, examples, rows, own=own)


def _word_job(plan: Plan, file: File, network: Any, tokenizer: Any, assets: str | None, say: Say) -> Job:
    """Load a language model, and make prompts that one word answers."""
    from stopwise.advice.findings import check_fit, positions_of
    from stopwise.integrations.losses import answer_example
    from stopwise.network.heads import bare, output_embeddings
    from stopwise.network.loading import load_model
    from stopwise.tasks.batch import batch_from_table

    folder = plan.model
    if network is None:
        folder = model_folder(plan, assets, say)
        network, tokenizer = load_model(folder)
    elif output_embeddings(network) is None:
        raise AdviceError(
            f"model: {type(network).__name__} has no words to answer with, and no head is asked for; give head=True and"
            " a sequence classifier, or a causal language model"
        )
    task = asked_task(file, tokenizer, plan, positions_of(bare(network)))
    sample = task.sample(tokenizer, plan.seed)
    check_fit(bare(network), sample, task.options)
    batch = batch_from_table(sample, "train")
    labels, tokens = batch["labels"].numpy(), tuple(map(int, batch["verbalizers"]))
    prompts = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    rows: list[dict[str, Any]] = [
        answer_example(ids, tokens[label]) for ids, label in zip(prompts, labels, strict=True)
    ]
    texts = tuple((prompt,) for prompt in sample["prompt"].to_pylist())
    words = tuple(task.verbalizers.values())
    notes = (*file.notes, *([task.answers] if task.answers else []))
    if task.answers:
        say(task.answers)
    say(f"{len(labels)} examples are used; the words for the labels are {', '.join(map(repr, words))}")
    shares = {name: sum(one.label == k for one in task.examples) for k, name in enumerate(task.verbalizers)}
    rest = _other_prompts(task, tokenizer, set(sample["source_row"].to_pylist()), plan.seed)
    examples = Labelled(texts, labels, tuple(task.verbalizers), file.rows, shares, notes, rest)
    return Job(network, tokenizer, folder, examples, rows, words=words, tokens=tokens)


def _other_prompts(task: Task, tokenizer: Any, used: set[int], seed: int) -> tuple[tuple[tuple[str, ...], int], ...]:
    """Return the prompts and classes of the examples that are not used, the classes mixed."""
    others = [one for one in task.examples if one.source_row not in used]
    order = stratified_order(np.array([one.label for one in others]), np.random.default_rng(seed))
    encoded = Encoder(tokenizer).encode(task.template, [others[i].texts for i in order], task.max_tokens)
    return tuple(((found.prompt,), others[i].label) for found, i in zip(encoded, order, strict=True))


def _check_tokens(plan: Plan, network: Any) -> None:
    """Raise AdviceError for texts that would be longer than the model has positions."""
    from stopwise.network.heads import position_limit

    limit = position_limit(network)
    if limit is not None and plan.max_tokens > limit:
        raise AdviceError(
            f"--max-tokens: {plan.max_tokens} is more than the {limit} positions of the model; give {limit} or less"
        )


def model_folder(plan: Plan, assets: str | None, say: Say) -> str:
    """Return the folder of the plan's model, fetched where Hugging Face keeps models when it is not there yet."""
    from pathlib import Path

    from stopwise.network.folders import BUILTIN, ENCODER
    from stopwise.network.loading import prepare_model
    from stopwise.network.model_cache import assets_of, cached_model

    where = Path(assets) if assets is not None else assets_of(plan.model)
    sizes = {BUILTIN: 98, ENCODER: 84}
    if plan.model in sizes and not (where / "models" / plan.model / "config.json").is_file():
        say(f"fetching {plan.model} into {where}: {sizes[plan.model]} MB, this once")
    say(f"loading {plan.model}")
    if assets is not None:
        return str(prepare_model(plan.model, assets, revision=plan.revision).resolve())
    return str(cached_model(plan.model, plan.revision).resolve())


def _start_head(job: Job, plan: Plan, say: Say) -> None:
    """Start a new head as a logistic regression, and keep its tensors, its penalty and the regression."""
    if not plan.head:
        return
    if plan.head_start != "random":
        from stopwise.training.probe import fit_probe, start_at

        say("fitting the head to the features")
        job.probe = fit_probe(job.model, job.collate(job.rows), job.data.labels, plan.seed)
        start_at(job.model, job.probe)
    names = _head_names(job.model)
    job.head = {k: v.detach().cpu().clone() for k, v in job.model.state_dict().items() if k in names}


def _head_names(model: Any) -> frozenset[str]:
    from stopwise.network.heads import head_names

    return frozenset(head_names(model))


def _train_only(model: Any, subset: str) -> None:
    """Let gradients reach a subset of the parameters, and a classifier's head, alone."""
    from stopwise.network.heads import is_classifier
    from stopwise.network.parameters import select_parameters

    chosen = set(select_parameters(model, subset)) | (_head_names(model) if is_classifier(model) else frozenset())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)


def _keep_trainable(job: Job, plan: Plan) -> None:
    """Leave a model at hand what it trains; one that is frozen as a whole, as ours are loaded, trains as planned."""
    if any(parameter.requires_grad for parameter in job.model.parameters()):
        return
    if hasattr(job.model, "peft_config"):
        raise AdviceError(
            "model: nothing of this PEFT model is trainable (no parameter requires a gradient); load its adapter with"
            " is_trainable=True, or leave inference_mode off"
        )
    _train_only(job.model, plan.trained)
