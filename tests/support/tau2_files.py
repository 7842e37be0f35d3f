"""A few tasks in the files of tau2-bench, for tests."""

from __future__ import annotations

import json

from omegaconf import OmegaConf

from gspo_cli.config.compose import CONF_DIR, build_task
from tests.support.retail_files import cancel, shop_tables, swap

DB = """
[[plans]]
plan_id = "P1"
name = "Small"
data_limit_gb = 5
price_per_month = 40.0
data_refueling_price_per_gb = 2.0
[[devices]]
device_id = "D1"
[[lines]]
line_id = "L1"
phone_number = "555-1"
status = "Active"
plan_id = "P1"
data_used_gb = 3.0
data_refueling_gb = 0.0
roaming_enabled = false
contract_end_date = "2026-12-31"
[[customers]]
customer_id = "C1"
full_name = "Ann Lee"
date_of_birth = "1990-01-01"
phone_number = "555-2"
line_ids = ["L1"]
bill_ids = ["B1"]
[[bills]]
bill_id = "B1"
customer_id = "C1"
total_due = 40.0
status = "Issued"
"""
USER_DB = """
[device]
sim_card_status = "active"
sim_card_missing = false
airplane_mode = false
network_signal_strength = "good"
network_technology_connected = "5G"
network_connection_status = "connected"
battery_level = 80
data_enabled = true
roaming_enabled = false
network_mode_preference = "4g_5g_preferred"
wifi_enabled = false
wifi_calling_enabled = false
wifi_calling_mms_over_wifi = false
data_saver_mode = false
vpn_connected = false
[device.active_apn_settings]
apn_name = "internet"
mmsc_url = "http://mms"
[device.app_statuses.messaging.permissions]
sms = true
storage = true
"""
LINE = {"customer_id": "C1", "line_id": "L1"}
SERVICE = ("assert_service_status", {"expected_status": "connected"})
NO_SERVICE = ("assert_service_status", {"expected_status": "no_service"})
PAID = ("assert_no_overdue_bill", {"overdue_bill_id": "B9"})
DATA = ("assert_mobile_data_status", {"expected_status": True})
FAST = ("assert_internet_speed", {"expected_speed": 200, "expected_desc": "excellent"})
MMS = ("assert_can_send_mms", {"expected_status": True})
REFUELED = ("assert_data_refueling_amount", {**LINE, "expected_amount": 2.0})
SUSPEND = ("suspend_line_for_overdue_bill", {**LINE, "new_bill_id": "B9", "contract_ended": False})
ENDED = ("suspend_line_for_overdue_bill", {**LINE, "new_bill_id": "B9", "contract_ended": True})
SMS = {"app_name": "messaging", "permission": "sms"}
TRANSFERRED = ("transfer_to_human_agents", {"summary": "x"})
REPAIRS = [
    ("airplane", [("turn_airplane_mode_on", {})], [("toggle_airplane_mode", {})], [SERVICE, PAID]),
    ("sim", [("unseat_sim_card", {})], [("reseat_sim_card", {})], [SERVICE]),
    ("apn", [("break_apn_settings", {})], [("reset_apn_settings", {}), ("reboot_device", {})], [SERVICE]),
    ("mmsc", [("break_apn_mms_setting", {})], [("reset_apn_settings", {}), ("reboot_device", {})], [MMS]),
    ("data", [("turn_data_off", {})], [("toggle_data", {})], [DATA, FAST]),
    ("saver", [("turn_data_saver_mode_on", {})], [("toggle_data_saver_mode", {})], [DATA, FAST]),
    ("vpn", [("break_vpn", {})], [("disconnect_vpn", {})], [DATA, FAST]),
    ("2g", [("set_network_mode_preference", {"mode": "2g_only"})],
     [("set_network_mode_preference", {"mode": "4g_5g_preferred"})], [MMS, FAST]),
    ("abroad", [("set_user_location", {"abroad": True})],
     [("enable_roaming", LINE), ("toggle_roaming", {})], [DATA, FAST]),
    ("used up", [("set_data_usage", {**LINE, "data_used_gb": 5.5})],
     [("refuel_data", {**LINE, "gb_amount": 2.0})], [FAST, REFUELED]),
    ("wifi", [("set_wifi_calling", {"enabled": True, "mms_over_wifi": True})],
     [("toggle_wifi_calling", {})], [MMS]),
    ("sms", [("remove_app_permission", SMS)], [("grant_app_permission", SMS)], [MMS]),
    ("bill", [SUSPEND, ("simulate_network_search", {})],
     [("send_payment_request", {"customer_id": "C1", "bill_id": "B9"}), ("make_payment", {}),
      ("resume_line", LINE), ("reboot_device", {})], [SERVICE, PAID]),
]  # fmt: skip


def entries(pairs, side="func_name"):
    return [{side: name, "arguments": arguments} for name, arguments in pairs]


def telecom_row(name, faults, gold, asserted, basis=("ENV_ASSERTION",), **criteria):
    initial = [("set_user_info", {"name": "Ann Lee", "phone_number": "555-1"}), *faults]
    checks = [{**check, "env_type": "user", "assert_value": True} for check in entries(asserted)]
    actions = [{**action, "compare_args": criteria.pop("compare", None)} for action in entries(gold, "name")]
    return {
        "id": name,
        "ticket": f"{name}: repair it. They gave permission to pay all their overdue bills.",
        "initial_state": {"initialization_actions": entries(initial)},
        "evaluation_criteria": {
            "actions": actions, "env_assertions": checks, "reward_basis": list(basis), **criteria
        },
    }  # fmt: skip


def telecom_rows():
    both = ("ENV_ASSERTION", "ACTION")
    locked = [("lock_sim_card", {"mode": "pin"})]
    return [
        *(telecom_row(*repair) for repair in REPAIRS),
        telecom_row("lock", locked, [TRANSFERRED], [NO_SERVICE], both, compare=[]),
        telecom_row("ended", [ENDED, ("simulate_network_search", {})], [TRANSFERRED], [NO_SERVICE], both,
                    compare=[]),
        telecom_row("whole", [], [], [SERVICE]),
        telecom_row("beyond repair", locked, [("reboot_device", {})], [SERVICE]),
        telecom_row("judged", locked, [TRANSFERRED], [NO_SERVICE], both, nl_assertions=["is kind"]),
        telecom_row("new", [("flood_the_cellar", {})], [], [SERVICE]),
    ]  # fmt: skip


def retail_row(name, *actions, told=(), judged=None):
    wishes = {"known_info": "You are Ann0 Lee, 10000.", "reason_for_call": f"{name}.", "unknown_info": None}
    named = [{"name": tool, "arguments": arguments} for tool, arguments in actions]
    criteria = {"actions": named, "communicate_info": list(told), "nl_assertions": judged}
    return {
        "id": name, "user_scenario": {"instructions": wishes},
        "evaluation_criteria": {**criteria, "reward_basis": ["DB"]},
    }  # fmt: skip


def retail_rows():
    zip_ = ("find_user_id_by_name_zip", {"first_name": "Ann0", "last_name": "Lee", "zip": "10000"})
    return [
        retail_row("cancel", zip_, ("get_order_details", {"order_id": "#W0"}), cancel("#W0")),
        retail_row("exchange", swap("exchange_delivered_order_items", "#W3", ["10"], ["11"], "paypal_1")),
        retail_row("tell", cancel("#W4"), told=["1,060"]),
        retail_row("kind", cancel("#W6"), judged=["is kind"]),
        retail_row("nothing", ("get_order_details", {"order_id": "#W0"})),
        retail_row("wrong", cancel("#W1"), cancel("#W8")),
    ]


def write_domains(folder):
    retail, telecom = folder / "retail", folder / "telecom"
    for domain, rows, split in ((retail, retail_rows(), "train"), (telecom, telecom_rows(), "small")):
        domain.mkdir(parents=True)
        names = [row["id"] for row in rows]
        splits = {split: names, "test": names[:2], "other": []}
        (domain / "split_tasks.json").write_text(json.dumps(splits))
        name = "tasks.json" if domain == retail else "tasks_small.json"
        (domain / name).write_text(json.dumps(rows))
    (retail / "db.json").write_text(json.dumps(shop_tables()))
    (telecom / "db.toml").write_text(DB)
    (telecom / "user_db.toml").write_text(USER_DB)
    (retail / "policy.md").write_text("Retail.")
    (telecom / "main_policy_solo.md").write_text("Main.")
    (telecom / "tech_support_workflow_solo.md").write_text("Workflow.")
    return folder


def built(folder, domain="telecom", **settings):
    node = OmegaConf.load(CONF_DIR / "task" / "tau2.yaml")
    split = "small" if domain == "telecom" else "train"
    here = {"path": str(folder), "domain": domain, "split": split, "instructions": True, "heldout": 1}
    return build_task(OmegaConf.merge(node, here, settings))


def problems_of(task):
    return [*task.train_problems(), *task.heldout_problems()]


def opened(folder, name):
    task = built(folder)
    environment = task.environment()
    environment.reset(next(p for p in problems_of(task) if p.id == name), 0)
    return environment
