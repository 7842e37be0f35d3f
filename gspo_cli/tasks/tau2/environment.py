"""Technical support in tau2-bench's solo style: a ticket, and tools for both the carrier and the phone."""

from __future__ import annotations

from collections.abc import Mapping

from gspo_cli.tasks.changes import differences
from gspo_cli.tasks.scripted import Reply, ScriptedEnvironment
from gspo_cli.tasks.tau.users import TICKET, TICKET_ANSWER, says_done
from gspo_cli.tasks.tau2.scenario import goals_reached, set_up
from gspo_cli.tasks.tau2.tools import TOOLS, TRANSFER, broken_rule, perform
from gspo_cli.tasks.tau2.world import TelecomData, open_world
from gspo_cli.tasks.tools import Observation, ToolCall
from gspo_cli.types import Message, Outcome, Problem


class TelecomEnvironment(ScriptedEnvironment):
    """`problem.metadata` has `ticket`, `initial` actions, `assertions` and `required` actions.

    The outcome is the share reached of the goals missing at the start; goals lost count against it. A
    conversation is solved, by the benchmark's definition, when all are reached: broken rules count in the
    progress only."""

    one_call_at_a_time = True  # as the policy says
    tools = TOOLS

    def __init__(self, data: TelecomData) -> None:
        self.data = data

    def opening(self, problem: Problem) -> tuple[Message, ...]:
        """A world with the task's fault, and its ticket; nothing here is random."""
        self.metadata = problem.metadata
        self.world = open_world(self.data)
        set_up(self.world, self.metadata["initial"])
        self.reached_before = sum(goals_reached(self.world, self.metadata))
        return (Message("user", TICKET + self.metadata["ticket"]),)

    def respond(self, text: str) -> Reply:
        """One fixed answer, or the end if the text says done."""
        if says_done(text):
            return Reply("", done=True)
        self.clarifications += 1
        return Reply(TICKET_ANSWER)

    def call(self, call: ToolCall) -> Observation:
        """Run a call, and record the rule that it breaks if it succeeds; a transfer ends the conversation."""
        rule = broken_rule(self.world, call, self.metadata["ticket"])
        observation = perform(self.world, call)
        if observation.ok and rule is not None:
            self.violations.append(rule)
        self.done = call.name == TRANSFER
        return observation

    def finish(self) -> Outcome:
        """Which goals were missed and which rules were broken."""
        reached = goals_reached(self.world, self.metadata)
        names = [check["func_name"] for check in self.metadata["assertions"]]
        names += [action["name"] for action in self.metadata["required"]]
        missed = [name for name, done in zip(names, reached, strict=True) if not done]
        return Outcome(all(reached), self.counts(), {"missed": missed, "violations": list(self.violations)})

    def changes(self) -> list[str]:
        """What has changed since the fault was set, on the phone and at the carrier, one line per field."""
        before = open_world(self.data)
        set_up(before, self.metadata["initial"])
        return differences(
            {"phone": before.phone, **before.tables}, {"phone": self.world.phone, **self.world.tables}
        )

    def progress(self) -> Mapping[str, float]:
        """Goals reached and rules broken; nothing has to be told, so the outcome is used for the facts."""
        reached = goals_reached(self.world, self.metadata)
        outcome = (sum(reached) - self.reached_before) / max(len(reached) - self.reached_before, 1)
        return {
            "outcome": max(outcome, -1.0),
            "facts": max(outcome, 0.0),
            "policy": self.policy_progress(),
        }
