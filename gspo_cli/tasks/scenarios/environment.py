"""The user of a scenario: a pure function of the scenario, the seed and what the agent has said so far."""

from __future__ import annotations

from collections.abc import Sequence

from gspo_cli.tasks.patterns import Clause, clauses, plain
from gspo_cli.tasks.scenarios.reading import read_scenario
from gspo_cli.tasks.scenarios.scenario import Beat, Scenario
from gspo_cli.tasks.scripted import Reply, ScriptedEnvironment
from gspo_cli.tasks.tools import Observation, ToolCall
from gspo_cli.types import Message, Outcome, Problem


class ScenarioEnvironment(ScriptedEnvironment):
    """A conversation with the user of `problem.metadata["scenario"]`, see `scenario`.

    The user takes one step a turn: words that would reach two goals at once, as lists of keywords do, reach
    none."""

    error_prefix = ""
    counts_bad_calls = False

    def opening(self, problem: Problem) -> tuple[Message, ...]:
        """The user's first words. Raises UserError if the scenario is invalid."""
        self.scenario: Scenario = read_scenario(problem.metadata["scenario"], problem.id)
        self.lookups = {lookup.tool.name: lookup for lookup in self.scenario.lookups}
        self.tools = {name: lookup.tool for name, lookup in self.lookups.items()}
        self.met: set[str] = set()  # goals, notes and violations so far
        self.told: set[str] = set()
        return (Message("user", self.pick("scenario", self.scenario.openings)),)

    def respond(self, text: str) -> Reply:
        """The answer to the words, or the next line of the script; the agent's answer to the last line ends
        the conversation."""
        if self.scenario.beats:
            return Reply(self._react(clauses(text)), self.done)
        lines = self.scenario.script[self.turn - 1 : self.turn]
        return Reply("".join(lines), done=not lines)

    def call(self, call: ToolCall) -> Observation:
        """Look something up."""
        lookup = self.lookups[call.name]
        if not call.arguments:
            return Observation(lookup.otherwise)
        answer = lookup.answers.get(plain(next(iter(call.arguments.values()))))
        return Observation(lookup.otherwise, ok=False) if answer is None else Observation(answer)

    def finish(self) -> Outcome:
        """Solved where all goals are reached, all facts told and nothing violated; unknown without goals."""
        progress = self.progress()
        solved = all(progress.get(name) == 1 for name in ("outcome", "facts")) and not self.violations
        return Outcome(
            solved=solved if self.scenario.goals else None,
            counts=self.counts(),
            details={
                "goals reached": [goal for goal in self.scenario.goals if goal in self.met],
                "goals missed": [goal for goal in self.scenario.goals if goal not in self.met],
                "facts missed": [rule.name for rule in self.scenario.facts if rule.name not in self.told],
                "violations": list(self.violations),
                **self.scenario.about,
            },
        )

    def changes(self) -> list[str]:
        """None: the tools only look things up."""
        return []

    def progress(self) -> dict[str, float]:
        """The shares of goals reached and facts told; none where the scenario has no goals."""
        goals, facts = self.scenario.goals, self.scenario.facts
        if not goals:
            return {}
        outcome = len(self.met & set(goals)) / len(goals)
        return {
            "outcome": outcome,
            # without facts to report, merely saying something must not be rewarded
            "facts": len(self.told) / len(facts) if facts else outcome,
            "policy": self.policy_progress(),
        }

    def _react(self, turn: Sequence[Clause]) -> str:
        scenario = self.scenario
        broken = [rule.name for rule in scenario.violations if rule.met(turn, self.met)]
        self.told |= {rule.name for rule in scenario.facts if rule.met(turn, self.met)}
        self.violations += broken
        self.met |= set(broken)
        steps, remarks = self._matching(turn)
        if len({beat.reach or beat.note for beat in steps}) > 1:
            return self._unclear(scenario.crowded)
        if steps and steps[0].reach and not self._is_next(steps[0].reach):
            return self._unclear(scenario.early)
        for beat in (*steps, *remarks):
            self.met |= {name for name in (beat.reach, beat.note) if name}
            self.done = beat.end
            return self.pick("scenario", beat.say)
        return self._unclear(scenario.otherwise)

    def _matching(self, turn: Sequence[Clause]) -> tuple[list[Beat], list[Beat]]:
        """Beats that would reach a goal or leave a note, and those that only answer."""
        beats = [
            beat
            for beat in self.scenario.beats
            if beat.reach not in self.met and beat.conditions.hold(self.met) and beat.when.holds(turn)
        ]
        steps = [beat for beat in beats if beat.reach or beat.note]
        return steps, [beat for beat in beats if not (beat.reach or beat.note)]

    def _is_next(self, goal: str) -> bool:
        return goal == next(name for name in self.scenario.goals if name not in self.met)

    def _unclear(self, replies: Sequence[str]) -> str:
        return self.clarify(self.pick("scenario", replies), self.scenario.patience)
