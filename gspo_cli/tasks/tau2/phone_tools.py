"""What can be done on the phone."""

from __future__ import annotations

from typing import Annotated

from gspo_cli.tasks.tau2.world import TECHNOLOGIES, TelecomWorld, speed_name
from gspo_cli.tasks.tools import Example, OneOf, RefusedError, tool

AppName = Annotated[str, "name of an installed app", Example("messaging")]
Permission = Annotated[str, "what the app may do", Example("storage")]

LONGEST_SETTING = 60  # characters: what an agent writes comes back in observations


@tool
def check_status_bar(world: TelecomWorld, /) -> str:
    """Show signal, data and battery at the top of the screen."""
    phone = world.phone
    if phone["airplane_mode"]:
        return f"airplane mode; battery {phone['battery_level']}%"
    if not world.connected:
        return f"no service; battery {phone['battery_level']}%"
    data = phone["network_technology_connected"] if phone["data_enabled"] else "data off"
    saver = "; data saver" if phone["data_saver_mode"] else ""
    vpn = "; VPN" if phone["vpn_connected"] else ""
    signal = phone["network_signal_strength"]
    return f"signal {signal}; {data}{saver}{vpn}; battery {phone['battery_level']}%"


@tool
def check_network_status(world: TelecomWorld, /) -> str:
    """Show the connection and the radio settings."""
    phone = world.phone
    return (
        f"airplane mode {_on(phone['airplane_mode'])}; {phone['network_connection_status']}; "
        f"signal {phone['network_signal_strength']}; network {phone['network_technology_connected']}; "
        f"mobile data {_on(phone['data_enabled'])}; data roaming {_on(phone['roaming_enabled'])}"
    )


@tool
def check_network_mode_preference(world: TelecomWorld, /) -> str:
    """Show the preferred kind of network."""
    return f"preferred: {world.phone['network_mode_preference']}"


@tool
def check_sim_status(world: TelecomWorld, /) -> str:
    """Show whether the SIM card is in and works."""
    return "SIM card missing" if world.phone["sim_card_missing"] else f"SIM {world.phone['sim_card_status']}"


@tool
def check_data_restriction_status(world: TelecomWorld, /) -> str:
    """Show whether data saver is on."""
    return f"data saver {_on(world.phone['data_saver_mode'])}"


@tool
def check_apn_settings(world: TelecomWorld, /) -> str:
    """Show access point (APN) and message center (MMSC)."""
    settings = world.phone["active_apn_settings"]
    pending = "; a reset waits for a reboot" if world.phone["apn_reset_pending"] else ""
    return f"APN {settings['apn_name']}; MMSC {settings['mmsc_url'] or 'not set'}{pending}"


@tool
def check_wifi_status(world: TelecomWorld, /) -> str:
    """Show whether Wi-Fi is on."""
    return f"Wi-Fi {_on(world.phone['wifi_enabled'])}; no network in reach"


@tool
def check_wifi_calling_status(world: TelecomWorld, /) -> str:
    """Show whether calls and picture messages (MMS) go over Wi-Fi."""
    phone = world.phone
    mms = _on(phone["wifi_calling_mms_over_wifi"])
    return f"Wi-Fi calling {_on(phone['wifi_calling_enabled'])}; MMS over Wi-Fi {mms}"


@tool
def check_vpn_status(world: TelecomWorld, /) -> str:
    """Show whether the VPN is on."""
    phone = world.phone
    return f"VPN on; performance {phone['vpn_performance']}" if phone["vpn_connected"] else "VPN off"


@tool
def check_installed_apps(world: TelecomWorld, /) -> str:
    """Show the names of the apps."""
    return ", ".join(sorted(world.phone["app_statuses"]))


@tool
def check_app_permissions(world: TelecomWorld, /, app_name: AppName) -> str:
    """Show what an app may do."""
    granted = [name for name, allowed in _permissions(world, app_name).items() if allowed]
    return f"allowed: {', '.join(granted) or 'nothing'}"


@tool
def run_speed_test(world: TelecomWorld, /) -> str:
    """Test how fast mobile data is."""
    speed = world.speed
    return f"{speed:.1f} Mbps: {speed_name(speed)}" if speed else speed_name(speed)


@tool
def can_send_mms(world: TelecomWorld, /) -> str:
    """Test whether a picture message (MMS) goes out."""
    return "the messaging app can send MMS" if world.mms_works else "the messaging app cannot send MMS"


@tool
def set_network_mode_preference(
    world: TelecomWorld, /, mode: Annotated[str, "the kind of network", OneOf(*TECHNOLOGIES)]
) -> str:
    """Set the preferred kind of network."""
    if mode not in TECHNOLOGIES:
        raise RefusedError(f"mode must be one of {', '.join(TECHNOLOGIES)}")
    world.phone["network_mode_preference"] = mode
    world.search_network()
    return f"preferred: {mode}"


@tool
def toggle_airplane_mode(world: TelecomWorld, /) -> str:
    """Switch airplane mode on or off; it turns all radios off."""
    shown = _toggle(world, "airplane_mode", "airplane mode")
    world.search_network()
    return shown


@tool
def reseat_sim_card(world: TelecomWorld, /) -> str:
    """Take the SIM card out and put it in; a lock stays."""
    world.phone["sim_card_missing"] = False
    world.search_network()
    return "the SIM card is put in anew"


@tool
def toggle_data(world: TelecomWorld, /) -> str:
    """Switch mobile data on or off."""
    return _toggle(world, "data_enabled", "mobile data")


@tool
def toggle_roaming(world: TelecomWorld, /) -> str:
    """Switch data roaming of the phone on or off."""
    return _toggle(world, "roaming_enabled", "data roaming")


@tool
def toggle_data_saver_mode(world: TelecomWorld, /) -> str:
    """Switch data saver on or off."""
    return _toggle(world, "data_saver_mode", "data saver")


@tool
def toggle_wifi(world: TelecomWorld, /) -> str:
    """Switch Wi-Fi on or off."""
    return _toggle(world, "wifi_enabled", "Wi-Fi")


@tool
def toggle_wifi_calling(world: TelecomWorld, /) -> str:
    """Switch Wi-Fi calling on or off."""
    return _toggle(world, "wifi_calling_enabled", "Wi-Fi calling")


@tool
def set_apn_settings(
    world: TelecomWorld,
    /,
    apn_name: Annotated[str, "name of the access point", Example("internet")],
    mmsc_url: Annotated[str, "address of the message center", Example("http://mms.example.com")],
) -> str:
    """Write the access point settings."""
    if len(apn_name + mmsc_url) > LONGEST_SETTING or not (apn_name + mmsc_url).isprintable():
        raise RefusedError(f"settings are plain text of at most {LONGEST_SETTING} characters in all")
    world.phone["active_apn_settings"].update(apn_name=apn_name, mmsc_url=mmsc_url)
    world.search_network()
    return "the settings are written"


@tool
def reset_apn_settings(world: TelecomWorld, /) -> str:
    """Go back to the carrier's settings at the next reboot."""
    world.phone["apn_reset_pending"] = True
    return "the settings are reset at the next reboot"


@tool
def connect_vpn(world: TelecomWorld, /) -> str:
    """Switch the VPN on."""
    if world.phone["vpn_connected"]:
        raise RefusedError("the VPN is on already")
    world.phone.update(vpn_connected=True, vpn_performance="excellent")
    return "VPN on"


@tool
def disconnect_vpn(world: TelecomWorld, /) -> str:
    """Switch the VPN off."""
    world.phone.update(vpn_connected=False, vpn_performance="none")
    return "VPN off"


@tool
def grant_app_permission(
    world: TelecomWorld,
    /,
    app_name: AppName,
    permission: Permission,
) -> str:
    """Allow an app something that it can ask for, such as storage or sms."""
    permissions = _permissions(world, app_name)
    if permission not in permissions:
        raise RefusedError(f"permission must be one of {', '.join(permissions)}")
    permissions[permission] = True
    return f"{app_name} is allowed {permission}"


@tool
def reboot_device(world: TelecomWorld, /) -> str:
    """Restart the phone: pending settings apply, and the network is searched."""
    if world.phone["apn_reset_pending"]:
        world.phone["active_apn_settings"] = dict(world.default_apn)
        world.phone["apn_reset_pending"] = False
    world.search_network()
    return "the phone has restarted"


@tool
def check_payment_request(world: TelecomWorld, /) -> str:
    """Show the bill that the carrier asks the owner to pay."""
    bill = world.requested_bill()
    return "no payment request" if bill is None else f"bill {bill['bill_id']}: {bill['total_due']:.2f}"


@tool
def make_payment(world: TelecomWorld, /) -> str:
    """Pay the bill of the payment request."""
    bill = world.requested_bill()
    if bill is None:
        raise RefusedError("there is no payment request")
    bill["status"] = "Paid"
    return f"bill {bill['bill_id']} is paid"


def _on(value: bool) -> str:
    return "on" if value else "off"


def _toggle(world: TelecomWorld, setting: str, name: str) -> str:
    world.phone[setting] = not world.phone[setting]
    return f"{name} {_on(world.phone[setting])}"


def _permissions(world: TelecomWorld, app_name: str) -> dict[str, bool]:
    apps = world.phone["app_statuses"]
    if app_name not in apps:
        raise RefusedError(f"app_name must be one of {', '.join(sorted(apps))}")
    return apps[app_name]["permissions"]
