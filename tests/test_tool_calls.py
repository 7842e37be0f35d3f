"""Reading an agent's turn: a call in any form, a sentence about a bad one, or speech; never an error."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import numpy as np
import pytest

from gspo_cli.tasks.tau2.tools import TOOLS as TELECOM
from gspo_cli.tasks.tools import (
    BadCall,
    Example,
    Kind,
    OneOf,
    Parameter,
    RefusedError,
    Speech,
    Tool,
    ToolCall,
    by_name,
    read_turn,
    run_call,
    tool,
)

FIND = Tool("find_customer", "Look a customer up.", (Parameter("email", "The address."),))
MOVE = Tool(
    "move_items",
    "Send items elsewhere.",
    (
        Parameter("order_id", "The order."),
        Parameter("items", "Their ids.", Kind.list),
        Parameter("fee", "In dollars.", Kind.number, required=False, default=0.0),
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
        "/move_items 482 a1, b2 3.5",
        "/move_items 482 a1 , b2 3.5",
        "/move_items 482 'a1', 'b2' 3.5",
        "/move_items 482 [a1, b2] 3.5",
        '/move_items 482 ["a1", "b2"] 3.5',
        "/move_items 482 ['a1', 'b2'] 3.5",
        '/move_items fee=3.5 items=["a1", "b2"] order_id=482',
        "`/move_items 482 a1,b2 3.5`",
        "```\n/move_items 482 a1,b2 3.5\n```",
        "```bash\n/move_items 482 a1,b2 3.5\n```",
        "```/move_items 482 a1,b2 3.5```",
        "~~~\n/move_items 482 a1,b2 3.5\n~~~",
        "```\n/move_items 482 a1,b2 3.5",
        '"/move_items 482 a1,b2 3.5"',
        "Tool: /move_items 482 a1,b2 3.5",
        "Tool call: `/move_items 482 a1,b2 3.5`",
        "I will send them.\n/move_items 482 a1,b2 3.5",
        "I will send them.\n\nTool: /move_items 482 a1,b2 3.5",
        "I will send them:\n```text\n/move_items 482 a1,b2 3.5\n```",
        "I will use `/move_items 482 a1,b2 3.5`.",
        f'<tool_call>\n{{"name": "move_items", "arguments": {ARGUMENTS}}}\n</tool_call>',
        '<think>it is 482</think>\nLet me do that.<tool_call>{"name": "move_items", "arguments": '
        '{"order_id": 482, "items": ["a1", "b2"], "fee": "3.5"}}</tool_call>',
        f'{{"name": "move_items", "parameters": {ARGUMENTS}}}',
        f'[TOOL_CALLS][{{"name": "move_items", "arguments": {ARGUMENTS}}}]',
        f'[{{"name": "move_items", "arguments": {json.dumps(ARGUMENTS)}}}]',
        f'```json\n{{"name": "move_items", "arguments": {ARGUMENTS}}}\n```',
        f'~~~\n{{"name": "move_items", "arguments": {ARGUMENTS}}}\n~~~',
        f'Like this:\n```json\n{{"name": "move_items", "arguments": {ARGUMENTS}}}\n```',
        '{"name": "move_items", "arguments": {"order_id": 482, "items": "[\\"a1\\", \\"b2\\"]", "fee": 3.5}}',
        "the template opened this thought\n</think>\n\n/move_items 482 a1,b2 3.5",
    ],
)
def test_every_form_of_a_call_is_the_same_call(text):
    assert read_turn(text, TOOLS) == MOVED


@pytest.mark.parametrize(
    "text",
    [
        *("your email please?", "1/2 of it", "/ hello", "", "{curly} words", "<think>never closed"),
        *("it is 5/6 of the price.", "yes and/or no", "see `/help` for more.", "Note: /help is a command"),
        *(
            "shall i use `/find_customer a`?",
            "Path: /usr/bin",
            "the price\n5/6",
            '"/usr/bin"',
            "use ```code```",
        ),
    ],
)
def test_words_are_speech(text):
    expected = "" if text.startswith("<think>") else text
    assert read_turn(text, TOOLS) == Speech(expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("/refund 482", "unknown tool 'refund'; the available tools are find_customer, move_items"),
        ("Let me see.\n/refund 482", "unknown tool 'refund'"),
        ("/find_customer", "find_customer takes email, for example /find_customer EMAIL"),
        ("/find_customer a email=b", "takes email"),
        ("/find_customer(a)", "takes email, for example /find_customer EMAIL"),
        ("/find_customer: a", "takes email"),
        ("/find_customer 'a", "not closed; write it like /find_customer EMAIL"),
        ("/find_customer a\nthanks", "one line and nothing else, for example /find_customer EMAIL"),
        ("Well.\n/find_customer a\nthanks", "one line"),
        ("/find_customer a\n/find_customer b", "one line"),
        ("Well.\n/find_customer a\n/find_customer b", "one tool call"),
        ("/find_customer " + "a" * 5000, "over 4000 characters"),
        ("/move_items 482", "takes order_id, items (list), fee (number, optional), for example /move_items"),
        ("/move_items 482 a1 nan", "fee of move_items must be a number, for example /move_items ORDER_ID"),
        ("/move_items 482 a1 1e400", "fee of move_items must be a number"),
        ("<tool_call>{}", "no closing"),
        ("<tool_call>{}</tool_call><tool_call>{}</tool_call>", "one tool call"),
        ("<tool_call>{</tool_call>", "not JSON"),
        ("<tool_call>[]</tool_call>", "one tool call"),
        ("<tool_call>3</tool_call>", "write the tool call"),
        ('{"name": 3}', "write the tool call"),
        ('{"name": "find_customer", "arguments": {"email": ["a"]}}', "must be a text"),
        ('{"name": "find_customer", "arguments": {"email": true}}', "must be a text"),
        ('{"name": "find_customer", "arguments": {"email": null}}', "must be a text"),
        (
            '{"name": "find_customer", "arguments": {"mail": "a"}}',
            'takes email, for example {"name": "find_customer", "arguments": {"email": "EMAIL"}}',
        ),
        ('{"name": "find_customer", "arguments": "{"}', "not JSON"),
        ("<tool_call>" + "[" * 3000 + "</tool_call>", "not JSON"),
    ],
)
def test_a_bad_call_is_told_what_is_wrong_and_how_to_write_it(text, reason):
    found = read_turn(text, TOOLS)
    assert isinstance(found, BadCall)
    assert reason in found.reason
    assert len(found.reason) < 200


@tool
def note(
    text: Annotated[str, "What to note."],
    priority: Annotated[int, "1 to 3."] = 1,
    loud: Annotated[bool | None, "Whether it rings."] = None,
) -> str:
    """Note something."""
    return text


@tool
def paint(
    color: Annotated[Literal["dark red", "blue"], "The color."],
    rooms: Annotated[list[str], "The rooms.", OneOf("hall", "attic"), Example(("hall", "attic"))],
    why: Annotated[str, "The reason."],
) -> str:
    """Paint rooms."""
    return why


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("/paint green hall x", "color of paint must be one of dark red, blue, for example /paint "),
        ("/paint blue kitchen x", "rooms of paint must be a list of hall, attic, for example"),
        ("/paint", 'for example /paint "dark red" hall,attic WHY'),
        ("/note a priority=1.5", "priority of note must be an integer"),
        ("/note a loud=perhaps", "loud of note must be true or false"),
        (
            '{"name": "paint", "arguments": {"color": "green", "rooms": "hall", "why": "x"}}',
            '{"name": "paint"',
        ),
    ],
)
def test_a_value_that_is_not_allowed_is_told_what_is(text, reason):
    found = read_turn(text, by_name(note, paint))
    assert isinstance(found, BadCall)
    assert reason in found.reason


def test_of_many_tools_only_the_nearest_are_named():
    found = read_turn("/speed_test", TELECOM)
    assert "the nearest names are run_speed_test," in found.reason
    assert len(found.reason) < 200


def test_no_text_is_an_error():
    rng = np.random.default_rng(0)
    pieces = ["<tool_call>", "</tool_call>", "<think>", '"name"', "```", "~~~", "Tool: ", "/note ", "text="]
    pieces += [*"/{[]\\'\"`,= \n\x00\u2028😀\ud800a1"]
    tools = by_name(note, paint, move_items)
    texts = ["".join(rng.choice(pieces, size=rng.integers(1, 60))) for _ in range(4000)]
    texts += [f"/{name} " + text for name in tools for text in texts[:1000]]
    texts += [piece * 100_000 for piece in pieces] + ["/find_customer " + piece * 3000 for piece in pieces]
    texts += [
        start + piece * (3900 // len(piece))
        for start in ("/paint ", "/note ", "/paint [")
        for piece in pieces
    ]
    for text in texts:
        found = read_turn(text, tools)
        assert isinstance(found, ToolCall | BadCall | Speech)
        assert not isinstance(found, BadCall) or len(found.reason) <= 500


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


def test_the_schema_has_types_allowed_values_defaults_and_examples():
    painted = paint.schema()["function"]["parameters"]["properties"]
    assert painted["color"] == {"type": "string", "description": "The color.", "enum": ["dark red", "blue"]}
    assert painted["rooms"]["items"] == {"type": "string", "enum": ["hall", "attic"]}
    assert painted["rooms"]["description"] == "The rooms., such as hall, attic"
    noted = note.schema()["function"]["parameters"]
    assert [noted["properties"][name]["type"] for name in noted["properties"]] == [
        "string",
        "integer",
        "boolean",
    ]
    assert noted["properties"]["priority"]["default"] == 1
    assert "default" not in noted["properties"]["loud"]
    assert noted["required"] == ["text"]
    assert hash(paint) == hash(paint)


@pytest.mark.parametrize(
    "hint", [str, Annotated[dict, "a"], Annotated[list, "a"], Annotated[str, 3], Annotated[set[str], "a"]]
)
def test_an_annotation_that_no_tool_can_take_is_one_sentence(hint):
    def broken(value):
        """Broken."""

    broken.__annotations__["value"] = hint
    with pytest.raises(TypeError, match=r"^tool broken: annotate value as Annotated\[type, description\]"):
        tool(broken)


FIND_JSON = '{"name": "find_customer", "arguments": {"email": "a@b.c"}}'
MOVE_JSON = f'{{"name": "move_items", "arguments": {ARGUMENTS}}}'


@pytest.mark.parametrize(
    "text",
    [
        f"/find_customer a@b.c\n<tool_call>{MOVE_JSON}</tool_call>",
        f"<tool_call>{MOVE_JSON}</tool_call>\n/find_customer a@b.c",
        f"<tool_call>{MOVE_JSON}</tool_call>\nYour items are on their way.",
        f"I do both.\n{MOVE_JSON}\n{FIND_JSON}",
        f"I do both.\n```json\n{MOVE_JSON}\n```\n```json\n{FIND_JSON}\n```",
        f"Well.\n{MOVE_JSON}\n/find_customer a@b.c",
        f"{MOVE_JSON}\n<tool_call>{FIND_JSON}</tool_call>",
    ],
)
def test_a_turn_with_two_calls_or_words_after_one_is_not_carried_out_in_part(text):
    assert isinstance(read_turn(text, TOOLS), BadCall)


@pytest.mark.parametrize("items", ['[{"a": 1}]', "[null]", '[["x"]]', "[NaN]", "[1e400]", '["\\ud800"]'])
def test_what_is_no_text_is_no_element_of_a_list_of_texts(items):
    text = f'{{"name": "move_items", "arguments": {{"order_id": "482", "items": {items}}}}}'
    assert isinstance(read_turn(text, TOOLS), BadCall)
