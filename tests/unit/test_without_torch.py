"""What only reads tables imports no network library: not even by a detour that an import graph does not see."""

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists())


def test_what_only_reads_tables_loads_neither_torch_nor_transformers():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    sources = next(contract for contract in contracts if contract["id"] == "tables")["source_modules"]
    modules = []
    for name in sources:
        spec = importlib.util.find_spec(name)
        inside = [path for folder in spec.submodule_search_locations or [] for path in Path(folder).glob("[!_]*.py")]
        modules += [name, *(f"{name}.{path.stem}" for path in sorted(inside))]
    assert len(modules) > 40
    code = f"import importlib, sys; [importlib.import_module(name) for name in {modules}];"
    code += "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
