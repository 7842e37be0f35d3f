"""A phone and the carrier behind it, as tau2-bench's telecom files describe them, and what follows from
their state: service, mobile data, speed, picture messages.

Records are plain dicts as in the files. Only a network search restores the connection, so that some repairs
take effect after a reboot. Amounts are dollars, data gigabytes, speeds megabits per second."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from gspo_cli.tasks.tools import RefusedError

Record = dict[str, Any]

TODAY = "2025-02-25"  # of the published policy
TECHNOLOGIES = {"4g_5g_preferred": "5G", "4g_only": "4G", "3g_only": "3G", "2g_only": "2G"}
SPEEDS = {"5G": 275.0, "4G": 60.0, "3G": 8.0, "2G": 0.2}
SPEED_NAMES = ((1.0, "very poor"), (5.0, "poor"), (25.0, "fair"), (100.0, "good"))  # else excellent
DATA_SAVER_FACTOR = 0.2
POOR_VPN_FACTOR = 0.1


@dataclass(frozen=True)
class TelecomData:
    """The files as loaded: each table of the carrier by id, and a phone in order."""

    tables: Mapping[str, Mapping[str, Record]]  # plans, devices, lines, customers, bills
    phone: Mapping[str, Any]


@dataclass
class TelecomWorld:
    """One conversation's own phone and carrier."""

    tables: dict[str, dict[str, Record]]
    phone: Record
    default_apn: Mapping[str, Any]
    phone_number: str = ""
    abroad: bool = False
    calls: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)  # those that succeeded

    def record(self, table: str, key: str) -> Record:
        """A record of the carrier. Raises RefusedError if there is none."""
        found = self.tables[table].get(key)
        if found is None:
            raise RefusedError(f"there is no such {table[:-1]}")
        return found

    def line_of(self, customer_id: str, line_id: str) -> Record:
        """A line of this customer. Raises RefusedError if it is not."""
        if line_id not in self.record("customers", customer_id)["line_ids"]:
            raise RefusedError("the customer has no such line")
        return self.record("lines", line_id)

    def bill_of(self, customer_id: str, bill_id: str) -> Record:
        """A bill of this customer. Raises RefusedError if it is not."""
        if bill_id not in self.record("customers", customer_id)["bill_ids"]:
            raise RefusedError("the customer has no such bill")
        return self.record("bills", bill_id)

    @property
    def own_line(self) -> Record | None:
        """The line of the phone's number."""
        lines = self.tables["lines"].values()
        return next((line for line in lines if line["phone_number"] == self.phone_number), None)

    def requested_bill(self) -> Record | None:
        """The bill that the phone's owner is asked to pay."""
        line = self.own_line
        for customer in self.tables["customers"].values():
            if line is not None and line["line_id"] in customer["line_ids"]:
                bills = [self.tables["bills"][key] for key in customer["bill_ids"]]
                return next((bill for bill in bills if bill["status"] == "Awaiting Payment"), None)
        return None

    def search_network(self) -> None:
        """Connect where the phone and its line allow it; lose the connection elsewhere."""
        phone, line = self.phone, self.own_line
        connected = (
            not phone["airplane_mode"]
            and not phone["sim_card_missing"]
            and phone["sim_card_status"] == "active"
            and phone["active_apn_settings"]["apn_name"] == self.default_apn["apn_name"]
            and line is not None
            and line["status"] == "Active"
        )
        technology = TECHNOLOGIES[phone["network_mode_preference"]]
        phone["network_connection_status"] = "connected" if connected else "no_service"
        phone["network_signal_strength"] = "good" if connected else "none"
        phone["network_technology_connected"] = technology if connected else "none"

    @property
    def connected(self) -> bool:
        """Whether there is service."""
        return self.phone["network_connection_status"] == "connected"

    @property
    def data_works(self) -> bool:
        """Whether mobile data reaches the phone, at any speed."""
        line = self.own_line
        if line is None or not (self.connected and self.phone["data_enabled"]):
            return False
        if self.abroad and not (self.phone["roaming_enabled"] and line["roaming_enabled"]):
            return False
        return line["data_used_gb"] <= data_allowance(self, line)

    @property
    def speed(self) -> float:
        """Of mobile data; 0 where it does not work."""
        if not self.data_works:
            return 0.0
        speed = SPEEDS[self.phone["network_technology_connected"]]
        speed *= DATA_SAVER_FACTOR if self.phone["data_saver_mode"] else 1.0
        slow_vpn = self.phone["vpn_connected"] and self.phone["vpn_performance"] == "poor"
        return speed * (POOR_VPN_FACTOR if slow_vpn else 1.0)

    @property
    def mms_works(self) -> bool:
        """Whether the messaging app can send pictures."""
        phone = self.phone
        allowed = phone["app_statuses"]["messaging"]["permissions"]
        over_wifi = phone["wifi_calling_enabled"] and phone["wifi_calling_mms_over_wifi"]
        return (
            self.data_works
            and phone["network_technology_connected"] != "2G"
            and not over_wifi
            and bool(phone["active_apn_settings"]["mmsc_url"])
            and allowed["sms"]
            and allowed["storage"]
        )


def open_world(data: TelecomData) -> TelecomWorld:
    """A new world, as the files have it."""
    phone = {"vpn_performance": "none", "apn_reset_pending": False, **deepcopy(dict(data.phone))}
    tables = {name: {key: deepcopy(row) for key, row in rows.items()} for name, rows in data.tables.items()}
    return TelecomWorld(tables, phone, default_apn=data.phone["active_apn_settings"])


def data_allowance(world: TelecomWorld, line: Record) -> float:
    """Gigabytes that a line may use: its plan's and those added."""
    return world.record("plans", line["plan_id"])["data_limit_gb"] + line["data_refueling_gb"]


def speed_name(speed: float) -> str:
    """What a speed test calls it."""
    if speed == 0:
        return "no connection"
    return next((name for limit, name in SPEED_NAMES if speed < limit), "excellent")
