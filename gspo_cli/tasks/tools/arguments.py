"""The arguments of a call: each converted to its parameter's kind, or a sentence that says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from gspo_cli.tasks.tools.declaring import Kind, Parameter, Tool, ToolCall
from gspo_cli.tasks.tools.schemas import misfit

LONGEST_REASON = 500  # characters
LARGEST_NUMBER = 1e12
MOST_NAMED, NEAREST = 20, 5  # tools in the answer to an unknown name
TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
KIND_WORDS = {
    Kind.text: "a text",
    Kind.number: "a number",
    Kind.integer: "an integer",
    Kind.boolean: "true or false",
    Kind.list: "a list",
    Kind.object: "an object, written as JSON",
}


@dataclass(frozen=True)
class BadCall:
    """A call that cannot be read; `reason` is the observation that the agent gets."""

    reason: str


def checked(tool: Tool, arguments: Mapping[str, Any], example: str) -> ToolCall | BadCall:
    """The call, or what is wrong with its arguments; `example` is a call of the tool as it can be written."""
    parameters = {parameter.name: parameter for parameter in tool.parameters}
    # null is how many models leave out what is optional
    given = {
        name: value
        for name, value in arguments.items()
        if value is not None or name not in parameters or parameters[name].required
    }
    missing = [p.name for p in tool.parameters if p.required and p.name not in given]
    if missing or set(given) - set(parameters):
        return usage(tool, example)
    values = {name: converted(given[name], parameters[name]) for name in parameters if name in given}
    for name, value in values.items():
        shape = parameters[name].shape
        if value is None:
            return _bad_value(parameters[name], tool, example)
        if shape is not None and (wrong := misfit(value, shape)):
            return _bad_call(f"{name} of {tool.name} {wrong}, for example {example}")
    return ToolCall(tool.name, values)


def usage(tool: Tool, example: str) -> BadCall:
    """What a tool takes, with an example."""
    takes = ", ".join(map(_taken, tool.parameters)) or "no values"
    return _bad_call(f"{tool.name} takes {takes}, for example {example}")


def unknown(name: str, tools: Mapping[str, Tool]) -> BadCall:
    """Which tools there are; of many, the nearest names."""
    named = "".join(char for char in name[:40] if char.isalnum() or char in "_-")
    if len(tools) > MOST_NAMED:
        near = ", ".join(get_close_matches(named, tools, n=NEAREST, cutoff=0.0))
        return _bad_call(f"unknown tool '{named}'; the nearest names are {near}")
    return _bad_call(f"unknown tool '{named}'; the available tools are {', '.join(tools) or 'none'}")


def converted(value: Any, parameter: Parameter) -> Any:
    """`value` converted to the parameter's kind, and to the spelling of an allowed value; None if it cannot
    be. Where the parameter has a shape, that has still to be checked."""
    if parameter.shape is not None:
        return _unwritten(value) if isinstance(value, str) else value
    if parameter.kind is Kind.list:
        parts = _parts(value)
        chosen = [_chosen(part, parameter.choices) for part in parts] if parts is not None else [None]
        return None if None in chosen else chosen
    if parameter.kind is Kind.boolean:
        return value if isinstance(value, bool) else TRUTHS.get(str(value).strip().lower())
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if parameter.kind is Kind.text:
        return _chosen(str(value), parameter.choices)
    return _number(value, whole=parameter.kind is Kind.integer)


def _unwritten(value: str) -> Any:
    """The value that a text of JSON writes; None if it writes none."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _parts(value: Any) -> list[str] | None:
    """The elements of a list, also where it is written as `a, b`, `[a, b]` or `["a", "b"]`."""
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            bare = value.strip().removeprefix("[").removesuffix("]")
            return [part.strip().strip("\"'") for part in bare.split(",") if part.strip()]
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [str(value)]
    plain = isinstance(value, list) and all(isinstance(part, str | int | float) for part in value)
    return [str(part) for part in value] if plain else None


def _chosen(text: str, choices: Sequence[str]) -> str | None:
    """The allowed value that `text` means: case, quotes, spaces and underscores do not matter."""
    if not choices or text in choices:
        return text
    meant = [choice for choice in choices if _plain(choice) == _plain(text)]
    return meant[0] if len(meant) == 1 else None


def _plain(text: str) -> str:
    return "".join(char for char in text.casefold() if char.isalnum())


def _number(value: str | int | float, whole: bool) -> float | int | None:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not abs(number) < LARGEST_NUMBER:  # rejects nan and infinity
        return None
    if whole:
        return int(number) if number.is_integer() else None
    return number


def _taken(parameter: Parameter) -> str:
    notes = [] if parameter.kind is Kind.text else [parameter.kind.name]
    notes += [] if parameter.required else ["optional"]
    notes += [f"one of {', '.join(parameter.choices)}"] if parameter.choices else []
    return parameter.name + (f" ({', '.join(notes)})" if notes else "")


def _bad_value(parameter: Parameter, tool: Tool, example: str) -> BadCall:
    expected = KIND_WORDS[parameter.kind]
    if parameter.choices:
        several = "a list of" if parameter.kind is Kind.list else "one of"
        expected = f"{several} {', '.join(parameter.choices)}"
    return _bad_call(f"{parameter.name} of {tool.name} must be {expected}, for example {example}")


def _bad_call(reason: str) -> BadCall:
    return BadCall(reason if len(reason) <= LONGEST_REASON else reason[: LONGEST_REASON - 3] + "...")
