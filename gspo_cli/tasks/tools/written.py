"""What models write alike whatever the format of their calls: blocks of reasoning, and calls as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from gspo_cli.types import RequestedCall

REASONING = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
BLOCKS = [
    (re.compile(f"{re.escape(opens)}.*?(?:{re.escape(closes)}|\\Z)", re.DOTALL), closes)
    for opens, closes in REASONING
]
KEYS = {"name", "tool_name", "arguments", "parameters", "type", "id", "index", "function", "tool_call_id"}
# a call as JSON, somewhere in a text
OBJECT = re.compile(r'\{\s*"(?:tool_)?name"\s*:\s*"[^"\n]{1,200}"\s*,\s*"(?:arguments|parameters)"\s*:')
SHAPE = 'write the tool call as {"name": ..., "arguments": {...}}'


class UnreadableError(ValueError):
    """A call that is not written as it should be; the text is the observation."""


def without_reasoning(text: str) -> str:
    """The text without its blocks of reasoning, of which a template may have opened the first, and the last
    may have no end."""
    for block, closes in BLOCKS:
        text = block.sub("", text).rpartition(closes)[2]
    return text.strip()


def requested_call(found: Any) -> RequestedCall:
    """The call of an object with a name and arguments, also inside of {"function": ...}; null and an empty
    text are no arguments.

    Raises UnreadableError on anything else."""
    call = found.get("function", found) if isinstance(found, Mapping) else found
    if not isinstance(call, Mapping) or not KEYS.issuperset(call):
        raise UnreadableError(SHAPE)
    name = call.get("name", call.get("tool_name"))
    arguments = call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str) and arguments.strip():  # some models write the object as a text
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise UnreadableError("the arguments are not JSON") from error
    return as_call(name, arguments or {} if arguments in (None, "") else arguments)


def as_call(name: Any, arguments: Any) -> RequestedCall:
    """The call of a tool. Raises UnreadableError where it has no name, or its arguments are not an object, or
    not what JSON can write: half a character, no finite number, hundreds of levels."""
    if not isinstance(name, str) or not name.strip() or not isinstance(arguments, Mapping):
        raise UnreadableError(SHAPE)
    try:
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UnreadableError("the arguments are not JSON") from error
    return RequestedCall(name.strip(), dict(arguments))
