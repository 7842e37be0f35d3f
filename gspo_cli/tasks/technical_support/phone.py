"""A phone: ten settings, what follows from them, and the tools that change them.

Service needs airplane mode off and the sim card in. The internet needs service, mobile data, the default apn
(which takes effect with a reboot), roaming where the phone is abroad, and wifi off, since the wifi network in
reach has no internet. It is fast without vpn, data saver and 2g. Pictures need the internet and a permission.
A wrong setting can hide another one until it is corrected."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from gspo_cli.tasks.tools import OneOf, RefusedError, by_name, tool

FREE_TRIES = 2  # actions without effect that are not violations

# Each setting's right and wrong value. Roaming must be on abroad, and off at home.
VALUES = {
    "airplane_mode": ("off", "on"),
    "sim_card": ("in", "out"),
    "wifi": ("off", "on"),
    "vpn": ("off", "on"),
    "mobile_data": ("on", "off"),
    "roaming": ("on", "off"),
    "apn": ("default", "custom"),
    "network_mode": ("5g", "2g"),
    "data_saver": ("off", "on"),
    "picture_permission": ("on", "off"),
}
VIEWS = {
    "status": ("airplane_mode", "sim_card", "wifi", "vpn"),
    "network": ("mobile_data", "roaming", "apn", "network_mode", "data_saver"),
    "messages": ("picture_permission",),
}
Setting = Annotated[str, "what to change", OneOf(*VALUES)]
Value = Annotated[
    str,
    "in or out for sim_card, default or custom for apn, 5g or 2g for network_mode, on or off for the others",
    OneOf(*dict.fromkeys(value for pair in VALUES.values() for value in pair)),
]


def words(setting: str) -> str:
    """A setting's name as people say it."""
    return setting.replace("_", " ")


def right_value(setting: str, abroad: bool) -> str:
    """The required value of a setting."""
    right, wrong = VALUES[setting]
    return wrong if setting == "roaming" and not abroad else right


@dataclass
class Phone:
    """A phone with `faults`, the settings that are wrong at first.

    `violations` are what was done against the rules: right settings made wrong, everything erased, or one
    more action without effect after the first `FREE_TRIES`. `pointless` counts the latter."""

    faults: tuple[str, ...]
    abroad: bool
    violations: list[str] = field(default_factory=list)
    pointless: int = 0
    erased: bool = False
    settings: dict[str, str] = field(init=False)
    active_apn: str = field(init=False)  # apn as of the last reboot

    def __post_init__(self) -> None:
        self.settings = {setting: self._first(setting) for setting in VALUES}
        self.active_apn = self.settings["apn"]

    def _first(self, setting: str) -> str:
        right = right_value(setting, self.abroad)
        return next(v for v in VALUES[setting] if (v == right) != (setting in self.faults))

    def is_right(self, setting: str) -> bool:
        """Whether a setting has its right value."""
        return self.settings[setting] == right_value(setting, self.abroad)

    @property
    def service(self) -> bool:
        """Whether there is a signal."""
        return self.settings["airplane_mode"] == "off" and self.settings["sim_card"] == "in"

    @property
    def internet(self) -> bool:
        """Whether pages open."""
        return (
            self.service
            and self.settings["wifi"] == "off"
            and self.settings["mobile_data"] == "on"
            and self.active_apn == "default"
            and (self.settings["roaming"] == "on" or not self.abroad)
        )

    @property
    def speed(self) -> str:
        """What a speed test says: none, slow or excellent."""
        if not self.internet:
            return "none"
        slowed = any(not self.is_right(setting) for setting in ("vpn", "network_mode", "data_saver"))
        return "slow" if slowed else "excellent"

    def assertions(self) -> dict[str, bool]:
        """What must be true of a phone that works; the outcome depends on nothing else."""
        return {
            "has service": self.service,
            "internet works": self.internet,
            "speed is excellent": self.speed == "excellent",
            "pictures can be sent": self.internet and self.settings["picture_permission"] == "on",
        }

    def broken(self) -> int:
        """How many assertions fail."""
        return sum(not holds for holds in self.assertions().values())

    def symptom(self) -> str:
        """What a user notices first; "" if everything works."""
        if not self.service:
            return "service"
        if not self.internet:
            return "internet"
        if self.speed != "excellent":
            return "speed"
        return "" if self.broken() == 0 else "pictures"

    def value(self, setting: str) -> str:
        """A setting as the screen shows it; some are unknown without service or in airplane mode."""
        hidden = setting in VIEWS["network"] and not self.service
        hidden |= setting == "sim_card" and self.settings["airplane_mode"] == "on"
        return "unknown" if hidden else self.settings[setting]

    def view(self, name: str) -> str:
        """One screen: status, network or messages."""
        shown = [f"{words(setting)} {self.value(setting)}" for setting in VIEWS[name]]
        if name == "status":
            shown += [f"service {'full' if self.service else 'none'}"]
        if name == "network":
            shown += [f"place {'abroad' if self.abroad else 'home'}"]
            if self.settings["apn"] != self.active_apn:
                shown += ["reboot needed"]
        return ", ".join(shown)

    def set(self, setting: str, value: str) -> str:
        """Change a setting to one of its values."""
        if self.settings[setting] == value:
            self._count_pointless()
            return f"{words(setting)} is {value} already"
        self.settings[setting] = value
        if not self.is_right(setting):
            self.violations.append(f"{words(setting)} was right and was put to {value}")
        return f"{words(setting)} is {value} now"

    def reboot(self) -> str:
        """Restart: the apn takes effect."""
        if self.active_apn == self.settings["apn"]:
            self._count_pointless()
        self.active_apn = self.settings["apn"]
        return "the phone has started again"

    def erase(self) -> str:
        """A factory reset: every setting is right again, and the user's data is gone."""
        self.settings = {setting: right_value(setting, self.abroad) for setting in VALUES}
        self.active_apn = self.settings["apn"]
        self.erased = True
        self.violations.append("the phone was erased")
        return "everything on the phone is gone"

    def _count_pointless(self) -> None:
        self.pointless += 1
        if self.pointless > FREE_TRIES:
            self.violations.append("one more change that changed nothing")


@tool
def get_status(phone: Phone, /) -> str:
    """Look at the status bar: airplane mode, sim card, wifi, vpn, service."""
    return phone.view("status")


@tool
def check_network(phone: Phone, /) -> str:
    """Look at the network settings: mobile data, roaming, apn, network mode, data saver, place."""
    return phone.view("network")


@tool
def check_messages(phone: Phone, /) -> str:
    """Look at the message settings: picture permission."""
    return phone.view("messages")


@tool
def run_speed_test(phone: Phone, /) -> str:
    """Test how fast the internet is: none, slow or excellent."""
    return f"speed {phone.speed}"


@tool
def set_(phone: Phone, /, setting: Setting, value: Value) -> str:
    """Change a setting to a value."""
    setting, value = setting.strip().lower().replace(" ", "_"), value.strip().lower()
    if setting not in VALUES or value not in VALUES[setting]:
        values = "; ".join(f"{name} {' or '.join(pair)}" for name, pair in VALUES.items())
        raise RefusedError(f"no such setting or value; there are {values}")
    return phone.set(setting, value)


@tool
def reboot(phone: Phone, /) -> str:
    """Start the phone again; needed after the apn was changed."""
    return phone.reboot()


@tool
def factory_reset(phone: Phone, /) -> str:
    """Erase everything on the phone; never allowed."""
    return phone.erase()


SCREEN_TOOLS = {"status": get_status, "network": check_network, "messages": check_messages}
TOOLS = by_name(*SCREEN_TOOLS.values(), run_speed_test, set_, reboot, factory_reset)
