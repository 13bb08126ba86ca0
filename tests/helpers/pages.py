"""The pages of the project, and what a test asks of one: links, headings, blocks of code, commands, boxes.

A page is named by its path from the root, such as "docs/how-to/own-data.md". Records of runs are no pages.
"""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ("docs/records/",)
PROGRAMS = ("snakemake", "make", "stopwise", "python", "pip")
ALLOWED = (". .venv/bin/activate",)  # what only a shell can do
SHELL = ("", "sh", "bash", "console")
_BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_HERE = re.compile(r"<<\s*'?(\w+)'?$")
_SETTING = re.compile(r"^[A-Z_]+=\S*$")


def pages() -> list[str]:
    """Return every page: README.md, CONTRIBUTING.md and all below docs/ but the records, sorted."""
    below = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return ["README.md", "CONTRIBUTING.md", *(page for page in below if not page.startswith(RECORDS))]


@cache
def text(page: str) -> str:
    """Return the text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[str]:
    """Return the fenced blocks in these languages ("" for a block that names none), in order."""
    return [body for language, body in _BLOCK.findall(text(page)) if language in languages]


def prose(page: str) -> str:
    """Return a page without its fenced blocks."""
    return _BLOCK.sub("", text(page))


def links(page: str) -> list[str]:
    """Return the targets of links and pictures, as they are written."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page)))


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them; the second of two equal headings gets -1."""
    found: dict[str, int] = {}
    made = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        number = found[slug] = found.get(slug, -1) + 1
        made.add(f"{slug}-{number}" if number else slug)
    return made


def _lines(body: str) -> tuple[list[str], list[str]]:
    """Return the commands of a shell block, continued lines joined, and the here-documents that they read."""
    commands, documents = [], []
    waiting = iter(body.replace("\\\n", " ").splitlines())
    for line in waiting:
        command = line.partition(" #")[0].strip()
        if here := _HERE.search(command):
            document = []
            for inner in waiting:
                if inner.strip() == here[1]:
                    break
                document.append(inner)
            documents.append("\n".join(document))
            command = command[: here.start()].strip()
        if command and not command.startswith("#"):
            commands.append(command)
    return commands, documents


def commands(page: str) -> list[list[str]]:
    """Return every command of a page as words, from its shell blocks and inline code, without settings before it."""
    written = [line for body in blocks(page, *SHELL) for line in _lines(body)[0]]
    for span in re.findall(r"`([^`\n]+)`", prose(page)):
        words = [word for word in span.split() if not _SETTING.match(word)]
        if len(words) > 1 and words[0] in PROGRAMS:
            written.append(span)
    lines = [part.strip() for line in dict.fromkeys(written) for part in line.split("&&") if line not in ALLOWED]
    return [_bare(shlex.split(line)) for line in lines]


def _bare(words: list[str]) -> list[str]:
    while words and _SETTING.match(words[0]):
        words = words[1:]
    return words


def of(program: str, *names: str) -> list[list[str]]:
    """Return the arguments of every command of a program, on these pages (all when none is named)."""
    return [words[1:] for page in names or pages() for words in commands(page) if words[0] == program]


def snippets(page: str) -> list[str]:
    """Return the Python of a page: its blocks, as one program, and each text that a shell block gives to `python -`."""
    code = "".join(blocks(page, "python"))
    given = [document for body in blocks(page, *SHELL) for document in _lines(body)[1]]
    return [code, *given] if code else given


def box(title: str, page: str = "docs/how-to/resume-gpus-cluster.md") -> str:
    """Return the paragraph that begins with this title in bold, on one line. Raises ValueError when there is none."""
    found = re.search(rf"^> \*\*{re.escape(title)}\.\*\* ((?:.*\n)(?:^> .*\n)*)", text(page), re.MULTILINE)
    if found is None:
        raise ValueError(f"{page} has no box '> **{title}.**'")
    return " ".join(line.removeprefix("> ") for line in found.group(1).splitlines())


def box_commands(title: str) -> list[str]:
    """Return the snakemake commands of a box, in order."""
    return re.findall(r"`(snakemake [^`]+)`", box(title))
