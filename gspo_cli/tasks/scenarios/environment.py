"""The user of a scenario: a pure function of the scenario, the seed and what the agent has said so far."""

from __future__ import annotations

from collections import Counter

from gspo_cli.randomness import generator
from gspo_cli.tasks.base import Step
from gspo_cli.tasks.scenarios.patterns import Clause, clauses, plain
from gspo_cli.tasks.scenarios.reading import read_scenario
from gspo_cli.tasks.scenarios.scenario import Beat, Scenario
from gspo_cli.tasks.tools import BadCall, Speech, ToolCall, read_turn
from gspo_cli.types import Message, Outcome, Problem

VIOLATION = 0.25  # what one violation takes from "policy"


class ScenarioEnvironment:
    """A conversation with the user of `problem.metadata["scenario"]`, see `scenario`.

    The user takes one step a turn: words that would reach two goals at once, as lists of keywords do, reach
    none."""

    single_turn = False

    def reset(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """The user's opening. Raises UserError where the scenario is not one."""
        self.scenario: Scenario = read_scenario(problem.metadata["scenario"], problem.id)
        self.tools = {lookup.tool.name: lookup for lookup in self.scenario.lookups}
        self.seed, self.turn, self.done = seed, 0, False
        self.met: set[str] = set()  # goals, notes and violations so far
        self.told: set[str] = set()
        self.violations: list[str] = []
        self.counts = Counter({"tool_calls": 0, "tool_errors": 0, "clarifications": 0})
        return (Message("user", self._pick(self.scenario.openings)),)

    def step(self, text: str) -> Step:
        """The user's answer, or a tool's."""
        self.turn += 1
        if self.done:
            return Step(done=True, progress=self._progress())
        turn = self._read(text)
        if not isinstance(turn, Speech):
            answer = Message("tool", self._call(turn))
        elif self.scenario.beats:
            answer = Message("user", self._hear(clauses(turn.text)))
        else:
            return self._recite()
        return Step((answer,), self.done, progress=self._progress())

    def finish(self) -> Outcome:
        """Solved where all goals are reached, all facts told and nothing violated; unknown without goals."""
        reached = [goal for goal in self.scenario.goals if goal in self.met]
        progress = self._progress()
        solved = progress["outcome"] == 1 and progress["facts"] == 1 and not self.violations
        return Outcome(
            solved=solved if self.scenario.goals else None,
            counts={**self.counts, "violations": len(self.violations)},
            details={
                "goals reached": reached,
                "goals missed": [goal for goal in self.scenario.goals if goal not in self.met],
                "facts missed": [rule.name for rule in self.scenario.facts if rule.name not in self.told],
                "violations": list(self.violations),
                **self.scenario.about,
            },
        )

    def observe(self, text: str) -> str | None:
        """What the tools answer to an agent's turn; None where it is words for the user."""
        turn = self._read(text)
        return None if isinstance(turn, Speech) else self._call(turn)

    def changes(self) -> list[str]:
        """None: the tools only look things up."""
        return []

    def _read(self, text: str) -> ToolCall | BadCall | Speech:
        return read_turn(text, {name: lookup.tool for name, lookup in self.tools.items()})

    def _call(self, turn: ToolCall | BadCall) -> str:
        if isinstance(turn, BadCall):
            self.counts["tool_errors"] += 1
            return turn.reason
        return self._look_up(turn)

    def _look_up(self, call: ToolCall) -> str:
        self.counts["tool_calls"] += 1
        lookup = self.tools[call.name]
        value = next(iter(call.arguments.values()), "")
        answer = lookup.answers.get(plain(value))
        if call.arguments and answer is None:
            self.counts["tool_errors"] += 1
        return lookup.otherwise if answer is None else answer

    def _hear(self, heard: list[Clause]) -> str:
        scenario = self.scenario
        broken = [rule.name for rule in scenario.violations if rule.met(heard, self.met)]
        self.told |= {rule.name for rule in scenario.facts if rule.met(heard, self.met)}
        self.violations += broken
        self.met |= set(broken)
        steps, remarks = self._matching(heard)
        if len({beat.reach or beat.note for beat in steps}) > 1:
            return self._unclear(scenario.crowded)
        if steps and steps[0].reach and not self._is_next(steps[0].reach):
            return self._unclear(scenario.early)
        for beat in (*steps, *remarks):
            self.met |= {name for name in (beat.reach, beat.note) if name}
            self.done = beat.end
            return self._pick(beat.say)
        return self._unclear(scenario.otherwise)

    def _matching(self, heard: list[Clause]) -> tuple[list[Beat], list[Beat]]:
        """Beats that would reach a goal or leave a note, and those that only answer."""
        beats = [
            beat
            for beat in self.scenario.beats
            if beat.reach not in self.met and beat.conditions.hold(self.met) and beat.when.holds(heard)
        ]
        steps = [beat for beat in beats if beat.reach or beat.note]
        return steps, [beat for beat in beats if not (beat.reach or beat.note)]

    def _is_next(self, goal: str) -> bool:
        missing = [name for name in self.scenario.goals if name not in self.met]
        return goal == missing[0]

    def _unclear(self, replies: tuple[str, ...]) -> str:
        self.counts["clarifications"] += 1
        self.done = self.counts["clarifications"] >= self.scenario.patience
        return self._pick(replies)

    def _recite(self) -> Step:
        """The next line of the script; after the last one, the agent's answer ends the conversation."""
        lines = self.scenario.script[self.turn - 1 : self.turn]
        self.done = not lines
        return Step(tuple(Message("user", line) for line in lines), self.done, progress=self._progress())

    def _progress(self) -> dict[str, float]:
        goals, facts = self.scenario.goals, self.scenario.facts
        outcome = len(self.met & set(goals)) / max(1, len(goals))
        return {
            "outcome": outcome,
            # where nothing has to be told, saying anything at all must not pay
            "facts": len(self.told) / len(facts) if facts else outcome,
            "policy": -min(1.0, VIOLATION * len(self.violations)) if self.violations else 0.0,
        }

    def _pick(self, texts: tuple[str, ...]) -> str:
        if len(texts) == 1:
            return texts[0]
        return texts[int(generator(self.seed, "scenario", self.turn).integers(len(texts)))]
