"""The configuration's keys, each with its type, default, what is allowed and what it means: the one source of them.

A field's description is "what is allowed: what it means". Error messages, the JSON schema for editors and the reference
page are made of it. Keys that a configuration may leave out without a trace carry ``LEFT_OUT``: ``config.validated``
does not write them, so that they change no digest of a configuration that does not use them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from stopwise.stopping.registry import FIXED_STOP, FOLDED_STOPS, MEASURED, RULES

T = TypeVar("T")
LEFT_OUT = "left out"  # marks a key that the completed configuration lacks unless it was given

# The branches of a key that takes values of several kinds; in an error's place they are no part of the key.
WORD, LIST, MAPPING, NUMBER = BRANCHES = ("<word>", "<list>", "<mapping>", "<number>")

STOPS = ("holdout", "none", FIXED_STOP, *FOLDED_STOPS, *(rule for rule in RULES if rule not in MEASURED))
if TYPE_CHECKING:
    Rule = str
    Stop = str
else:
    Rule, Stop = Literal[RULES], Literal[STOPS]


def _distinct(values: list[T]) -> list[T]:
    if any(value in values[:place] for place, value in enumerate(values)):
        raise PydanticCustomError("distinct", "has non-unique elements")
    return values


def _expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise PydanticCustomError("expression", "is not a 'regex'") from error
    return pattern


def _branch(value: Any) -> str | None:
    if isinstance(value, bool):
        return None
    kinds = ((str, WORD), (list, LIST), (dict, MAPPING), (int, NUMBER), (float, NUMBER))
    return next((branch for kind, branch in kinds if isinstance(value, kind)), None)


def _one_of(types: str) -> Discriminator:
    return Discriminator(_branch, custom_error_type="kind", custom_error_message=f"is not of type {types}")


def _key(default: Any, allowed: str, meaning: str, **limits: Any) -> Any:
    """Return a field whose description joins what is allowed and what it means."""
    return Field(default, description=f"{allowed}: {meaning}", **limits)


Distinct = Annotated[list[T], AfterValidator(_distinct), Field(json_schema_extra={"uniqueItems": True})]
Seed = Annotated[int, Field(ge=0)]
Expression = Annotated[str, AfterValidator(_expression), Field(json_schema_extra={"format": "regex"})]
Start = Literal["pretrained", "mixed", "random"]
TaskNames = Annotated[
    Annotated[Literal["all"], Tag(WORD)] | Annotated[Distinct[str], Field(min_length=1), Tag(LIST)],
    _one_of("'string', 'array'"),
]
Starts = Annotated[
    Annotated[Distinct[Start], Field(min_length=1), Tag(LIST)]
    | Annotated[dict[Start, TaskNames], Field(min_length=1), Tag(MAPPING)],
    _one_of("'array', 'object'"),
]
Parameters = Annotated[
    Annotated[Literal["attention", "linear", "all", "lora", "head", "trainable"], Tag(WORD)]
    | Annotated[list[str], Field(min_length=1), Tag(LIST)]
    | Annotated[dict[Any, Any], Tag(MAPPING)],
    _one_of("'string', 'array', 'object'"),
]
Column = Annotated[Annotated[str, Tag(WORD)] | Annotated[int, Tag(NUMBER)], _one_of("'string', 'integer'")]
Columns = Annotated[
    Annotated[str, Tag(WORD)] | Annotated[int, Tag(NUMBER)] | Annotated[list[Column], Tag(LIST)],
    _one_of("'string', 'integer', 'array'"),
]
Words = Annotated[
    Annotated[Literal["auto"], Tag(WORD)] | Annotated[dict[Any, str], Field(min_length=2), Tag(MAPPING)],
    _one_of("'string', 'object'"),
]
AutoNumber = Annotated[
    Annotated[Literal["auto"], Tag(WORD)] | Annotated[float, Field(gt=0), Tag(NUMBER)], _one_of("'string', 'number'")
]
AutoCount = Annotated[
    Annotated[Literal["auto"], Tag(WORD)] | Annotated[int, Field(ge=1), Tag(NUMBER)], _one_of("'string', 'integer'")
]


class Section(BaseModel):
    """A mapping of known keys. A text is never taken for a number, nor a number for a truth value."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Model(Section):
    """The language model, and how it is loaded."""

    source: str = _key(
        "smollm2-135m",
        "smollm2-135m, a local folder of safetensors, or a Hugging Face id",
        "where the model comes from",
        min_length=1,
    )
    revision: str | None = _key(
        None,
        "a hub revision (branch, tag or commit) or null",
        "which state of a hub model, resolved once, recorded, then held",
    )
    dtype: Literal["float32", "float64", "bfloat16"] = _key(
        "float32", "float32, float64 or bfloat16", "the number format of weights and passes"
    )
    attn_implementation: Literal[None, "eager", "sdpa"] = _key(
        None, "null (the model's own choice), eager or sdpa", "how attention is computed"
    )
    trust_remote_code: bool = _key(
        False, "true or false", "whether Python code from the hub repository may run, only for authors you trust"
    )
    reinit: list[Expression] = _key(
        [], "a list of regular expressions over parameter names", "what the start `mixed` draws anew"
    )
    head: Annotated[Literal["words", "classification"], LEFT_OUT] = _key(
        "words",
        "words (when left out, but for an encoder), or classification",
        "what answers, words of the vocabulary or a new head for each task, drawn by the seed",
    )


class Task(Section):
    """One task; a built-in one needs none of these keys, and each key given overrides it."""

    source: Annotated[dict[Any, Any], LEFT_OUT] = _key(
        None,
        "a mapping with one of csv, tsv, json, jsonl, parquet (a path; beside it encoding, delimiter, header, strict),"
        " hub (a data set id; beside it strict) or package",
        "where the rows are",
        min_length=1,
    )
    text: Annotated[Columns, LEFT_OUT] = _key(
        None, "a column name (or its number) or a list of them", "the columns that hold the texts"
    )
    label: Annotated[Column, LEFT_OUT] = _key(None, "a column name, or its number", "the column that holds the label")
    template: Annotated[str, LEFT_OUT] = _key(
        None,
        "a prompt with {column} placeholders",
        "what the model is asked, up to the word that it has to say; left out, the columns' names make it",
        min_length=1,
    )
    verbalizers: Annotated[Words | None, LEFT_OUT] = _key(
        None,
        "a mapping from label value to one word, leading space included; or auto",
        "the word that stands for each label, a single token of the model (auto, the labels themselves, else A, B, …)",
    )
    other_labels: Annotated[Literal["error", "leave_out"], LEFT_OUT] = _key(
        None, "error or leave_out", "what becomes of rows whose label has no verbalizer"
    )
    group: Annotated[Column | None, LEFT_OUT] = _key(
        None, "a column name (or its number) or null", "rows of one group never lie in two splits"
    )
    minimum_abs_score: Annotated[float, LEFT_OUT] = _key(
        None, "a number >= 0", "makes the sign of a score the label and leaves rows of smaller scores out", ge=0
    )


class Data(Section):
    """How long prompts may be, and how many examples are set aside."""

    max_tokens: int = _key(24, "an integer >= 4", "the longest prompt in tokens, beyond which its texts are cut", ge=4)
    validation: int = _key(
        32,
        "an integer >= 2",
        "examples for hold-out stopping and for choosing coefficients, unseen by kernel rules",
        ge=2,
    )
    test: int = _key(96, "an integer >= 2", "examples that are only reported on", ge=2)
    chat_template: Annotated[bool, LEFT_OUT] = _key(
        False,
        "true or false (false when left out)",
        "whether prompts are put to the model as its tokenizer's chat template has a user's message",
    )


class Kernel(Section):
    """Which kernel is computed, and with how much memory."""

    parameters: Parameters = _key(
        "attention",
        "attention, linear, all, lora, head, trainable, a {peft: ...} or {lora: ...} mapping, or a list of regular"
        " expressions",
        "the parameters that are trained and that the kernel is over (trainable, whatever requires a gradient as the"
        " model comes: of a PEFT model, its adapter)",
    )
    outputs: Literal["contrast", "head", "logits", "vocabulary"] = _key(
        "contrast",
        "contrast, head, logits or vocabulary",
        "the network's outputs, by default the C - 1 logit differences that decide the class (vocabulary, all tokens)",
    )
    formula: Literal["auto", "sgd", "signgd", "adam"] = _key(
        "auto",
        "auto, sgd, signgd or adam",
        "the training that the kernel describes (auto, adam under finetune.optimizer adamw, else sgd)",
    )
    shards: int = _key(1, "an integer >= 1", "jobs per kernel, each with its own layers", ge=1)
    blocks: Annotated[int, LEFT_OUT] = _key(
        1,
        "an integer >= 1 (1 when left out)",
        "blocks t >= 2 that the training examples are cut into, every two of them a job, t(t-1)/2 in all, instead of"
        " shards",
        ge=1,
    )
    processes: Annotated[int, LEFT_OUT] = _key(
        1,
        "an integer >= 1 (1 when left out)",
        "processes that share the work of one job, each on a GPU of its own (without GPUs all on the CPU)",
        ge=1,
    )
    memory_gb: float | None = _key(
        2, "a number > 0 or null", "GiB of activations that a shard may keep (null for no limit)", gt=0
    )
    layers: Annotated[bool | None, LEFT_OUT] = _key(
        None,
        "true, false or null (when left out: true while all layers take 1 GB at most)",
        "whether each layer's kernel is kept on disk, or their sum and three numbers of each",
    )
    products: Annotated[Literal["float32", "float64", "fp16x2", "tf32", "bf16"], LEFT_OUT] = _key(
        "float32",
        "float32 (when left out), float64, fp16x2, tf32 or bf16",
        "how gradients are multiplied, where fp16x2 is as exact as float32 and meant for a GPU, tf32 and bf16 are not",
    )


class Stopping(Section):
    """The stopping rules, and what they estimate."""

    intercept: Literal["fitted", "none"] = _key(
        "fitted", "fitted or none", "whether the prompt's constant offset is removed by the training mean"
    )
    target_scale: AutoNumber = _key(
        "auto",
        "auto or a number > 0",
        "the scale of squared loss's targets, +-scale/sqrt(2) for two classes (auto, so that training does not shrink"
        " the model's own answer)",
    )
    noise: Literal["reml", "gcv"] = _key("reml", "reml or gcv", "how the noise of the labels is estimated")
    radius: Literal["prior", "fit"] = _key(
        "prior", "prior or fit", "which estimate of the RKHS norm the worst-case rule uses"
    )
    rules: Distinct[Rule] = _key(
        ["sure", "gcv", "loo", "bayes", "holdout", "oracle"],
        f"a list of {', '.join(RULES)}",
        "the rules that are computed and compared",
        min_length=1,
    )
    t_max: int | None = _key(
        None, "an integer >= 1, or null for finetune.steps", "the longest time a rule may name, in steps", ge=1
    )


class Finetune(Section):
    """How the model is trained, and when training ends."""

    objective: Literal["squared", "cross_entropy"] = _key(
        "cross_entropy", "squared or cross_entropy", "the loss (the theory speaks of squared loss)"
    )
    optimizer: Literal["gradient_descent", "heavy_ball", "nesterov", "adamw"] = _key(
        "adamw", "gradient_descent, heavy_ball, nesterov or adamw", "the update rule"
    )
    momentum: float = _key(0.9, "a number in [0, 1)", "the momentum of heavy_ball and nesterov", ge=0, lt=1)
    step_size: float = _key(
        1.0,
        "a number in (0, 1]",
        "c in alpha = c / lambda_1, the learning rate as a share of the largest stable one",
        gt=0,
        le=1,
    )
    learning_rate: AutoNumber | None = _key(
        "auto",
        "auto, a number > 0 or null",
        "an absolute learning rate; null takes step_size and the kernel's largest eigenvalue (auto, 0.0001 under adamw,"
        " else null)",
    )
    steps: AutoCount = _key(
        "auto", "auto or an integer >= 1", "the number of optimizer steps (auto, 32 under adamw, else 12)"
    )
    batch_size: AutoCount | None = _key(
        "auto",
        "auto, an integer >= 1, or null for full batches",
        "examples of one step (auto, 8 under adamw, else full batches)",
    )
    evaluate_every: AutoNumber = _key(
        "auto",
        "auto, steps (an integer >= 1) or a fraction of an epoch (< 1)",
        "how often training is evaluated (auto, four times a run)",
    )
    patience: int = _key(2, "an integer >= 1", "evaluations without improvement that hold-out stopping waits for", ge=1)
    min_delta: float = _key(0.0, "a number >= 0", "the smallest change of the loss that counts as improvement", ge=0)
    stop: Stop = _key(
        "bayes",
        "holdout, none, epochs, cross_validation, holdout_refit or the name of a kernel rule",
        "what ends training (cross_validation and holdout_refit train without parts of the examples first)",
    )
    folds: Annotated[int, LEFT_OUT] = _key(
        8, "an integer >= 2 (8 when left out)", "the trainings of cross_validation, each without one part", ge=2
    )
    epochs: Annotated[float, LEFT_OUT] = _key(
        None, "a number > 0, which stop: epochs needs", "the epochs after which stop: epochs ends training", gt=0
    )
    continue_after_stop: bool = _key(
        True, "true or false", "whether the curve is finished after the stop, so that every rule can be judged"
    )
    autocast: Literal[None, "bfloat16"] = _key(None, "null or bfloat16", "the format that passes are computed in")
    schedule: Annotated[Literal["constant", "linear", "cosine"], LEFT_OUT] = _key(
        "constant", "constant (when left out), linear or cosine", "how the step size falls"
    )
    warmup: Annotated[int, LEFT_OUT] = _key(
        0, "an integer >= 0 (0 when left out)", "steps of rising step size under linear or cosine", ge=0
    )
    weight_decay: Annotated[float, LEFT_OUT] = _key(
        0, "a number >= 0 (0 when left out)", "AdamW's decay of the parameters towards zero", ge=0
    )
    clip_norm: Annotated[float, LEFT_OUT] = _key(
        None,
        "a number > 0 (no clipping when left out)",
        "the norm that the gradient of a step is cut down to, over all trained parameters",
        gt=0,
    )
    tokens_per_batch: Annotated[int, LEFT_OUT] = _key(
        1024,
        "an integer >= 1 (1024 when left out)",
        "padded tokens of one pass, where larger batches accumulate their gradient with the same result",
        ge=1,
    )
    tangent: Annotated[bool, LEFT_OUT] = _key(
        False, "true or false (false when left out)", "whether the model linearised at its start is trained"
    )


class Drift(Section):
    """The kernel along training: one size of each task is trained again and its kernel followed."""

    enabled: bool = _key(False, "true or false", "whether the kernel is followed")
    seeds: Distinct[Seed] = _key([0], "a subset of seeds", "the seeds whose runs are followed", min_length=1)
    size: int | None = _key(None, "one of sizes, or null for the smallest", "training examples of these runs")
    examples: int = _key(32, "an integer >= 2", "training examples of the kernels along the run", ge=2)
    checkpoints: int = _key(2, "an integer >= 1", "kernels between start and end of the run", ge=1)


class Joint(Section):
    """All tasks trained as one, beside the stop that their joint kernel predicts."""

    enabled: bool = _key(False, "true or false", "whether the tasks are trained as one")
    seeds: Distinct[Seed] = _key([0], "a subset of seeds", "the seeds whose tasks are trained together", min_length=1)
    size: int | None = _key(None, "one of sizes, or null for the smallest", "examples of each task")


class Arithmetic(Section):
    """Task vectors added and negated."""

    enabled: bool = _key(
        False,
        "true or false",
        "whether task vectors are combined, where at least two tasks start from pretrained weights",
    )
    seeds: Distinct[Seed] = _key([0], "a subset of seeds", "the seeds whose vectors are combined", min_length=1)
    size: int | None = _key(
        None,
        "one of sizes, or null for the middle one (of an even number the larger)",
        "training size of the vectors, with whose square the kernels between tasks grow",
    )
    coefficients: Distinct[Annotated[float, Field(gt=0)]] = _key(
        [0.3, 0.6, 1.0], "a list of numbers > 0", "what the vectors are multiplied by", min_length=1
    )
    control_tolerance: float = _key(
        0.05, "a share in [0, 1]", "how much accuracy the control tasks may lose by a negation", ge=0, le=1
    )
    predict: bool = _key(True, "true or false", "whether the kernels between tasks predict the arithmetic")
    shards: int = _key(
        1, "an integer >= 1", "jobs per seed for the kernels between tasks, each with its own layers", ge=1
    )
    disentanglement: Distinct[float] = _key(
        [],
        "a list of numbers ([] for none)",
        "the coefficients of each axis of the disentanglement plane, which costs a grid of tests",
    )
    tangent: bool = _key(False, "true or false", "whether tangent vectors are trained and compared")


class Recipe(Section):
    """A way of training in the study: learning rate, given or read off the kernel, its schedule, the head's start."""

    learning_rate: Annotated[float, LEFT_OUT] = _key(
        None, "a number > 0 (left out where step_size is given)", "the absolute learning rate", gt=0
    )
    step_size: Annotated[float, LEFT_OUT] = _key(
        None, "a number > 0 (left out where learning_rate is given)", "c in c / lambda_1 of AdamW's own kernel", gt=0
    )
    schedule: Literal["constant", "decay"] = _key(
        "constant",
        "constant or decay",
        "a constant rate, looked at along the way, or 10 % of warm-up and linear decay, a training for each length",
    )
    start: Annotated[Literal["random", "probe", "pretrained"], LEFT_OUT] = _key(
        None,
        "random, probe or pretrained (random when left out, pretrained where words answer)",
        "how the head starts: drawn, or as the logistic regression on the features (words have no new head)",
    )
    clip_norm: Annotated[float, LEFT_OUT] = _key(
        None,
        "a number > 0 (finetune.clip_norm when left out)",
        "the norm that the gradient of a step is cut down to",
        gt=0,
    )


class Study(Section):
    """The targets `encoder_study` and `language_model_study`: ways of choosing a stop, judged on real training."""

    set_aside: Annotated[Distinct[str], LEFT_OUT] = _key(
        [], "a list of names of tasks ([] when left out)", "the tasks that no choice is made with"
    )
    recipes: Annotated[dict[str, Recipe], LEFT_OUT] = _key(
        {"1e-4-constant": {"learning_rate": 1e-4}},
        "a mapping from names to recipes (one of 1e-4, constant, when left out)",
        "the ways of training",
        min_length=1,
    )
    primary: Annotated[Distinct[str] | None, LEFT_OUT] = _key(
        None,
        "a list of names of recipes (all when left out)",
        "the recipes that run at every size with the first seed, and at others_size with the other seeds",
    )
    others_size: Annotated[int, LEFT_OUT] = _key(
        None, "one of sizes (the smallest when left out)", "the size of the other seeds and of the other recipes"
    )
    usual: Annotated[str, LEFT_OUT] = _key(
        None,
        "the name of a primary recipe (the last when left out)",
        "the recipe whose last step is the usual recipe that accuracies are compared with",
    )
    steps: Annotated[int, LEFT_OUT] = _key(
        160, "an integer >= 4 (160 when left out)", "the least length of a run, under decay of the longest", ge=4
    )
    epochs: Annotated[int, LEFT_OUT] = _key(12, "an integer >= 1 (12 when left out)", "the least epochs of a run", ge=1)
    lengths: Annotated[Distinct[Annotated[int, Field(ge=1)]], LEFT_OUT] = _key(
        [1, 2, 3, 5, 10, 20, 40],
        "a list of integers >= 1 ([1, 2, 3, 5, 10, 20, 40] when left out)",
        "the lengths in epochs of the trainings under decay, as far as a run goes",
    )
    evaluations: Annotated[int, LEFT_OUT] = _key(
        8,
        "an integer >= 1 (8 when left out)",
        "evaluations under a constant rate spaced evenly in logarithm, beside the fixed epochs",
        ge=1,
    )
    fixed_epochs: Annotated[Distinct[Annotated[int, Field(ge=1)]], LEFT_OUT] = _key(
        [1, 3, 5, 10], "a list of integers >= 1 ([1, 3, 5, 10] when left out)", "the fixed lengths that are compared"
    )
    folds_size: Annotated[int | None, LEFT_OUT] = _key(
        None,
        "one of sizes, 0 or null (null when left out)",
        "the size at which eight folds are trained, with the first seed and the usual recipe; null: at every size; 0:"
        " at none",
    )
    kernel_rows: Annotated[int, LEFT_OUT] = _key(
        256, "an integer >= 4 (256 when left out)", "rows of a kernel, at most: examples times classes less 1", ge=4
    )
    test_rows: Annotated[dict[str, Annotated[int, Field(ge=2)]], LEFT_OUT] = _key(
        {}, "a mapping from names of tasks to integers >= 2", "test rows of a seed where data.test is too many"
    )


class Theory(Section):
    """The synthetic problems of the target `theory`, whose truth is known."""

    repeats: int = _key(200, "an integer >= 2", "draws of each problem", ge=2)
    sizes: list[Annotated[int, Field(ge=8)]] = _key(
        [32, 64, 128, 256], "a list of at least two sizes >= 8", "training examples", min_length=2
    )
    seed: int = _key(0, "an integer >= 0", "the seed of all draws", ge=0)


class Mlflow(Section):
    """Where the record of the run goes."""

    tracking_uri: str | None = _key(
        None,
        "an http(s) address of an MLflow server, env (MLFLOW_TRACKING_URI), or null for sqlite under results/mlflow",
        "where MLflow writes",
    )


class Config(Section):
    """The keys of a run as a whole. Only `name` and `tasks` have to be given."""

    name: str = _key(..., "letters, digits, - and _", "the run's name, and that of its folder under results/")
    seeds: Distinct[Seed] = _key(
        [0], "a list of distinct integers >= 0", "each draws its own training and validation examples", min_length=1
    )
    sizes: Distinct[Annotated[int, Field(ge=4)]] = _key(
        [64], "a list of distinct training sizes >= 4", "nested numbers of training examples", min_length=1
    )
    starts: Starts = _key(
        ["pretrained"],
        "a list of pretrained, mixed, random; or a mapping from each to all or a list of task names",
        "the weights that training starts from",
    )
    device: Literal["auto", "cpu", "cuda"] = _key(
        "auto", "auto, cpu or cuda", "where networks run (auto, a GPU when there is one)"
    )
    model: Model = Field(default_factory=Model)
    tasks: dict[str, Task | None] = _key(
        ...,
        "a mapping from task name to its definition ({} for a built-in task)",
        "what the model is trained on",
        min_length=1,
    )
    data: Data = Field(default_factory=Data)
    kernel: Kernel = Field(default_factory=Kernel)
    stopping: Stopping = Field(default_factory=Stopping)
    finetune: Finetune = Field(default_factory=Finetune)
    drift: Drift = Field(default_factory=Drift)
    joint: Joint = Field(default_factory=Joint)
    arithmetic: Arithmetic = Field(default_factory=Arithmetic)
    study: Annotated[Study, LEFT_OUT] = Field(default_factory=Study)
    theory: Theory = Field(default_factory=Theory)
    mlflow: Mlflow = Field(default_factory=Mlflow)


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
