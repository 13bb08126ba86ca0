"""The configuration's keys, each with its type, default, what is allowed and what it means: the one source of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from stopwise.pipeline.config_fields import (
    LEFT_OUT,
    AutoCount,
    AutoNumber,
    Column,
    Columns,
    Distinct,
    Expression,
    Parameters,
    Section,
    Seed,
    Starts,
    Words,
    key,
)
from stopwise.pipeline.config_study import Study
from stopwise.stopping.registry import FIXED_STOP, FOLDED_STOPS, MEASURED, RULES

STOPS = ("holdout", "none", FIXED_STOP, *FOLDED_STOPS, *(rule for rule in RULES if rule not in MEASURED))
if TYPE_CHECKING:
    Rule = str
    Stop = str
else:
    Rule, Stop = Literal[RULES], Literal[STOPS]


class Model(Section):
    """The language model, and how it is loaded."""

    source: str = key(
        "smollm2-135m",
        "smollm2-135m, a local folder of safetensors, or a Hugging Face id",
        "where the model comes from",
        min_length=1,
    )
    revision: str | None = key(
        None,
        "a hub revision (branch, tag or commit) or null",
        "which state of a hub model, resolved once, recorded, then held",
    )
    dtype: Literal["float32", "float64", "bfloat16"] = key(
        "float32", "float32, float64 or bfloat16", "the number format of weights and passes"
    )
    attn_implementation: Literal[None, "eager", "sdpa"] = key(
        None, "null (the model's own choice), eager or sdpa", "how attention is computed"
    )
    trust_remote_code: bool = key(
        False, "true or false", "whether Python code from the hub repository may run, only for authors you trust"
    )
    reinit: list[Expression] = key(
        [], "a list of regular expressions over parameter names", "what the start `mixed` draws anew"
    )
    head: Annotated[Literal["words", "classification"], LEFT_OUT] = key(
        "words",
        "words (when left out, but for an encoder), or classification",
        "what answers, words of the vocabulary or a new head for each task, drawn by the seed",
    )


class Task(Section):
    """One task; a built-in one needs none of these keys, and each key given overrides it."""

    source: Annotated[dict[Any, Any], LEFT_OUT] = key(
        None,
        "a mapping with one of csv, tsv, json, jsonl, parquet (a path; beside it encoding, delimiter, header, strict),"
        " hub (a data set id; beside it strict) or package",
        "where the rows are",
        min_length=1,
    )
    text: Annotated[Columns, LEFT_OUT] = key(
        None, "a column name (or its number) or a list of them", "the columns that hold the texts"
    )
    label: Annotated[Column, LEFT_OUT] = key(None, "a column name, or its number", "the column that holds the label")
    template: Annotated[str, LEFT_OUT] = key(
        None,
        "a prompt with {column} placeholders",
        "what the model is asked, up to the word that it has to say; left out, the columns' names make it",
        min_length=1,
    )
    verbalizers: Annotated[Words | None, LEFT_OUT] = key(
        None,
        "a mapping from label value to one word, leading space included; or auto",
        "the word that stands for each label, a single token of the model (auto, the labels themselves, else A, B, …)",
    )
    other_labels: Annotated[Literal["error", "leave_out"], LEFT_OUT] = key(
        None, "error or leave_out", "what becomes of rows whose label has no verbalizer"
    )
    group: Annotated[Column | None, LEFT_OUT] = key(
        None, "a column name (or its number) or null", "rows of one group never lie in two splits"
    )
    minimum_abs_score: Annotated[float, LEFT_OUT] = key(
        None, "a number >= 0", "makes the sign of a score the label and leaves rows of smaller scores out", ge=0
    )


class Data(Section):
    """How long prompts may be, and how many examples are set aside."""

    max_tokens: int = key(24, "an integer >= 4", "the longest prompt in tokens, beyond which its texts are cut", ge=4)
    validation: int = key(
        32,
        "an integer >= 2",
        "examples for hold-out stopping and for choosing coefficients, unseen by kernel rules",
        ge=2,
    )
    test: int = key(96, "an integer >= 2", "examples that are only reported on", ge=2)
    chat_template: Annotated[bool, LEFT_OUT] = key(
        False,
        "true or false (false when left out)",
        "whether prompts are put to the model as its tokenizer's chat template has a user's message",
    )


class Kernel(Section):
    """Which kernel is computed, and with how much memory."""

    parameters: Parameters = key(
        "attention",
        "attention, linear, all, lora, head, trainable, a {peft: ...} or {lora: ...} mapping, or a list of regular"
        " expressions",
        "the parameters that are trained and that the kernel is over (trainable, whatever requires a gradient as the"
        " model comes: of a PEFT model, its adapter)",
    )
    outputs: Literal["contrast", "head", "logits", "vocabulary"] = key(
        "contrast",
        "contrast, head, logits or vocabulary",
        "the network's outputs, by default the C - 1 logit differences that decide the class (vocabulary, all tokens)",
    )
    formula: Literal["auto", "sgd", "signgd", "adam"] = key(
        "auto",
        "auto, sgd, signgd or adam",
        "the training that the kernel describes (auto, adam under finetune.optimizer adamw, else sgd)",
    )
    shards: int = key(1, "an integer >= 1", "jobs per kernel, each with its own layers", ge=1)
    blocks: Annotated[int, LEFT_OUT] = key(
        1,
        "an integer >= 1 (1 when left out)",
        "blocks t >= 2 that the training examples are cut into, every two of them a job, t(t-1)/2 in all, instead of"
        " shards",
        ge=1,
    )
    processes: Annotated[int, LEFT_OUT] = key(
        1,
        "an integer >= 1 (1 when left out)",
        "processes that share the work of one job, each on a GPU of its own (without GPUs all on the CPU)",
        ge=1,
    )
    memory_gb: float | None = key(
        2, "a number > 0 or null", "GB (10^9 bytes) of activations that a shard may keep (null for no limit)", gt=0
    )
    layers: Annotated[bool | None, LEFT_OUT] = key(
        None,
        "true, false or null (when left out: true while all layers take 1 GB at most)",
        "whether each layer's kernel is kept on disk, or their sum and three numbers of each",
    )
    products: Annotated[Literal["float32", "float64", "fp16x2", "tf32", "bf16"], LEFT_OUT] = key(
        "float32",
        "float32 (when left out), float64, fp16x2, tf32 or bf16",
        "how gradients are multiplied, where fp16x2 is as exact as float32 and meant for a GPU, tf32 and bf16 are not",
    )


class Stopping(Section):
    """The stopping rules, and what they estimate."""

    intercept: Literal["fitted", "none"] = key(
        "fitted", "fitted or none", "whether the prompt's constant offset is removed by the training mean"
    )
    target_scale: AutoNumber = key(
        "auto",
        "auto or a number > 0",
        "the scale of squared loss's targets, +-scale/sqrt(2) for two classes (auto, so that training does not shrink"
        " the model's own answer)",
    )
    noise: Literal["reml", "gcv"] = key("reml", "reml or gcv", "how the noise of the labels is estimated")
    radius: Literal["prior", "fit"] = key(
        "prior", "prior or fit", "which estimate of the RKHS norm the worst-case rule uses"
    )
    rules: Distinct[Rule] = key(
        ["sure", "gcv", "loo", "bayes", "holdout", "oracle"],
        f"a list of {', '.join(RULES)}",
        "the rules that are computed and compared",
        min_length=1,
    )
    t_max: int | None = key(
        None, "an integer >= 1, or null for finetune.steps", "the longest time a rule may name, in steps", ge=1
    )


class Finetune(Section):
    """How the model is trained, and when training ends."""

    objective: Literal["squared", "cross_entropy"] = key(
        "cross_entropy", "squared or cross_entropy", "the loss (the theory speaks of squared loss)"
    )
    optimizer: Literal["gradient_descent", "heavy_ball", "nesterov", "adamw"] = key(
        "adamw", "gradient_descent, heavy_ball, nesterov or adamw", "the update rule"
    )
    momentum: float = key(0.9, "a number in [0, 1)", "the momentum of heavy_ball and nesterov", ge=0, lt=1)
    step_size: float = key(
        1.0,
        "a number in (0, 1]",
        "c in alpha = c / lambda_1, the learning rate as a share of the largest stable one",
        gt=0,
        le=1,
    )
    learning_rate: AutoNumber | None = key(
        "auto",
        "auto, a number > 0 or null",
        "an absolute learning rate; null takes step_size and the kernel's largest eigenvalue (auto, 0.0001 under adamw,"
        " else null)",
    )
    steps: AutoCount = key(
        "auto", "auto or an integer >= 1", "the number of optimizer steps (auto, 32 under adamw, else 12)"
    )
    batch_size: AutoCount | None = key(
        "auto",
        "auto, an integer >= 1, or null for full batches",
        "examples of one step (auto, 8 under adamw, else full batches)",
    )
    evaluate_every: AutoNumber = key(
        "auto",
        "auto, steps (an integer >= 1) or a fraction of an epoch (< 1)",
        "how often training is evaluated (auto, four times a run)",
    )
    patience: int = key(2, "an integer >= 1", "evaluations without improvement that hold-out stopping waits for", ge=1)
    min_delta: float = key(0.0, "a number >= 0", "the smallest change of the loss that counts as improvement", ge=0)
    stop: Stop = key(
        "bayes",
        "holdout, none, epochs, cross_validation, holdout_refit or the name of a kernel rule",
        "what ends training (cross_validation and holdout_refit train without parts of the examples first)",
    )
    folds: Annotated[int, LEFT_OUT] = key(
        8, "an integer >= 2 (8 when left out)", "the trainings of cross_validation, each without one part", ge=2
    )
    epochs: Annotated[float, LEFT_OUT] = key(
        None, "a number > 0, which stop: epochs needs", "the epochs after which stop: epochs ends training", gt=0
    )
    continue_after_stop: bool = key(
        True, "true or false", "whether the curve is finished after the stop, so that every rule can be judged"
    )
    autocast: Literal[None, "bfloat16"] = key(None, "null or bfloat16", "the format that passes are computed in")
    schedule: Annotated[Literal["constant", "linear", "cosine"], LEFT_OUT] = key(
        "constant", "constant (when left out), linear or cosine", "how the step size falls"
    )
    warmup: Annotated[int, LEFT_OUT] = key(
        0, "an integer >= 0 (0 when left out)", "steps of rising step size under linear or cosine", ge=0
    )
    weight_decay: Annotated[float, LEFT_OUT] = key(
        0, "a number >= 0 (0 when left out)", "AdamW's decay of the parameters towards zero", ge=0
    )
    clip_norm: Annotated[float, LEFT_OUT] = key(
        None,
        "a number > 0 (no clipping when left out)",
        "the norm that the gradient of a step is cut down to, over all trained parameters",
        gt=0,
    )
    tokens_per_batch: Annotated[int, LEFT_OUT] = key(
        1024,
        "an integer >= 1 (1024 when left out)",
        "padded tokens of one pass, where larger batches accumulate their gradient with the same result",
        ge=1,
    )
    tangent: Annotated[bool, LEFT_OUT] = key(
        False, "true or false (false when left out)", "whether the model linearised at its start is trained"
    )


class Drift(Section):
    """The kernel along training: one size of each task is trained again and its kernel followed."""

    enabled: bool = key(False, "true or false", "whether the kernel is followed")
    seeds: Distinct[Seed] = key([0], "a subset of seeds", "the seeds whose runs are followed", min_length=1)
    size: int | None = key(None, "one of sizes, or null for the smallest", "training examples of these runs")
    examples: int = key(32, "an integer >= 2", "training examples of the kernels along the run", ge=2)
    checkpoints: int = key(2, "an integer >= 1", "kernels between start and end of the run", ge=1)


class Joint(Section):
    """All tasks trained as one, beside the stop that their joint kernel predicts."""

    enabled: bool = key(False, "true or false", "whether the tasks are trained as one")
    seeds: Distinct[Seed] = key([0], "a subset of seeds", "the seeds whose tasks are trained together", min_length=1)
    size: int | None = key(None, "one of sizes, or null for the smallest", "examples of each task")


class Arithmetic(Section):
    """Task vectors added and negated."""

    enabled: bool = key(
        False,
        "true or false",
        "whether task vectors are combined, where at least two tasks start from pretrained weights",
    )
    seeds: Distinct[Seed] = key([0], "a subset of seeds", "the seeds whose vectors are combined", min_length=1)
    size: int | None = key(
        None,
        "one of sizes, or null for the middle one (of an even number the larger)",
        "training size of the vectors, with whose square the kernels between tasks grow",
    )
    coefficients: Distinct[Annotated[float, Field(gt=0)]] = key(
        [0.3, 0.6, 1.0], "a list of numbers > 0", "what the vectors are multiplied by", min_length=1
    )
    control_tolerance: float = key(
        0.05, "a share in [0, 1]", "how much accuracy the control tasks may lose by a negation", ge=0, le=1
    )
    predict: bool = key(True, "true or false", "whether the kernels between tasks predict the arithmetic")
    shards: int = key(
        1, "an integer >= 1", "jobs per seed for the kernels between tasks, each with its own layers", ge=1
    )
    disentanglement: Distinct[float] = key(
        [],
        "a list of numbers ([] for none)",
        "the coefficients of each axis of the disentanglement plane, which costs a grid of tests",
    )
    tangent: bool = key(False, "true or false", "whether tangent vectors are trained and compared")


class Theory(Section):
    """The synthetic problems of the target `theory`, whose truth is known."""

    repeats: int = key(200, "an integer >= 2", "draws of each problem", ge=2)
    sizes: list[Annotated[int, Field(ge=8)]] = key(
        [32, 64, 128, 256], "a list of at least two sizes >= 8", "training examples", min_length=2
    )
    seed: int = key(0, "an integer >= 0", "the seed of all draws", ge=0)


class Mlflow(Section):
    """Where the record of the run goes."""

    tracking_uri: str | None = key(
        None,
        "an http(s) address of an MLflow server, env (MLFLOW_TRACKING_URI), or null for sqlite under results/mlflow",
        "where MLflow writes",
    )


class Config(Section):
    """The keys of a run as a whole. Only `name` and `tasks` have to be given."""

    name: str = key(..., "letters, digits, - and _", "the run's name, and that of its folder under results/")
    seeds: Distinct[Seed] = key(
        [0], "a list of distinct integers >= 0", "each draws its own training and validation examples", min_length=1
    )
    sizes: Distinct[Annotated[int, Field(ge=4)]] = key(
        [64], "a list of distinct training sizes >= 4", "nested numbers of training examples", min_length=1
    )
    starts: Starts = key(
        ["pretrained"],
        "a list of pretrained, mixed, random; or a mapping from each to all or a list of task names",
        "the weights that training starts from",
    )
    device: Literal["auto", "cpu", "cuda"] = key(
        "auto", "auto, cpu or cuda", "where networks run (auto, a GPU when there is one)"
    )
    model: Model = Field(default_factory=Model)
    tasks: dict[str, Task | None] = key(
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
