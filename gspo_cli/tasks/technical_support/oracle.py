"""An agent that solves every support problem from the messages alone: it reads one screen at a time, fixes
what is wrong on it, and says what was wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from gspo_cli.tasks.technical_support.environment import Mode
from gspo_cli.tasks.technical_support.phone import SCREEN_TOOLS, VALUES, VIEWS, right_value, words
from gspo_cli.tasks.technical_support.speech import SCREENS, instruction
from gspo_cli.tasks.tools import write_line
from gspo_cli.types import Message


@dataclass
class Notes:
    """What the conversation has shown: what each screen says, what was corrected, and which screens may have
    changed since."""

    screens: dict[str, dict[str, str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    outdated: set[str] = field(default_factory=set)


def solve(messages: Sequence[Message], mode: Mode) -> str:
    """What to say next."""
    notes = _notes(messages, mode)
    for screen, settings in VIEWS.items():
        shown = notes.screens.get(screen)
        if shown is None:
            return _look(screen, mode, again=screen in notes.outdated)
        abroad = notes.screens.get("network", {}).get("place") == "abroad"
        for setting in settings:
            right = right_value(setting, abroad)
            if shown[setting] not in (right, "unknown"):
                return _change(setting, right, mode)
        if shown.get("reboot") == "needed":
            return _reboot(mode)
    problem = "problem was" if len(notes.faults) == 1 else "problems were"
    return f"the {problem} {' and '.join(words(setting) for setting in notes.faults)}."


def _notes(messages: Sequence[Message], mode: Mode) -> Notes:
    notes = Notes()
    looks = {_look(screen, mode, again): screen for screen in VIEWS for again in (False, True)}
    orders = {_change(name, value, mode): (name, value) for name, pair in VALUES.items() for value in pair}
    for said, answer in pairwise(messages):
        if said.role != "assistant":
            continue
        if said.content in looks:
            notes.screens[looks[said.content]] = _read(answer.content)
        elif said.content == _reboot(mode):
            notes.screens["network"].pop("reboot")
        elif said.content in orders:
            setting, value = orders[said.content]
            notes.faults.append(setting)
            screen = next(name for name, settings in VIEWS.items() if setting in settings)
            notes.screens[screen][setting] = value
            if setting == "airplane_mode":  # it hid the sim card: look again
                del notes.screens[screen]
                notes.outdated.add(screen)
            if setting == "apn":
                notes.screens[screen]["reboot"] = "needed"
    return notes


def _read(text: str) -> dict[str, str]:
    """ "it says sim card in, wifi off." as names and values."""
    parts = text.removeprefix("it says ").rstrip(".").split(", ")
    pairs = [part.rpartition(" ") for part in parts]
    return {name.replace(" ", "_"): value for name, _, value in pairs}


def _look(screen: str, mode: Mode, again: bool) -> str:
    if mode is Mode.solo:
        return write_line(SCREEN_TOOLS[screen].name)
    name = SCREENS[screen][0]
    verb = "do" if name.endswith("settings") else "does"
    return f"what {verb} the {name} say{' now' if again else ''}?"


def _change(setting: str, value: str, mode: Mode) -> str:
    if mode is Mode.solo:
        return write_line("set", setting, value)
    return f"please {instruction(setting, value)}."


def _reboot(mode: Mode) -> str:
    return write_line("reboot") if mode is Mode.solo else "please reboot the phone."
