"""Keys of a YAML mapping as names: ``no:``, ``on:`` and ``1:`` are names like others, whatever YAML makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# What YAML 1.1 turns into true, false and null, without the case.
SPELLINGS = {True: ("true", "yes", "on", "y"), False: ("false", "no", "off", "n"), None: ("null", "~", "none", "")}
CHOSEN = {True: "yes", False: "no", None: "null"}


def name_of(key: Any) -> str:
    """Return a key of a YAML mapping as a name: ``no`` for false, ``yes`` for true, ``null`` for null, else its text.

    Which of several spellings a person wrote (``no``, ``off``, ``false``) is gone when YAML has been read.
    """
    return CHOSEN[key] if key is None or isinstance(key, bool) else str(key)


def names_of(mapping: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a mapping whose keys are names. Raises ValueError when two keys come to the same name."""
    out: dict[str, Any] = {}
    for key, value in mapping.items():
        name = name_of(key)
        if name in out:
            raise ValueError(f"the name {name!r} is given twice (YAML reads {key!r}); put such names in quotes")
        out[name] = value
    return out


def spelled(value: str, keys: Iterable[str]) -> str | None:
    """Return the key that a label of the data goes by, when YAML read that key as a boolean or null; else None.

    ``verbalizers: {yes: ...}`` arrives under the key "True", and the file's labels are "yes", "Yes" or "true".
    """
    known = set(keys)
    for read, spellings in SPELLINGS.items():
        if str(read) in known and value.strip().lower() in spellings:
            return str(read)
    return None
