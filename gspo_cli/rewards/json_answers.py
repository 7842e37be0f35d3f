"""JSON in a model's text: read, compared with a gold value, or checked against a schema.

Every function is fast on any text: nesting is limited by the gold value, and long values are refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from gspo_cli.errors import UserError
from gspo_cli.rewards.answers import lines_after_phrases, marked_answers
from gspo_cli.tasks.tools.written import without_reasoning

FENCE = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)```", re.DOTALL)
START = re.compile(r"[{\[]")
BROKEN = re.compile(r'\{\s*"|\[\s*["{]')  # meant as JSON
LONGEST = 20_000  # characters of one value: a schema may compare its items in pairs
ATTEMPTS = 100  # brackets that open no JSON, such as those of [1] or {x}


def gold_json(gold: str) -> Any:
    """The value of a gold answer. Raises UserError if it is not JSON, or is a schema that cannot be used."""
    try:
        value = _read(gold)
    except (ValueError, RecursionError) as error:
        raise UserError(f"gold answer {gold!r:.80}: is not JSON ({error}); correct it") from error
    if is_schema(value):
        _check_schema(value, gold)
    return value


def is_schema(gold: Any) -> bool:
    """Whether a gold value is a JSON schema, which says so by its key "$schema"."""
    return isinstance(gold, dict) and "$schema" in gold


def json_values(text: str) -> list[Any]:
    """The JSON in `text`: all of it, or its code fences, where these are JSON; else every object and array
    that stands in it."""
    for parts in ([text], FENCE.findall(text)):
        try:
            if parts:
                return [_read(part) for part in parts]
        except (ValueError, RecursionError):
            continue
    return _scattered(text)


def stated_json(text: str) -> list[Any]:
    """The JSON that a model's text gives as its answer: all of the text, else what is marked or phrased as
    the answer, else what `json_values` finds. Marks inside of an object or a list are a part of it."""
    for whole in (text, text := without_reasoning(text)):
        try:
            return [_read(whole)]
        except (ValueError, RecursionError):
            continue
    outside = "".join(_around(text))
    if marked_answers(outside):
        return [value for answer in marked_answers(text, bare=False) for value in json_values(answer)]
    values = json_values(text)
    if values or not (phrased := lines_after_phrases(outside)):
        return values
    return [value for answer in phrased for value in json_values(answer)]


def same_json(value: Any, gold: Any) -> bool:
    """Whether both are equal: the same fields, no others, in any order; 1 equals 1.0 and not true."""
    if isinstance(gold, bool) or isinstance(value, bool):
        return value is gold
    if isinstance(gold, dict):
        fields = isinstance(value, dict) and value.keys() == gold.keys()
        return fields and all(same_json(value[name], gold[name]) for name in gold)
    if isinstance(gold, list):
        items = isinstance(value, list) and len(value) == len(gold)
        return items and all(map(same_json, value, gold))
    return bool(value == gold)


def conforms(value: Any, schema: dict[str, Any]) -> bool:
    """Whether `value` is valid by a JSON schema; references lead within the schema, nothing is downloaded."""
    import jsonschema
    import referencing

    validator = jsonschema.validators.validator_for(schema)(schema, registry=referencing.Registry())
    try:
        return validator.is_valid(value)
    except referencing.exceptions.Unresolvable as error:
        raise UserError(
            f'gold answer: "$ref" in its JSON schema leads nowhere ({error}); correct it'
        ) from error
    except (ArithmeticError, RecursionError):  # such as multipleOf of a huge number, or deep nesting
        return False


def _check_schema(schema: dict[str, Any], gold: str) -> None:
    import jsonschema

    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except jsonschema.exceptions.SchemaError as error:
        raise UserError(
            f"gold answer {gold!r:.80}: is not a JSON schema ({error.message}); correct it"
        ) from error


def _scattered(text: str) -> list[Any]:
    """Objects and arrays in prose; none where one is cut off or too long, whose parts are no answer. [1] is
    a citation where there are others."""
    found = list(_decoded(text))
    if any(value is None for value, _, _ in found):
        return []
    values = [value for value, _, _ in found]
    others = [value for value in values if not _is_citation(value)]
    return others or values


def _is_citation(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 1 and type(value[0]) is int


def _around(text: str) -> Iterator[str]:
    """What stands around the objects and arrays of a text."""
    place = 0
    for _, start, end in _decoded(text):
        yield text[place:start]
        place = end
    yield text[place:]


def _decoded(text: str) -> Iterator[tuple[Any, int, int]]:
    """The objects and arrays in prose, with their places; None for the last where it is cut off or too
    long."""
    place, failed = 0, 0
    while failed < ATTEMPTS and (start := START.search(text, place)):
        try:
            value, place = DECODER.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            if BROKEN.match(text, start.start()):
                yield None, start.start(), start.start()
                return
            place, failed = start.end(), failed + 1
            continue
        if place - start.start() > LONGEST:
            yield None, start.start(), start.start()
            return
        yield value, start.start(), place


def _read(text: str) -> Any:
    text = text.strip()
    if len(text) > LONGEST:
        raise ValueError(f"it is longer than {LONGEST} characters")
    return DECODER.decode(text)


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a field is given twice")
    return fields


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


DECODER = json.JSONDecoder(object_pairs_hook=_fields, parse_float=_finite, parse_constant=_finite)
