"""Reading an agent's turn: a call in any form, a sentence about a bad one, or speech; never an error."""

from __future__ import annotations

import json
from typing import Annotated

import numpy as np
import pytest

from gspo_cli.tasks.tools import (
    BadCall,
    Kind,
    Parameter,
    RefusedError,
    Speech,
    Tool,
    ToolCall,
    by_name,
    line_guide,
    read_turn,
    run_call,
    tool,
    write_line,
)

FIND = Tool("find_customer", "Look a customer up.", (Parameter("email", "The address."),))
MOVE = Tool(
    "move_items",
    "Send items elsewhere.",
    (
        Parameter("order_id", "The order."),
        Parameter("items", "Their ids.", Kind.list),
        Parameter("fee", "In dollars.", Kind.number, required=False),
    ),
)
TOOLS = {tool.name: tool for tool in (FIND, MOVE)}
ARGUMENTS = '{"order_id": "482", "items": ["a1", "b2"], "fee": 3.5}'
MOVED = ToolCall("move_items", {"order_id": "482", "items": ["a1", "b2"], "fee": 3.5})


@pytest.mark.parametrize(
    "text",
    [
        "/move_items 482 a1,b2 3.5",
        "  /move_items 482 'a1, b2' fee=3.5\n",
        "/move_items fee=3.5 items=a1,b2 482",
        f'<tool_call>\n{{"name": "move_items", "arguments": {ARGUMENTS}}}\n</tool_call>',
        '<think>it is 482</think>\nLet me do that.<tool_call>{"name": "move_items", "arguments": '
        '{"order_id": 482, "items": ["a1", "b2"], "fee": "3.5"}}</tool_call>',
        f'{{"name": "move_items", "parameters": {ARGUMENTS}}}',
        f'[TOOL_CALLS][{{"name": "move_items", "arguments": {ARGUMENTS}}}]',
        f'[{{"name": "move_items", "arguments": {json.dumps(ARGUMENTS)}}}]',
        f'```json\n{{"name": "move_items", "arguments": {ARGUMENTS}}}\n```',
        "the template opened this thought\n</think>\n\n/move_items 482 a1,b2 3.5",
    ],
)
def test_every_form_of_a_call_is_the_same_call(text):
    assert read_turn(text, TOOLS) == MOVED


@pytest.mark.parametrize(
    "text",
    ["your email please?", "1/2 of it", "/ hello", "", "{curly} words", "<think>never closed"],
)
def test_words_are_speech(text):
    expected = "" if text.startswith("<think>") else text
    assert read_turn(text, TOOLS) == Speech(expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("/refund 482", "no tool 'refund'"),
        ("/find_customer", "takes email"),
        ("/find_customer a b", "takes email"),
        ("/find_customer a email=b", "takes email"),
        ("/find_customer 'a", "not closed"),
        ("/find_customer a\nthanks", "one line"),
        ("/find_customer " + "a" * 5000, "over 4000 characters"),
        ("/move_items 482 a1 nan", "fee of move_items must be a number"),
        ("/move_items 482 a1 1e400", "fee of move_items must be a number"),
        ("<tool_call>{}", "no closing"),
        ("<tool_call>{}</tool_call><tool_call>{}</tool_call>", "one tool call"),
        ("<tool_call>{</tool_call>", "not JSON"),
        ("<tool_call>[]</tool_call>", "one tool call"),
        ("<tool_call>3</tool_call>", "write the tool call"),
        ('{"name": 3}', "write the tool call"),
        ('{"name": "find_customer", "arguments": {"email": ["a"]}}', "must be a text"),
        ('{"name": "find_customer", "arguments": {"email": true}}', "must be a text"),
        ('{"name": "find_customer", "arguments": {"mail": "a"}}', "takes email"),
        ('{"name": "find_customer", "arguments": "{"}', "not JSON"),
        ("<tool_call>" + "[" * 3000 + "</tool_call>", "not JSON"),
    ],
)
def test_a_bad_call_is_told_what_is_wrong(text, reason):
    found = read_turn(text, TOOLS)
    assert isinstance(found, BadCall)
    assert reason in found.reason
    assert len(found.reason) < 200


def test_no_text_is_an_error():
    rng = np.random.default_rng(0)
    pieces = ["<tool_call>", "</tool_call>", "<think>", '"name"', *"/{[\\'\"=\x00\u2028😀\ud800"]
    texts = ["".join(rng.choice(pieces, size=rng.integers(1, 60))) for _ in range(2000)]
    texts += [piece * 100_000 for piece in pieces] + ["/find_customer " + piece * 3000 for piece in pieces]
    for text in texts:
        assert isinstance(read_turn(text, TOOLS), ToolCall | BadCall | Speech)


def test_written_calls_read_back():
    for value in ("482", "no longer needed", "it's", 'a "b" c', "a=b", "email=x"):
        call = write_line("find_customer", f"email={value}")
        assert read_turn(call, TOOLS) == ToolCall("find_customer", {"email": value})


def test_a_tool_describes_itself_in_both_forms():
    shape = MOVE.schema()["function"]
    assert shape["parameters"]["required"] == ["order_id", "items"]
    assert shape["parameters"]["properties"]["items"]["items"] == {"type": "string"}
    assert json.dumps(shape)
    assert "/move_items order_id items [fee]: Send items elsewhere." in line_guide([FIND, MOVE])


@tool
def move_items(
    moved: list,
    /,
    order_id: Annotated[str, "The order."],
    items: Annotated[list[str], "Their ids."],
    fee: Annotated[float, "In dollars."] = 0.0,
) -> str:
    """Send items elsewhere.

    This paragraph is for engineers."""
    if fee < 0:
        raise RefusedError("the fee is below 0")
    moved.extend(items)
    return f"{order_id}: {fee}"


def test_a_function_declares_its_tool_and_a_call_runs_it():
    assert (move_items.schema(), move_items.line()) == (MOVE.schema(), MOVE.line())
    moved, tools = [], by_name(move_items)
    assert run_call(MOVED, tools, moved).text == "482: 3.5"
    assert moved == ["a1", "b2"]
    refused = run_call(ToolCall("move_items", {**MOVED.arguments, "fee": -1.0}), tools, moved)
    assert (refused.ok, refused.text) == (False, "the fee is below 0")
