"""A scenario: plain data that describes how a user opens the conversation, reacts and is satisfied.

    {"id": "lost-card", "opening": "my card is gone.",
     "goals": ["identified", "blocked"],
     "beats": [{"when": {"any": ["name", "who"], "question": true}, "say": "ann lee.", "reach": "identified"},
               {"when": {"all": ["block", ["card", "it"]]}, "say": "thank you.", "reach": "blocked",
                "end": true}],
     "facts": [{"name": "new card", "when": {"all": ["new card", ["week", "seven days"]]}}],
     "violations": [{"name": "asked for the pin", "when": {"any": ["pin"]}}],
     "tools": [{"name": "find_card", "description": "Find a card.", "parameter": "name",
                "example": "eva may", "answers": {"ann lee": "card 12"}, "otherwise": "no such name"}],
     "example": ["may i have your name?", "i block the card. a new card comes in a week."]}

`when` matches if one clause (the words between two punctuation marks) has all of `all` (a list in it: one of
these), one of `any`, and none of `none`; `question` requires a question, or forbids it. Goals are reached in
their order and one a turn. `after` and `unless` of a beat, a violation or a fact name goals, notes (`note` of
a beat) and violations that have or have not been met. `say` and `opening` may be lists: the seed picks. A
turn that matches nothing is answered by `otherwise`, one that comes before its goal's turn by `early`, one
that would reach two goals by `crowded`; after `patience` of these the user leaves. `example` is what an agent
says that solves the scenario; of a tool, a value that shows agents how to write its parameter. `topic`,
`context` and `wants` are for people. In a scenario of `id` and `user_responses` the user says these lines one
by one, whatever the agent says; it has no goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gspo_cli.tasks.patterns import Clause, Pattern
from gspo_cli.tasks.tools import Tool


@dataclass(frozen=True)
class Conditions:
    """Names that must have been met before, or must not."""

    after: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()

    def hold(self, met: set[str]) -> bool:
        """Whether they are true after the names `met`."""
        return met.issuperset(self.after) and met.isdisjoint(self.unless)


@dataclass(frozen=True)
class Beat:
    """The user's answer to words that match: one of `say`. It may reach a goal, leave a note, or end the
    conversation."""

    when: Pattern
    say: tuple[str, ...]
    conditions: Conditions = Conditions()
    reach: str = ""
    note: str = ""
    end: bool = False


@dataclass(frozen=True)
class Rule:
    """A fact that has to be told, or a violation: named, and met where its words are said."""

    name: str
    when: Pattern
    conditions: Conditions = Conditions()

    def met(self, turn: Sequence[Clause], names: set[str]) -> bool:
        """Whether the clauses of a turn meet it, after `names`."""
        return self.conditions.hold(names) and self.when.holds(turn)


@dataclass(frozen=True)
class Lookup:
    """A tool that only looks something up. Without a parameter, it always answers `otherwise`."""

    tool: Tool
    answers: Mapping[str, str]
    otherwise: str


@dataclass(frozen=True)
class Scenario:
    """One user. `script`, where given, is all they say. They leave after `patience` turns that they do not
    understand."""

    id: str
    openings: tuple[str, ...]
    goals: tuple[str, ...] = ()
    beats: tuple[Beat, ...] = ()
    facts: tuple[Rule, ...] = ()
    violations: tuple[Rule, ...] = ()
    lookups: tuple[Lookup, ...] = ()
    script: tuple[str, ...] = ()
    example: tuple[str, ...] = ()
    otherwise: tuple[str, ...] = ("sorry, what do you mean?",)
    early: tuple[str, ...] = ("not so fast, please.",)
    crowded: tuple[str, ...] = ("one thing at a time, please.",)
    patience: int = 3
    about: Mapping[str, str] = field(default_factory=dict)
