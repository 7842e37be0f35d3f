"""Calls as one line, for models whose chat template has no format for tools: `/refund_order 482`.

Values come in the order of the tool's parameters, or as name=value. A value with spaces is quoted, as in a
shell; the last text needs no quotes and takes the rest of the line. A list is written with commas, `a1,b2`,
or as in JSON, `["a1", "b2"]`."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gspo_cli.tasks.tools.arguments import BadCall, checked, converted, unknown, usage
from gspo_cli.tasks.tools.declaring import Kind, Parameter, Tool, ToolCall

LONGEST_CALL = 4000  # characters; no valid call is longer
LINE = re.compile(r"/([A-Za-z_]\w*)(?:\s|\Z)")
SPACES = re.compile(r"[ \t\r\n]*")
WORD = re.compile(r"[^ \t\r\n]+")
QUOTED = re.compile(r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|\\.|[^ \t\r\n"'\\])+(?=[ \t\r\n]|\Z)""", re.DOTALL)
APOSTROPHE = re.compile(r"[^ \t\r\n\"']*\w'\w")  # don't
SENTENCE = re.compile(r"'((?:[^']|(?<=\w)'(?=\w))+)'")  # 'I don't know'
NAMED = re.compile(r"([A-Za-z_]\w*)=")
PLAIN = re.compile(r"[^\s\"'\\,\[]+")
ONE_LINE = "write a tool call as one line and nothing else"


def line_guide(tools: Sequence[Tool]) -> str:
    """How to call `tools` in the line form, for a system prompt: each tool with an example, each parameter
    with its type and its allowed values, and the rules of quoting."""
    lines = ["To use a tool, write one line like the examples, and nothing else in that turn. The tools:"]
    lines += map(_described, tools)
    values = _values(tools)
    if not values:
        return "\n".join(lines)
    rules = "Write the values in the order of the line, or as name=value."
    if not all(parameter.required for tool in tools for parameter in tool.parameters):
        rules += " A value in [ ] can be left out."
    rules += ' Put a value with spaces in quotes: "two words".'
    if any(parameter.kind is Kind.list for tool in tools for parameter in tool.parameters):
        rules += " Write a list with commas: a1,b2."
    return "\n".join([*lines, "The values:", *values, rules])


def _described(tool: Tool) -> str:
    return f"{tool.line()} Example: {example_line(tool)}" if tool.parameters else tool.line()


def _values(tools: Sequence[Tool]) -> list[str]:
    """A line for each parameter; one for all tools where they mean the same by a name."""
    by_name: dict[str, dict[Parameter, list[str]]] = {}
    for tool in tools:
        for parameter in tool.parameters:
            by_name.setdefault(parameter.name, {}).setdefault(parameter, []).append(tool.name)
    return [
        " ".join([name, *([f"of {', '.join(owners)}"] if len(same) > 1 else []), _meaning(parameter)])
        for name, same in by_name.items()
        for parameter, owners in same.items()
    ]


def _meaning(parameter: Parameter) -> str:
    notes = [parameter.kind.name] + ([] if parameter.required else ["optional"])
    if parameter.default not in (None, "", (), []):
        notes.append(f"default {_shown(parameter.default)}")
    choices = f"; one of {', '.join(parameter.choices)}" if parameter.choices else ""
    return f"({', '.join(notes)}): {parameter.description}{choices}"


def example_line(tool: Tool) -> str:
    """A call of `tool` in the line form."""
    return " ".join([f"/{tool.name}", *map(_shown, tool.samples().values())])


def _shown(value: Any) -> str:
    """A value as agents should write it: quoted where that matters."""
    text = _text(value)
    return text if PLAIN.fullmatch(text) or isinstance(value, list | tuple) else json.dumps(text)


def write_line(name: str, /, *values: Any, **named: Any) -> str:
    """A call in the line form; `named` values are written as name=value."""
    texts = [shlex.quote(_text(value)) for value in values]
    texts += [f"{key}={shlex.quote(_text(value))}" for key, value in named.items()]
    return " ".join([f"/{name}", *texts])


def _text(value: Any) -> str:
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(part, dict) for part in value)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        parts = [str(part) for part in value]
        return ",".join(parts) if parts and all(map(PLAIN.fullmatch, parts)) else json.dumps(parts)
    return str(value).lower() if isinstance(value, bool) else str(value)


class Piece(NamedTuple):
    """A word or a quoted value of a line: where it begins and ends, its value without quotes, and whether a
    shell reads it, too: not `don't`."""

    start: int
    end: int
    value: str
    regular: bool


def read_line(text: str, tools: Mapping[str, Tool]) -> ToolCall | BadCall:
    """The call that `text` is, which begins as LINE."""
    begins = LINE.match(text)
    if begins is None or len(text) > LONGEST_CALL:
        return BadCall(f"the tool call is over {LONGEST_CALL} characters")
    tool = tools.get(begins[1])
    pieces = _pieces(text, begins.end(1))
    if pieces is None:
        return BadCall(ONE_LINE if tool is None else f"{ONE_LINE}, for example {example_line(tool)}")
    return unknown(begins[1], tools) if tool is None else _call(text, pieces, tool)


def _call(text: str, pieces: Sequence[Piece], tool: Tool) -> ToolCall | BadCall:
    example = example_line(tool)
    # each piece is a value, unless a list has brackets, whose quotes are not those of a shell
    if all(piece.regular and not text.startswith("[", piece.start) for piece in pieces):
        arguments = _one_by_one(pieces, tool)
        call = None if arguments is None else checked(tool, arguments, example)
        if isinstance(call, ToolCall):
            return call
    reader = _Reader(text, pieces, tool)
    arguments = reader.arguments()
    if reader.unclosed:
        return BadCall(f"a quotation mark of the tool call is not closed; write it like {example}")
    if arguments is None:
        return usage(tool, example)
    return checked(tool, arguments, example)


def _pieces(text: str, place: int) -> list[Piece] | None:
    """What stands behind the name of a tool; None if that goes over several lines."""
    pieces: list[Piece] = []
    balanced = True  # behind a quotation mark that is not closed, none means anything
    while True:
        start = SPACES.match(text, place).end()  # type: ignore[union-attr]  # it matches nothing, too
        if "\n" in text[place:start]:
            return None
        if start == len(text):
            return pieces
        whole = balanced and not APOSTROPHE.match(text, start)
        found = QUOTED.match(text, start) if whole else None
        balanced = balanced and (found is not None or not whole)
        word = found or WORD.match(text, start)
        assert word is not None  # the text goes on with something else than white space
        value = shlex.split(word[0])[0] if found else word[0]
        pieces.append(Piece(start, word.end(), value, found is not None))
        place = word.end()


def _one_by_one(pieces: Sequence[Piece], tool: Tool) -> dict[str, str] | None:
    """Each piece as a value; None if they are too many."""
    arguments: dict[str, str] = {}
    places = [parameter.name for parameter in tool.parameters]
    for piece in pieces:
        value, named = piece.value, NAMED.match(piece.value)
        if named and named[1] in places:
            key: str | None = named[1]
            value = value[named.end() :]
        else:
            key = next((place for place in places if place not in arguments), None)
        if key is None or key in arguments:
            return None
        arguments[key] = value
    return arguments


class _Reader:
    """Reads values that are not quoted as they should be: the last text takes what is left, a list goes on
    while there are commas, and an allowed value may have several words."""

    def __init__(self, text: str, pieces: Sequence[Piece], tool: Tool) -> None:
        self.text, self.pieces, self.tool = text, pieces, tool
        self.parameters = {parameter.name: parameter for parameter in tool.parameters}
        found = ((at, NAMED.match(text, piece.start)) for at, piece in enumerate(pieces))
        self.named = {at: name[1] for at, name in found if name and name[1] in self.parameters}
        self.found: dict[str, str] = {}
        self.unclosed = False  # a value begins with a quotation mark that is the only one

    def arguments(self) -> dict[str, str] | None:
        """The values by name; None if there are too many."""
        at = 0
        while at < len(self.pieces):
            later = {name for place, name in self.named.items() if place > at}
            waiting = [p for p in self.tool.parameters if p.name not in self.found and p.name not in later]
            name = self.named.get(at) or (waiting[0].name if waiting else None)
            if name is None or name in self.found:
                return None
            parameter = self.parameters[name]
            stop = next((place for place in self.named if place > at), len(self.pieces))
            at = self._take(parameter, at, stop, [p for p in waiting if p is not parameter])
        return self.found

    def _take(self, parameter: Parameter, at: int, stop: int, waiting: Sequence[Parameter]) -> int:
        """Read the value that begins at piece `at` and ends before `stop`; `waiting` are the parameters that
        still have none. Returns the next piece."""
        if parameter.kind is Kind.list:
            return self._take_list(parameter, at, stop)
        if parameter.choices:
            words = 1 + max(len(re.findall(r"[\W_]+", choice)) for choice in parameter.choices)
            for end in range(min(stop, at + words), at, -1):
                if converted(self._between(at, end), parameter) is not None:
                    return self._set(parameter, at, end)
        if parameter.kind is not Kind.text or any(p.kind in (Kind.text, Kind.list) for p in waiting):
            return self._set(parameter, at, at + 1)
        end = stop
        for other in reversed(waiting):  # numbers may follow the last text
            if end - 1 > at and converted(self.pieces[end - 1].value, other) is not None:
                end -= 1
                self.found[other.name] = self.pieces[end].value
        self._set(parameter, at, end)
        return stop

    def _take_list(self, parameter: Parameter, at: int, stop: int) -> int:
        start = self._start(at)
        if self.text.startswith("[", start):
            closed = _list_end(self.text, start)
            self.found[parameter.name] = self.text[start:closed]
            return next((place for place in range(at, stop) if self.pieces[place].start >= closed), stop)
        end = at + 1
        while end < stop and (self._ends(end - 1, ",") or self.text.startswith(",", self.pieces[end].start)):
            end += 1
        self.found[parameter.name] = " ".join(self._between(place, place + 1) for place in range(at, end))
        return end

    def _ends(self, at: int, mark: str) -> bool:
        return self.text.endswith(mark, 0, self.pieces[at].end)

    def _set(self, parameter: Parameter, at: int, end: int) -> int:
        self.found[parameter.name] = self._between(at, end)
        written = self.text[self._start(at) : self.pieces[end - 1].end]
        self.unclosed |= written[:1] in ("'", '"') and written.count(written[0]) == 1
        return end

    def _between(self, at: int, end: int) -> str:
        """The value of the pieces `at` to `end`: without quotes if it is one, else as it is written."""
        if end == at + 1:
            value = self.pieces[at].value
            return value[len(self.named[at]) + 1 :] if at in self.named else value
        written = self.text[self._start(at) : self.pieces[end - 1].end]
        sentence = SENTENCE.fullmatch(written)
        return sentence[1] if sentence else written

    def _start(self, at: int) -> int:
        """Where the value of a piece begins, after its name."""
        return self.pieces[at].start + (len(self.named[at]) + 1 if at in self.named else 0)


def _list_end(text: str, start: int) -> int:
    """Where a list ends that begins with a bracket at `start`."""
    try:
        return json.JSONDecoder().raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        closing = text.find("]", start)
        return closing + 1 or len(text)
