"""Fill the generated blocks of the documentation, from records, schemas and code.

    python tools/docs.py            writes every block anew
    python tools/docs.py --check    writes nothing, names what is out of date, and ends with code 1 when something is

A block stands in a page between `<!-- BEGIN generated: NAME ARGUMENT ... -->` and `<!-- END generated -->`. NAME is one
of `GENERATORS`; the rest, split as a shell splits, are its arguments. Everything outside blocks is written by hand.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import doc_reference
import doc_results

ROOT = Path(__file__).resolve().parents[1]
# Pages of runs are written by the runs.
LEFT_ALONE = "records"
BLOCK = re.compile(r"(<!-- BEGIN generated: (.+?) -->\n)(.*?)(<!-- END generated -->)", re.DOTALL)
GENERATORS: dict[str, Callable[..., str]] = {**doc_results.GENERATORS, **doc_reference.GENERATORS}


def pages(root: Path = ROOT) -> list[Path]:
    """Return the pages that may hold blocks, in order of their names."""
    found = [path for path in (root / "docs").rglob("*.md") if path.relative_to(root / "docs").parts[0] != LEFT_ALONE]
    return sorted(found)


def filled(text: str, where: str) -> str:
    """Return a page with every block written anew. Raises ValueError for a block that no generator can write."""
    begun, whole = text.count("<!-- BEGIN generated"), len(BLOCK.findall(text))
    if begun != whole:
        raise ValueError(f"{where}: {begun} generated blocks begin and {whole} are whole; allowed: BEGIN, then END")

    def block(found: re.Match) -> str:
        name, *arguments = shlex.split(found[2])
        if name not in GENERATORS:
            raise ValueError(f"{where}: no generator is called {name!r}; allowed: {', '.join(sorted(GENERATORS))}")
        try:
            body = GENERATORS[name](*arguments)
        except (TypeError, KeyError, IndexError, OSError) as error:
            raise ValueError(f"{where}: the block {found[2]!r} cannot be written: {error!r}") from error
        return f"{found[1]}\n{body.strip()}\n\n{found[4]}"

    return BLOCK.sub(block, text)


def main(arguments: list[str]) -> int:
    """Write or check all pages; return the exit code."""
    if set(arguments) - {"--check"}:
        print(f"docs: {' '.join(arguments)} was given; allowed: --check or nothing", file=sys.stderr)
        return 2
    stale = []
    for path in pages():
        name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        new = filled(text, name)
        if new == text:
            continue
        stale.append(name)
        if not arguments:
            path.write_text(new, encoding="utf-8")
    for name in stale:
        print(f"docs: {name} {'is out of date; `python tools/docs.py` renews it' if arguments else 'written'}")
    return 1 if stale and arguments else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"docs: {error}")
