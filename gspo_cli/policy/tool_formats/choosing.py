"""Which format a chat template writes tool calls in: the first that reads back what the template renders."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from gspo_cli.policy.tool_formats.families import FORMS, Form
from gspo_cli.policy.tool_formats.reading import read
from gspo_cli.tasks.tools.written import REASONING
from gspo_cli.types import AgentTurn, RequestedCall

Render = Callable[[list[dict[str, Any]], bool, list[dict[str, Any]]], str | None]

OPENING = {"role": "user", "content": "Hi"}


def _schema(name: str, **properties: Mapping[str, Any]) -> dict[str, Any]:
    described = {key: {"description": f"the {key}", **shape} for key, shape in properties.items()}
    parameters = {"type": "object", "properties": described, "required": [*described]}
    return {
        "type": "function",
        "function": {"name": name, "description": f"Does {name}.", "parameters": parameters},
    }


TEXT, LIST = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
SCHEMAS = [
    _schema("probe_order", order_id=TEXT, count={"type": "integer"}),
    _schema("probe_notes", note=TEXT, flag={"type": "boolean"}, share={"type": "number"}),
    _schema("probe_items", items=LIST, where={"type": "object", "properties": {"city": TEXT}}),
]
ORDER = RequestedCall("probe_order", {"order_id": "482", "count": 2})
NOTES = RequestedCall("probe_notes", {"note": 'it\'s "ü" – 好, {a: 1}, <b>', "flag": True, "share": -0.5})
ITEMS = RequestedCall(
    "probe_items", {"items": ["a b", "c,d", "1"], "where": {"city": "Köln", "at": {"n": [1, 2]}}}
)
SIMPLE = AgentTurn("", "", "", (ORDER,))
PROBES = (
    SIMPLE,
    AgentTurn("", "", "", (NOTES,)),
    AgentTurn("", "", "", (ITEMS,)),
    AgentTurn("", "", "", (ORDER, replace(ORDER, arguments={"order_id": "7 up", "count": 31}))),
    AgentTurn("", "", "", (NOTES, ITEMS, ORDER)),
    AgentTurn("", "One moment.", "", (ORDER,)),
    AgentTurn("", "", "They want 482.", (ORDER,)),
    AgentTurn("", "Your order is on its way, isn't it?", "", ()),
)


@dataclass(frozen=True)
class ToolFormat:
    """How calls are written: in the model's own `form`, or in the line form where that is None; and `why`.

    `empty` is the content of a turn that has calls only, and `as_text` whether the template takes arguments
    as a text of JSON. `several` tells whether a turn can have more than one call. `opened` is the mark of
    reasoning that the template begins each turn with."""

    why: str
    form: Form | None = None
    empty: str | None = ""
    as_text: bool = False
    several: bool = False
    opened: str = ""

    def rendered(self, turn: AgentTurn) -> dict[str, Any]:
        """An assistant's message as the template takes it."""
        calls = [self._call(call, place) for place, call in enumerate(turn.calls)]
        message: dict[str, Any] = {"role": "assistant", "content": turn.words}
        if calls:
            message |= {"content": turn.words or self.empty, "tool_calls": calls}
        if turn.reasoning:
            message["reasoning_content"] = turn.reasoning
        return message

    def _call(self, call: RequestedCall, place: int) -> dict[str, Any]:
        arguments = dict(call.arguments)
        function = {
            "name": call.name,
            "arguments": json.dumps(arguments, ensure_ascii=False) if self.as_text else arguments,
        }
        return {"id": call_id(place), "type": "function", "function": function}


LINES = ToolFormat("lines")


def call_id(place: int) -> str:
    """The id of a turn's call: nine letters and digits, as Mistral's templates require."""
    return f"call{place:05d}"


def choose(render: Render, ends: Sequence[str], own: Mapping[str, Any] | None) -> ToolFormat:
    """The format of a chat template, whose turns end with one of `ends`. `render` returns None where the
    template rejects messages, and `own` is the tokenizer's response template."""
    forms = FORMS if own is None else (Form("its own response template", own), *FORMS)
    best = "its chat template renders no tool calls"
    begun = opened(render)
    for empty, as_text in product(("", None), (False, True)):
        shape = ToolFormat("", None, empty, as_text, opened=begun)
        turns = [_turn(render, shape, probe, ends) for probe in PROBES]
        if any(turn is None for turn in turns[:3]):
            continue
        best = "no known format reads what its chat template renders"
        for form in forms:
            if all(
                turn is None or _equal(form, turn, probe) for turn, probe in zip(turns, PROBES, strict=True)
            ):
                why = f"{form.name}: what its chat template renders was read back"
                return replace(shape, why=why, form=form, several=turns[3] is not None)
    return ToolFormat(best)


def opened(render: Render) -> str:
    """The mark of reasoning that a template begins each turn with; "" where it begins none."""
    before, after = (render([OPENING], generate, []) or "" for generate in (False, True))
    begun = after[len(before) :] if after.startswith(before) else ""
    for opens, closes in REASONING:
        if opens in begun and closes not in begun.rpartition(opens)[2]:
            return opens
    return ""


def closing_of(opens: str) -> str:
    """What a turn without reasoning begins with, where the template has begun its reasoning with `opens`."""
    return f"{dict(REASONING)[opens]}\n\n" if opens else ""


def _turn(render: Render, shape: ToolFormat, probe: AgentTurn, ends: Sequence[str]) -> str | None:
    """A probe as the template renders it, without its end; None if the template rejects it, leaves one of its
    calls out, or does not end it."""
    text = turn_text(render, shape, probe, SCHEMAS)
    if text is None or any(text.count(call.name) < 1 for call in probe.calls):
        return None
    if len(probe.calls) == 2 and "7 up" not in text:
        return None
    found = without_end(text, ends)
    return found if found != text.rstrip() else None


def turn_text(
    render: Render, shape: ToolFormat, turn: AgentTurn, schemas: list[dict[str, Any]]
) -> str | None:
    """What a template writes for an assistant's turn, its end included; None if it rejects it, or writes
    another prompt before it than where the turn is to be sampled."""
    before = render([OPENING], True, schemas)
    whole = render([OPENING, shape.rendered(turn)], False, schemas)
    if before is None or whole is None:
        return None
    if not whole.startswith(before) and shape.opened:
        before = before[: before.rindex(shape.opened)]
    return whole[len(before) :] if whole.startswith(before) else None


def without_end(text: str, ends: Sequence[str]) -> str:
    """A turn without the tokens that end it."""
    text = text.rstrip()
    while found := next((end for end in ends if end and text.endswith(end)), None):
        text = text.removesuffix(found).rstrip()
    return text


def _equal(form: Form, text: str, probe: AgentTurn) -> bool:
    """Whether a form reads a rendered turn as the probe, apart from words and reasoning that the template has
    left out."""
    try:
        found = read(form, text, SCHEMAS)
    except ValueError:  # a response template of a tokenizer that is not valid
        return False
    words = probe.words if probe.words in text else ""
    reasoning = probe.reasoning if probe.reasoning in text else ""
    return (found.words, found.reasoning, found.calls, found.error) == (words, reasoning, probe.calls, "")
