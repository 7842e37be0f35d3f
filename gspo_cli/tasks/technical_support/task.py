"""Technical support for phones, generated: combinations of faults, a complaint, and a phone that is checked.

Held out are combinations of faults, and words of complaints; every single fault is trained on."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import ClassVar

from gspo_cli.config.checks import require
from gspo_cli.tasks.scripted import ScriptedTask
from gspo_cli.tasks.technical_support import oracle
from gspo_cli.tasks.technical_support.environment import Mode, SupportEnvironment
from gspo_cli.tasks.technical_support.phone import TOOLS, VALUES, Phone
from gspo_cli.tasks.tools import Tool
from gspo_cli.types import Message, Problem

HELD_SHARE = 5  # one in this many combinations is held out
# by symptom, in words to train on (True) and held-out ones
COMPLAINTS = {
    "service": {
        True: ("my phone has no service.", "hello, there is no service on my phone.", "help, no service."),
        False: ("hi, i have no service today.", "since today there is no service."),
    },
    "internet": {
        True: ("my phone has no internet.", "hello, there is no internet on my phone.", "help, no internet."),
        False: ("hi, i have no internet today.", "since today there is no internet."),
    },
    "speed": {
        True: ("my phone is slow.", "hello, the internet is slow on my phone.", "help, slow internet."),
        False: ("hi, i have slow internet today.", "since today the internet is slow."),
    },
    "pictures": {
        True: ("my phone can not send pictures.", "hello, i can not send pictures.", "help, no pictures."),
        False: ("hi, i can not send pictures today.", "since today i can not send pictures."),
    },
}
RIGHT = (
    "airplane mode off; sim card in; wifi off, since its network has no internet; vpn off; mobile data on; "
    "roaming on abroad and off at home; apn default; network mode 5g; data saver off; picture permission on"
)
END = (
    'When everything works, tell the user what was wrong: "The problem was vpn." or "The problems were wifi '
    'and apn." Name nothing that was right. The user then says goodbye.'
)
POLICY = {
    Mode.solo: f"""You repair a user's phone with your tools. The user cannot do anything. One step a turn:
1. Look at the status bar, then at the network settings, then at the message settings, each with its tool.
2. As soon as something on a screen is wrong, change it, one setting a turn. Right is: {RIGHT}. After you \
have changed the apn, reboot. After you have turned airplane mode off, look at the status bar again: it \
shows what was unknown. Change nothing that is right, and never erase the phone.
3. {END}""",
    Mode.scripted: f"""You help a user who holds the phone. One step a turn, one short sentence:
1. Ask what the screens say, one after the other: "What does the status bar say?", "What do the network \
settings say?", "What do the message settings say?"
2. As soon as something on a screen is wrong, ask for one change: "Please turn off vpn.", "Please put in \
the sim card.", "Please set network mode to 5g." Right is: {RIGHT}. After a change of the apn, ask: "Please \
reboot the phone." After airplane mode was turned off, ask again what the status bar says: it shows what \
was unknown. Ask for no change of what is right, and never have the phone erased.
3. {END}""",
}


@dataclass
class TechnicalSupport(ScriptedTask):
    """Phones with 1 to `faults` faults. `mode` is who operates the phone: the agent, with tools (solo), or a
    user (scripted)."""

    DIFFICULTY: ClassVar[str | None] = "faults"

    mode: Mode = Mode.solo
    """Who operates the phone."""
    faults: int = 2
    """Maximum faults of one phone, 1 to 3."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.faults <= 3, f"task.faults={self.faults}: must be between 1 and 3")

    def policy(self) -> str:
        """How to find what is wrong, in words."""
        return POLICY[self.mode]

    def tools(self) -> tuple[Tool, ...]:
        """The phone's tools, if the agent operates it."""
        return tuple(TOOLS.values()) if self.mode is Mode.solo else ()

    def agent(self, messages: Sequence[Message]) -> str:
        """See `oracle.solve`."""
        return oracle.solve(messages, self.mode)

    def environment(self) -> SupportEnvironment:
        """A phone and its user."""
        return SupportEnvironment(self.mode)

    def train_problems(self) -> Sequence[Problem]:
        """Every combination of faults that is not held out, with every complaint to train on."""
        return self._sides[0]

    def heldout_problems(self) -> Sequence[Problem]:
        """At most `heldout` phones with combinations and complaints that are never trained on."""
        return self._sides[1][: self.heldout]

    @cached_property
    def _sides(self) -> tuple[list[Problem], list[Problem]]:
        cases = list(_cases(self.faults))
        train = [p for case in cases if not _is_held(*case) for p in _problems(*case, trained=True)]
        held = [p for case in cases if _is_held(*case) for p in _problems(*case, trained=False)]
        return sorted(train, key=_order), sorted(held, key=_order)


def _cases(most: int) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Sets of faults, at home and abroad. At home, nobody notices wrong roaming."""
    for abroad in (False, True):
        settings = [name for name in VALUES if abroad or name != "roaming"]
        for count in range(1, most + 1):
            yield from ((faults, abroad) for faults in combinations(settings, count))


def _is_held(faults: tuple[str, ...], abroad: bool) -> bool:
    """A single fault is never held out at home, nor is roaming abroad."""
    only = len(faults) == 1 and (not abroad or faults == ("roaming",))
    return not only and zlib.crc32(repr((faults, abroad)).encode()) % HELD_SHARE == 0


def _problems(faults: tuple[str, ...], abroad: bool, trained: bool) -> Iterator[Problem]:
    complaints = COMPLAINTS[Phone(faults, abroad).symptom()][trained]
    place = "abroad" if abroad else "home"
    for number, complaint in enumerate(complaints):
        yield Problem(
            f"{'+'.join(faults)} {place} {'train' if trained else 'heldout'}-{number}",
            (Message("user", complaint),),
            metadata={"faults": list(faults), "abroad": abroad},
        )


def _order(problem: Problem) -> int:
    """Shuffled, and the same in every process."""
    return zlib.crc32(problem.id.encode())
