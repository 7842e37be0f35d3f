"""Requests of OpenAI's chat completions, read into what the policy is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gspo_cli.tasks.tools import Tool
from gspo_cli.tasks.tools.declaring import Kind, Parameter
from gspo_cli.types import AgentTurn, Message, RequestedCall

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty")
HARMLESS = {"frequency_penalty": 0, "presence_penalty": 0}  # values that ask for nothing
MOST_STOPS, LONGEST_STOP = 4, 200  # texts, characters
MOST_MESSAGES, MOST_TOOLS = 2_000, 128
TOO_LONG = "context_length_exceeded"  # as OpenAI calls it
TOO_MANY = "turn_limit_exceeded"


class RequestError(Exception):
    """A request that cannot be served: its HTTP status, a sentence that names the field, and the code of a
    limit that it has reached."""

    def __init__(self, field_name: str, reason: str, status: int = 400, code: str | None = None) -> None:
        super().__init__(f"{field_name}: {reason}")
        self.field, self.status, self.code = field_name, status, code


@dataclass(frozen=True)
class ClientTool(Tool):
    """A tool as an agent has declared it, which it runs itself."""

    declared: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def schema(self) -> dict[str, Any]:
        """The declaration, as it came."""
        return dict(self.declared)


@dataclass(frozen=True)
class ChatRequest:
    """What a client asks for. `sampling` holds the sampling parameters that it gave, which the run's
    override."""

    messages: tuple[Message, ...]
    tools: tuple[ClientTool, ...] = ()
    stops: tuple[str, ...] = ()
    max_tokens: int | None = None
    stream: bool = False
    with_usage: bool = False
    with_logprobs: bool = False
    sampling: tuple[tuple[str, Any], ...] = ()


def read_request(body: Any) -> ChatRequest:
    """The request of a JSON body. Raises RequestError where it is not one, or asks for what there is not."""
    if not isinstance(body, Mapping):
        raise RequestError("body", "must be a JSON object with messages")
    if body.get("n") not in (None, 1):
        raise RequestError("n", "must be 1: each sample of a problem is a conversation of its own")
    shape = body.get("response_format")
    if shape is not None and shape != {"type": "text"}:
        raise RequestError("response_format", "is not supported; say in words how the answer has to look")
    tools = _tools(body)
    limit = body.get("max_completion_tokens")
    limit = body.get("max_tokens") if limit is None else limit
    if limit is not None and not (isinstance(limit, int) and not isinstance(limit, bool) and limit > 0):
        raise RequestError("max_tokens", "must be an integer above 0")
    options = body.get("stream_options") or {}
    given = (name for name in SAMPLING if body.get(name) is not None)
    return ChatRequest(
        _messages(body.get("messages")),
        tools,
        _stops(body.get("stop")),
        limit,
        stream=body.get("stream") is True,
        with_usage=isinstance(options, Mapping) and options.get("include_usage") is True,
        with_logprobs=body.get("logprobs") is True,
        sampling=tuple((name, body[name]) for name in given if body[name] != HARMLESS.get(name)),
    )


def _stops(given: Any) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else given or []
    texts = isinstance(stops, list) and all(isinstance(stop, str) and stop for stop in stops)
    if not texts or len(stops) > MOST_STOPS or any(len(stop) > LONGEST_STOP for stop in stops):
        raise RequestError("stop", f"must be up to {MOST_STOPS} texts of at most {LONGEST_STOP} characters")
    return tuple(stops)


def _tools(body: Mapping[str, Any]) -> tuple[ClientTool, ...]:
    choice = body.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise RequestError("tool_choice", "must be auto or none: the policy decides whether to call a tool")
    declared = body.get("tools") or []
    if not isinstance(declared, list) or len(declared) > MOST_TOOLS:
        raise RequestError("tools", f"must be a list of at most {MOST_TOOLS} tools")
    tools = tuple(map(_tool, declared))
    if len({tool.name for tool in tools}) < len(tools):
        raise RequestError("tools", "must have different names")
    return () if choice == "none" else tools


def _tool(declared: Any) -> ClientTool:
    function = declared.get("function") if isinstance(declared, Mapping) else None
    if not isinstance(function, Mapping) or declared.get("type", "function") != "function":
        raise RequestError("tools", 'must be of the form {"type": "function", "function": {"name": ...}}')
    name, shape = function.get("name"), function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(name, str) or not name:
        raise RequestError("tools", "must have names")
    properties = (shape.get("properties") or {}) if isinstance(shape, Mapping) else None
    if not isinstance(properties, Mapping) or not all(map(_is_schema, properties.values())):
        raise RequestError("tools", f"the parameters of {name} must be a JSON schema of an object")
    required = shape.get("required") or []
    if not isinstance(required, list):
        raise RequestError("tools", f"the required parameters of {name} must be a list of names")
    parameters = tuple(_parameter(key, each, key in required) for key, each in properties.items())
    description = str(function.get("description") or "")
    whole = {"name": name, "description": description, "parameters": dict(shape)}
    return ClientTool(name, description, parameters, declared={"type": "function", "function": whole})


def _is_schema(shape: Any) -> bool:
    return isinstance(shape, Mapping) and isinstance(shape.get("enum") or [], list)


def _parameter(name: str, shape: Mapping[str, Any], required: bool) -> Parameter:
    """A parameter as the line form needs it."""
    kinds = {kind.value: kind for kind in Kind}
    kind = kinds.get(str(shape.get("type")), Kind.text)
    choices = tuple(each for each in shape.get("enum") or () if isinstance(each, str))
    nested = kind in (Kind.list, Kind.object)
    description = str(shape.get("description") or f"the {name}")
    return Parameter(
        name, description, kind, required, choices, shape.get("default"), shape=shape if nested else None
    )


def _messages(given: Any) -> tuple[Message, ...]:
    if not isinstance(given, list) or not given:
        raise RequestError("messages", "must be a list of messages that is not empty")
    if len(given) > MOST_MESSAGES:
        raise RequestError("messages", f"must be at most {MOST_MESSAGES}")
    found: list[Message] = []
    waiting: list[str] = []  # ids of the last calls, in their order
    results: dict[int, Message] = {}
    for place, data in enumerate(given):
        where = f"messages[{place}]"
        role = data.get("role") if isinstance(data, Mapping) else None
        if role == "tool" and not waiting and data.get("tool_call_id") is None:
            found.append(Message("tool", _text(data.get("content"), where)))  # of calls that are words
            continue
        if role == "tool":
            which = _result_place(data, waiting, where)
            if which in results:
                raise RequestError(where, "is a second result of the same call")
            results[which] = Message("tool", _text(data.get("content"), where))
            continue
        found += _in_order(results)
        waiting, results = [], {}
        if role == "assistant":
            calls = [_call(call, where) for call in _listed(data.get("tool_calls"), where)]
            waiting = [name for name, _ in calls]
            words = _text(data.get("content"), where).strip()
            turn = AgentTurn("", words, "", tuple(call for _, call in calls)) if calls else words
            found.append(Message("assistant", turn))
        elif role in ("system", "developer", "user"):
            found.append(Message("user" if role == "user" else "system", _text(data.get("content"), where)))
        else:
            raise RequestError(where, "has no role of system, developer, user, assistant or tool")
    found += _in_order(results)
    if found[-1].role == "assistant":
        raise RequestError("messages", "must end with a message that is to be answered")
    return tuple(found)


def _in_order(results: Mapping[int, Message]) -> list[Message]:
    """Results in the order of their calls."""
    return [results[place] for place in sorted(results)]


def _result_place(data: Mapping[str, Any], waiting: Sequence[str], where: str) -> int:
    found = data.get("tool_call_id")
    if found not in waiting:
        raise RequestError(where, "tool_call_id must be that of a call of the message before")
    return waiting.index(found)


def _listed(calls: Any, where: str) -> list[Any]:
    if not isinstance(calls or [], list):
        raise RequestError(where, "its tool_calls must be a list")
    return calls or []


def _call(call: Any, where: str) -> tuple[str, RequestedCall]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RequestError(where, "has a tool call without a function and its name")
    arguments = function.get("arguments") or "{}"
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError) as error:
        raise RequestError(where, "has a tool call whose arguments are not JSON") from error
    if not isinstance(parsed, Mapping):
        raise RequestError(where, "has a tool call whose arguments are not an object")
    return str(call.get("id")), RequestedCall(function["name"], dict(parsed))


def _text(content: Any, where: str) -> str:
    """The text of a message: its content, or that of its parts, joined."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise RequestError(where, "its content must be a text, or a list of parts")
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "input_text", "refusal"):
            raise RequestError(where, f"a part of type {kind} is not supported: the policy reads text alone")
        parts.append(str(part.get("text", part.get("refusal", ""))))
    return "".join(parts)
