"""The configuration: checked against the JSON schema, completed with its defaults, and checked across sections."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

SCHEMA_FILE = Path(__file__).resolve().parents[1] / "schemas" / "config.schema.json"
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class ConfigError(ValueError):
    """A configuration that cannot be run: the message names the key, the value found and what is allowed."""


@cache
def schema() -> dict[str, Any]:
    """Return the JSON schema of the configuration."""
    return json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))


def validated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a completed copy of the configuration.

    Missing keys take the schema's defaults. Raises ConfigError for an unknown key, a value of the wrong type or range,
    a name that could leave the results folder, or sections that contradict each other.
    """
    completed: dict[str, Any] = copy.deepcopy(dict(config))
    validator = jsonschema.Draft202012Validator(schema(), format_checker=jsonschema.FormatChecker(["regex"]))
    errors = sorted(validator.iter_errors(completed), key=lambda e: list(map(str, e.path)))
    if errors:
        raise ConfigError(_message(jsonschema.exceptions.best_match(errors)))
    _fill(completed, schema())
    _cross_checks(completed)
    return completed


def _message(error: jsonschema.ValidationError) -> str:
    key = ".".join(map(str, error.absolute_path)) or "(top level)"
    allowed = error.schema.get("description", "")
    hint = f" Allowed: {allowed}" if allowed else ""
    return f"config key {key}: {error.message}.{hint}"


def _resolve(node: Mapping[str, Any]) -> Mapping[str, Any]:
    return schema()["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node


def _fill(value: Any, node: Mapping[str, Any]) -> None:
    """Set missing keys to the schema's defaults, depth first."""
    node = _resolve(node)
    if not isinstance(value, dict):
        return
    for key, reference in node.get("properties", {}).items():
        child = _resolve(reference)
        default = reference.get("default", child.get("default"))
        if key not in value and ("default" in reference or "default" in child):
            value[key] = copy.deepcopy(default)
        if key in value:
            _fill(value[key], child)
    extra = node.get("additionalProperties")
    if isinstance(extra, Mapping):
        for key in set(value) - set(node.get("properties", {})):
            if value[key] is None:
                value[key] = {}
            _fill(value[key], extra)


def _cross_checks(config: dict[str, Any]) -> None:
    for key, name in [("name", config["name"]), *((f"tasks.{task}", task) for task in config["tasks"])]:
        if not SAFE_NAME.fullmatch(name):
            raise ConfigError(f"config key {key}: {name!r} is not a safe name; allowed: letters, digits, - and _")
    arithmetic = config["arithmetic"]
    if arithmetic["enabled"]:
        for seed in arithmetic["seeds"]:
            if seed not in config["seeds"]:
                raise ConfigError(f"config key arithmetic.seeds: {seed} is not among seeds {config['seeds']}")
        if arithmetic["size"] is None:
            arithmetic["size"] = max(config["sizes"])
        if arithmetic["size"] not in config["sizes"]:
            raise ConfigError(
                f"config key arithmetic.size: {arithmetic['size']} is not among sizes {config['sizes']}; allowed: one"
                " of the trained sizes"
            )
    if "mixed" in config["starts"] and not config["model"]["reinit"]:
        raise ConfigError(
            "config key starts: 'mixed' needs model.reinit, a list of parameter-name patterns; found none"
        )


def config_digest(config: Mapping[str, Any]) -> str:
    """Return a short digest of the completed configuration: the identity of a pipeline run."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
