"""Technical support for a phone that does not work: by tools (`solo`), or through a user who holds it
(`scripted`) and does one thing a turn that the agent's words ask for.

Judged is the state of the device, never a list of actions: see `Device.assertions`."""

from __future__ import annotations

from collections import Counter
from enum import Enum

from gspo_cli.randomness import generator
from gspo_cli.tasks.base import Step
from gspo_cli.tasks.changes import differences
from gspo_cli.tasks.technical_support.device import VALUES, Device, right_value, words
from gspo_cli.tasks.technical_support.speech import Meaning, understand
from gspo_cli.tasks.technical_support.wording import ONE_THING, SYMPTOMS, UNCLEAR, YES
from gspo_cli.tasks.tools import BadCall, Parameter, Speech, Tool, ToolCall, read_turn
from gspo_cli.types import Message, Outcome, Problem

VIOLATION = 0.25  # what one violation takes from "policy"
FREE_TRIES = 2  # changes that change nothing, until they count as violations
PATIENCE = 3  # turns that lead nowhere, until the user leaves


class Mode(Enum):
    """Who holds the device: the agent has tools for it, or a user follows the agent's words."""

    solo = "solo"
    """the agent, by tools"""
    scripted = "scripted"
    """a scripted user, who follows the agent's instructions"""


SETTING = Parameter("setting", f"one of {', '.join(VALUES)}")
VALUE = Parameter("value", "on or off; in or out for sim_card, default or custom for apn, 5g or 2g")
SCREEN_TOOLS = {"get_status": "status", "check_network": "network", "check_messages": "messages"}
TOOLS = (
    Tool("get_status", "What the status bar shows: airplane mode, sim card, wifi, vpn, service."),
    Tool("check_network", "Mobile data, roaming, apn, network mode, data saver, and where the phone is."),
    Tool("check_messages", "Whether messages may send pictures."),
    Tool("run_speed_test", "How fast the internet is."),
    Tool("set", "Change a setting.", (SETTING, VALUE)),
    Tool("reboot", "Start the phone again; a new apn takes effect."),
    Tool("factory_reset", "Erase everything on the phone."),
)


class SupportEnvironment:
    """One phone and its user. `problem.metadata` holds `faults` and `abroad`."""

    single_turn = False

    def __init__(self, mode: Mode) -> None:
        self.tools = {tool.name: tool for tool in TOOLS} if mode is Mode.solo else {}
        self.mode = mode

    def reset(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """A phone with its faults, and the user's complaint."""
        self.device = Device(tuple(problem.metadata["faults"]), problem.metadata["abroad"])
        self.broken_at_start = self.device.broken()
        self.seed, self.turn, self.done = seed, 0, False
        self.claimed: set[str] = set()
        self.topic: list[str] = []  # settings that "it" stands for
        self.violations: list[str] = []
        names = ("tool_calls", "tool_errors", "clarifications", "pointless")
        self.counts = Counter(dict.fromkeys(names, 0))
        return problem.messages

    def step(self, text: str) -> Step:
        """The user's answer, or the device's."""
        self.turn += 1
        if self.done:
            return Step(done=True, progress=self._progress())
        turn = read_turn(text, self.tools)
        if isinstance(turn, Speech):
            meaning = understand(turn.text, self.topic)
            self.topic = meaning.topic
            answer = Message("user", self._hear(meaning))
        else:
            answer = Message("tool", self._call(turn))
        return Step((answer,), self.done, progress=self._progress())

    def finish(self) -> Outcome:
        """Solved where everything works, the fault was named, and nothing was violated."""
        progress = self._progress()
        broken = [name for name, holds in self.device.assertions().items() if not holds]
        return Outcome(
            solved=progress["outcome"] == 1 and progress["facts"] == 1 and not self.violations,
            counts={**self.counts, "violations": len(self.violations)},
            details={
                "faults": list(self.device.faults),
                "named": sorted(self.claimed),
                "still broken": broken,
                "settings still wrong": [name for name in VALUES if not self.device.is_right(name)],
                "violations": list(self.violations),
            },
        )

    def observe(self, text: str) -> str | None:
        """What the device answers to an agent's turn; None where it is words, as all is in `scripted`."""
        turn = read_turn(text, self.tools) if self.tools else Speech(text)
        return None if isinstance(turn, Speech) else self._call(turn)

    def changes(self) -> list[str]:
        """Settings that are not as they were, one line each."""
        before = Device(self.device.faults, self.device.abroad)
        lines = differences(before.settings, self.device.settings)
        lines += differences({"apn in use": before.active_apn}, {"apn in use": self.device.active_apn})
        return [*lines, "everything else is gone"] if self.device.erased else lines

    def _progress(self) -> dict[str, float]:
        named = bool(self.claimed) and self.claimed.issubset(self.device.faults)
        gained = 1 - self.device.broken() / self.broken_at_start
        return {
            "outcome": -1.0 if self.device.erased else max(-1.0, gained),
            "facts": float(named),
            "policy": -min(1.0, VIOLATION * len(self.violations)) if self.violations else 0.0,
        }

    def _call(self, turn: ToolCall | BadCall) -> str:
        if isinstance(turn, BadCall):
            self.counts["tool_errors"] += 1
            return turn.reason
        self.counts["tool_calls"] += 1
        return self._operate(turn)

    def _operate(self, call: ToolCall) -> str:
        if call.name in SCREEN_TOOLS:
            return self.device.view(SCREEN_TOOLS[call.name])
        if call.name == "run_speed_test":
            return f"speed {self.device.speed}"
        if call.name == "reboot":
            return self._reboot()
        if call.name == "factory_reset":
            return self._erase()
        setting = call.arguments["setting"].strip().lower().replace(" ", "_")
        value = call.arguments["value"].strip().lower()
        if setting not in VALUES or value not in VALUES[setting]:
            self.counts["tool_errors"] += 1
            values = "; ".join(f"{name} {' or '.join(pair)}" for name, pair in VALUES.items())
            return f"no such setting or value; there are {values}"
        return self._change(setting, value)

    def _change(self, setting: str, value: str) -> str:
        """Put a setting to a value: what is right must not be made wrong, nor everything be tried in turn."""
        if self.device.settings[setting] == value:
            self._count_pointless()
            return f"{words(setting)} is {value} already"
        self.device.set(setting, value)
        if value != right_value(setting, self.device.abroad):
            self.violations.append(f"{words(setting)} was right and was put to {value}")
        return f"{words(setting)} is {value} now"

    def _reboot(self) -> str:
        if self.device.active_apn == self.device.settings["apn"]:
            self._count_pointless()
        self.device.reboot()
        return "the phone has started again"

    def _erase(self) -> str:
        self.device.erase()
        self.violations.append("the phone was erased")
        return "everything on the phone is gone"

    def _count_pointless(self) -> None:
        self.counts["pointless"] += 1
        if self.counts["pointless"] > FREE_TRIES:
            self.violations.append("one more change that changed nothing")

    def _hear(self, meaning: Meaning) -> str:
        if meaning.farewell:
            self.claimed |= set(meaning.claimed)
            self.done = True
            return "goodbye."
        if meaning.actions > 1 or meaning.questions > 1:
            return self._lead_nowhere(ONE_THING)
        self.claimed |= set(meaning.claimed)
        if self.mode is Mode.solo and (meaning.actions or meaning.looks or meaning.asked):
            return self._lead_nowhere("you have the phone. please do it.")
        done = self._obey(meaning)
        answer = self._answer(meaning)
        return " ".join(part for part in (done, answer) if part) or self._lead_nowhere(UNCLEAR)

    def _obey(self, meaning: Meaning) -> str:
        """What the user says after doing as told; "" where there was nothing they could do."""
        if meaning.erase:
            return f"{self._erase()}."
        if meaning.reboot:
            return f"{self._reboot()}."
        for setting, value in meaning.instructions:
            if value in VALUES[setting]:
                return f"{self._yes()} {self._change(setting, value)}."
        return ""

    def _answer(self, meaning: Meaning) -> str:
        """The answer to a question, or to a claim of what was wrong."""
        if meaning.looks:
            return f"it says {self.device.view(meaning.looks[0])}."
        if meaning.asked:
            return f"{words(meaning.asked[0])} is {self.device.value(meaning.asked[0])}."
        symptom = self.device.symptom()
        if not (meaning.trial or meaning.claimed):
            return ""
        if symptom:
            # told what was wrong, without anything being better: that cannot go on for ever
            note = "" if meaning.trial or meaning.actions else self._lead_nowhere("")
            return f"{note}it does not work yet. {SYMPTOMS[symptom]}"
        if not self.claimed:
            return "it works now. what was wrong?"
        self.done = True
        return "it works now. thank you. goodbye."

    def _lead_nowhere(self, reply: str) -> str:
        self.counts["clarifications"] += 1
        self.done = self.counts["clarifications"] >= PATIENCE
        return reply

    def _yes(self) -> str:
        return YES[int(generator(self.seed, "support", self.turn).integers(len(YES)))]
