"""Run a step's script in this process with what Snakemake would give it: a test without a second Python."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[2] / "workflow" / "scripts"


class Named(list):
    """A list of paths whose entries have names too, as Snakemake's inputs and outputs do."""

    def __init__(self, *paths: Any, **named: Any) -> None:
        flat = [path for own in named.values() for path in (own if isinstance(own, list) else [own])]
        super().__init__([*map(str, paths), *map(str, flat)])
        self.named = {k: [*map(str, v)] if isinstance(v, list) else str(v) for k, v in named.items()}

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["named"][name]
        except KeyError:
            raise AttributeError(name) from None

    def get(self, name: str, default: Any = None) -> Any:
        """Return the entry of a name."""
        return self.named.get(name, default)


class Params(dict):
    """Params by attribute, as Snakemake has them."""

    __getattr__ = dict.__getitem__


def run_script(name: str, *, inputs: Named, outputs: Named, params: dict[str, Any], **wildcards: Any) -> None:
    """Run ``workflow/scripts/NAME.py``."""
    given = SimpleNamespace(
        input=inputs,
        output=outputs,
        params=Params(params),
        wildcards={key: str(value) for key, value in wildcards.items()},
        log=[],
        rule=name,
        threads=1,
    )
    for path in outputs:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(SCRIPTS))
    try:
        runpy.run_path(str(SCRIPTS / f"{name}.py"), init_globals={"snakemake": given})
    finally:
        sys.path.remove(str(SCRIPTS))
