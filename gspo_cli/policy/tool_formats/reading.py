"""From the text of an agent's turn, special tokens included, to its words, reasoning and calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.utils.chat_parsing import parse_response

from gspo_cli.policy.tool_formats.families import Form
from gspo_cli.tasks.tools.reading import OTHER_FORM
from gspo_cli.tasks.tools.written import REASONING, UnreadableError, without_reasoning
from gspo_cli.types import AgentTurn

LONGEST_TURN = 50_000  # characters that are read
MOST_CALLS = 32  # of one turn
# what begins or ends a call in some family; in words it is a call in a format that is not the model's
MARKS = (
    *("<tool_call>", "</tool_call>", "<function=", "<arg_key>", "<|python_tag|>", "<|python_start|>"),
    *("[TOOL_CALLS]", "[ARGS]", "<｜tool▁call▁begin｜>", "<|tool_call|>", "<start_function_call>"),
    *("<function_calls>", "<|START_ACTION|>", "<|tool_call_begin|>", "to=functions."),
)
CUT = "the tool call is cut off; write it to its end"


def read(form: Form, text: str, schemas: Sequence[dict[str, Any]] = (), opened: str = "") -> AgentTurn:
    """The turn `text`, without its end token. `opened` is the mark of reasoning that its prompt ends with;
    `schemas` are the tools', by which untyped values are read.

    Never raises: calls that cannot be read are the turn's `error`."""
    text = _thoughts_opened(opened + text[:LONGEST_TURN])
    for mark in form.dropped:
        text = text.replace(mark, "")
    try:
        message = parse_response(text, form.template, prefix="", tools=list(schemas) or None)
        found = message.get("tool_calls", [])
        calls = tuple(form.calls(found)) if found else ()
        error = _wrong(form, text, len(calls))
    except UnreadableError as problem:
        message, calls, error = {}, (), str(problem)
    except Exception:  # what a model writes may break any parser
        message, calls, error = {}, (), "the tool call cannot be read; write it as the prompt shows"
    words, stray, reasoning = (_text(message.get(key)) for key in ("content", "stray", "reasoning_content"))
    words = f"{words}\n{stray}".strip()
    if not error and any(mark in words for mark in MARKS):
        error = OTHER_FORM
    return AgentTurn(text, words, reasoning, () if error else calls, error)


def _wrong(form: Form, text: str, calls: int) -> str:
    """Why a turn whose calls were read is not to be carried out; "" where nothing is wrong."""
    if form.closes and form.opens.search(without_reasoning(text).rpartition(form.closes)[2]):
        return CUT
    if calls > MOST_CALLS:
        return f"the turn has {calls} tool calls; make {MOST_CALLS} at most"
    return ""


def _thoughts_opened(text: str) -> str:
    """The text with the mark that begins its reasoning, where only the one that ends it is there."""
    for opens, closes in REASONING:
        before, found, _ = text.partition(closes)
        if found and opens not in before:
            return opens + text
    return text


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""
