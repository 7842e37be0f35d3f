"""What can be done on the phone. Every function takes the world and returns what the screen shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gspo_cli.tasks.tau2.world import TECHNOLOGIES, RefusedError, World, speed_name

LONGEST_SETTING = 60  # characters: what an agent writes comes back in observations


def check_status_bar(world: World) -> str:
    """Signal, data and battery at the top of the screen."""
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


def check_network_status(world: World) -> str:
    """Connection and radio settings."""
    phone = world.phone
    return (
        f"airplane mode {_on(phone['airplane_mode'])}; {phone['network_connection_status']}; "
        f"signal {phone['network_signal_strength']}; network {phone['network_technology_connected']}; "
        f"mobile data {_on(phone['data_enabled'])}; data roaming {_on(phone['roaming_enabled'])}"
    )


def check_network_mode_preference(world: World) -> str:
    """The preferred kind of network."""
    return f"preferred: {world.phone['network_mode_preference']}"


def check_sim_status(world: World) -> str:
    """The SIM card."""
    return "SIM card missing" if world.phone["sim_card_missing"] else f"SIM {world.phone['sim_card_status']}"


def check_data_restriction_status(world: World) -> str:
    """Data saver."""
    return f"data saver {_on(world.phone['data_saver_mode'])}"


def check_apn_settings(world: World) -> str:
    """Access point and message centre."""
    settings = world.phone["active_apn_settings"]
    pending = "; a reset waits for a reboot" if world.phone["apn_reset_pending"] else ""
    return f"APN {settings['apn_name']}; MMSC {settings['mmsc_url'] or 'not set'}{pending}"


def check_wifi_status(world: World) -> str:
    """Wi-Fi."""
    return f"Wi-Fi {_on(world.phone['wifi_enabled'])}; no network in reach"


def check_wifi_calling_status(world: World) -> str:
    """Calls and picture messages over Wi-Fi."""
    phone = world.phone
    mms = _on(phone["wifi_calling_mms_over_wifi"])
    return f"Wi-Fi calling {_on(phone['wifi_calling_enabled'])}; MMS over Wi-Fi {mms}"


def check_vpn_status(world: World) -> str:
    """VPN."""
    phone = world.phone
    return f"VPN on; performance {phone['vpn_performance']}" if phone["vpn_connected"] else "VPN off"


def check_installed_apps(world: World) -> str:
    """Names of the apps."""
    return ", ".join(sorted(world.phone["app_statuses"]))


def check_app_permissions(world: World, app_name: str) -> str:
    """What an app may do."""
    granted = [name for name, allowed in _permissions(world, app_name).items() if allowed]
    return f"allowed: {', '.join(granted) or 'nothing'}"


def run_speed_test(world: World) -> str:
    """Speed of mobile data."""
    speed = world.speed
    return f"{speed:.1f} Mbps: {speed_name(speed)}" if speed else speed_name(speed)


def can_send_mms(world: World) -> str:
    """Whether a picture message goes out."""
    return "the messaging app can send MMS" if world.mms_works else "the messaging app cannot send MMS"


def set_network_mode_preference(world: World, mode: str) -> str:
    """Prefer a kind of network."""
    if mode not in TECHNOLOGIES:
        raise RefusedError(f"mode must be one of {', '.join(TECHNOLOGIES)}")
    world.phone["network_mode_preference"] = mode
    world.search_network()
    return f"preferred: {mode}"


def toggle_airplane_mode(world: World) -> str:
    """Switch all radios off or on."""
    shown = _toggle(world, "airplane_mode", "airplane mode")
    world.search_network()
    return shown


def reseat_sim_card(world: World) -> str:
    """Take the SIM card out and put it in; a lock stays."""
    world.phone["sim_card_missing"] = False
    world.search_network()
    return "the SIM card is put in anew"


def toggle_data(world: World) -> str:
    """Mobile data."""
    return _toggle(world, "data_enabled", "mobile data")


def toggle_roaming(world: World) -> str:
    """Data roaming on the phone."""
    return _toggle(world, "roaming_enabled", "data roaming")


def toggle_data_saver_mode(world: World) -> str:
    """Data saver."""
    return _toggle(world, "data_saver_mode", "data saver")


def toggle_wifi(world: World) -> str:
    """Wi-Fi."""
    return _toggle(world, "wifi_enabled", "Wi-Fi")


def toggle_wifi_calling(world: World) -> str:
    """Wi-Fi calling."""
    return _toggle(world, "wifi_calling_enabled", "Wi-Fi calling")


def set_apn_settings(world: World, apn_name: str, mmsc_url: str) -> str:
    """Write the access point settings."""
    if len(apn_name + mmsc_url) > LONGEST_SETTING or not (apn_name + mmsc_url).isprintable():
        raise RefusedError(f"settings are plain text of at most {LONGEST_SETTING} characters in all")
    world.phone["active_apn_settings"].update(apn_name=apn_name, mmsc_url=mmsc_url)
    world.search_network()
    return "the settings are written"


def reset_apn_settings(world: World) -> str:
    """Go back to the carrier's settings at the next reboot."""
    world.phone["apn_reset_pending"] = True
    return "the settings are reset at the next reboot"


def connect_vpn(world: World) -> str:
    """VPN on."""
    if world.phone["vpn_connected"]:
        raise RefusedError("the VPN is on already")
    world.phone.update(vpn_connected=True, vpn_performance="excellent")
    return "VPN on"


def disconnect_vpn(world: World) -> str:
    """VPN off."""
    world.phone.update(vpn_connected=False, vpn_performance="none")
    return "VPN off"


def grant_app_permission(world: World, app_name: str, permission: str) -> str:
    """Allow an app something that it can ask for."""
    permissions = _permissions(world, app_name)
    if permission not in permissions:
        raise RefusedError(f"permission must be one of {', '.join(permissions)}")
    permissions[permission] = True
    return f"{app_name} is allowed {permission}"


def reboot_device(world: World) -> str:
    """Restart: pending settings apply, and the network is searched."""
    if world.phone["apn_reset_pending"]:
        world.phone["active_apn_settings"] = dict(world.default_apn)
        world.phone["apn_reset_pending"] = False
    world.search_network()
    return "the phone has restarted"


def check_payment_request(world: World) -> str:
    """What the carrier asks the owner to pay."""
    bill = world.requested_bill()
    return "no payment request" if bill is None else f"bill {bill['bill_id']}: {bill['total_due']:.2f}"


def make_payment(world: World) -> str:
    """Pay what is asked for."""
    bill = world.requested_bill()
    if bill is None:
        raise RefusedError("there is no payment request")
    bill["status"] = "Paid"
    return f"bill {bill['bill_id']} is paid"


PHONE_TOOLS: Mapping[str, Callable[..., str]] = {
    tool.__name__: tool
    for tool in (
        check_status_bar,
        check_network_status,
        check_network_mode_preference,
        check_sim_status,
        check_data_restriction_status,
        check_apn_settings,
        check_wifi_status,
        check_wifi_calling_status,
        check_vpn_status,
        check_installed_apps,
        check_app_permissions,
        run_speed_test,
        can_send_mms,
        set_network_mode_preference,
        toggle_airplane_mode,
        reseat_sim_card,
        toggle_data,
        toggle_roaming,
        toggle_data_saver_mode,
        toggle_wifi,
        toggle_wifi_calling,
        set_apn_settings,
        reset_apn_settings,
        connect_vpn,
        disconnect_vpn,
        grant_app_permission,
        reboot_device,
        check_payment_request,
        make_payment,
    )
}


def _on(value: bool) -> str:
    return "on" if value else "off"


def _toggle(world: World, setting: str, name: str) -> str:
    world.phone[setting] = not world.phone[setting]
    return f"{name} {_on(world.phone[setting])}"


def _permissions(world: World, app_name: str) -> dict[str, bool]:
    apps = world.phone["app_statuses"]
    if app_name not in apps:
        raise RefusedError(f"app_name must be one of {', '.join(sorted(apps))}")
    return apps[app_name]["permissions"]
