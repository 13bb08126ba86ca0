"""The console script ``stopwise``: advice for one's own data, and checks of a model; neither needs the workflow.

Only what the help needs is imported here: torch takes seconds.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import stopwise as package

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

Assets = Annotated[str, typer.Option(help="where fetched models lie, or are put")]


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
    data: Annotated[str, typer.Option(help="a .csv, .tsv, .txt, .json, .jsonl or .parquet file (.gz may follow)")],
    text: Annotated[list[str], typer.Option(help="the column that holds the text, or its number (repeat for several)")],
    label: Annotated[list[str], typer.Option(help="the column that holds the label, or its number")],
    model: Annotated[str, typer.Option(help="built-in name, folder of safetensors, or hub id")] = "smollm2-135m",
    revision: Annotated[str | None, typer.Option(help="a hub revision")] = None,
    template: Annotated[
        str | None, typer.Option(help=r'the prompt, such as "Review: {text}\nSentiment:"; default: column names')
    ] = None,
    verbalizers: Annotated[
        list[str] | None,
        typer.Option(
            help="label=word pairs (0=bad,1=good), a JSON object, or @file of one; default: the labels, else A, B, …"
        ),
    ] = None,
    max_examples: Annotated[int, typer.Option(help="examples used; time grows with them")] = 64,
    max_tokens: Annotated[int, typer.Option(help="longest prompt; longer texts are cut")] = 64,
    parameters: Annotated[
        str, typer.Option(help="what would be trained: attention, linear, all or lora")
    ] = "attention",
    optimizer: Annotated[str, typer.Option(help="heavy_ball, nesterov, gradient_descent or adamw")] = "heavy_ball",
    momentum: Annotated[float, typer.Option(help="for the first two")] = 0.9,
    steps: Annotated[
        int | None, typer.Option(help="longest time considered; default 24, without momentum 240, adamw 96")
    ] = None,
    step_size: Annotated[float, typer.Option(help="learning rate as a share of the largest stable one")] = 1.0,
    batch_size: Annotated[int, typer.Option(help="mini-batch that the answer speaks of beside full batches")] = 16,
    target_scale: Annotated[
        float | None, typer.Option(help="size of the regression targets; default: fitted to the model's outputs")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="of a text file; default: recognised")] = None,
    delimiter: Annotated[str | None, typer.Option(help="of a text file; default: recognised")] = None,
    header: Annotated[
        bool | None, typer.Option("--header/--no-header", help="whether the first row names the columns")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="refuse a file with a single bad row")] = False,
    seed: Annotated[int, typer.Option(help="which examples are drawn, and how they are left out")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    assets: Assets = "results/assets",
    output: Annotated[str, typer.Option(help="a folder for the answer")] = "advice",
    force: Annotated[bool, typer.Option("--force", help="replace the advice of other settings there")] = False,
) -> None:
    r"""Say when to stop fine-tuning a model on your texts, before training: steps, learning rate, accuracy, how sure.

    Example: stopwise advise --data reviews.csv --text text --label label

    Writes advice.md, one figure and its tables into the output folder. Nothing is trained. About a minute or two on two
    cores with the built-in model and 64 examples.
    """
    _say(f"reading {data}")
    from stopwise.advice.data import in_options
    from stopwise.tasks.labels import HOW_TO

    options = {
        "model": model,
        "data": data,
        "text": tuple(text),
        "label": label[0],
        "template": None if template is None else template.replace("\\n", "\n"),
        "verbalizers": tuple(verbalizers or ()),
        "max_examples": max_examples,
        "max_tokens": max_tokens,
        "parameters": parameters,
        "seed": seed,
        "optimizer": optimizer,
        "momentum": momentum,
        "steps": steps,
        "step_size": step_size,
        "batch_size": batch_size,
        "target_scale": target_scale,
        "encoding": encoding,
        "delimiter": delimiter.replace("\\t", "\t") if delimiter else delimiter,
        "header": header,
        "strict": strict,
        "revision": revision,
    }
    try:
        if len(label) > 1:
            raise ValueError(f"--label: {', '.join(label)}: several label columns are not supported; {HOW_TO}")
        _advise(options, assets=assets, device=device, output=output, force=force)
    except ValueError as error:
        raise ValueError(in_options(str(error))) from error


def _advise(options: dict, *, assets: str, device: str, output: str, force: bool) -> None:
    """Look at what can be looked at without torch, compute, write, and print the answer."""
    from stopwise.advice.door import look
    from stopwise.advice.settings import Settings

    settings = Settings(**options)
    file = look(settings, device=device, output=output, force=force)
    _say("loading libraries")
    from stopwise.advice.findings import advise as compute
    from stopwise.advice.folder import write_advice
    from stopwise.advice.text import headline, preamble
    from stopwise.advice.verdict import verdict_of

    bars = sys.stderr.isatty()
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
    assets: Assets = "results/assets",
) -> None:
    """Report how far a model's kernel rows move with batch size, padding and attention kernel, and against autograd.

    Ends with code 1 when a row moves further than rounding explains.
    """
    from stopwise.kernel.doctor import doctor as examine
    from stopwise.network.loading import load_model

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
