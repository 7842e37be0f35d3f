"""A conversation with a customer of the shop: text goes to the customer, tool calls to the database."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from gspo_cli.tasks.customer_service.database import Orders, distance, open_shop, order_changes, read_orders
from gspo_cli.tasks.customer_service.listening import listen
from gspo_cli.tasks.customer_service.scenario import Action, ShopScenario, from_json
from gspo_cli.tasks.customer_service.tools import (
    LONGEST_OBSERVATION,
    TOOL_OF,
    TOOLS,
    WRITES,
    broken_rule,
    find_customer,
    normalized,
    printable,
)
from gspo_cli.tasks.customer_service.user import Mood, draw_wording, is_true_answer, react
from gspo_cli.tasks.scripted import Reply, ScriptedEnvironment
from gspo_cli.tasks.tools import BadCall, Observation, ToolCall, run_call
from gspo_cli.types import Message, Outcome, Problem

ORDER = re.compile(r"\b[0-9]{3}\b")


@lru_cache(maxsize=512)  # all answers of a group share their scenario
def goal_orders(scenario: ShopScenario) -> Orders:
    """All orders after every request that their statuses allow has been done."""
    connection = open_shop(scenario)
    for request in scenario.requests:
        if request.action is not Action.status:
            arguments = {"order_id": str(request.order)} | ({"city": request.city} if request.city else {})
            run_call(ToolCall(TOOL_OF[request.action], arguments), TOOLS, connection)
    orders = read_orders(connection)
    connection.close()
    return orders


class ShopEnvironment(ScriptedEnvironment):
    """One customer, their requests, and a database for this conversation alone.

    Progress: `outcome`, how much of the goal state is reached (where nothing has to change: `facts`, while
    nothing did), below 0 for damage; `facts`, the share of requests answered truly after the customer was
    found, the tools showed the order, and the change was made where one was asked for; `policy`, 0.5 less for
    every call that breaks a rule. `outcome` and `policy` do not go below -1."""

    tools = TOOLS
    violation_cost = 0.5

    def opening(self, problem: Problem) -> tuple[Message, ...]:
        """Open a database, and draw the customer's words by the seed."""
        self.scenario = from_json(problem.metadata)
        self.goal = goal_orders(self.scenario)
        self.wording = draw_wording(self.scenario, self.seed)
        self.mood = Mood()
        self.connection = open_shop(self.scenario)
        self.before = self.orders = read_orders(self.connection)
        self.found = False
        self.shown: set[int] = set()
        self.told: list[bool] = []  # one entry per answered request
        return (Message("user", self.wording.opening),)

    def respond(self, text: str) -> Reply:
        """The customer's reaction, which may complete a request."""
        reaction = react(self.scenario, self.wording, self.mood, text)
        if reaction.answered:
            self.told.append(self._is_true(text))
        self.mood, self.clarifications = reaction.mood, reaction.mood.clarifications
        return Reply(reaction.text, reaction.done)

    def call(self, call: ToolCall) -> Observation:
        """Run a call, and record the rule that it breaks."""
        broken = broken_rule(call, self.scenario, self.found, self.mood.agreed)
        if broken is not None:
            self.violations.append(broken)
        observation = run_call(call, TOOLS, self.connection)
        if call.name in WRITES:
            self.orders = read_orders(self.connection)
        if call.name == find_customer.name and normalized(call.arguments["email"]) == self.scenario.customer:
            self.found = True
        if observation.ok or not observation.text.startswith("no "):  # they repeat what the agent wrote
            self.shown.update(int(number) for number in ORDER.findall(observation.text))
        return observation

    def finish(self) -> Outcome:
        """The outcome of the conversation; closes the database."""
        self.connection.close()
        answered = zip(self.scenario.requests, self.told, strict=False)
        return Outcome(
            solved=self.progress() == {"outcome": 1.0, "facts": 1.0, "policy": 0.0},
            counts={**self.counts(), "untrue_answers": self.told.count(False)},
            details={
                "goal": self.scenario.goal(),
                "changes": self.changes(),
                "missing": order_changes(self.orders, self.goal),
                "violations": self.violations,
                "untrue_answers": [request.order for request, true in answered if not true],
                "unanswered": [request.order for request in self.scenario.requests[len(self.told) :]],
            },
        )

    def changes(self) -> list[str]:
        """What the conversation has changed in the database so far, one line per order."""
        return order_changes(self.before, self.orders)

    def progress(self) -> Mapping[str, float]:
        """See the class."""
        facts = sum(self.told) / len(self.scenario.requests)
        needed, missing = distance(self.before, self.goal), distance(self.orders, self.goal)
        untouched = facts if missing == 0 else -1.0
        return {
            "outcome": max(-1.0, 1 - missing / needed) if needed else untouched,
            "facts": facts,
            "policy": self.policy_progress(),
        }

    def _observe(self, turn: ToolCall | BadCall) -> str:
        return printable(super()._observe(turn), LONGEST_OBSERVATION)

    def _is_true(self, text: str) -> bool:
        request = self.scenario.requests[self.mood.current]
        goal = self.goal[request.order]
        known = self.found and request.order in self.shown and self.orders[request.order] == goal
        return known and is_true_answer(request, listen(text).said, goal)
