"""The console script ``stopwise``: checks that need no workflow."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def stopwise() -> None:
    """When to stop fine-tuning a language model, read off its empirical neural tangent kernel."""


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="a built-in name, a local folder of safetensors, or a hub id")],
    revision: Annotated[str | None, typer.Option(help="a hub revision")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float64 or bfloat16")] = "float32",
    parameters: Annotated[str, typer.Option(help="attention, linear or all")] = "attention",
    assets: Annotated[str, typer.Option(help="where fetched models lie")] = "results/assets",
) -> None:
    """Report how far a model's kernel rows move with batch size, padding and attention kernel, and against autograd.

    Ends with code 1 when a row moves further than rounding explains.
    """
    from stopwise.doctor import doctor as examine
    from stopwise.models import load_model

    network, tokenizer = load_model(model, revision=revision, dtype=dtype, assets=assets)
    findings = examine(network, tokenizer, parameters=parameters)
    width = max(len(finding.check) for finding in findings)
    print(f"{model}, {dtype}, {parameters}: largest relative movement of a row (limit {findings[0].limit:g})")
    for finding in findings:
        verdict = "ok" if finding.ok else "TOO FAR"
        moved = f"kernel {finding.kernel:.1e}  outputs {finding.outputs:.1e}"
        print(f"  {finding.check:<{width}}  {moved}  {verdict:<7}  {finding.note}".rstrip())
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


def main() -> None:
    """Run the console script; a wrong argument or model ends with one clear line."""
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"stopwise: {error}", file=sys.stderr)
        sys.exit(1)
