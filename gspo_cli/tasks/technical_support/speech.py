"""What the words of a support agent mean: instructions, questions, and claims of what was wrong.

Read clause by clause with whole words; see `gspo_cli.tasks.patterns`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from gspo_cli.tasks.patterns import Clause, clauses, plain
from gspo_cli.tasks.technical_support.phone import VALUES, words

ALIASES = {
    "airplane_mode": ("airplane mode", "flight mode", "aeroplane mode"),
    "sim_card": ("sim card", "sim"),
    "wifi": ("wifi", "wi-fi", "wlan"),
    "vpn": ("vpn",),
    "mobile_data": ("mobile data", "cellular data"),
    "roaming": ("roaming", "data roaming"),
    "apn": ("apn", "access point name"),
    "network_mode": ("network mode", "preferred network"),
    "data_saver": ("data saver", "data saving"),
    "picture_permission": ("picture permission", "permission"),
}
SCREENS = {
    "status": ("status bar", "status", "top of the screen", "top of your screen"),
    "network": ("network settings", "network menu", "network screen", "settings network"),
    "messages": (
        "message settings",
        "messages app",
        "messaging app",
        "messages settings",
        "messaging settings",
    ),
}
NAMES = {setting: tuple(map(plain, names)) for setting, names in ALIASES.items()}
LOOKS = {screen: tuple(map(plain, names)) for screen, names in SCREENS.items()}
# Verbs with the value they give, or None if the value follows: "turn it off", "set it to 5g".
VERBS: dict[str, str | None] = dict.fromkeys(
    ["turn", "switch", "set", "put", "change", "toggle", "select", "choose", "make", "ensure", "keep"]
)
VERBS |= {"enable": "on", "activate": "on", "allow": "on", "grant": "on"}
VERBS |= {"disable": "off", "deactivate": "off", "insert": "in", "reinsert": "in", "reseat": "in"}
VERBS |= {"remove": "out", "eject": "out", "reset": "default"}
VERBS |= {"disconnect": "off"}
GERUNDS = {"turning": "turn", "switching": "switch", "enabling": "enable", "disabling": "disable"}
GERUNDS |= {"setting": "set", "changing": "change", "putting": "put"}
SUGGESTIONS = tuple(map(plain, ("try", "mind")))  # "try turning it off" is an instruction
STATES = {"is", "are", "was", "were"}  # "it is set to 2g" is not an instruction
# what follows is not an instruction
PURPOSES = re.compile(r" (?:so that|since|and use|to use|instead of|which) ")
STARTS = re.compile(r" from (?:the )?(?:on|off|custom|default|5g|2g) ")  # "from 2g to 5g"
ASKS_PAST = re.compile(r"\A (?:have|had|did|do|does|is|are|was|were|has) ")  # "did you restart it?"
ANY_VALUE = {value for values in VALUES.values() for value in values}
NEGATED = ("not", "don't", "never", "without", "no need", "avoid", "before we", "unless")
NEGATIONS = tuple(map(plain, NEGATED))
CAUSES = (
    *("was", "were", "had", "because", "problem", "cause", "caused", "causing", "issue", "fault", "reason"),
    *("culprit", "made", "slowed", "blocked"),
)
CLAIMS = tuple(map(plain, CAUSES))
ACQUITTALS = ("not", "isn't", "wasn't", "aren't", "weren't", "fine", "ok", "okay", "correct", "good", "right")
INNOCENT = tuple(map(plain, (*ACQUITTALS, "working", "already")))
GUESSES = ("could", "may", "might", "maybe", "perhaps", "possibly", "if", "whether", "check", "see if")
GUESSED = tuple(map(plain, GUESSES))
PAST = {"was", "were", "had"}  # "wifi was off" is not a claim if off is right
REBOOTED = ("reboot", "restart", "power cycle", "off and on again", "off and back on", "off and then back on")
REBOOTS = tuple(map(plain, REBOOTED))
TRIALS = tuple(map(plain, ("work", "works", "working", "try", "better", "speed test", "solved", "fixed")))
ERASURES = tuple(map(plain, ("factory reset", "factory settings", "erase", "wipe", "reset the phone")))
REQUESTS = tuple(map(plain, ("check", "look", "see", "tell me", "run", "try", "test")))
FAREWELLS = tuple(map(plain, ("goodbye", "good bye", "bye")))


@dataclass
class Meaning:
    """What a user understands from a turn: `instructions` are settings with values, `asked` are settings,
    `looks` are screens, and `topic` is what "it" stands for."""

    instructions: list[tuple[str, str]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    looks: list[str] = field(default_factory=list)
    claimed: list[str] = field(default_factory=list)
    reboot: bool = False
    erase: bool = False
    trial: bool = False
    farewell: bool = False
    topic: list[str] = field(default_factory=list)

    @property
    def actions(self) -> int:
        """How many things the user is asked to do."""
        return len(self.instructions) + self.reboot + self.erase

    @property
    def questions(self) -> int:
        """How many things the user is asked to look at or to try."""
        return len(self.asked) + len(self.looks) + self.trial


def understand(text: str, topic: Sequence[str] = ()) -> Meaning:
    """The meaning of a turn; `topic` is what the turns before it were about."""
    meaning = Meaning(topic=list(topic))
    for clause in clauses(text):
        _read(clause, meaning)
    meaning.looks = list(dict.fromkeys(meaning.looks))
    meaning.asked = list(dict.fromkeys(meaning.asked))
    return meaning


def _read(clause: Clause, meaning: Meaning) -> None:
    named = _named(clause)
    meaning.topic = named or meaning.topic
    meaning.farewell |= _any(clause, FAREWELLS)
    if named and not clause.asks and _any(clause, CLAIMS):
        meaning.claimed += _claimed(clause, named)
        return
    if _any(clause, NEGATIONS):
        return
    asks_past = clause.asks and ASKS_PAST.match(clause.text) is not None
    if not asks_past and _obeyed(clause, named, meaning):
        return
    looks = [screen for screen, names in LOOKS.items() if _any(clause, names)]
    meaning.looks += looks
    if (clause.asks or _any(clause, REQUESTS)) and not looks:
        meaning.asked += named
        meaning.trial |= not named and _any(clause, TRIALS)


def _named(clause: Clause) -> list[str]:
    named = [setting for setting, names in NAMES.items() if _any(clause, names)]
    if "wifi" in named and clause.has(plain("wifi calling")):
        named.remove("wifi")
    return named


def _claimed(clause: Clause, named: list[str]) -> list[str]:
    """The settings that a clause calls the cause: not those that it excludes, guesses at, or states the right
    value of. The right value of roaming depends on where the phone is."""
    denied = [setting for setting in named if clause.has(f" not {VALUES[setting][0]} ")]
    if denied or _any(clause, INNOCENT) or _any(clause, GUESSED):
        return denied
    spoken = clause.text.split()
    values = ANY_VALUE.intersection(spoken)
    blames = any(word in spoken for word in CAUSES if word not in PAST)
    return [
        setting
        for setting in named
        if blames or setting == "roaming" or not values or VALUES[setting][1] in values
    ]


def _obeyed(clause: Clause, named: list[str], meaning: Meaning) -> bool:
    """Whether a clause asks for something to be done, which is then part of `meaning`."""
    if _any(clause, ERASURES):
        meaning.erase = True
        return True
    if _any(clause, REBOOTS):
        meaning.reboot = True
        return True
    order = Clause(PURPOSES.split(clause.text)[0] + " ", clause.asks)
    values = _orders(order)
    if values:
        meant = _named(order) or named or (meaning.topic if order.has(plain("it")) else [])
        meaning.instructions += [(setting, value) for setting in meant for value in values]
    return bool(values)


def _orders(clause: Clause) -> list[str]:
    """The value that each verb of a clause asks for."""
    found: list[str] = []
    spoken = STARTS.sub(" ", clause.text).split()
    suggests = _any(clause, SUGGESTIONS)
    for place, word in enumerate(spoken):
        verb = GERUNDS.get(word, word) if suggests else word
        if verb not in VERBS or (place and spoken[place - 1] in STATES):
            continue
        follows = next((value for value in spoken[place:] if value in ANY_VALUE), "")
        found.append(VERBS[verb] or follows)
    return [value for value in found if value]


def _any(clause: Clause, phrases: Sequence[str]) -> bool:
    return any(clause.has(phrase) for phrase in phrases)


def instruction(setting: str, value: str) -> str:
    """A setting and its value as an instruction: "turn off vpn", "put in the sim card"."""
    if setting == "sim_card":
        return f"put {value} the sim card"
    verb = "turn" if value in ("on", "off") else "set"
    return f"turn {value} {words(setting)}" if verb == "turn" else f"set {words(setting)} to {value}"
