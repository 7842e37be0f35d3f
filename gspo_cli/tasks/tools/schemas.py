"""JSON schemas of annotated types, and values that have to fit one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

SCALARS: Mapping[Any, str] = {str: "string", float: "number", int: "integer", bool: "boolean"}
DEEPEST = 20  # levels of an object that an agent writes
LONGEST_PART = 200  # characters of a schema in an observation


def schema_of(hint: Any) -> dict[str, Any] | None:
    """The schema of values of a type: str, float, int, bool, Literal, TypedDict, and lists and dicts (by str)
    of them, each with `Annotated[type, description]` where that helps. None for any other type."""
    origin, members = get_origin(hint), get_args(hint)
    if hint in SCALARS:
        return {"type": SCALARS[hint]}
    if origin is Annotated:
        inner = schema_of(members[0])
        return inner and inner | {"description": str(members[1])}
    if origin in (Required, NotRequired):
        return schema_of(members[0])
    if origin in (Union, UnionType):
        others = [member for member in members if member is not NoneType]
        return schema_of(others[0]) if len(others) == 1 else None
    if origin is Literal:
        types = {SCALARS.get(type(member)) for member in members}
        return {"type": types.pop(), "enum": [*members]} if len(types) == 1 and None not in types else None
    if origin is list:
        items = schema_of(members[0])
        return items and {"type": "array", "items": items}
    if origin is dict and members[0] is str:
        values = schema_of(members[1])
        return values and {"type": "object", "additionalProperties": values}
    return _object(hint) if is_typeddict(hint) else None


def _object(hint: Any) -> dict[str, Any] | None:
    fields = {name: schema_of(part) for name, part in get_type_hints(hint, include_extras=True).items()}
    if None in fields.values():
        return None
    required = [name for name in fields if name in hint.__required_keys__]
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


def sample_of(schema: Any, depth: int = 0) -> Any:
    """A value that fits a schema of `schema_of`; of any other, one of about its kind."""
    if not isinstance(schema, Mapping) or depth > DEEPEST:
        return "text"
    for key in ("enum", "examples"):
        if isinstance(schema.get(key), list) and schema[key]:
            return schema[key][0]
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    several = next((schema[key] for key in ("anyOf", "oneOf", "allOf") if schema.get(key)), None)
    if isinstance(several, list):
        return sample_of(several[0], depth + 1)
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "array":
        return [sample_of(schema["items"], depth + 1)] if "items" in schema else []
    if kind == "object":
        properties = schema.get("properties")
        named = properties if isinstance(properties, Mapping) else {}
        values, more = (
            {name: sample_of(part, depth + 1) for name, part in named.items()},
            "additionalProperties",
        )
        return values or ({"name": sample_of(schema[more], depth + 1)} if schema.get(more) else {})
    return {"number": 1.5, "integer": 2, "boolean": True}.get(str(kind), "text")


def misfit(value: Any, schema: Mapping[str, Any]) -> str:
    """Where a value does not fit a schema, in words that quote the schema's part; "" where it fits."""
    if _depth(value) > DEEPEST:
        return f"is nested deeper than {DEEPEST} levels"
    error = best_match(Draft202012Validator(schema).iter_errors(value))
    if error is None:
        return ""
    place = error.json_path.removeprefix("$").lstrip(".")
    part = json.dumps({error.validator: error.validator_value}, ensure_ascii=False)[:LONGEST_PART]
    return f"{f'at {place} ' if place else ''}does not fit {part}"


def _depth(value: Any) -> int:
    """How deep lists and objects are nested, at most one more than DEEPEST."""
    level, depth = [value], 0
    while level and depth <= DEEPEST:
        inner = [each for each in level if isinstance(each, list | dict)]
        level = [part for each in inner for part in (each.values() if isinstance(each, dict) else each)]
        depth += bool(inner)
        if not inner:
            break
    return depth
