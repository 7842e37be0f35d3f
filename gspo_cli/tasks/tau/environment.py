"""A conversation in the retail shop of tau-bench: the agent uses tools or talks to a user.

Goal: the records that the gold actions leave, and the outputs that had to be told. Conversations share the
shop's data and keep only what they change."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from gspo_cli.tasks.changes import differences
from gspo_cli.tasks.scripted import Reply, ScriptedEnvironment
from gspo_cli.tasks.tau.database import RetailData, RetailDatabase, fields_that_differ
from gspo_cli.tasks.tau.tools import TRANSFER, owner, replay
from gspo_cli.tasks.tau.users import User
from gspo_cli.tasks.tau.writes import WRITES
from gspo_cli.tasks.tools import FunctionTool, Observation, ToolCall, by_name, run_call
from gspo_cli.types import Message, Outcome, Problem


class RetailEnvironment(ScriptedEnvironment):
    """`problem.metadata` has the gold `actions` as {"name", "kwargs"}, and `outputs`, texts to be told.

    A conversation is solved, by the benchmark's own definition, when no record differs from the gold ones and
    all outputs were told: violations count in the progress only. A violation is a change without the user's
    yes, or reading or changing the data of a user who was not identified."""

    one_call_at_a_time = True  # as the policy says

    def __init__(
        self, data: RetailData, make_user: Callable[[Problem, int], User], tools: Sequence[FunctionTool]
    ) -> None:
        self.data = data
        self.make_user = make_user
        self.functions = by_name(*tools)
        self.tools = self.functions

    def opening(self, problem: Problem) -> tuple[Message, ...]:
        """A shop as it was loaded, and what the user says first."""
        self.database, self.gold = RetailDatabase(self.data), RetailDatabase(self.data)
        replay(self.gold, problem.metadata["actions"])
        self.gold_changes = len(self.gold.changed())
        self.outputs: Sequence[str] = problem.metadata["outputs"]
        self.told: set[str] = set()
        self.identified: set[str] = set()
        self.user = self.make_user(problem, self.seed)
        return (Message("user", self.user.opening()),)

    def respond(self, text: str) -> Reply | Awaitable[Reply]:
        """What the user answers."""
        self.told.update(output for output in self.outputs if tells(text, output))
        return self.user.respond(text)

    def call(self, call: ToolCall) -> Observation:
        """Run a call, and record the rules that it breaks if it succeeds; a transfer ends the
        conversation."""
        agreed, whose = self.user.agrees(call), owner(self.database, call)
        observation = run_call(call, self.functions, self.database)
        self.done = call.name == TRANSFER
        if not observation.ok:
            return observation
        if call.name.startswith("find_user_id"):
            self.identified.add(observation.text)
            return observation
        if whose is not None and whose not in self.identified:
            self.violations.append(f"{call.name}: the data of a user who was not identified")
        if call.name in WRITES:
            if not agreed:
                self.violations.append(f"{call.name}: the user had not said yes")
            self.user.notice(call)
        return observation

    def finish(self) -> Outcome:
        """What differs from the gold records, which outputs were not reported and which rules were broken."""
        details = {
            "differences": self._differences(),
            "untold": [output for output in self.outputs if output not in self.told],
            "violations": list(self.violations),
        }
        solved = not details["differences"] and not details["untold"]
        return Outcome(solved, {**self.counts(), "clarifications": self.user.clarifications}, details)

    def changes(self) -> list[str]:
        """What the conversation has changed in the shop's records, one line per field."""
        as_loaded, places = RetailDatabase(self.data), sorted(self.database.changed())
        return [
            f"{'/'.join(place)}: {line}"
            for place in places
            for line in differences(as_loaded.record(*place), self.database.record(*place))
        ]

    def progress(self) -> Mapping[str, float]:
        """How much of the gold changes is reached, the share of outputs told, and the rules broken.

        If gold changes nothing, the share of outputs told is the outcome as long as nothing is changed; if
        there is nothing to tell, the outcome is used for the facts."""
        told = len(self.told) / len(self.outputs) if self.outputs else 0.0
        if self.gold_changes:
            outcome = 1 - len(self.database.differing(self.gold)) / self.gold_changes
        else:
            outcome = -float(len(self.database.changed())) or told
        return {
            "outcome": max(outcome, -1.0),
            "facts": told if self.outputs else max(outcome, 0.0),
            "policy": self.policy_progress(),
        }

    def _differences(self) -> dict[str, Any]:
        """For each record that differs from the gold one: what its fields are, and what they should be."""
        found = {}
        for place in sorted(self.database.differing(self.gold)):
            record, wanted = self.database.record(*place), self.gold.record(*place)
            found["/".join(place)] = {
                name: {"is": record.get(name), "wanted": wanted.get(name)}
                for name in fields_that_differ(record, wanted)
            }
        return found


def tells(text: str, output: str) -> bool:
    """Whether `text` has `output` as a whole word or number; commas and letter case do not matter."""
    words, wanted = text.replace(",", "").lower(), output.replace(",", "").lower()
    # "54" is not told by 154, 54.5 or 0.54; a full stop may follow it
    return re.search(rf"(?<![\w.]){re.escape(wanted)}(?!\w)(?!\.\d)", words) is not None
