"""Reads a Scenario from plain data. The error of every mistake is one sentence that names its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gspo_cli.config.checks import require
from gspo_cli.errors import UserError
from gspo_cli.tasks.patterns import Pattern, plain
from gspo_cli.tasks.scenarios.scenario import Beat, Conditions, Lookup, Rule, Scenario
from gspo_cli.tasks.tools import Parameter, Tool

ABOUT = ("topic", "context", "wants")
FREE_KEYS = ("id", "user_responses", "example", *ABOUT)
REPLIES = ("otherwise", "early", "crowded")
KEYS = (
    *("id", "opening", "goals", "beats", "facts", "violations", "tools", "example", "patience"),
    *REPLIES,
    *ABOUT,
)
RULE_KEYS = ("name", "when", "after", "unless")
BEAT_KEYS = ("when", "say", "reach", "note", "after", "unless", "end")
TOOL_KEYS = ("name", "description", "parameter", "example", "answers", "otherwise")


def read_scenario(row: Any, where: str) -> Scenario:
    """The scenario that `row` describes; `where` is its place, for errors. Raises UserError."""
    free = isinstance(row, dict) and "user_responses" in row
    _check_keys(row, FREE_KEYS if free else KEYS, where)
    common: dict[str, Any] = {
        "id": _text(row, "id", where),
        "example": _texts(row, "example", where),
        "about": {key: _text(row, key, where) for key in ABOUT if key in row},
    }
    if free:
        lines = _texts(row, "user_responses", where)
        require(lines != (), f'{where}: "user_responses" is empty; give what the user says')
        return Scenario(openings=lines[:1], script=lines[1:], **common)
    replies: dict[str, Any] = {key: _texts(row, key, where) for key in REPLIES if key in row}
    patience = row.get("patience", 3)
    require(_is_count(patience), f'{where}: "patience" must be an integer above 0')
    scenario = Scenario(
        openings=_texts(row, "opening", where, needed=True),
        goals=_texts(row, "goals", where, needed=True),
        beats=tuple(_beat(beat, place) for beat, place in _items(row, "beats", where)),
        facts=tuple(_rule(rule, place) for rule, place in _items(row, "facts", where)),
        violations=tuple(_rule(rule, place) for rule, place in _items(row, "violations", where)),
        lookups=tuple(_lookup(tool, place) for tool, place in _items(row, "tools", where)),
        patience=patience,
        **replies,
        **common,
    )
    _check_names(scenario, where)
    return scenario


def _check_keys(row: Any, keys: Iterable[str], where: str) -> None:
    require(isinstance(row, dict), f"{where}: is not a JSON object; write {{...}}")
    unknown = next((key for key in row if key not in keys), None)
    require(unknown is None, f'{where}: has an unknown key "{unknown}"; valid keys are {", ".join(keys)}')


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not (isinstance(value, str) and value.strip()):
        raise UserError(f'{where}: needs "{key}", a non-empty string')
    return value


def _texts(row: Mapping[str, Any], key: str, where: str, needed: bool = False) -> tuple[str, ...]:
    """A text, or a list of texts, as a tuple."""
    value = row.get(key, [])
    values = [value] if isinstance(value, str) else value
    usable = isinstance(values, list) and all(isinstance(text, str) and text.strip() for text in values)
    require(usable, f'{where}: "{key}" must be a string or a list of strings, none of them empty')
    require(values != [] or not needed, f'{where}: needs "{key}", a string or a list of strings')
    return tuple(values)


def _items(row: Mapping[str, Any], key: str, where: str) -> list[tuple[Any, str]]:
    """The entries of a list with their places."""
    values = row.get(key, [])
    require(isinstance(values, list), f'{where}: "{key}" must be a list')
    return [(value, f"{where}, {key} {number}") for number, value in enumerate(values, 1)]


def _pattern(row: Mapping[str, Any], where: str) -> Pattern:
    when: Any = row.get("when")
    _check_keys(when, ("all", "any", "none", "question"), f"{where}, when")
    every = when.get("all", [])
    require(isinstance(every, list), f'{where}, when: "all" must be a list')
    groups = [_phrases({"all": group}, "all", where) for group in every]
    if "any" in when:
        groups.append(_phrases(when, "any", where))
    require(groups != [], f'{where}, when: needs "all" or "any", with words to look for')
    question = when.get("question")
    require(question in (None, True, False), f'{where}, when: "question" must be true or false')
    none = _phrases(when, "none", where) if "none" in when else ()
    return Pattern(tuple(groups), none, question)


def _phrases(row: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    phrases = tuple(plain(text) for text in _texts(row, key, f"{where}, when", needed=True))
    require("" not in phrases, f'{where}, when: "{key}" has a string without words')
    return phrases


def _conditions(row: Mapping[str, Any], where: str) -> Conditions:
    return Conditions(_texts(row, "after", where), _texts(row, "unless", where))


def _rule(row: Any, where: str) -> Rule:
    _check_keys(row, RULE_KEYS, where)
    return Rule(_text(row, "name", where), _pattern(row, where), _conditions(row, where))


def _beat(row: Any, where: str) -> Beat:
    _check_keys(row, BEAT_KEYS, where)
    names = {key: _text(row, key, where) for key in ("reach", "note") if key in row}
    end = row.get("end", False)
    require(isinstance(end, bool), f'{where}: "end" must be true or false')
    say = _texts(row, "say", where, needed=True)
    return Beat(_pattern(row, where), say, _conditions(row, where), end=end, **names)


def _lookup(row: Any, where: str) -> Lookup:
    _check_keys(row, TOOL_KEYS, where)
    name = _text(row, "name", where)
    require(
        name.isidentifier() and name.isascii(),
        f'{where}: "name" must consist of letters, digits and _, e.g. find_order',
    )
    parameter = _text(row, "parameter", where) if "parameter" in row else ""
    answers = row.get("answers", {})
    usable = isinstance(answers, dict) and all(isinstance(text, str) for text in answers.values())
    require(usable, f'{where}: "answers" must be an object of strings')
    otherwise = _text(row, "otherwise", where)
    example = _text(row, "example", where) if "example" in row else None
    parameters = (Parameter(parameter, f"the {parameter}", example=example),) if parameter else ()
    tool = Tool(name, _text(row, "description", where), parameters)
    return Lookup(tool, {plain(key): text for key, text in answers.items()}, otherwise)


def _check_names(scenario: Scenario, where: str) -> None:
    """Raise UserError unless every goal can be reached and every condition names something defined."""
    reached = {beat.reach for beat in scenario.beats if beat.reach}
    for goal in scenario.goals:
        require(goal in reached, f'{where}: no beat reaches the goal "{goal}"; give one "reach": "{goal}"')
    stray = next(iter(sorted(reached - set(scenario.goals))), None)
    require(stray is None, f'{where}: a beat reaches "{stray}", which is not in "goals"; add it there')
    notes = {beat.note for beat in scenario.beats if beat.note}
    known = {*scenario.goals, *notes, *(rule.name for rule in scenario.violations)}
    parts: tuple[Beat | Rule, ...] = (*scenario.beats, *scenario.facts, *scenario.violations)
    for part in parts:
        for name in (*part.conditions.after, *part.conditions.unless):
            require(name in known, f'{where}: "{name}" in after or unless is not a goal, note or violation')


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
