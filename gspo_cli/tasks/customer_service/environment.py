"""A conversation with a customer of the shop: words go to the customer, tool calls to the database."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from gspo_cli.tasks.base import Step
from gspo_cli.tasks.customer_service.database import Orders, differences, distance, open_shop, read_orders
from gspo_cli.tasks.customer_service.listening import listen
from gspo_cli.tasks.customer_service.policy import broken_rule
from gspo_cli.tasks.customer_service.scenario import Action, Scenario, from_json
from gspo_cli.tasks.customer_service.tools import LONGEST_OBSERVATION, TOOLS, WRITES, normal, plain, use_tool
from gspo_cli.tasks.customer_service.user import Mood, is_true_answer, reply
from gspo_cli.tasks.customer_service.wording import draw_wording
from gspo_cli.tasks.tools import BadCall, Speech, ToolCall, read_turn
from gspo_cli.types import Message, Outcome, Problem

ORDER = re.compile(r"\b[0-9]{3}\b")
COST_OF_VIOLATION = 0.5


@lru_cache(maxsize=512)  # all answers of a group share their scenario
def goal_orders(scenario: Scenario) -> Orders:
    """All orders as they are once every request is done that their statuses allow."""
    tools = {action: name for name, action in WRITES.items()}
    connection = open_shop(scenario)
    for request in scenario.requests:
        if request.action is not Action.status:
            arguments = {"order_id": str(request.order), "city": request.city}
            use_tool(connection, ToolCall(tools[request.action], arguments))
    orders = read_orders(connection)
    connection.close()
    return orders


class Shop:
    """One customer, their requests, and a database of the conversation's own.

    Standing: `outcome`, how much of the goal state is reached (where nothing has to change: `facts`, while
    nothing did), below 0 for damage; `facts`, the share of requests answered truly after the customer was
    found, the tools showed the order, and the change was made where one was asked for; `policy`, half a point
    less for every call that breaks a rule. `outcome` and `policy` do not go below -1."""

    single_turn = False

    def reset(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """Open a database and hear the customer's first words, drawn by `seed`."""
        self.scenario = from_json(problem.metadata)
        self.goal = goal_orders(self.scenario)
        self.wording = draw_wording(self.scenario, seed)
        self.mood = Mood()
        self.connection = open_shop(self.scenario)
        self.before = self.orders = read_orders(self.connection)
        self.found = False
        self.shown: set[int] = set()
        self.told: list[bool] = []  # one entry per answered request
        self.violations: list[str] = []
        self.tool_calls = self.tool_errors = 0
        self.done = False
        return (Message("user", self.wording.opening),)

    def step(self, text: str) -> Step:
        """The customer's or the tool's reaction. Nothing happens once the customer has left."""
        if self.done:
            return Step(done=True, progress=self._progress())
        turn = read_turn(text, TOOLS)
        heard = self._hear(turn) if isinstance(turn, Speech) else self._call(turn)
        return Step((heard,), self.done, progress=self._progress())

    def finish(self) -> Outcome:
        """What became of the conversation; the database is closed."""
        self.connection.close()
        progress = self._progress()
        untrue = self.told.count(False)
        answered = zip(self.scenario.requests, self.told, strict=False)
        return Outcome(
            solved=progress == {"outcome": 1.0, "facts": 1.0, "policy": 0.0},
            counts={
                "tool_calls": self.tool_calls,
                "tool_errors": self.tool_errors,
                "violations": len(self.violations),
                "clarifications": self.mood.clarifications,
                "untrue_answers": untrue,
            },
            details={
                "goal": self.scenario.goal(),
                "changes": self.changes(),
                "missing": differences(self.orders, self.goal),
                "violations": self.violations,
                "untrue_answers": [request.order for request, true in answered if not true],
                "unanswered": [request.order for request in self.scenario.requests[len(self.told) :]],
            },
        )

    def observe(self, text: str) -> str | None:
        """What the tools answer to an agent's turn; None where it is words for the customer."""
        turn = read_turn(text, TOOLS)
        return None if isinstance(turn, Speech) else self._call(turn).content

    def changes(self) -> list[str]:
        """What the conversation has changed in the database so far, one line per order."""
        return differences(self.before, self.orders)

    def _hear(self, speech: Speech) -> Message:
        answer = reply(self.scenario, self.wording, self.mood, speech.text)
        if answer.answered:
            self.told.append(self._is_true(speech.text))
        self.mood, self.done = answer.mood, answer.done
        return Message("user", answer.text)

    def _is_true(self, text: str) -> bool:
        request = self.scenario.requests[self.mood.current]
        goal = self.goal[request.order]
        known = self.found and request.order in self.shown and self.orders[request.order] == goal
        return known and is_true_answer(request, listen(text).said, goal)

    def _call(self, turn: ToolCall | BadCall) -> Message:
        self.tool_calls += 1
        if isinstance(turn, BadCall):
            observation = f"error: {turn.reason}"
        else:
            broken = broken_rule(turn, self.scenario, self.found, self.mood.agreed)
            if broken is not None:
                self.violations.append(broken)
            observation = use_tool(self.connection, turn)
            if turn.name in WRITES:
                self.orders = read_orders(self.connection)
            if turn.name == "find_customer" and normal(turn.arguments["email"]) == self.scenario.customer:
                self.found = True
            if not observation.startswith("error: no "):  # those repeat what the agent wrote
                self.shown.update(int(number) for number in ORDER.findall(observation))
        self.tool_errors += observation.startswith("error:")
        return Message("tool", plain(observation, LONGEST_OBSERVATION))

    def _progress(self) -> Mapping[str, float]:
        facts = sum(self.told) / len(self.scenario.requests)
        needed, missing = distance(self.before, self.goal), distance(self.orders, self.goal)
        untouched = facts if missing == 0 else -1.0
        return {
            "outcome": max(-1.0, 1 - missing / needed) if needed else untouched,
            "facts": facts,
            "policy": max(-1.0, 0.0 - COST_OF_VIOLATION * len(self.violations)),
        }
