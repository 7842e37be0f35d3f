"""Technical support for a phone that does not work: with tools (`solo`), or through a user who operates the
phone (`scripted`) and does one thing per turn that the agent asks for.

The outcome depends on the state of the phone, never on a list of actions: see `Phone.assertions`."""

from __future__ import annotations

from enum import Enum

from gspo_cli.tasks.changes import differences
from gspo_cli.tasks.scripted import Reply, ScriptedEnvironment
from gspo_cli.tasks.technical_support.phone import TOOLS, VALUES, Phone, words
from gspo_cli.tasks.technical_support.speech import Meaning, understand
from gspo_cli.tasks.tools import Observation, ToolCall, run_call
from gspo_cli.types import Message, Outcome, Problem

PATIENCE = 3  # turns without progress, after which the user leaves
SYMPTOMS = {
    "service": "there is no service.",
    "internet": "there is no internet.",
    "speed": "the internet is slow.",
    "pictures": "i can not send pictures.",
}
YES = ("ok,", "done,", "yes,")
ONE_THING = "one thing at a time, please."
UNCLEAR = "sorry, what do you mean?"


class Mode(Enum):
    """Who operates the phone: the agent with tools, or a user who follows the agent's instructions."""

    solo = "solo"
    """the agent, with tools"""
    scripted = "scripted"
    """a scripted user, who follows the agent's instructions"""


class SupportEnvironment(ScriptedEnvironment):
    """One phone and its user. `problem.metadata` has `faults` and `abroad`."""

    error_prefix = ""
    counts_bad_calls = False

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.tools = TOOLS if mode is Mode.solo else {}

    def opening(self, problem: Problem) -> tuple[Message, ...]:
        """A phone with its faults, and the user's complaint."""
        self.phone = Phone(tuple(problem.metadata["faults"]), problem.metadata["abroad"], self.violations)
        self.broken_at_start = self.phone.broken()
        self.claimed: set[str] = set()
        self.topic: list[str] = []  # settings that "it" refers to
        return problem.messages

    def respond(self, text: str) -> Reply:
        """What the user says after doing what the text asks for."""
        meaning = understand(text, self.topic)
        self.topic = meaning.topic
        return Reply(self._answer(meaning), self.done)

    def call(self, call: ToolCall) -> Observation:
        """Use the phone."""
        return run_call(call, TOOLS, self.phone)

    def observe(self, text: str) -> list[str] | None:
        """The phone's answer to an agent's turn; None if the user operates the phone."""
        return super().observe(text) if self.tools else None

    def finish(self) -> Outcome:
        """Solved where everything works, the fault was named, and no rule was broken."""
        progress = self.progress()
        return Outcome(
            solved=progress["outcome"] == 1 and progress["facts"] == 1 and not self.violations,
            counts={**self.counts(), "pointless": self.phone.pointless},
            details={
                "faults": list(self.phone.faults),
                "named": sorted(self.claimed),
                "still broken": [name for name, holds in self.phone.assertions().items() if not holds],
                "settings still wrong": [name for name in VALUES if not self.phone.is_right(name)],
                "violations": list(self.violations),
            },
        )

    def changes(self) -> list[str]:
        """Settings that differ from the start, one line each."""
        before = Phone(self.phone.faults, self.phone.abroad)
        lines = differences(before.settings, self.phone.settings)
        lines += differences({"apn in use": before.active_apn}, {"apn in use": self.phone.active_apn})
        return [*lines, "everything else is gone"] if self.phone.erased else lines

    def progress(self) -> dict[str, float]:
        """`outcome`: the share of what was broken that works; `facts`: whether exactly the true cause was
        named."""
        named = bool(self.claimed) and self.claimed.issubset(self.phone.faults)
        gained = 1 - self.phone.broken() / self.broken_at_start
        return {
            "outcome": -1.0 if self.phone.erased else max(-1.0, gained),
            "facts": float(named),
            "policy": self.policy_progress(),
        }

    def _answer(self, meaning: Meaning) -> str:
        if meaning.farewell:
            self.claimed |= set(meaning.claimed)
            self.done = True
            return "goodbye."
        if meaning.actions > 1 or meaning.questions > 1:
            return self.clarify(ONE_THING, PATIENCE)
        self.claimed |= set(meaning.claimed)
        if self.mode is Mode.solo and (meaning.actions or meaning.looks or meaning.asked):
            return self.clarify("you have the phone. please do it.", PATIENCE)
        parts = self._obey(meaning), self._report(meaning)
        return " ".join(part for part in parts if part) or self.clarify(UNCLEAR, PATIENCE)

    def _obey(self, meaning: Meaning) -> str:
        """What the user says after doing what was asked; "" where there was nothing they could do."""
        if meaning.erase:
            return f"{self.phone.erase()}."
        if meaning.reboot:
            return f"{self.phone.reboot()}."
        for setting, value in meaning.instructions:
            if value in VALUES[setting]:
                return f"{self.pick('support', YES)} {self.phone.set(setting, value)}."
        return ""

    def _report(self, meaning: Meaning) -> str:
        """The answer to a question, or to a claim of what was wrong."""
        if meaning.looks:
            return f"it says {self.phone.view(meaning.looks[0])}."
        if meaning.asked:
            return f"{words(meaning.asked[0])} is {self.phone.value(meaning.asked[0])}."
        symptom = self.phone.symptom()
        if not (meaning.trial or meaning.claimed):
            return ""
        if symptom:
            if not (meaning.trial or meaning.actions):
                self.clarify("", PATIENCE)  # claims that fix nothing must not continue forever
            return f"it does not work yet. {SYMPTOMS[symptom]}"
        if not self.claimed:
            return "it works now. what was wrong?"
        self.done = True
        return "it works now. thank you. goodbye."
