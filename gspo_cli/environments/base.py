"""What an agent talks to: an environment is stepped with the agent's words and answers with the next
messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gspo_cli.types import Message, Problem


@dataclass(frozen=True)
class Step:
    """What follows an agent's turn: `messages` it hears next (none when `done`), and the turn's own
    reward."""

    messages: tuple[Message, ...] = ()
    done: bool = False
    reward: float = 0.0


class Environment(Protocol):
    """One conversation. A fresh instance per conversation; all answers of a group share the seed.

    `single_turn` promises that the first step is the last: engines then keep no cache for a next one."""

    single_turn: bool

    def reset(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """Start over and return the first messages the agent sees."""

    def step(self, text: str) -> Step:
        """React to one turn of the agent; `text` is the turn without its end token."""


class SingleTurn:
    """The problem's messages, one answer, done."""

    single_turn = True

    def reset(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """The problem's own messages; nothing here is random."""
        return problem.messages

    def step(self, text: str) -> Step:
        """The conversation ends after one turn; the reward function judges it."""
        return Step(done=True)
