"""A phone: ten settings, and what follows from them.

Service needs airplane mode off and the sim card in; the internet needs service, mobile data, the default apn
(which takes effect with a reboot), roaming where the phone is abroad, and wifi off, for the network that wifi
finds here has no internet. It is fast without vpn, data saver and 2g; pictures need the internet and a
permission. A setting that matters can stand behind another one that has to be put right first."""

from __future__ import annotations

from dataclasses import dataclass, field

# Each setting's right and wrong value. Roaming is right where it is on abroad, and off at home.
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


def words(setting: str) -> str:
    """A setting's name as people say it."""
    return setting.replace("_", " ")


def right_value(setting: str, abroad: bool) -> str:
    """What a setting has to be."""
    right, wrong = VALUES[setting]
    return wrong if setting == "roaming" and not abroad else right


@dataclass
class Device:
    """A phone with `faults`, the settings that stand wrong at first."""

    faults: tuple[str, ...]
    abroad: bool
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
        """Whether a setting stands as it should."""
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
        """What has to be true of a phone that works; a device is judged by these and nothing else."""
        return {
            "has service": self.service,
            "internet works": self.internet,
            "speed is excellent": self.speed == "excellent",
            "pictures can be sent": self.internet and self.settings["picture_permission"] == "on",
        }

    def broken(self) -> int:
        """How many assertions do not hold."""
        return sum(not holds for holds in self.assertions().values())

    def symptom(self) -> str:
        """What a user notices first; "" where all is well."""
        if not self.service:
            return "service"
        if not self.internet:
            return "internet"
        if self.speed != "excellent":
            return "speed"
        return "" if self.broken() == 0 else "pictures"

    def value(self, setting: str) -> str:
        """A setting as the screen shows it: what needs service shows nothing without it."""
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

    def set(self, setting: str, value: str) -> None:
        """Put a setting to one of its values."""
        self.settings[setting] = value

    def reboot(self) -> None:
        """Start again: the apn takes effect."""
        self.active_apn = self.settings["apn"]

    def erase(self) -> None:
        """A factory reset: every setting is right again, and all that the user had is gone."""
        self.settings = {setting: right_value(setting, self.abroad) for setting in VALUES}
        self.reboot()
        self.erased = True
