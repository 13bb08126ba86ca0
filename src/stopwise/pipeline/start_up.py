"""A job starts without the libraries that it does not use: others look for them, and find none.

pandas is optional to pyarrow, as torch is to transformers: each takes what is installed, which costs a job that needs
neither 0.4 and 3 s of processor time. Nothing of either library is changed: where they look, an import fails, as it
does on a machine that lacks the package.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from typing import Any


class _Absent(MetaPathFinder):
    """Has the import of one package fail."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> None:
        """Raise ModuleNotFoundError for the package, leave every other to the finders after this one."""
        if fullname == self.name:
            raise ModuleNotFoundError(f"No module named {fullname!r} (hidden from this process)", name=fullname)


def arrow_without_pandas() -> None:
    """Have pyarrow look for pandas now, and find none. A process that has imported pandas is left as it is.

    pyarrow looks once, at its first conversion of Python values, to know the values that are of a pandas type. A later
    ``to_pandas`` imports pandas as ever, and what it makes is known to pyarrow from then on.
    """
    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    absent = _Absent("pandas")
    sys.meta_path.insert(0, absent)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(absent)


@contextmanager
def transformers_without_torch() -> Iterator[None]:
    """Have transformers be imported without torch, for its tokenizers alone: no model can be loaded afterwards.

    Tokenizers are the same (they are another library's). A process that has imported either is left as it is.
    """
    if {"torch", "transformers"} & set(sys.modules):
        yield
        return
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would say that there is no torch
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's way to say that it cannot be imported
    try:
        yield
    finally:
        del sys.modules["torch"]
