"""Tools that agents call in their text: how one is declared, how a call is read, and how it is run.

A tool is a function under `@tool`. Agents read its name, the first paragraph of its docstring, and its
parameters. Parameters before `/` are what the function works on; the environment passes them:

    @tool
    def get_order(shop: Shop, /, order_id: Annotated[str, "three digits"]) -> str: ...

An agent's turn is either words for the user or one call. A call can be written in three ways:

- the line form, for models without a format of their own: `/refund_order 482 "no longer needed"`, values in
  the order of the tool's parameters or as name=value, quoted as in a shell, lists with commas;
- `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, the format of Qwen and Hermes templates;
- a bare JSON object of that shape (or with "parameters"), also after `[TOOL_CALLS]`, as Llama and Mistral do.

Agents' text is untrusted. Reading it returns a call, a message that says what is wrong, or speech, and never
raises."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, get_type_hints

LONGEST_CALL = 4000  # characters; no valid call is longer
LONGEST_SPEECH = 20_000  # characters of an agent's words that a user reads
THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
FENCE = re.compile(r"\A```(?:json)?\s*(\{.*\}|\[.*\])\s*```\Z", re.DOTALL)
LINE = re.compile(r"/[A-Za-z_]\w*(?:\s|\Z)")
NAMED = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


class Kind(Enum):
    """The type of a parameter's value."""

    text = "string"
    number = "number"
    list = "array"


@dataclass(frozen=True)
class Parameter:
    """One argument of a tool; the elements of a list are strings."""

    name: str
    description: str
    kind: Kind = Kind.text
    required: bool = True


@dataclass(frozen=True)
class Tool:
    """What an agent can call. The order of `parameters` is that of the line form."""

    name: str
    description: str
    parameters: tuple[Parameter, ...] = ()

    def schema(self) -> dict[str, Any]:
        """JSON schema as chat templates take it."""
        properties: dict[str, Any] = {}
        for parameter in self.parameters:
            shape: dict[str, Any] = {"type": parameter.kind.value, "description": parameter.description}
            if parameter.kind is Kind.list:
                shape["items"] = {"type": "string"}
            properties[parameter.name] = shape
        required = [parameter.name for parameter in self.parameters if parameter.required]
        described = {"type": "object", "properties": properties, "required": required}
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": described},
        }

    def line(self) -> str:
        """The line form with its description: `/find_customer email: Look a customer up.`"""
        names = [p.name if p.required else f"[{p.name}]" for p in self.parameters]
        return f"{' '.join([f'/{self.name}', *names])}: {self.description}"


@dataclass(frozen=True)
class FunctionTool(Tool):
    """A tool with the function that runs it, as `tool` declares it."""

    function: Callable[..., str] = field(kw_only=True, compare=False, repr=False)


KINDS: Mapping[Any, Kind] = {str: Kind.text, float: Kind.number, list[str]: Kind.list}


def tool(function: Callable[..., str]) -> FunctionTool:
    """Declare a function as a tool.

    The function's name is the tool's, without the underscore behind a name that Python reserves. Parameters
    after `/` are annotated as `Annotated[str, "description"]`, with `float` for a number and `list[str]` for
    a list of texts; those with a default are optional. The function returns what the agent observes, or
    raises RefusedError."""
    hints = get_type_hints(function, include_extras=True)
    parameters = [
        Parameter(
            p.name, hints[p.name].__metadata__[0], KINDS[hints[p.name].__origin__], p.default is p.empty
        )
        for p in inspect.signature(function).parameters.values()
        if p.kind is not p.POSITIONAL_ONLY
    ]
    description = (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")
    return FunctionTool(function.__name__.rstrip("_"), description, tuple(parameters), function=function)


def by_name(*tools: FunctionTool) -> dict[str, FunctionTool]:
    """Tools in their order, as `read_turn` and `run_call` take them."""
    return {tool.name: tool for tool in tools}


@dataclass(frozen=True)
class ToolCall:
    """A well-formed call: `arguments` has every required parameter, each of its kind."""

    name: str
    arguments: Mapping[str, Any]


class RefusedError(Exception):
    """A well-formed call that cannot be carried out; its text is the observation."""


@dataclass(frozen=True)
class Observation:
    """What a call returned; `ok` is false if it was refused."""

    text: str
    ok: bool = True


def run_call(call: ToolCall, tools: Mapping[str, FunctionTool], *works_on: Any) -> Observation:
    """Run a call that `read_turn` has read; `works_on` is what the tools' functions take before `/`."""
    try:
        return Observation(tools[call.name].function(*works_on, **call.arguments))
    except RefusedError as refusal:
        return Observation(str(refusal), ok=False)


@dataclass(frozen=True)
class BadCall:
    """A call that cannot be read; `reason` is the observation that the agent gets."""

    reason: str


@dataclass(frozen=True)
class Speech:
    """Words for the user."""

    text: str


def line_guide(tools: Sequence[Tool]) -> str:
    """How to call `tools` in the line form, for a system prompt."""
    lines = ["To use a tool, write one line and nothing else: /tool value value. The tools:"]
    return "\n".join([*lines, *(tool.line() for tool in tools)])


def write_line(name: str, *values: str) -> str:
    """A call in the line form."""
    return " ".join([f"/{name}", *(shlex.quote(value) for value in values)])


def read_turn(text: str, tools: Mapping[str, Tool]) -> ToolCall | BadCall | Speech:
    """The call or the words of an agent's turn; `tools` are those it may call, by name."""
    text = THOUGHTS.sub("", text[: 10 * LONGEST_SPEECH])
    text = text.rpartition("</think>")[2].strip()  # some templates open the <think> block themselves
    fenced = FENCE.match(text)
    text = fenced[1] if fenced else text
    if "<tool_call>" in text:
        return _read_tagged(text, tools)
    if LINE.match(text):
        return _read_line(text, tools)
    if text.startswith("[TOOL_CALLS]"):
        return _read_json(text.removeprefix("[TOOL_CALLS]"), tools)
    if text.startswith(("{", "[{")) and '"name"' in text:
        return _read_json(text, tools)
    return Speech(text[:LONGEST_SPEECH])


def _read_tagged(text: str, tools: Mapping[str, Tool]) -> ToolCall | BadCall:
    if text.count("<tool_call>") > 1:
        return BadCall("make one tool call at a time")
    body, closed, _ = text.partition("<tool_call>")[2].partition("</tool_call>")
    return _read_json(body, tools) if closed else BadCall("the tool call has no closing </tool_call>")


def _read_json(body: str, tools: Mapping[str, Tool]) -> ToolCall | BadCall:
    if len(body) > LONGEST_CALL:
        return BadCall(f"the tool call is over {LONGEST_CALL} characters")
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        return BadCall("the tool call is not JSON")
    if isinstance(call, list):
        if len(call) != 1:
            return BadCall("make one tool call at a time")
        call = call[0]
    if not isinstance(call, dict):
        return BadCall('write the tool call as {"name": ..., "arguments": {...}}')
    name, arguments = call.get("name"), call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):  # some models write the object as a string
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return BadCall("the arguments are not JSON")
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return BadCall('write the tool call as {"name": ..., "arguments": {...}}')
    return _checked(name, arguments, tools)


def _read_line(text: str, tools: Mapping[str, Tool]) -> ToolCall | BadCall:
    if len(text) > LONGEST_CALL:
        return BadCall(f"the tool call is over {LONGEST_CALL} characters")
    if "\n" in text:
        return BadCall("write a tool call as one line and nothing else")
    try:
        name, *values = shlex.split(text[1:])
    except ValueError:
        return BadCall("a quotation mark of the tool call is not closed")
    tool = tools.get(name)
    if tool is None:
        return _unknown(name, tools)
    arguments: dict[str, Any] = {}
    places = [parameter.name for parameter in tool.parameters]
    for value in values:
        named = NAMED.fullmatch(value)
        if named and named.group(1) in places:
            key, value = named.groups()
        else:
            key = next((place for place in places if place not in arguments), None)
        if key is None or key in arguments:
            return BadCall(f"{name} takes {_places(tool)}")
        arguments[key] = value
    return _checked(name, arguments, tools)


def _checked(name: str, arguments: Mapping[str, Any], tools: Mapping[str, Tool]) -> ToolCall | BadCall:
    tool = tools.get(name)
    if tool is None:
        return _unknown(name, tools)
    parameters = {parameter.name: parameter for parameter in tool.parameters}
    required = {parameter.name for parameter in tool.parameters if parameter.required}
    if set(arguments) - set(parameters) or required - set(arguments):
        return BadCall(f"{name} takes {_places(tool)}")
    values = {key: _value(arguments[key], parameters[key].kind) for key in parameters if key in arguments}
    for key, value in values.items():
        if value is None:
            return BadCall(f"{key} of {name} must be a {parameters[key].kind.name}")
    return ToolCall(name, values)


def _value(value: Any, kind: Kind) -> Any:
    """`value` converted to `kind`; None if it cannot be."""
    if kind is Kind.list:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return [str(part) for part in value] if isinstance(value, list) else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if kind is Kind.text:
        return str(value)
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < 1e12 else None  # rejects nan and infinity


def _unknown(name: str, tools: Mapping[str, Tool]) -> BadCall:
    named = "".join(char for char in name[:40] if char.isalnum() or char in "_-")
    return BadCall(f"there is no tool '{named}'; there are {', '.join(tools) or 'none'}")


def _places(tool: Tool) -> str:
    return ", ".join(p.name if p.required else f"{p.name} (optional)" for p in tool.parameters) or "no values"
