"""What is said of a wrong configuration, in one line, and the JSON schema whose words that line uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import ValidationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ErrorDetails, core_schema

from stopwise.pipeline.config_fields import BRANCHES
from stopwise.pipeline.config_models import Config

_LIMITS = {
    "greater_than_equal": ("ge", "less than the minimum of"),
    "greater_than": ("gt", "less than or equal to the minimum of"),
    "less_than_equal": ("le", "greater than the maximum of"),
    "less_than": ("lt", "greater than or equal to the maximum of"),
}


class _Schema(GenerateJsonSchema):
    """The schema without what says nothing: a title that repeats the key, a null as the default of a key left out."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> dict[str, Any]:
        made = super().default_schema(schema)
        if made.get("default", 0) is None and "null" not in _types(made) and None not in made.get("enum", ()):
            del made["default"]
        return made


@cache
def schema() -> dict[str, Any]:
    """Return the JSON schema of the configuration, as the models have it."""
    made = Config.model_json_schema(schema_generator=_Schema)
    for part in (made, *made["$defs"].values()):
        part.pop("title", None)
    return {"$schema": _Schema.schema_dialect, "title": "stopwise configuration", **made}


def message(error: ValidationError) -> str:
    """Return one line for the first mistake: the key, the value found, and what is allowed.

    A key that is not known comes before all others, since a misspelt key is missing at the same time.
    """
    first = min(error.errors(), key=lambda found: (found["type"] != "extra_forbidden", len(found["loc"])))
    place = [part for part in first["loc"] if part not in BRANCHES]
    if first["type"] == "extra_forbidden":
        place.pop()
    elif place[-1] == "[key]":
        del place[-2:]
    nodes = list(_walk(place))
    key = ".".join(map(str, place)) or "(top level)"
    allowed = _allowed(nodes)
    return f"config key {key}: {_wrong(first, nodes[-1])}.{f' Allowed: {allowed}' if allowed else ''}"


def _wrong(error: ErrorDetails, node: Mapping[str, Any]) -> str:
    """Return what is wrong with the value, in the words of JSON Schema."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return f"Additional properties are not allowed ({error['loc'][-1]!r} was unexpected)"
    if kind == "missing":
        return "is required and was not found"
    if kind in _LIMITS:
        name, words = _LIMITS[kind]
        return f"{value!r} is {words} {context[name]:g}"
    if kind in ("too_short", "string_too_short"):
        short = "does not have enough properties" if isinstance(value, dict) else "is too short"
        return f"{value!r} {short if context['min_length'] > 1 else 'should be non-empty'}"
    if kind == "literal_error":
        return f"{value!r} is not one of {_choices(node)}"
    if kind.endswith("_type") and error["loc"][-1] != "[key]":
        return f"{value!r} is not of type {', '.join(map(repr, _types(node)))}"
    if kind == "finite_number":
        return f"{value!r} is not a finite number"
    if kind == "string_type":
        return f"{value!r} is not of type 'string'"
    return f"{value!r} {error['msg']}"


def _alternatives(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a node of the schema, what it refers to, and each kind of value that it takes."""
    yield node
    if "$ref" in node:
        yield from _alternatives(schema()["$defs"][node["$ref"].rsplit("/", 1)[1]])
    for part in (*node.get("anyOf", ()), *node.get("oneOf", ())):
        yield from _alternatives(part)


def _walk(place: list[Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the nodes of the schema from the top to a place."""
    node: Mapping[str, Any] = schema()
    yield node
    for part in place:
        node = next(filter(None, (_child(kind, part) for kind in _alternatives(node))), {})
        yield node


def _child(node: Mapping[str, Any], part: Any) -> Mapping[str, Any]:
    if isinstance(part, int) and "items" in node:
        return node["items"]
    extra = node.get("additionalProperties")
    return node.get("properties", {}).get(part) or (extra if isinstance(extra, dict) else {})


def _types(node: Mapping[str, Any]) -> list[str]:
    return [kind["type"] for kind in _alternatives(node) if "type" in kind]


def _choices(node: Mapping[str, Any]) -> list[Any]:
    kinds = [*_alternatives(node), node.get("propertyNames", {})]
    kinds += [kind["propertyNames"] for kind in kinds if "propertyNames" in kind]
    return next((kind.get("enum", [kind.get("const")]) for kind in kinds if "enum" in kind or "const" in kind), [])


def _allowed(nodes: list[Mapping[str, Any]]) -> str:
    """Return what is allowed at the last of the nodes: its keys, or the description of the nearest that has one."""
    for node in reversed(nodes):
        for kind in _alternatives(node):
            if "properties" in kind:
                return f"a mapping with {', '.join(kind['properties'])}"
            if "description" in kind and "$ref" not in kind:
                return kind["description"]
    return ""
