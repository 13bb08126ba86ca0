"""What the configuration's keys are made of: their kinds of value, each with its own words for a wrong one.

A field's description is "what is allowed: what it means". Error messages, the JSON schema for editors and the reference
page are made of it. Keys that a configuration may leave out without a trace carry ``LEFT_OUT``: ``config.validated``
does not write them, so that they change no digest of a configuration that does not use them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

T = TypeVar("T")
LEFT_OUT = "left out"  # marks a key that the completed configuration lacks unless it was given

# The branches of a key that takes values of several kinds; in an error's place they are no part of the key.
WORD, LIST, MAPPING, NUMBER = BRANCHES = ("<word>", "<list>", "<mapping>", "<number>")


def _distinct(values: list[T]) -> list[T]:
    if any(value in values[:place] for place, value in enumerate(values)):
        raise PydanticCustomError("distinct", "has non-unique elements")
    return values


def _expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise PydanticCustomError("expression", "is not a 'regex'") from error
    return pattern


def _branch(value: Any) -> str | None:
    if isinstance(value, bool):
        return None
    kinds = ((str, WORD), (list, LIST), (dict, MAPPING), (int, NUMBER), (float, NUMBER))
    return next((branch for kind, branch in kinds if isinstance(value, kind)), None)


def _one_of(types: str) -> Discriminator:
    return Discriminator(_branch, custom_error_type="kind", custom_error_message=f"is not of type {types}")


def key(default: Any, allowed: str, meaning: str, **limits: Any) -> Any:
    """Return a field whose description joins what is allowed and what it means."""
    return Field(default, description=f"{allowed}: {meaning}", **limits)


Distinct = Annotated[list[T], AfterValidator(_distinct), Field(json_schema_extra={"uniqueItems": True})]
Seed = Annotated[int, Field(ge=0)]
Expression = Annotated[str, AfterValidator(_expression), Field(json_schema_extra={"format": "regex"})]
Start = Literal["pretrained", "mixed", "random"]
TaskNames = Annotated[
    Annotated[Literal["all"], Tag(WORD)] | Annotated[Distinct[str], Field(min_length=1), Tag(LIST)],
    _one_of("'string', 'array'"),
]
Starts = Annotated[
    Annotated[Distinct[Start], Field(min_length=1), Tag(LIST)]
    | Annotated[dict[Start, TaskNames], Field(min_length=1), Tag(MAPPING)],
    _one_of("'array', 'object'"),
]
Parameters = Annotated[
    Annotated[Literal["attention", "linear", "all", "lora", "head", "trainable"], Tag(WORD)]
    | Annotated[list[str], Field(min_length=1), Tag(LIST)]
    | Annotated[dict[Any, Any], Tag(MAPPING)],
    _one_of("'string', 'array', 'object'"),
]
Column = Annotated[Annotated[str, Tag(WORD)] | Annotated[int, Tag(NUMBER)], _one_of("'string', 'integer'")]
Columns = Annotated[
    Annotated[str, Tag(WORD)] | Annotated[int, Tag(NUMBER)] | Annotated[list[Column], Tag(LIST)],
    _one_of("'string', 'integer', 'array'"),
]
Words = Annotated[
    Annotated[Literal["auto"], Tag(WORD)] | Annotated[dict[Any, str], Field(min_length=2), Tag(MAPPING)],
    _one_of("'string', 'object'"),
]
AutoNumber = Annotated[
    Annotated[Literal["auto"], Tag(WORD)] | Annotated[float, Field(gt=0), Tag(NUMBER)], _one_of("'string', 'number'")
]
AutoCount = Annotated[
    Annotated[Literal["auto"], Tag(WORD)] | Annotated[int, Field(ge=1), Tag(NUMBER)], _one_of("'string', 'integer'")
]


class Section(BaseModel):
    """A mapping of known keys. A text is never taken for a number, nor a number for a truth value."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
