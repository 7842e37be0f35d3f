"""Tools with nested arguments: one declaration, its JSON schema, and what does not fit it."""

import json
from typing import Annotated, Literal, NotRequired, TypedDict

import pytest

from gspo_cli.tasks.tools import BadCall, ToolCall, by_name, example_line, read_turn, tool, write_line


class Place(TypedDict):
    city: Annotated[str, "the city"]
    zip: NotRequired[int]


class Item(TypedDict):
    name: Literal["lamp", "desk"]
    quantity: int


@tool
def ship(
    items: Annotated[list[Item], "what to ship"],
    place: Annotated[Place, "where to"],
    level: Annotated[Literal[1, 2], "how fast"] = 1,
    notes: Annotated[dict[str, str] | None, "notes by topic"] = None,
) -> str:
    """Ship items."""
    return f"{items} {place} {level} {notes}"


SHIP = by_name(ship)
WHOLE = {
    "items": [{"name": "lamp", "quantity": 2}],
    "place": {"city": "Köln", "zip": 5},
    "level": 2,
    "notes": {"gift": "yes"},
}


def test_nested_types_are_json_schema():
    properties = ship.schema()["function"]["parameters"]["properties"]
    item = {"name": {"type": "string", "enum": ["lamp", "desk"]}, "quantity": {"type": "integer"}}
    assert properties["items"] == {
        "type": "array",
        "description": "what to ship",
        "items": {
            "type": "object",
            "properties": item,
            "required": ["name", "quantity"],
            "additionalProperties": False,
        },
    }
    assert properties["place"]["required"] == ["city"]
    assert properties["place"]["properties"]["city"] == {"type": "string", "description": "the city"}
    assert (properties["level"]["enum"], properties["level"]["default"]) == ([1, 2], 1)
    assert properties["notes"]["additionalProperties"] == {"type": "string"}


def test_nested_arguments_are_read_in_every_form():
    call = ToolCall("ship", WHOLE)
    assert read_turn(json.dumps({"name": "ship", "arguments": WHOLE}), SHIP) == call
    assert read_turn(write_line("ship", *WHOLE.values()), SHIP) == call
    assert read_turn(write_line("ship", **WHOLE), SHIP) == call
    assert isinstance(read_turn(example_line(ship), SHIP), ToolCall)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (
            {"items": [{"name": "sofa", "quantity": 1}]},
            'items of ship at [0].name does not fit {"enum": ["lamp", "desk"]}',
        ),
        (
            {"items": [{"name": "lamp", "quantity": "x"}]},
            'items of ship at [0].quantity does not fit {"type": "integer"}',
        ),
        ({"items": {"name": "lamp"}}, 'items of ship does not fit {"type": "array"}'),
        (
            {"items": [{"name": "lamp"}]},
            'items of ship at [0] does not fit {"required": ["name", "quantity"]}',
        ),
        (
            {"place": {"city": "Bonn", "street": "x"}},
            'place of ship does not fit {"additionalProperties": false}',
        ),
        ({"place": "Bonn"}, "place of ship must be an object, written as JSON"),
        ({"level": 3}, 'level of ship does not fit {"enum": [1, 2]}'),
        ({"notes": {"a": 1}}, 'notes of ship at a does not fit {"type": "string"}'),
    ],
)
def test_wrong_nested_arguments_quote_the_part_of_the_schema(changed, reason):
    found = read_turn(json.dumps({"name": "ship", "arguments": WHOLE | changed}), SHIP)
    assert isinstance(found, BadCall)
    assert found.reason.startswith(f"{reason}, for example ")


def test_an_object_that_is_nested_without_end_is_refused():
    deep = json.loads("[" * 200 + "]" * 200)
    found = read_turn(json.dumps({"name": "ship", "arguments": WHOLE | {"items": deep}}), SHIP)
    assert found.reason.startswith("items of ship is nested deeper than 20 levels")


def test_a_parameter_may_be_called_name():
    assert write_line("find_number", name="ana lee") == "/find_number name='ana lee'"
