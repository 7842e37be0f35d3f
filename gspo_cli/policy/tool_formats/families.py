"""How families of models write reasoning and tool calls, as response templates of transformers.

A family is what its chat templates render and its models sample. Most are read by transformers' own parser
(`transformers.utils.chat_parsing`); calls that look like Python are read here, from their syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers.utils.chat_parsing.response_templates import ResponseTemplate, load_response_template

from gspo_cli.tasks.tools.written import UnreadableError, as_call, requested_call
from gspo_cli.types import RequestedCall

CALL = {"function": {"name": "{name}", "arguments": "{content}"}}  # what a field with a captured name becomes
JOINED: dict[str, Any] = {"repeats": True, "join": "\n"}
WORDS: dict[str, Any] = {"content": JOINED}
STRAY: dict[str, Any] = {"stray": JOINED}  # words outside of what a family puts its words in
THOUGHTS: dict[str, Any] = {"reasoning_content": {"open": "<think>", "close": "</think>"}}
SPOKEN = {**WORDS, **THOUGHTS}
ENDS = r"\Z"  # a call that ends with the turn


def from_json(found: Any) -> Iterator[RequestedCall]:
    """Calls of objects with a name and arguments, in lists of any depth.

    Raises UnreadableError on anything else."""
    if isinstance(found, list):
        for each in found:
            yield from from_json(each)
        return
    yield requested_call(found)


def from_python(found: Any) -> Iterator[RequestedCall]:
    """Calls such as `[get_order(order_id="482"), find(n=2)]`, also one to a line. Nothing is executed.

    Raises UnreadableError on anything but calls with named literal values."""
    for text in found if isinstance(found, list) else [found]:
        try:
            body = ast.parse(str(text).strip(), mode="exec").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise UnreadableError("the tool call cannot be read as name(argument=value)") from error
        for statement in body:
            value = statement.value if isinstance(statement, ast.Expr) else None
            for node in value.elts if isinstance(value, ast.List | ast.Tuple) else [value]:
                yield _python_call(node)


def _python_call(node: Any) -> RequestedCall:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        raise UnreadableError("write the tool call as name(argument=value)")
    try:
        arguments = {str(each.arg): _literal(each.value) for each in node.keywords if each.arg}
    except (TypeError, ValueError, RecursionError) as error:
        raise UnreadableError("the arguments of the tool call are not plain values") from error
    if len(arguments) != len(node.keywords):
        raise UnreadableError("write the tool call as name(argument=value)")
    return as_call(node.func.id, arguments)


def _literal(node: ast.expr) -> Any:
    """The value of a literal, also with the names that JSON has for some, and characters in two halves.

    Raises TypeError for what JSON cannot write as it is, ValueError for what is no literal."""
    names = {"true": True, "false": False, "null": None}

    class Named(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.AST:
            return ast.Constant(names[name.id]) if name.id in names else name

    return _plain(ast.literal_eval(Named().visit(node)))


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16")
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {_plain(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if not isinstance(value, int | float | None):
        raise TypeError(f"{type(value).__name__} is no value of JSON")
    return value


@dataclass(frozen=True)
class Form:
    """A way of writing turns. `spec` is a response template as transformers' parser takes it, `calls` makes
    calls of what its field `tool_calls` holds, and `dropped` are marks around the calls that mean nothing
    alone.

    `closes` ends a call that is not cut, "" where the end of the turn does. Where a call's arguments are
    elements with a `key` and a `value`, `element` is their pattern, and a call has nothing else."""

    name: str
    spec: Mapping[str, Any]
    closes: str = ""
    calls: Callable[[Any], Iterator[RequestedCall]] = from_json
    dropped: tuple[str, ...] = ()
    element: str = ""

    @cached_property
    def template(self) -> ResponseTemplate:
        """The template, compiled. Raises ValueError where the specification is not valid."""
        return load_response_template(dict(self.spec))

    @cached_property
    def opens(self) -> Any:
        """The pattern that a call begins with."""
        return self.template.fields["tool_calls"].open_re

    @cached_property
    def thinks(self) -> tuple[str, str] | None:
        """The marks of its reasoning, where they are texts."""
        fields = self.spec.get("fields")
        field = fields.get("reasoning_content") if isinstance(fields, Mapping) else None
        known = isinstance(field, Mapping) and {"open", "close"} <= set(field)
        return (str(field["open"]), str(field["close"])) if field and known else None


def family(name: str, fields: Mapping[str, Mapping[str, Any]], closes: str = "", **more: Any) -> Form:
    """What chat templates of a family render and its models sample, by the fields of a response template."""
    spec = {"start_anchor_pattern": r"\A", "fields": {each: dict(at) for each, at in fields.items()}}
    return Form(name, spec, closes, **more)


def tagged(opens: str, closes: str) -> dict[str, Any]:
    """Objects of JSON between two marks."""
    return {"open": opens, "close": closes, "content": "json", "repeats": True}


def named(opens: str, closes: str, **more: Any) -> dict[str, Any]:
    """Arguments between two patterns, the first of which has the name of the tool."""
    content = {"content": "json"} | more
    return {"open_pattern": opens, "close_pattern": closes, "repeats": True, "transform": CALL} | content


def elements(pattern: str) -> dict[str, Any]:
    """Arguments as elements with a `key` and a `value`."""
    return {"content": "xml-inline", "content_args": {"tag_pattern": pattern}}


QWEN = r"<parameter=(?P<key>[^>\n]{1,200})>\n?(?P<value>.*?)\n?</parameter>"
GLM = r"<arg_key>(?P<key>[^<]{1,200})</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>"


FORMS = (
    # Qwen2.5, Qwen3, Hermes, Granite 4 and many that were trained after them
    family("Hermes JSON", {**SPOKEN, "tool_calls": tagged("<tool_call>", "</tool_call>")}, "</tool_call>"),
    # Qwen3-Coder, Qwen3.5
    family(
        "Qwen XML",
        {
            **SPOKEN,
            "tool_calls": named(
                r"<tool_call>\s*<function=(?P<name>[^>\n]{1,200})>",
                r"</function>\s*</tool_call>",
                **elements(QWEN),
            ),
        },
        "</tool_call>",
        element=QWEN,
    ),
    # GLM-4.5 and later
    family(
        "GLM XML",
        {
            **SPOKEN,
            "tool_calls": named(
                r"<tool_call>\s*(?P<name>[^\s<{]{1,200})\s*",
                r"</tool_call>",
                **elements(GLM),
            ),
        },
        "</tool_call>",
        element=GLM,
    ),
    # Llama 3.1, 3.2 and 3.3: the turn is one object
    family(
        "Llama JSON",
        {
            **WORDS,
            "tool_calls": {
                "open_pattern": r"\A\s*(?:<\|python_tag\|>)?\s*(?=\{)",
                "close_pattern": ENDS,
                "content": "json",
            },
        },
    ),
    # Llama 3.2 and 4: the turn is a list of calls
    family(
        "Llama Python",
        {
            **WORDS,
            "tool_calls": {
                "open_pattern": r"\A\s*(?:<\|python_start\|>)?(?=\s*\[\s*[A-Za-z_]\w*\()",
                "close_pattern": r"<\|python_end\|>|\Z",
                "repeats": True,
            },
        },
        calls=from_python,
    ),
    # Mistral up to v7
    family(
        "Mistral JSON",
        {**WORDS, "tool_calls": {"open": "[TOOL_CALLS]", "close_pattern": ENDS, "content": "json"}},
    ),
    # Mistral from v11 on, Magistral
    family(
        "Mistral arguments",
        {
            **WORDS,
            "reasoning_content": {"open": "[THINK]", "close": "[/THINK]"},
            "tool_calls": named(
                r"\[TOOL_CALLS\]\s*(?P<name>[\w.-]{1,200})(?:\[CALL_ID\]\w*)?\[ARGS\]",
                r"(?=\[TOOL_CALLS\])|\Z",
            ),
        },
    ),
    # DeepSeek V3 and R1
    family(
        "DeepSeek blocks",
        {
            **SPOKEN,
            "tool_calls": named(
                r"<｜tool▁call▁begin｜>function<｜tool▁sep｜>(?P<name>[^\n<]{1,200})\n```json\n",
                r"\n```<｜tool▁call▁end｜>",
            ),
        },
        "<｜tool▁call▁end｜>",
        dropped=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    ),
    # DeepSeek V3.1 and later
    family(
        "DeepSeek JSON",
        {
            **SPOKEN,
            "tool_calls": named(
                r"<｜tool▁call▁begin｜>(?P<name>[^\n<]{1,200})<｜tool▁sep｜>", r"<｜tool▁call▁end｜>"
            ),
        },
        "<｜tool▁call▁end｜>",
        dropped=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    ),
    # gpt-oss: every part of a turn is in a channel, and a call is addressed to its tool
    family(
        "gpt-oss channels",
        {
            **STRAY,
            "reasoning_content": {
                "open_pattern": r"<\|channel\|>analysis<\|message\|>",
                "close_pattern": r"<\|end\|>|\Z",
                **JOINED,
            },
            "content": {
                "open_pattern": r"<\|channel\|>(?:final|commentary)<\|message\|>",
                "close_pattern": r"<\|end\|>|<\|return\|>|\Z",
                **JOINED,
            },
            "tool_calls": named(
                r"(?:<\|channel\|>commentary)?\s*to=functions\.(?P<name>[\w.-]{1,200})"
                r"(?:<\|channel\|>commentary)?\s*(?:<\|constrain\|>)?(?:json)?<\|message\|>",
                r"<\|call\|>|\Z",
            ),
        },
        dropped=("<|start|>assistant",),
    ),
    # FunctionGemma
    family(
        "Gemma calls",
        {
            **WORDS,
            "tool_calls": named(
                r"<start_function_call>call:(?P<name>[\w.-]{1,200})(?=\{)",
                r"<end_function_call>",
                content_args={"unquoted_keys": True, "string_delims": [["<escape>", "<escape>"]]},
            ),
        },
        "<end_function_call>",
    ),
    # OLMo-3: one call to a line
    family(
        "OLMo Python",
        {
            **SPOKEN,
            "tool_calls": {"open": "<function_calls>", "close": "</function_calls>", "repeats": True},
        },
        "</function_calls>",
        calls=from_python,
    ),
    # Phi-4-mini
    family(
        "Phi JSON",
        {**SPOKEN, "tool_calls": tagged("<|tool_call|>", "<|/tool_call|>")},
        "<|/tool_call|>",
    ),
    # Granite 3
    family(
        "Granite JSON",
        {**SPOKEN, "tool_calls": {"open": "<|tool_call|>", "close_pattern": ENDS, "content": "json"}},
    ),
    # Command R7B and A
    family(
        "Command actions",
        {
            **STRAY,
            "reasoning_content": {"open": "<|START_THINKING|>", "close": "<|END_THINKING|>"},
            "content": {"open": "<|START_RESPONSE|>", "close": "<|END_RESPONSE|>"},
            "tool_calls": tagged("<|START_ACTION|>", "<|END_ACTION|>"),
        },
        "<|END_ACTION|>",
    ),
    # Kimi K2
    family(
        "Kimi sections",
        {
            **SPOKEN,
            "tool_calls": named(
                r"<\|tool_call_begin\|>\s*(?:functions\.)?(?P<name>[\w-]{1,200})(?::\d+)?\s*"
                r"<\|tool_call_argument_begin\|>",
                r"<\|tool_call_end\|>",
            ),
        },
        "<|tool_call_end|>",
        dropped=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ),
)
