"""The line form of calls: what is not quoted is read as it was meant, and what is written is read back."""

from __future__ import annotations

import json
import re
import shlex

import numpy as np
import pytest

from gspo_cli.tasks.customer_service.task import CustomerService
from gspo_cli.tasks.customer_service.tools import TOOLS as SHOP
from gspo_cli.tasks.sales.customer import GET, LIST
from gspo_cli.tasks.sales.task import Sales
from gspo_cli.tasks.tau.tools import ALL_TOOLS
from gspo_cli.tasks.technical_support.phone import TOOLS as PHONE
from gspo_cli.tasks.technical_support.task import TechnicalSupport
from gspo_cli.tasks.tools import Kind, Parameter, Tool, ToolCall, by_name, line_guide, read_turn, write_line
from tests.support.retail_files import built, write_folder
from tests.test_tool_calls import FIND, MOVE, TOOLS, move_items, note, paint


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("/note call him back", {"text": "call him back"}),
        ("/note call him back 2", {"text": "call him back", "priority": 2}),
        ("/note call him back 2 true", {"text": "call him back", "priority": 2, "loud": True}),
        ("/note priority=2 call him back", {"text": "call him back", "priority": 2}),
        ("/note text=call him back priority=2", {"text": "call him back", "priority": 2}),
        ("/note I don't know", {"text": "I don't know"}),
        ("/note 'I don't know'", {"text": "I don't know"}),
        ("/note don't and won't", {"text": "don't and won't"}),
        ("/note it's the customer's", {"text": "it's the customer's"}),
        ('/note a 5" screen', {"text": 'a 5" screen'}),
        ('/note "quoted" and not', {"text": '"quoted" and not'}),
        ('/note "two\nlines"', {"text": "two\nlines"}),
        ("/note ''", {"text": ""}),
        ('{"name": "note", "arguments": {"text": 5, "priority": "2"}}', {"text": "5", "priority": 2}),
        ('{"name": "note", "arguments": {"text": "a", "loud": null}}', {"text": "a"}),
        ("/paint dark red hall, attic because it's nice", None),
        ("/paint 'dark red' hall,attic because it's nice", None),
        ("/paint Dark_Red [Hall, Attic] because it's nice", None),
        ("/paint color=dark red rooms=hall, attic why=because it's nice", None),
    ],
)  # fmt: skip
def test_what_is_not_quoted_is_read_as_it_is_meant(text, arguments):
    tools = by_name(note, paint)
    painted = {"color": "dark red", "rooms": ["hall", "attic"], "why": "because it's nice"}
    found = read_turn(text, tools)
    assert isinstance(found, ToolCall), found
    assert found.arguments == (arguments or painted)


def test_written_calls_read_back():
    for value in ("482", "no longer needed", "it's", 'a "b" c', "a=b", "email=x"):
        call = write_line("find_customer", f"email={value}")
        assert read_turn(call, TOOLS) == ToolCall("find_customer", {"email": value})


def test_random_values_are_written_and_read_back():
    rng = np.random.default_rng(1)
    characters = [*"abcZ019 \r'\"\\,[]{}#=/-.:;`~*()\n\t😀é"]
    tools = by_name(move_items, note, paint)

    def text(most=12):
        return "".join(rng.choice(characters, size=rng.integers(0, most)))

    for _ in range(3000):
        arguments = {"order_id": text(), "items": [text(5) for _ in range(rng.integers(0, 4))], "fee": 0.5}
        assert read_turn(write_line("move_items", *arguments.values()), tools).arguments == arguments
        assert read_turn(write_line("move_items", **arguments), tools).arguments == arguments
        noted = {"text": text(), "priority": int(rng.integers(9)), "loud": bool(rng.integers(2))}
        assert read_turn(write_line("note", *noted.values()), tools).arguments == noted
        assert read_turn(write_line("note", text=noted["text"]), tools).arguments == {"text": noted["text"]}


def formerly_read(text, tools):
    """Arguments of a line that a shell splits, as it was read when the demonstrations were written; None for
    what was no call, and in place of a number that was none."""
    if not re.match(r"/[A-Za-z_]\w*(?:\s|\Z)", text) or "\n" in text:
        return None
    try:
        name, *values = shlex.split(text[1:])
    except ValueError:
        return None
    places = {parameter.name: parameter for parameter in tools[name].parameters}
    arguments = {}
    for value in values:
        named = re.fullmatch(r"([A-Za-z_]\w*)=(.*)", value)
        if named and named[1] in places:
            key, value = named.groups()
        else:
            key = next((place for place in places if place not in arguments), None)
        if key is None or key in arguments:
            return None
        arguments[key] = formerly_converted(value, places[key].kind)
    missing = [p for p in places.values() if p.required and p.name not in arguments]
    return None if missing else arguments


def formerly_converted(value, kind):
    if kind is Kind.list:
        return [part.strip() for part in value.split(",") if part.strip()]
    if kind is Kind.text:
        return value
    return float(value) if re.fullmatch(r"\d+(\.\d+)?", value) else None


def test_calls_of_all_demonstrations_are_read_as_before(tmp_path):
    folder = write_folder(tmp_path)
    made = [
        (CustomerService("shop", "", "", difficulty=4, problems=300), SHOP),
        (Sales("sales", "", "", problems=60), {tool.name: tool for tool in (LIST, GET)}),
        (TechnicalSupport("support", "", "", faults=1), PHONE),
        (built(folder), ALL_TOOLS),
        (built(folder, user="ticket"), ALL_TOOLS),
    ]
    compared = 0
    for task, tools in made:
        turns = [
            m.content for shown in task.demonstrations() for m in shown.messages if m.role == "assistant"
        ]
        for text in turns:
            if text.startswith("/"):
                name = text[1:].partition(" ")[0]
                assert read_turn(text, tools) == ToolCall(name, formerly_read(text, tools))
                compared += 1
    assert compared > 500


def test_lines_of_random_words_that_were_calls_still_are():
    rng = np.random.default_rng(2)
    pieces = [*"a'\",#=\\", "482", "no longer", " ", " ", "order_id=", "email=", "items=", "fee=", "3.5"]
    compared = 0
    for _ in range(20_000):
        name = rng.choice(["find_customer", "move_items"])
        text = f"/{name} {''.join(rng.choice(pieces, size=rng.integers(1, 9)))}".strip()
        former = formerly_read(text, TOOLS)
        # an apostrophe inside a word was a quotation mark, and a fee that is no number was an error
        if former is None or re.search(r"\w'\w", text) or former.get("fee", 0.0) is None:
            continue
        assert read_turn(text, TOOLS) == ToolCall(name, former), text
        compared += 1
    assert compared > 1000


def test_a_tool_describes_itself_in_both_forms():
    shape = MOVE.schema()["function"]
    assert shape["parameters"]["required"] == ["order_id", "items"]
    assert shape["parameters"]["properties"]["items"]["items"] == {"type": "string"}
    assert json.dumps(shape)
    guide = line_guide([FIND, MOVE])
    assert "/move_items order_id items [fee]: Send items elsewhere." in guide
    assert "Example: /move_items ORDER_ID first,second 1.5" in guide
    assert "items (list): Their ids.\nfee (number, optional, default 0.0): In dollars." in guide
    for rule in ("name=value", "can be left out", 'in quotes: "two words"', "with commas: a1,b2"):
        assert rule in guide
    assert "commas" not in line_guide([FIND])


def test_parameters_that_mean_the_same_are_explained_once():
    other = Tool("close", "Close it.", (Parameter("order_id", "The order."), Parameter("email", "To whom?")))
    guide = line_guide([FIND, MOVE, other])
    assert guide.count("order_id (text): The order.") == 1
    assert "email of find_customer (text): The address.\nemail of close (text): To whom?" in guide
