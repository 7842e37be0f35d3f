"""Reading an agent's turn: a call in any of its forms, a message that says what is wrong, or speech."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gspo_cli.tasks.tools.arguments import BadCall, checked, unknown, usage
from gspo_cli.tasks.tools.declaring import Tool, ToolCall
from gspo_cli.tasks.tools.line_form import LINE, LONGEST_CALL, ONE_LINE, example_line, read_line
from gspo_cli.tasks.tools.written import OBJECT, UnreadableError, requested_call, without_reasoning
from gspo_cli.types import AgentTurn

LONGEST_SPEECH = 20_000  # characters of an agent's words that a user reads
ATTEMPT = re.compile(r"/([A-Za-z_]\w*)[^\w\s/]")  # /get_order(482)
LANGUAGE = re.compile(r"[A-Za-z][\w+-]*\s")  # of a code block
PREFIX = re.compile(r"(?:[A-Za-z]+ ){0,2}[A-Za-z]+: ?(?=/)")  # Tool: /find_customer
FENCES = ("```", "~~~")
ONE_CALL = "make one tool call at a time"
WORDS_AFTER = "words follow the tool call; end the turn with the call, to read its answer first"
OTHER_FORM = "the turn has a tool call that is not written as the prompt says; write calls in that form only"


@dataclass(frozen=True)
class Speech:
    """Words for the user."""

    text: str


def read_turn(text: str, tools: Mapping[str, Tool]) -> ToolCall | BadCall | Speech:
    """The call or the words of an agent's turn; `tools` are those it may call, by name.

    A call may stand in backticks, quotes or a code block, and after words. Words after a call are an error:
    an agent that goes on has not read the answer."""
    text = without_reasoning(text[: 10 * LONGEST_SPEECH])
    if "<tool_call>" in text:
        return _read_tagged(text, tools)
    found = _read_bare(_unwrapped(text), tools) or _read_last(text, tools)
    return Speech(text[:LONGEST_SPEECH]) if found is None else found


def read_calls(
    turn: str, tools: Mapping[str, Tool], one_at_a_time: bool = False
) -> Speech | tuple[ToolCall | BadCall, ...]:
    """The calls of a turn in their order, or its words.

    A turn that cannot be read as a whole, or has calls in two forms, is one BadCall: nothing of it is carried
    out. So are several calls where `one_at_a_time` is set."""
    if not isinstance(turn, AgentTurn):
        found = read_turn(turn, tools)
        return found if isinstance(found, Speech) else (found,)
    if turn.error:
        return (BadCall(turn.error),)
    words = read_turn(turn.words, tools)
    if not isinstance(words, Speech):
        return (BadCall(OTHER_FORM),)
    if len(turn.calls) > 1 and one_at_a_time:
        return (BadCall(ONE_CALL),)
    return tuple(_checked(call.name, call.arguments, tools) for call in turn.calls) or words


def _read_bare(text: str, tools: Mapping[str, Tool]) -> ToolCall | BadCall | None:
    """The call that a text begins with; None for words."""
    if LINE.match(text):
        return read_line(text, tools)
    attempt = ATTEMPT.match(text)
    if attempt and attempt[1] in tools:
        return usage(tools[attempt[1]], example_line(tools[attempt[1]]))
    if text.startswith("[TOOL_CALLS]"):
        return _read_json(text.removeprefix("[TOOL_CALLS]"), tools)
    if text.startswith(("{", "[{")) and '"name"' in text:
        return _read_json(text, tools)
    return None


def _read_last(text: str, tools: Mapping[str, Tool]) -> ToolCall | BadCall | None:
    """The call that words end with: on a line of its own, in a code block or in backticks, or behind a prefix
    such as `Tool:`. None if there is none.

    Only a call on lines of its own is one whatever its name: a sentence may mention `/help`."""
    words, last = _split_last(text)
    call = _unwrapped(last)
    prefix = PREFIX.match(call)
    call = call[prefix.end() :] if prefix else call
    earlier = _has_call(words, tools)
    alone = words.endswith("\n") and not prefix
    if _calls(call, tools) or (alone and LINE.match(call)):
        return BadCall(ONE_CALL) if earlier else read_line(call, tools)
    found = _read_bare(call, tools) if words else None
    if isinstance(found, ToolCall):
        return BadCall(ONE_CALL) if earlier else found
    return BadCall(ONE_LINE) if earlier else None


def _has_call(text: str, tools: Mapping[str, Tool]) -> bool:
    """Whether a line of words is a call of a tool, or the words have one as JSON."""
    return any(_calls(line.strip("`* "), tools) for line in text.split("\n")) or bool(OBJECT.search(text))


def _split_last(text: str) -> tuple[str, str]:
    """The words of a turn, and its last code block, code span or line."""
    end = text.rstrip(". ")
    fence = next((fence for fence in FENCES if text.endswith(fence)), None)
    if fence is not None:
        start = text.rfind(fence, 0, -len(fence))
    elif end.endswith("`"):
        text, start = end, end.rfind("`", 0, -1)
    else:
        start = text.rfind("\n") + 1
    return text[: max(start, 0)], text[max(start, 0) :]


def _calls(text: str, tools: Mapping[str, Tool]) -> bool:
    """Whether `text` begins as a call of one of the tools in the line form."""
    line = LINE.match(text)
    return line is not None and line[1] in tools


def _unwrapped(text: str) -> str:
    """`text` without the code block, backticks, quotes or asterisks around it."""
    if text.startswith(FENCES):
        inner = text.strip(text[0]).strip()
        language = LANGUAGE.match(inner)
        return inner[language.end() :].strip() if language else inner
    if len(text) > 2 and text[0] == text[-1] and text[0] in "`\"'*":
        return text.strip(text[0]).strip()
    return text


def _read_tagged(text: str, tools: Mapping[str, Tool]) -> ToolCall | BadCall:
    if text.count("<tool_call>") > 1:
        return BadCall(ONE_CALL)
    words, _, rest = text.partition("<tool_call>")
    body, closed, after = rest.partition("</tool_call>")
    if not closed:
        return BadCall("the tool call has no closing </tool_call>")
    if _has_call(words, tools) or _has_call(after, tools):
        return BadCall(ONE_CALL)
    return BadCall(WORDS_AFTER) if after.strip("`\n .") else _read_json(body, tools)


def _read_json(body: str, tools: Mapping[str, Tool]) -> ToolCall | BadCall:
    if len(body) > LONGEST_CALL:
        return BadCall(f"the tool call is over {LONGEST_CALL} characters")
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        return BadCall("the tool call is not JSON")
    if isinstance(call, list):
        if len(call) != 1:
            return BadCall(ONE_CALL)
        call = call[0]
    try:
        found = requested_call(call)
    except UnreadableError as error:
        return BadCall(str(error))
    return _checked(found.name, found.arguments, tools)


def _checked(name: str, arguments: Mapping[str, Any], tools: Mapping[str, Tool]) -> ToolCall | BadCall:
    if name not in tools:
        return unknown(name, tools)
    return checked(tools[name], arguments, _example_json(tools[name]))


def _example_json(tool: Tool) -> str:
    return json.dumps({"name": tool.name, "arguments": tool.samples()})
