"""Technical support in tau2-bench's solo style: a ticket, the carrier's tools and the phone in one hand."""

from __future__ import annotations

from collections.abc import Mapping

from gspo_cli.tasks.base import Step
from gspo_cli.tasks.changes import differences
from gspo_cli.tasks.tau.tickets import TICKET, TICKET_ANSWER, says_done
from gspo_cli.tasks.tau2.scenario import goals_held, set_up
from gspo_cli.tasks.tau2.tools import TOOLS, TRANSFER, broken_rule, perform
from gspo_cli.tasks.tau2.world import TelecomData, open_world
from gspo_cli.tasks.tools import BadCall, Speech, ToolCall, read_turn
from gspo_cli.types import Message, Outcome, Problem

VIOLATION = 0.25  # what one takes off the policy's progress


class TelecomEnvironment:
    """`problem.metadata` holds `ticket`, `initial` actions, `assertions` and `required` actions.

    The outcome is the share of the goals missing at the start that hold; goals lost count against it. Solved,
    by the benchmark's definition, when all hold: broken rules count in the progress and do not unsolve."""

    single_turn = False

    def __init__(self, data: TelecomData) -> None:
        self.data = data

    def reset(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """A world with the task's fault, and its ticket; nothing here is random."""
        self.metadata = problem.metadata
        self.world = open_world(self.data)
        set_up(self.world, self.metadata["initial"])
        self.held_before = sum(goals_held(self.world, self.metadata))
        self.violations: list[str] = []
        self.calls = self.errors = self.clarifications = 0
        return (Message("user", TICKET + self.metadata["ticket"]),)

    def step(self, text: str) -> Step:
        """Carry out a call; words get one fixed answer, or end the work where they say done."""
        turn = read_turn(text, TOOLS)
        if isinstance(turn, Speech):
            if says_done(turn.text):
                return Step(done=True, progress=self.progress())
            self.clarifications += 1
            return self._step(Message("user", TICKET_ANSWER))
        done = isinstance(turn, ToolCall) and turn.name == TRANSFER
        return self._step(Message("tool", self._call(turn)), done)

    def finish(self) -> Outcome:
        """Which goals were missed and which rules were broken."""
        held = goals_held(self.world, self.metadata)
        names = [check["func_name"] for check in self.metadata["assertions"]]
        names += [action["name"] for action in self.metadata["required"]]
        counts = {
            "tool_calls": self.calls,
            "tool_errors": self.errors,
            "violations": len(self.violations),
            "clarifications": self.clarifications,
        }
        missed = [name for name, holds in zip(names, held, strict=True) if not holds]
        return Outcome(all(held), counts, {"missed": missed, "violations": list(self.violations)})

    def observe(self, text: str) -> str | None:
        """What the tools answer to an agent's turn; None where it is words."""
        turn = read_turn(text, TOOLS)
        return None if isinstance(turn, Speech) else self._call(turn)

    def changes(self) -> list[str]:
        """What is no longer as the fault left it, on the phone and at the carrier, one line per field."""
        before = open_world(self.data)
        set_up(before, self.metadata["initial"])
        return differences(
            {"phone": before.phone, **before.tables}, {"phone": self.world.phone, **self.world.tables}
        )

    def progress(self) -> Mapping[str, float]:
        """Goals reached and rules broken; nothing has to be told, so the outcome stands for the facts."""
        held = goals_held(self.world, self.metadata)
        outcome = (sum(held) - self.held_before) / max(len(held) - self.held_before, 1)
        return {
            "outcome": max(outcome, -1.0),
            "facts": max(outcome, 0.0),
            "policy": max(-VIOLATION * len(self.violations), -1.0),
        }

    def _call(self, turn: ToolCall | BadCall) -> str:
        self.calls += 1
        if isinstance(turn, BadCall):
            self.errors += 1
            return f"error: {turn.reason}"
        rule = broken_rule(self.world, turn, self.metadata["ticket"])
        text, ok = perform(self.world, turn)
        if not ok:
            self.errors += 1
        elif rule is not None:
            self.violations.append(rule)
        return text

    def _step(self, message: Message, done: bool = False) -> Step:
        return Step((message,), done=done, progress=self.progress())
