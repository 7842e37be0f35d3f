"""What an agent talks to: an environment is stepped with the agent's words and answers with the next
messages."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from gspo_cli.types import Message, Outcome, Problem


@dataclass(frozen=True)
class Step:
    """What follows an agent's turn: `messages` it hears next, and the turn's own reward.

    `standing` says how things stand after the turn, by name, each 0 before the first turn and 1 at best: a
    reward weighs the last one, and turn-level credit its changes from turn to turn. When `done`, `messages`
    are for people: the agent no longer hears them."""

    messages: tuple[Message, ...] = ()
    done: bool = False
    reward: float = 0.0
    standing: Mapping[str, float] = field(default_factory=dict)


class Environment(Protocol):
    """One conversation. A fresh instance per conversation; all answers of a group share the seed.

    `single_turn` promises that the first step is the last: engines then keep no cache for a next one. An
    agent's words, whatever they are, never make it raise; what does raise is a fault of the environment, and
    leaves the conversation out of training."""

    single_turn: bool

    def reset(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """Start over and return the first messages the agent sees."""

    def step(self, text: str) -> Step | Awaitable[Step]:
        """React to one turn of the agent; `text` is the turn without its end token. May be a coroutine."""

    def finish(self) -> Outcome:
        """The conversation is over, by the environment's word or a limit: say what became of it and free
        what it held. Called once after every `reset` that returned."""


@runtime_checkable
class World(Environment, Protocol):
    """An environment whose tools can be used without its user: a person may take the user's place."""

    def observe(self, text: str) -> str | None:
        """What the tools answer to an agent's turn; None where it is words for the user."""

    def changes(self) -> list[str]:
        """What the conversation has changed so far, in words; empty while nothing has."""


class SingleTurn:
    """The problem's messages, one answer, done."""

    single_turn = True

    def reset(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """The problem's own messages; nothing here is random."""
        return problem.messages

    def step(self, text: str) -> Step:
        """The conversation ends after one turn; the reward function judges it."""
        return Step(done=True)

    def finish(self) -> Outcome:
        """Nothing is known but what was said."""
        return Outcome()
