"""How a telecom task sets its fault, and what has to be true at the end, by the names of tau2-bench's
files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gspo_cli.tasks.tau2.carrier_tools import disable_roaming, enable_roaming
from gspo_cli.tasks.tau2.phone_tools import set_network_mode_preference
from gspo_cli.tasks.tau2.world import TelecomWorld, speed_name

OVER = "2025-01-31"  # a contract's end in the past


def set_user_info(world: TelecomWorld, name: str, phone_number: str) -> None:
    """Whose phone it is."""
    world.phone_number = phone_number


def set_user_location(world: TelecomWorld, abroad: bool) -> None:
    """Where the phone is."""
    world.abroad = abroad


def _switch(setting: str, value: bool) -> Callable[[TelecomWorld], None]:
    def apply(world: TelecomWorld) -> None:
        world.phone[setting] = value
        world.search_network()

    return apply


def lock_sim_card(world: TelecomWorld, mode: str) -> None:
    """Lock the SIM card by pin or puk."""
    world.phone["sim_card_status"] = f"locked_{mode}"
    world.search_network()


def break_apn_settings(world: TelecomWorld) -> None:
    """An access point that does not exist."""
    world.phone["active_apn_settings"]["apn_name"] = "broken"
    world.search_network()


def break_apn_mms_setting(world: TelecomWorld) -> None:
    """No message center."""
    world.phone["active_apn_settings"]["mmsc_url"] = ""


def break_vpn(world: TelecomWorld) -> None:
    """A slow VPN."""
    world.phone.update(vpn_connected=True, vpn_performance="poor")


def set_wifi_calling(world: TelecomWorld, enabled: bool, mms_over_wifi: bool | None = None) -> None:
    """Calls, and picture messages, over Wi-Fi."""
    world.phone["wifi_calling_enabled"] = enabled
    if mms_over_wifi is not None:
        world.phone["wifi_calling_mms_over_wifi"] = mms_over_wifi


def remove_app_permission(world: TelecomWorld, app_name: str, permission: str) -> None:
    """Forbid an app something."""
    world.phone["app_statuses"][app_name]["permissions"][permission] = False


def set_data_usage(world: TelecomWorld, customer_id: str, line_id: str, data_used_gb: float) -> None:
    """What a line has used."""
    world.line_of(customer_id, line_id)["data_used_gb"] = data_used_gb


def suspend_line_for_overdue_bill(
    world: TelecomWorld, customer_id: str, line_id: str, new_bill_id: str, contract_ended: bool
) -> None:
    """A suspended line with an overdue bill of one month of its plan, perhaps after the end of its
    contract."""
    line = world.line_of(customer_id, line_id)
    price = world.record("plans", line["plan_id"])["price_per_month"]
    bill = {"bill_id": new_bill_id, "customer_id": customer_id, "total_due": price, "status": "Overdue"}
    world.tables["bills"][new_bill_id] = {**bill, "issue_date": "2025-01-05", "due_date": "2025-01-19"}
    world.record("customers", customer_id)["bill_ids"].append(new_bill_id)
    line.update(status="Suspended", suspension_start_date="2025-02-01")
    if contract_ended:
        line["contract_end_date"] = OVER


FAULTS: Mapping[str, Callable[..., Any]] = {
    "set_user_info": set_user_info,
    "set_user_location": set_user_location,
    "turn_roaming_on": _switch("roaming_enabled", True),
    "turn_roaming_off": _switch("roaming_enabled", False),
    "turn_data_on": _switch("data_enabled", True),
    "turn_data_off": _switch("data_enabled", False),
    "turn_data_saver_mode_on": _switch("data_saver_mode", True),
    "turn_airplane_mode_on": _switch("airplane_mode", True),
    "unseat_sim_card": _switch("sim_card_missing", True),
    "lock_sim_card": lock_sim_card,
    "set_network_mode_preference": set_network_mode_preference.function,
    "break_apn_settings": break_apn_settings,
    "break_apn_mms_setting": break_apn_mms_setting,
    "break_vpn": break_vpn,
    "set_wifi_calling": set_wifi_calling,
    "remove_app_permission": remove_app_permission,
    "set_data_usage": set_data_usage,
    "suspend_line_for_overdue_bill": suspend_line_for_overdue_bill,
    "enable_roaming": enable_roaming.function,
    "disable_roaming": disable_roaming.function,
    "simulate_network_search": TelecomWorld.search_network,
}


def assert_service_status(world: TelecomWorld, expected_status: str) -> bool:
    """Whether the service has the expected status."""
    return world.phone["network_connection_status"] == expected_status


def assert_mobile_data_status(world: TelecomWorld, expected_status: bool) -> bool:
    """Whether mobile data works, or does not, as expected."""
    return world.data_works == expected_status


def assert_internet_speed(
    world: TelecomWorld, expected_speed: float, expected_desc: str | None = None
) -> bool:
    """Whether data is at least as fast as expected, and is called so."""
    named = expected_desc is None or speed_name(world.speed) == expected_desc
    return world.speed >= expected_speed and named


def assert_can_send_mms(world: TelecomWorld, expected_status: bool) -> bool:
    """Whether picture messages work, or not, as expected."""
    return world.mms_works == expected_status


def assert_no_overdue_bill(world: TelecomWorld, overdue_bill_id: str) -> bool:
    """Whether the bill is paid or was never written."""
    bill = world.tables["bills"].get(overdue_bill_id)
    return bill is None or bill["status"] == "Paid"


def assert_data_refueling_amount(
    world: TelecomWorld, customer_id: str, line_id: str, expected_amount: float
) -> bool:
    """Whether exactly the expected amount of data was added."""
    return abs(world.line_of(customer_id, line_id)["data_refueling_gb"] - expected_amount) < 1e-6


CHECKS: Mapping[str, Callable[..., bool]] = {
    check.__name__: check
    for check in (
        assert_service_status,
        assert_mobile_data_status,
        assert_internet_speed,
        assert_can_send_mms,
        assert_no_overdue_bill,
        assert_data_refueling_amount,
    )
}


def fits(functions: Mapping[str, Callable[..., Any]], entry: Mapping[str, Any]) -> bool:
    """Whether an entry names one of `functions` and gives the arguments it takes."""
    function = functions.get(entry["func_name"])
    if function is None:
        return False
    try:
        inspect.signature(function).bind(None, **entry["arguments"])
    except TypeError:
        return False
    return True


def set_up(world: TelecomWorld, actions: Sequence[Mapping[str, Any]]) -> None:
    """Carry out initialization actions in order."""
    for action in actions:
        FAULTS[action["func_name"]](world, **action["arguments"])


def goals_reached(world: TelecomWorld, metadata: Mapping[str, Any]) -> list[bool]:
    """Which goals are reached: the assertions, then the required actions."""
    asserted = [
        CHECKS[check["func_name"]](world, **check["arguments"]) == check["assert_value"]
        for check in metadata["assertions"]
    ]
    return asserted + [any(_same(action, *call) for call in world.calls) for action in metadata["required"]]


def _same(action: Mapping[str, Any], name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether a call is the required action; `compare_args` says which arguments matter (null: all)."""
    compared = action["compare_args"]
    names = action["arguments"] if compared is None else compared
    return name == action["name"] and all(arguments.get(n) == action["arguments"].get(n) for n in names)
