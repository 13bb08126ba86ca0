"""The console script ``stopwise``: advice for one's own data, and checks of a model; neither needs the workflow.

Only what the help needs is imported here: torch takes seconds.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

import stopwise as package

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")

Assets = Annotated[str | None, typer.Option(help="where fetched models lie; default: where Hugging Face keeps them")]
# The groups of options in the help of ``advise``.
DATA, MODEL, TRAINING, ADAPTER, SQUARED, ANSWER = (
    "Your data",
    "The model",
    "The training (AdamW, cross-entropy)",
    "An adapter instead of the weights",
    "With --objective squared (words only)",
    "The answer",
)


def _option(help: str, panel: str, *names: str, **options: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **options)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"stopwise {package.__version__}")
        raise typer.Exit


@app.callback()
def stopwise(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """When to stop fine-tuning a language model, read off its empirical neural tangent kernel."""


@app.command()
def advise(
    context: typer.Context,
    data: Annotated[
        str | None, _option("a .csv, .tsv, .txt, .json, .jsonl or .parquet file (.gz may follow)", DATA)
    ] = None,
    dataset: Annotated[
        str | None, _option("a data set of the Hugging Face hub instead: id, or id:config", DATA)
    ] = None,
    split: Annotated[str | None, _option("of that data set; default train", DATA)] = None,
    text: Annotated[
        list[str] | None,
        _option("the column that holds the text, or its number (repeat for several); default: a usual name", DATA),
    ] = None,
    label: Annotated[
        list[str] | None, _option("the column that holds the label, or its number; default: a usual name", DATA)
    ] = None,
    encoding: Annotated[str | None, _option("of a text file; default: recognised", DATA)] = None,
    delimiter: Annotated[str | None, _option("of a text file; default: recognised", DATA)] = None,
    header: Annotated[
        bool | None, _option("whether the first row names the columns", DATA, "--header/--no-header")
    ] = None,
    strict: Annotated[bool, _option("refuse a file with a single bad row", DATA, "--strict")] = False,
    max_examples: Annotated[int, _option("examples that the kernel holds; time grows with them", DATA)] = 64,
    max_tokens: Annotated[int, _option("longest prompt; longer texts are cut", DATA)] = 64,
    model: Annotated[str, _option("built-in name, folder of safetensors, or hub id", MODEL)] = "smollm2-135m",
    revision: Annotated[str | None, _option("a hub revision", MODEL)] = None,
    head: Annotated[
        bool | None,
        _option(
            "a new classification head, or words of a language model; default: what the model is",
            MODEL,
            "--head/--no-head",
        ),
    ] = None,
    head_start: Annotated[str | None, _option("of a new head: probe (logistic regression) or random", MODEL)] = None,
    template: Annotated[
        str | None,
        _option(r'the prompt, such as "Review: {text}\nSentiment:"; default: column names', MODEL),
    ] = None,
    verbalizers: Annotated[
        list[str] | None,
        _option(
            "label=word pairs (0=bad,1=good), a JSON object, or @file of one; default: the labels, else A, B, …", MODEL
        ),
    ] = None,
    objective: Annotated[str | None, _option("cross_entropy (default), or squared", TRAINING)] = None,
    learning_rate: Annotated[
        float | None, _option("the largest of the schedule; default: 4/lambda_1 of AdamW's kernel", TRAINING)
    ] = None,
    schedule: Annotated[str | None, _option("linear (default), cosine or constant", TRAINING)] = None,
    warmup: Annotated[
        float | None, _option("share of the steps in which the rate rises, or their number; default 0.1", TRAINING)
    ] = None,
    epochs: Annotated[float | None, _option("that you plan; the answer compares them", TRAINING)] = None,
    batch_size: Annotated[int, _option("mini-batch", TRAINING)] = 16,
    weight_decay: Annotated[float | None, _option("of AdamW; default 0", TRAINING)] = None,
    max_grad_norm: Annotated[
        float | None,
        _option("at which gradients are clipped, 0: never; default 1 with --learning-rate, else 0", TRAINING),
    ] = None,
    parameters: Annotated[
        str | None,
        _option("what is trained: with words attention (default), with a head all, or linear", TRAINING),
    ] = None,
    size: Annotated[
        int | None,
        _option("labels that training will have; default: all of the data, also beyond --max-examples", TRAINING),
    ] = None,
    adapter: Annotated[str | None, _option("lora", ADAPTER)] = None,
    rank: Annotated[int | None, _option("default 8", ADAPTER)] = None,
    alpha: Annotated[float | None, _option("updates are scaled by alpha/rank; default 16", ADAPTER)] = None,
    rslora: Annotated[
        bool | None, _option("scale them by alpha/sqrt(rank) instead", ADAPTER, "--rslora/--no-rslora")
    ] = None,
    target: Annotated[
        str | None, _option("names of layers with commas between; default: all linear layers", ADAPTER)
    ] = None,
    optimizer: Annotated[
        str | None, _option("heavy_ball (default), nesterov, gradient_descent or adamw", SQUARED)
    ] = None,
    momentum: Annotated[float | None, _option("for the first two; default 0.9", SQUARED)] = None,
    steps: Annotated[
        int | None, _option("longest time considered; default 24, without momentum 240, adamw 96", SQUARED)
    ] = None,
    step_size: Annotated[
        float | None, _option("learning rate as a share of the largest stable one; default 1", SQUARED)
    ] = None,
    target_scale: Annotated[
        float | None, _option("size of the regression targets; default: fitted to the outputs", SQUARED)
    ] = None,
    verify: Annotated[int | None, _option("train so many real folds as well (4 or 8), and follow them", ANSWER)] = None,
    seed: Annotated[int, _option("which examples are drawn, and how they are left out", ANSWER)] = 0,
    device: Annotated[str, _option("auto, cpu or cuda", ANSWER)] = "auto",
    assets: Annotated[
        str | None, _option("where fetched models lie; default: where Hugging Face keeps them", ANSWER)
    ] = None,
    output: Annotated[str, _option("a folder for the answer", ANSWER)] = "advice",
    force: Annotated[bool, _option("replace the advice of other settings there", ANSWER, "--force")] = False,
) -> None:
    r"""Say when to stop fine-tuning a model on your texts, before training: how long, at which rate, how sure.

    With words:    stopwise advise --data reviews.csv --text text --label label

    With a head:   stopwise advise --data tickets.csv --text text --label topic --model minilm --head

    Writes advice.md, a figure, its tables and train.py, which trains, into the output folder. Nothing is trained here
    unless you ask for real folds (--verify 4). About half a minute on two cores for 64 short texts of two classes, a
    minute and a half for seven.
    """
    _say(f"reading {dataset or data}")
    from stopwise.advice.data import in_options

    options = dict(context.params)
    delivery = {key: options.pop(key) for key in ("assets", "device", "output", "force")}
    try:
        from stopwise.advice.choice import asked

        objective, options = asked(options, delivery["assets"])
        run = _advise_training if objective == "cross_entropy" else _advise
        run(options, **delivery)
    except ValueError as error:
        raise ValueError(in_options(str(error))) from error


def _advise_training(options: dict, *, assets: str | None, device: str, output: str, force: bool) -> None:
    """Look at what can be looked at without torch, compute, write, and print the answer for training."""
    from stopwise.advice.door import look
    from stopwise.advice.plan import Plan
    from stopwise.advice.rows import with_columns

    plan = with_columns(Plan(**options))
    file = look(plan, device=device, output=output, force=force)
    _say("loading libraries")
    from stopwise.advice.training_text import headline, preamble
    from stopwise.advice.under_schedule import advise_training

    bars = sys.stderr.isatty()
    advice = advise_training(plan, file, assets=assets, device=device, say=_say, progress=bars)
    folder = advice.write(output)
    print("\n" + "\n".join([*preamble(advice), *headline(advice)]))
    train = f"to train: python {folder / 'train.py'}"
    if advice.kind == "do_not_train":
        train = f"{folder / 'train.py'} would train, if you still want to (one line of it is commented out)"
    print(f"\nThe whole answer: {folder / 'advice.md'}; {train}")


def _advise(options: dict, *, assets: str | None, device: str, output: str, force: bool) -> None:
    """Look at what can be looked at without torch, compute, write, and print the answer."""
    from stopwise.advice.door import look
    from stopwise.advice.rows import columns_of
    from stopwise.advice.settings import Settings

    text, label = columns_of(options["data"], options["text"], options["label"])
    settings = Settings(**{**options, "text": text, "label": label})
    file = look(settings, device=device, output=output, force=force)
    _say("loading libraries")
    from stopwise.advice.findings import advise as compute
    from stopwise.advice.folder import write_advice
    from stopwise.advice.text import headline, preamble
    from stopwise.advice.verdict import verdict_of
    from stopwise.network.model_cache import assets_of

    bars, assets = sys.stderr.isatty(), assets or str(assets_of(settings.model))
    advice = compute(settings, file=file, assets=assets, device=device, say=_say, progress=bars)
    verdict = verdict_of(advice)
    folder = write_advice(advice, verdict, output)
    print("\n" + "\n".join([*preamble(advice), *headline(advice, verdict)]))
    print(f"\nThe whole answer: {folder / 'advice.md'}, the figure: {folder / 'advice.png'}")


def _say(message: str) -> None:
    print(f"stopwise: {message}", file=sys.stderr, flush=True)


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="a built-in name, a local folder of safetensors, or a hub id")],
    revision: Annotated[str | None, typer.Option(help="a hub revision")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float64 or bfloat16")] = "float32",
    parameters: Annotated[str, typer.Option(help="attention, linear or all")] = "attention",
    assets: Assets = None,
) -> None:
    """Report how far a model's kernel rows move with batch size, padding and attention kernel, and against autograd.

    Ends with code 1 when a row moves further than rounding explains.
    """
    from stopwise.kernel.doctor import doctor as examine
    from stopwise.network.loading import load_model
    from stopwise.network.model_cache import cached_model

    if assets is None:
        network, tokenizer = load_model(cached_model(model, revision), dtype=dtype)
    else:
        network, tokenizer = load_model(model, revision=revision, dtype=dtype, assets=assets)
    findings = examine(network, tokenizer, parameters=parameters)
    width = max(len(finding.check) for finding in findings)
    print(f"{model}, {dtype}, {parameters}: largest relative movement of a row (limit {findings[0].limit:g})")
    for finding in findings:
        verdict = "ok" if finding.ok else "TOO FAR"
        moved = f"kernel {finding.kernel:.1e}  outputs {finding.outputs:.1e}"
        print(f"  {finding.check:<{width}}  {moved}  {verdict:<7}  {finding.note}".rstrip())
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="the folder of a finished run: results/NAME")],
    task: Annotated[str, typer.Option(help="the task whose model is wanted")],
    output: Annotated[str, typer.Option(help="a folder that does not exist yet")],
    seed: Annotated[int, typer.Option(help="one of the run's seeds")] = 0,
    size: Annotated[int | None, typer.Option(help="training examples; default: the largest trained")] = None,
    start: Annotated[str, typer.Option(help="pretrained, mixed or random")] = "pretrained",
    merge: Annotated[bool, typer.Option("--merge", help="add an adapter to the weights")] = False,
) -> None:
    """Write the model that a run trained and kept as a folder that transformers loads, an adapter as peft does."""
    from stopwise.training.export import export_run

    made = export_run(run, task, output, seed=seed, size=size, start=start, merge=merge)
    print(f"{made.folder}: trained on {made.n} examples, step {made.step}; labels: {', '.join(made.classes)}")
    auto = "SequenceClassification" if made.head else "CausalLM"
    if made.kind == "adapter":
        more = f", num_labels={len(made.classes)}" if made.head else ""
        print(f"load it with peft: AutoPeftModelFor{auto}.from_pretrained({str(made.folder)!r}{more})")
    elif made.head:
        print(f"load it with transformers: pipeline('text-classification', {str(made.folder)!r})")
    else:
        print(f"load it with transformers: AutoModelFor{auto}.from_pretrained({str(made.folder)!r})")


def main() -> None:
    """Run the console script; a wrong argument or model ends with one clear line."""
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"stopwise: {error}", file=sys.stderr)
        sys.exit(1)
