"""Digests of what library code does: as a param of a rule, one reruns the rule's jobs when a formula changes.

The digest of a file covers its syntax tree and, instead of the names of the library files that it imports, the
digests of those files (a Merkle tree). Comments, layout, docstrings, annotations, the order of imports and the names
and places of modules do not count: a file that is moved or renamed keeps its digest, and an edited comparison in the
lowest file changes every digest above it.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

# What carries no number: what all jobs share, and the names of the rules.
NO_NUMBERS = ("stopping/registry.py", "pipeline/job.py", "pipeline/origin.py")

Record = tuple[str, ...]


class CodeDigestError(ValueError):
    """A module that does not exist, or modules that import each other in a circle."""


class CodeDigests:
    """Digests of the files of one package, each computed once.

    ``package`` is the package's folder; ``ignored`` holds files, relative to it, that are left out wherever they are
    imported, since no number depends on them.
    """

    def __init__(self, package: Path, ignored: Iterable[str] = NO_NUMBERS) -> None:
        self.package = package
        self.ignored = {package / name for name in ignored}
        self._known: dict[Path, str] = {}
        self._open: list[Path] = []

    def of_script(self, script: Path, *modules: str) -> str:
        """Return a digest of the library files that a script imports and of the modules named, with all they import.

        A module is named as in ``stopping.bayes``. Raises CodeDigestError for one that does not exist.
        """
        named = {self._named(module) for module in modules}
        imported = {file for file in self._reached(_parsed(script)) if file not in self.ignored}
        found = sorted({self.of_file(file) for file in named | imported})
        return hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]

    def of_file(self, path: Path) -> str:
        """Return the digest of one file of the package. Raises CodeDigestError for a circle of imports."""
        if path in self._open:
            circle = [*self._open[self._open.index(path) :], path]
            names = " -> ".join(str(file.relative_to(self.package)) for file in circle)
            raise CodeDigestError(f"modules import each other in a circle: {names}")
        if path not in self._known:
            self._open.append(path)
            try:
                self._known[path] = self._digest(path)
            finally:
                self._open.pop()
        return self._known[path]

    def _digest(self, path: Path) -> str:
        reader = _Reader(self, path)
        tree = reader.visit(_parsed(path))
        text = ast.dump(tree) + "\n" + "\n".join(sorted(map(repr, reader.imports)))
        return hashlib.sha256(text.encode()).hexdigest()

    def _named(self, module: str) -> Path:
        found = self.file_of(f"{self.package.name}.{module}")
        if found is None:
            raise CodeDigestError(f"library(...): {module!r} is no module of {self.package.name}")
        return found

    def file_of(self, module: str) -> Path | None:
        """Return the file of a dotted module name of the package; None for other packages and for names in a module."""
        first, *rest = module.split(".")
        if first != self.package.name or not rest:
            return None
        stem = self.package.joinpath(*rest)
        return next((file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()), None)

    def _reached(self, tree: ast.AST) -> Iterator[Path]:
        """Yield the package's files that a tree imports, but for type checking."""
        for node in ast.walk(_Runtime().visit(tree)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    module = node.module or ""
                    file = self.file_of(f"{module}.{alias.name}") or self.file_of(module)
                    if file is not None and file.name != "__init__.py":
                        yield file
            elif isinstance(node, ast.Import):
                yield from (file for alias in node.names if (file := self.file_of(alias.name)))


class _Runtime(ast.NodeTransformer):
    """Drop what no running code sees: blocks for type checking, annotations and docstrings."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            return [self.visit(statement) for statement in node.orelse]
        return self.generic_visit(node)

    def visit_Module(self, node: ast.Module) -> ast.AST:
        return self._body(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._body(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self._body(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        plain = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign):
                words = ast.unparse(statement.annotation)
                keep = not plain or any(word in words for word in ("ClassVar", "InitVar", "KW_ONLY"))
                statement.annotation = statement.annotation if keep else ast.Constant("field")
        return self._body(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        """Outside of classes an annotated assignment is a plain one, and a bare annotation is nothing."""
        if node.value is None:
            return None
        return self.generic_visit(ast.Assign(targets=[node.target], value=node.value))

    def _body(self, node: ast.AST) -> ast.AST:
        body = getattr(node, "body")  # noqa: B009 - the four kinds of node above share it
        first = body[0] if body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            body = body[1:]
        if isinstance(node, ast.ClassDef):
            body = [part if isinstance(part, ast.AnnAssign) else self.visit(part) for part in body]
            node.body = [part for part in body if part is not None] or [ast.Pass()]
            return node
        node.body = body  # type: ignore[attr-defined]
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]  # type: ignore[attr-defined]
        return node


class _Reader(_Runtime):
    """Take the imports out of a file's tree: each becomes a record, and a module's local name becomes its digest."""

    def __init__(self, digests: CodeDigests, path: Path) -> None:
        self.digests = digests
        self.path = path
        self.imports: set[Record] = set()
        self.modules: dict[str, str] = {}  # local name of a library module -> digest

    def visit_Module(self, node: ast.Module) -> ast.AST:
        runtime = _Runtime().visit(node)
        for part in ast.walk(runtime):
            if isinstance(part, ast.ImportFrom):
                self._from(part)
            elif isinstance(part, ast.Import):
                for alias in part.names:
                    self._module(alias.name, alias.asname)
        return _Renamed(self.modules).visit(runtime)

    def _from(self, node: ast.ImportFrom) -> None:
        if node.module == "__future__":
            return
        module = node.module or ""
        if node.level:
            parts = [self.digests.package.name, *self.path.parent.relative_to(self.digests.package).parts]
            base = parts[: len(parts) - node.level + 1]
            module = ".".join([*base, *filter(None, [node.module])])
        for alias in node.names:
            local = alias.asname or alias.name
            whole = self.digests.file_of(f"{module}.{alias.name}")
            if whole is not None:
                self._library(whole, local)
                continue
            file = self.digests.file_of(module)
            if file in self.digests.ignored:
                continue
            origin = self.digests.of_file(file) if file is not None else module
            self.imports.add(("name", origin, alias.name, local))

    def _module(self, name: str, local: str | None) -> None:
        file = self.digests.file_of(name)
        if file is not None and local:
            self._library(file, local)
        else:
            self.imports.add(("module", name, local or ""))

    def _library(self, file: Path, local: str) -> None:
        if file not in self.digests.ignored:
            self.modules[local] = self.digests.of_file(file)
            self.imports.add(("library", self.modules[local]))


class _Renamed(ast.NodeTransformer):
    """Put a module's digest in the place of its local name, and drop the import statements."""

    def __init__(self, modules: dict[str, str]) -> None:
        self.modules = modules

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(id=self.modules.get(node.id, node.id), ctx=node.ctx)

    def visit_Import(self, node: ast.Import) -> ast.AST:
        return ast.Pass()

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return ast.Pass()

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list):
                kept = [part for part in block if not isinstance(part, ast.Pass)]
                setattr(node, field, kept or ([ast.Pass()] if field == "body" else []))
        return node


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
