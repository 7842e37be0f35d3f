"""From the text of an agent's turn, special tokens included, to its words, reasoning and calls."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers.utils.chat_parsing import parse_response

from gspo_cli.policy.tool_formats.families import Form
from gspo_cli.tasks.tools.reading import OTHER_FORM
from gspo_cli.tasks.tools.written import OBJECT, UnreadableError, without_reasoning
from gspo_cli.types import AgentTurn

LONGEST_TURN = 50_000  # characters that are read
MOST_CALLS = 32  # of one turn
# what begins or ends a call in some family; in words it is a call in a format that is not the model's
MARKS = (
    *("<tool_call>", "</tool_call>", "<function=", "<arg_key>", "<|python_tag|>", "<|python_start|>"),
    *("[TOOL_CALLS]", "[ARGS]", "<｜tool▁call▁begin｜>", "<|tool_call|>", "<start_function_call>"),
    *("<function_calls>", "<|START_ACTION|>", "<|tool_call_begin|>", "to=functions."),
    "<|channel|>",
)
ELEMENTS = ("<parameter=", "</parameter", "<arg_value>", "</arg_key>")
CUT = "the tool call is cut off; write it to its end"
BROKEN = (
    "the tool call has something besides whole arguments with different names; write it as the prompt shows"
)


def read(form: Form, text: str, schemas: Sequence[dict[str, Any]] = (), opened: str = "") -> AgentTurn:
    """The turn `text`, without its end token. `opened` is the mark of reasoning that its prompt ends with;
    `schemas` are the tools', by which untyped values are read.

    Never raises: calls that cannot be read are the turn's `error`, and nothing of it is a call."""
    whole = _thoughts_opened(form, opened + text)
    try:
        return _read(form, whole, schemas)
    except UnreadableError as problem:
        error = str(problem)
    except Exception:  # what a model writes may break any parser
        error = "the tool call cannot be read; write it as the prompt shows"
    return AgentTurn(without_reasoning(whole), "", "", (), error)


def _read(form: Form, whole: str, schemas: Sequence[dict[str, Any]]) -> AgentTurn:
    """Raises UnreadableError, or what the parser raises."""
    text = whole[:LONGEST_TURN]
    for mark in form.dropped:
        text = text.replace(mark, "")
    spoken = without_reasoning(text)
    message = parse_response(text, form.template, prefix="", tools=list(schemas) or None)
    found = message.get("tool_calls", [])
    calls = tuple(form.calls(found)) if found else ()
    words, stray, reasoning = (_text(message.get(key)) for key in ("content", "stray", "reasoning_content"))
    words = f"{words}\n{stray}".strip()
    if form.closes and form.opens.search(spoken.rpartition(form.closes)[2]):
        raise UnreadableError(CUT)
    if len(calls) > MOST_CALLS:
        raise UnreadableError(f"the turn has {len(calls)} tool calls; make {MOST_CALLS} at most")
    if calls and len(whole) > LONGEST_TURN:
        raise UnreadableError(f"a turn with tool calls has over {LONGEST_TURN} characters")
    if not calls and (
        form.opens.search(spoken) or any("call" in mark and mark in whole for mark in form.dropped)
    ):
        raise UnreadableError("the tool call is empty")
    if form.element:
        _require_elements(form, spoken)
    if any(mark in words for mark in MARKS) or OBJECT.search(words) or _written_as_code(words, schemas):
        raise UnreadableError(OTHER_FORM)
    return AgentTurn(whole, words, reasoning, calls)


def _require_elements(form: Form, text: str) -> None:
    """Raises UnreadableError where a call is more than complete elements with different keys: a parser that
    skips the rest would make a call that was not made."""
    element = re.compile(rf"\s*{form.element}", re.DOTALL)
    position, closes = 0, form.template.fields["tool_calls"].close_re
    while begun := form.opens.search(text, position):
        end = closes.search(text, begun.end())
        if end is None:
            raise UnreadableError(CUT)
        body, keys, place = text[begun.end() : end.start()], set[str](), 0
        while found := element.match(body, place):
            if found["key"] in keys or any(mark in found["value"] for mark in (*MARKS, *ELEMENTS)):
                raise UnreadableError(BROKEN)
            keys.add(found["key"])
            place = found.end()
        if body[place:].strip():
            raise UnreadableError(BROKEN)
        position = end.end()


def _written_as_code(words: str, schemas: Sequence[dict[str, Any]]) -> bool:
    """Whether words call a tool as Python would."""
    names = [re.escape(str(schema.get("function", {}).get("name"))) for schema in schemas]
    return bool(names) and re.search(rf"\[\s*(?:{'|'.join(names)})\(\w*=?", words) is not None


def _thoughts_opened(form: Form, text: str) -> str:
    """The text with the mark that begins its reasoning, where only the one that ends it is there."""
    if form.thinks is None:
        return text
    opens, closes = form.thinks
    before, found, _ = text.partition(closes)
    call = form.opens.search(before)
    return opens + text if found and opens not in before and not call else text


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""
