"""The digest of library code follows what code does: not its layout, its names of modules, or their places."""

import shutil
from pathlib import Path

import pytest

from stopwise.pipeline.code_digests import CodeDigestError, CodeDigests

LOW = '''"""Words."""
from __future__ import annotations


def least(values: list[float]) -> float:
    """Return the least."""
    return min(values)
'''
HIGH = '''"""More words."""
import math

from stopwise import low
from stopwise.low import least


def root(values: list[float]) -> float:
    """Return the root of the least."""
    return math.sqrt(least(values)) if low.least(values) > 0 else 0.0
'''
SCRIPT = "from stopwise.high import root\n"


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "stopwise"
    folder.mkdir()
    for name, text in {"__init__": "", "low": LOW, "high": HIGH, "other": "X = 1\n"}.items():
        (folder / f"{name}.py").write_text(text)
    (tmp_path / "script.py").write_text(SCRIPT)
    return folder


def digest(package: Path, *modules: str, **changed: str) -> str:
    """The script's digest after files of the package were changed."""
    for name, text in changed.items():
        (package / f"{name}.py").write_text(text)
    return CodeDigests(package).of_script(package.parent / "script.py", *modules)


@pytest.mark.parametrize(
    "low",
    [
        LOW.replace("Words", "Other words"),
        LOW.replace("list[float]", "tuple[float, ...]"),
        LOW.replace("    return", "    # a comment\n    return"),
        LOW.replace("from __future__ import annotations\n", ""),
    ],
    ids=["docstring", "annotation", "comment", "future"],
)
def test_what_no_running_code_sees_leaves_the_digest(package, low):
    assert digest(package, low=low) == digest(package, low=LOW)


def test_an_edited_comparison_in_the_lowest_file_changes_the_digest_above(package):
    assert digest(package) != digest(package, low=LOW.replace("min(", "max("))


def test_a_file_that_is_not_imported_does_not_count(package):
    assert digest(package) == digest(package, other="X = 2\n")
    assert digest(package, "other") != digest(package, "other", other="X = 3\n")


def test_a_module_that_is_moved_and_renamed_keeps_every_digest(package):
    before = digest(package)
    (package / "inner").mkdir()
    (package / "inner/__init__.py").write_text('"""A room."""\n')
    shutil.move(package / "low.py", package / "inner/lowest.py")
    moved = HIGH.replace("from stopwise import low", "from stopwise.inner import lowest")
    moved = moved.replace("stopwise.low", "stopwise.inner.lowest").replace("low.least", "lowest.least")
    assert digest(package, high=moved) == before


def test_the_order_of_imports_does_not_count(package):
    turned = HIGH.replace("from stopwise import low\nfrom stopwise.low import least", "from stopwise.low import least")
    turned = turned.replace("import math\n", "from stopwise import low\nimport math\n")
    assert digest(package, high=turned) == digest(package, high=HIGH)


def test_relative_and_absolute_imports_are_one(package):
    relative = HIGH.replace("from stopwise import low", "from . import low").replace("from stopwise.low", "from .low")
    assert digest(package, high=relative) == digest(package, high=HIGH)


def test_an_unknown_module_is_an_error_that_names_it(package):
    with pytest.raises(CodeDigestError, match=r"'modles' is no module of stopwise"):
        digest(package, "modles")


def test_a_circle_of_imports_is_an_error_that_names_the_files(package):
    with pytest.raises(CodeDigestError, match=r"circle: high\.py -> low\.py -> high\.py"):
        digest(package, low="from stopwise.high import root\n" + LOW)


def test_code_for_type_checking_does_not_count(package):
    plain = LOW.replace("\n\ndef", "\nfrom typing import TYPE_CHECKING\n\ndef")
    checked = plain.replace("\n\ndef", "\n\nif TYPE_CHECKING:\n    import nothing\n\ndef")
    assert digest(package, low=checked) == digest(package, low=plain)


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("x: int = 1", "x: float = 1", True),
        ("x: int = 1", "x: int = 2", False),
        ("x: int = 1", "x: ClassVar[int] = 1", False),
        ("x: int = 1", "x = 1", False),
    ],
    ids=["type", "default", "class variable", "no field"],
)
def test_a_dataclass_counts_its_fields_and_not_their_types(package, before, after, same):
    head = "from dataclasses import dataclass\nfrom typing import ClassVar\n\n\n@dataclass\nclass A:\n    "
    files = [head + line + "\n\n\ndef least(values):\n    return min(values)\n" for line in (before, after)]
    assert (digest(package, low=files[0]) == digest(package, low=files[1])) is same


def test_files_that_carry_no_number_are_left_out(package):
    def found() -> str:
        return CodeDigests(package, ["low.py"]).of_script(package.parent / "script.py")

    before = found()
    (package / "low.py").write_text(LOW.replace("min(", "max("))
    assert found() == before
