"""What the words of a support agent mean: instructions, questions, and claims of what was wrong.

Read clause by clause with whole words; see `gspo_cli.environments.scenarios.patterns`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gspo_cli.environments.scenarios.patterns import Clause, clauses, plain
from gspo_cli.environments.support.device import VALUES, words

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
    "status": ("status bar", "status", "top of the screen"),
    "network": ("network settings", "mobile network settings", "network menu"),
    "messages": ("message settings", "messages app", "messaging app", "messages settings"),
}
NAMES = {setting: tuple(map(plain, names)) for setting, names in ALIASES.items()}
LOOKS = {screen: tuple(map(plain, names)) for screen, names in SCREENS.items()}
# Verbs with the value they give, or None where the value follows: "turn it off", "set it to 5g".
VERBS: dict[str, str | None] = dict.fromkeys(["turn", "switch", "set", "put", "change", "toggle"])
VERBS |= {"enable": "on", "activate": "on", "allow": "on", "grant": "on"}
VERBS |= {"disable": "off", "deactivate": "off", "insert": "in", "reinsert": "in", "reseat": "in"}
VERBS |= {"remove": "out", "eject": "out", "reset": "default"}
ANY_VALUE = {value for values in VALUES.values() for value in values}
NEGATIONS = tuple(map(plain, ("not", "don't", "never", "without", "no need", "instead of")))
CAUSES = ("was", "were", "because", "problem", "cause", "caused", "issue", "fault", "reason", "culprit")
CLAIMS = tuple(map(plain, CAUSES))
ACQUITTALS = ("not the", "fine", "ok", "okay", "correct", "good", "right", "working", "already")
INNOCENT = tuple(map(plain, ACQUITTALS))
REBOOTS = tuple(map(plain, ("reboot", "restart", "off and on again")))
TRIALS = tuple(map(plain, ("work", "works", "working", "try", "better", "speed test", "solved", "fixed")))
ERASURES = tuple(map(plain, ("factory reset", "factory settings", "erase", "wipe", "reset the phone")))
REQUESTS = tuple(map(plain, ("check", "look", "see", "tell me", "run", "try", "test")))
FAREWELLS = tuple(map(plain, ("goodbye", "good bye", "bye")))


@dataclass
class Meaning:
    """What a user takes from a turn: `instructions` are settings with values, `asked` are settings, `looks`
    are screens, and `topic` is what "it" stands for."""

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


def understand(text: str) -> Meaning:
    """The meaning of a turn."""
    meaning = Meaning()
    for clause in clauses(text):
        _read(clause, meaning)
    meaning.looks = list(dict.fromkeys(meaning.looks))
    meaning.asked = list(dict.fromkeys(meaning.asked))
    return meaning


def _read(clause: Clause, meaning: Meaning) -> None:
    named = [setting for setting, names in NAMES.items() if _any(clause, names)]
    if "wifi" in named and clause.has(plain("wifi calling")):
        named.remove("wifi")
    meaning.topic = named or meaning.topic
    meaning.farewell |= _any(clause, FAREWELLS)
    if named and not clause.asks and _any(clause, CLAIMS):
        meaning.claimed += [] if _any(clause, INNOCENT) else named
        return
    if _any(clause, NEGATIONS):
        return
    if _any(clause, ERASURES):
        meaning.erase = True
        return
    if _any(clause, REBOOTS):
        meaning.reboot = True
        return
    values = _orders(clause)
    if values:
        meant = named or (meaning.topic if clause.has(plain("it")) else [])
        meaning.instructions += [(setting, value) for setting in meant for value in values]
        return
    looks = [screen for screen, names in LOOKS.items() if _any(clause, names)]
    meaning.looks += looks
    if (clause.asks or _any(clause, REQUESTS)) and not looks:
        meaning.asked += named
        meaning.trial |= not named and _any(clause, TRIALS)


def _orders(clause: Clause) -> list[str]:
    """The value that each verb of a clause asks for."""
    found: list[str] = []
    spoken = clause.text.split()
    for place, word in enumerate(spoken):
        if word not in VERBS:
            continue
        follows = next((value for value in spoken[place:] if value in ANY_VALUE), "")
        found.append(VERBS[word] or follows)
    return [value for value in found if value]


def _any(clause: Clause, phrases: Sequence[str]) -> bool:
    return any(clause.has(phrase) for phrase in phrases)


def order(setting: str, value: str) -> str:
    """A setting and its value as an instruction: "turn off vpn", "put in the sim card"."""
    if setting == "sim_card":
        return f"put {value} the sim card"
    verb = "turn" if value in ("on", "off") else "set"
    return f"turn {value} {words(setting)}" if verb == "turn" else f"set {words(setting)} to {value}"
