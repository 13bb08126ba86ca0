"""Answers that depend on nothing but the text of some files, kept from one start of the workflow to the next."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path


class Remembered:
    """Texts worked out from source files, kept in a JSON file for as long as no source changes.

    ``sources`` are all the files that an answer may depend on. What was kept holds for their very text (names in their
    folder, bytes) and this version of Python; after any change, or when the file cannot be read, everything is worked
    out anew. Where the file cannot be written nothing is kept: the answers are the same, only later.
    """

    def __init__(self, path: Path, sources: Iterable[Path]) -> None:
        self.path = path
        self._sources = _digest_of(sources)
        self._known = self._read()

    def get(self, name: str, work_out: Callable[[], str]) -> str:
        """Return the answer kept under a name; work it out and keep it when there is none."""
        if name not in self._known:
            self._known[name] = work_out()
            self._write()
        return self._known[name]

    def _read(self) -> dict[str, str]:
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(kept, dict) or kept.get("sources") != self._sources:
            return {}
        known = kept.get("known")
        return {str(name): str(text) for name, text in known.items()} if isinstance(known, dict) else {}

    def _write(self) -> None:
        text = json.dumps({"sources": self._sources, "known": self._known}, indent=1, sort_keys=True)
        temporary = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".part-{self.path.name}-")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, self.path)
        except OSError:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)


def _digest_of(sources: Iterable[Path]) -> str:
    """Return a digest of the names and bytes of the files, and of the version of Python that reads them."""
    paths = sorted(path for path in sources if path.is_file())  # an editor leaves links to nothing
    root = os.path.commonpath(paths) if paths else ""
    digest = hashlib.sha256(sys.version.encode())
    for path in paths:
        content = path.read_bytes()
        digest.update(f"\n{os.path.relpath(path, root)} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
