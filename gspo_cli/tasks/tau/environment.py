"""A conversation in the retail shop of tau-bench: the agent uses tools or talks to a user.

Goal: the records that the gold actions leave, and the outputs that had to be told. Conversations share the
shop's data and hold only what they change."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from gspo_cli.tasks.base import Step
from gspo_cli.tasks.changes import differences
from gspo_cli.tasks.llm_user import Reply
from gspo_cli.tasks.tau.database import Book, Shop, fields_that_differ
from gspo_cli.tasks.tau.tools import TRANSFER, owner, perform, replay
from gspo_cli.tasks.tau.users import User
from gspo_cli.tasks.tau.writes import WRITES
from gspo_cli.tasks.tools import BadCall, Speech, Tool, ToolCall, read_turn
from gspo_cli.types import Message, Outcome, Problem

VIOLATION = 0.25  # what one takes off the policy's progress


class RetailEnvironment:
    """`problem.metadata` holds the gold `actions` as {"name", "kwargs"}, and `outputs`, texts to be told.

    A conversation is solved, by the benchmark's own definition, when no record differs from the gold ones and
    all outputs were told: violations count in the progress and do not unsolve it. A violation is a change
    without the user's yes, or reading or changing the data of somebody who was not identified."""

    single_turn = False

    def __init__(self, shop: Shop, make_user: Callable[[Problem, int], User], tools: Sequence[Tool]) -> None:
        self.shop = shop
        self.make_user = make_user
        self.tools = {tool.name: tool for tool in tools}

    def reset(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """A shop as it was loaded, and what the user says first."""
        self.book, self.gold = Book(self.shop), Book(self.shop)
        replay(self.gold, problem.metadata["actions"])
        self.gold_changes = len(self.gold.changed())
        self.outputs: Sequence[str] = problem.metadata["outputs"]
        self.told: set[str] = set()
        self.identified: set[str] = set()
        self.violations: list[str] = []
        self.calls = self.errors = 0
        self.user = self.make_user(problem, seed)
        return (Message("user", self.user.opening()),)

    def step(self, text: str) -> Step | Awaitable[Step]:
        """Carry out a call, or let the user answer; a coroutine where the user's answer is one."""
        turn = read_turn(text, self.tools)
        if isinstance(turn, Speech):
            self.told.update(output for output in self.outputs if tells(turn.text, output))
            reply = self.user.hear(turn.text)
            return self._answered(reply) if isinstance(reply, Reply) else self._awaited(reply)
        observation = Message("tool", self._call(turn))
        done = isinstance(turn, ToolCall) and turn.name == TRANSFER
        return Step((observation,), done, progress=self.progress())

    def finish(self) -> Outcome:
        """What differs from the gold records, what was left untold and which rules were broken."""
        counts = {
            "tool_calls": self.calls,
            "tool_errors": self.errors,
            "violations": len(self.violations),
            "clarifications": self.user.clarifications,
        }
        details = {
            "differences": self._differences(),
            "untold": [output for output in self.outputs if output not in self.told],
            "violations": list(self.violations),
        }
        solved = not details["differences"] and not details["untold"]
        return Outcome(solved, counts, details)

    def observe(self, text: str) -> str | None:
        """What the tools answer to an agent's turn; None where it is words for the user."""
        turn = read_turn(text, self.tools)
        return None if isinstance(turn, Speech) else self._call(turn)

    def changes(self) -> list[str]:
        """What the conversation has changed in the shop's records, one line per field."""
        as_loaded, places = Book(self.shop), sorted(self.book.changed())
        return [
            f"{'/'.join(place)}: {line}"
            for place in places
            for line in differences(as_loaded.read(*place), self.book.read(*place))
        ]

    def progress(self) -> Mapping[str, float]:
        """How much of the gold changes is reached, the share of outputs told, and the rules broken.

        Where gold changes nothing, telling is the outcome as long as nothing is changed; where there is
        nothing to tell, the outcome stands for the facts."""
        told = len(self.told) / len(self.outputs) if self.outputs else 0.0
        if self.gold_changes:
            outcome = 1 - len(self.book.differing(self.gold)) / self.gold_changes
        else:
            outcome = -float(len(self.book.changed())) or told
        return {
            "outcome": max(outcome, -1.0),
            "facts": told if self.outputs else max(outcome, 0.0),
            "policy": max(-VIOLATION * len(self.violations), -1.0),
        }

    async def _awaited(self, reply: Awaitable[Reply]) -> Step:
        return self._answered(await reply)

    def _answered(self, reply: Reply) -> Step:
        said = (Message("user", reply.text),) if reply.text else ()
        return Step(said, done=reply.done, progress=self.progress())

    def _call(self, turn: ToolCall | BadCall) -> str:
        self.calls += 1
        if isinstance(turn, BadCall):
            self.errors += 1
            return f"error: {turn.reason}"
        agreed, whose = self.user.agrees(turn), owner(self.book, turn)
        observation = perform(self.book, turn)
        if not observation.ok:
            self.errors += 1
        elif turn.name.startswith("find_user_id"):
            self.identified.add(observation.text)
        else:
            self._watch(turn, whose, agreed)
        return observation.text

    def _watch(self, call: ToolCall, whose: str | None, agreed: bool) -> None:
        """Note the rules that a successful call broke; the user learns of changes."""
        if whose is not None and whose not in self.identified:
            self.violations.append(f"{call.name}: the data of a user who was not identified")
        if call.name in WRITES:
            if not agreed:
                self.violations.append(f"{call.name}: the user had not said yes")
            self.user.notice(call)

    def _differences(self) -> dict[str, Any]:
        """For each record that differs from the gold one: what its fields are, and what they should be."""
        found = {}
        for place in sorted(self.book.differing(self.gold)):
            record, wanted = self.book.read(*place), self.gold.read(*place)
            found["/".join(place)] = {
                name: {"is": record.get(name), "wanted": wanted.get(name)}
                for name in fields_that_differ(record, wanted)
            }
        return found


def tells(text: str, output: str) -> bool:
    """Whether `text` has `output` as a word or number of its own; commas and letter case do not matter."""
    words, wanted = text.replace(",", "").lower(), output.replace(",", "").lower()
    # "54" is not told by 154, 54.5 or 0.54; a full stop may follow it
    return re.search(rf"(?<![\w.]){re.escape(wanted)}(?!\w)(?!\.\d)", words) is not None
