"""What a tool is: its name, description and parameters as agents read them, and the function that runs it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from gspo_cli.tasks.tools.schemas import sample_of, schema_of


class Kind(Enum):
    """The type of a parameter's value, as JSON schema names it."""

    text = "string"
    number = "number"
    integer = "integer"
    boolean = "boolean"
    list = "array"
    object = "object"


@dataclass(frozen=True)
class Parameter:
    """One argument of a tool. The elements of a list are texts unless `shape`, a JSON schema, says what they
    are; an object always has one.

    `choices` are the allowed values, of a list its allowed elements; empty for any. `default` is what an
    optional parameter has where it is left out. `example` is shown where calls are explained."""

    name: str
    description: str
    kind: Kind = Kind.text
    required: bool = True
    choices: tuple[str, ...] = ()
    default: Any = field(default=None, hash=False)  # lists have no hash
    example: Any = field(default=None, hash=False)
    shape: Mapping[str, Any] | None = field(default=None, hash=False)

    def schema(self) -> dict[str, Any]:
        """JSON schema of the value."""
        such_as = "" if self.example is None else f", such as {_listed(self.example)}"
        shape: dict[str, Any] = {"type": self.kind.value, "description": self.description + such_as}
        shape |= self.shape or {}
        value = shape.setdefault("items", {"type": "string"}) if self.kind is Kind.list else shape
        if self.choices:
            value["enum"] = list(self.choices)
        if self.default is not None:
            shape["default"] = self.default
        return shape

    def sample(self) -> Any:
        """A value of its kind, for an example of a call."""
        if self.example is not None:
            return self.example
        if self.shape is not None:
            return sample_of(self.shape)
        samples = {Kind.number: 1.5, Kind.integer: 2, Kind.boolean: True, Kind.list: ["first", "second"]}
        if self.choices:
            return list(self.choices[:2]) if self.kind is Kind.list else self.choices[0]
        return samples.get(self.kind, self.name.upper())


@dataclass(frozen=True)
class Tool:
    """What an agent can call. The order of `parameters` is that of the line form."""

    name: str
    description: str
    parameters: tuple[Parameter, ...] = ()

    def schema(self) -> dict[str, Any]:
        """JSON schema as chat templates take it."""
        properties = {parameter.name: parameter.schema() for parameter in self.parameters}
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

    def samples(self) -> dict[str, Any]:
        """The arguments of an example."""
        return {parameter.name: parameter.sample() for parameter in self.parameters}


@dataclass(frozen=True)
class FunctionTool(Tool):
    """A tool with the function that runs it, as `tool` declares it."""

    function: Callable[..., str] = field(kw_only=True, compare=False, repr=False)


class OneOf:
    """The allowed values of an annotated parameter, where they are not literals:
    `Annotated[str, "the new city", OneOf(*CITIES)]`."""

    def __init__(self, *choices: str) -> None:
        self.choices = choices


class Example:
    """The value of an annotated parameter in examples: `Annotated[str, "three digits", Example("482")]`."""

    def __init__(self, value: Any) -> None:
        self.value = value


def tool(function: Callable[..., str]) -> FunctionTool:
    """Declare a function as a tool.

    The function's name is the tool's, without the underscore behind a name that Python reserves. Parameters
    after `/` are annotated as `Annotated[type, "description"]`. The type is str, float, int, bool, a Literal,
    a TypedDict, or a list or dict of these; those with a default are optional, and may be `type | None`.
    `OneOf` and `Example` may follow the description. The function returns what the agent observes, or raises
    RefusedError. Raises TypeError if an annotation is of another form."""
    hints = get_type_hints(function, include_extras=True)
    parameters = [
        _parameter(function.__name__, p, hints.get(p.name))
        for p in inspect.signature(function).parameters.values()
        if p.kind is not p.POSITIONAL_ONLY
    ]
    description = (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")
    return FunctionTool(function.__name__.rstrip("_"), description, tuple(parameters), function=function)


def _parameter(function: str, parameter: inspect.Parameter, hint: Any) -> Parameter:
    schema = schema_of(get_args(hint)[0]) if get_origin(hint) is Annotated else None
    extras = list(get_args(hint)[1:])
    if schema is None or not isinstance(extras[0], str):
        raise TypeError(
            f"tool {function}: annotate {parameter.name} as Annotated[type, description], where the type is "
            "str, float, int, bool, a Literal, a TypedDict, or a list or dict of these"
        )
    kind, inner = Kind(schema["type"]), schema.get("items", schema)
    plain = inner["type"] == "string" or (kind not in (Kind.list, Kind.object) and "enum" not in schema)
    choices = tuple(inner.get("enum", ())) if plain else ()
    choices = next((extra.choices for extra in extras if isinstance(extra, OneOf)), choices)
    example = next((extra.value for extra in extras if isinstance(extra, Example)), None)
    required = parameter.default is parameter.empty
    default = None if required else parameter.default
    shape = None if plain else schema
    return Parameter(parameter.name, extras[0], kind, required, choices, default, example, shape)


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def by_name(*tools: FunctionTool) -> dict[str, FunctionTool]:
    """Tools in their order, as `read_turn` and `run_call` take them."""
    return {tool.name: tool for tool in tools}


@dataclass(frozen=True)
class ToolCall:
    """A well-formed call: `arguments` has every required parameter, each of its kind and an allowed value."""

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
