"""The telecom files of tau2-bench, and which of their tasks can be trained on."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gspo_cli.config.checks import require
from gspo_cli.errors import UserError
from gspo_cli.tasks.tau.files import NUMBER, check_fields, read_text
from gspo_cli.tasks.tau.users import TICKET
from gspo_cli.tasks.tau2.scenario import CHECKS, FAULTS, fits, goals_reached, set_up
from gspo_cli.tasks.tau2.tools import gold_calls, replay
from gspo_cli.tasks.tau2.world import TelecomData, TelecomWorld, open_world
from gspo_cli.tasks.tools import RefusedError, write_line
from gspo_cli.types import Message, Problem

# Ids and what else the tools read, by table.
TABLES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "plans": (
        "plan_id",
        {"data_limit_gb": NUMBER, "price_per_month": NUMBER, "data_refueling_price_per_gb": NUMBER},
    ),
    "devices": ("device_id", {}),
    "lines": (
        "line_id",
        {
            "phone_number": str,
            "status": str,
            "plan_id": str,
            "data_used_gb": NUMBER,
            "data_refueling_gb": NUMBER,
            "roaming_enabled": bool,
            "contract_end_date": str,
        },
    ),
    "customers": (
        "customer_id",
        {"full_name": str, "date_of_birth": str, "phone_number": str, "line_ids": list, "bill_ids": list},
    ),
    "bills": ("bill_id", {"customer_id": str, "total_due": NUMBER, "status": str}),
}
SWITCHES = (
    "sim_card_missing",
    "airplane_mode",
    "data_enabled",
    "roaming_enabled",
    "data_saver_mode",
    "wifi_enabled",
    "wifi_calling_enabled",
    "wifi_calling_mms_over_wifi",
    "vpn_connected",
)
PHONE_FIELDS: Mapping[str, Any] = {
    "sim_card_status": str,
    "network_mode_preference": str,
    "network_connection_status": str,
    "battery_level": int,
    "active_apn_settings": dict,
    "app_statuses": dict,
    **dict.fromkeys(SWITCHES, bool),
}
DECIDABLE = {"ENV_ASSERTION", "ACTION"}
REASONS = {
    "no_op": "where doing nothing wins",
    "gold_fails": "whose gold actions do not solve them",
    "judge": "that only an LLM judge can score",
    "unknown": "whose fault or assertion is not known here",
}


def read_telecom(folder: Path, key: str) -> TelecomData:
    """db.toml and user_db.toml. Raises UserError naming `key`, file and field."""
    path = folder / "db.toml"
    database = _read_toml(path, key)
    tables: dict[str, dict[str, Any]] = {}
    for table, (id_field, fields) in TABLES.items():
        rows: Any = database.get(table)
        require(isinstance(rows, list), f'{key}: {path} needs "{table}", a list of tables; restore the file')
        for number, row in enumerate(rows, 1):
            check_fields(row, {id_field: str, **fields}, f"{key}: {path}, {table} {number}")
        tables[table] = {row[id_field]: row for row in rows}
    phone_path = folder / "user_db.toml"
    phone: Any = _read_toml(phone_path, key).get("device")
    check_fields(phone, PHONE_FIELDS, f"{key}: {phone_path}, device")
    check_fields(
        phone["active_apn_settings"], {"apn_name": str, "mmsc_url": str}, f"{key}: {phone_path}, device"
    )
    return TelecomData(tables, phone)


def _read_toml(path: Path, key: str) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path, key))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{key}: {path} is not TOML ({error}); restore the file") from error


def telecom_problem(row: Mapping[str, Any], where: str) -> Problem:
    """The problem of one task. Raises UserError naming `where` and the field."""
    check_fields(row, {"id": str, "ticket": str, "initial_state": dict, "evaluation_criteria": dict}, where)
    where = f"{where} ({row['id']})"
    criteria = row["evaluation_criteria"]
    basis = criteria.get("reward_basis") or []
    initial = row["initial_state"].get("initialization_actions") or []
    assertions = criteria.get("env_assertions") or []
    actions = criteria.get("actions") or []
    for entry in [*initial, *assertions]:
        check_fields(entry, {"func_name": str, "arguments": dict}, f"{where}: an action or assertion")
    for action in actions:
        check_fields(action, {"name": str, "arguments": dict}, f"{where}: a gold action")
    metadata = {
        "ticket": row["ticket"],
        "initial": initial,
        "assertions": [
            {**check, "assert_value": check.get("assert_value", True)}
            for check in (assertions if "ENV_ASSERTION" in basis else [])
        ],
        "required": [
            {**action, "compare_args": action.get("compare_args")}
            for action in (actions if "ACTION" in basis else [])
        ],
        "actions": actions,
        "needs_judge": bool(criteria.get("nl_assertions")) or not set(basis) <= DECIDABLE,
    }
    return Problem(row["id"], (Message("user", TICKET + row["ticket"]),), metadata=metadata)


def telecom_fault(data: TelecomData, problem: Problem) -> str | None:
    """Why a task cannot be trained on, as a key of REASONS: found by setting it up and replaying gold."""
    metadata = problem.metadata
    if metadata["needs_judge"]:
        return "judge"
    known = all(fits(FAULTS, entry) for entry in metadata["initial"])
    if not known or not all(fits(CHECKS, entry) for entry in metadata["assertions"]):
        return "unknown"
    world = open_world(data)
    try:
        return _fault_of(world, metadata)
    except (RefusedError, KeyError, TypeError):  # the task refers to something that is missing from the data
        return "unknown"


def _fault_of(world: TelecomWorld, metadata: Mapping[str, Any]) -> str | None:
    set_up(world, metadata["initial"])
    if all(goals_reached(world, metadata)):
        return "no_op"
    failing = replay(world, metadata["actions"])
    return "gold_fails" if failing or not all(goals_reached(world, metadata)) else None


def telecom_turns(problem: Problem) -> list[str]:
    """The gold actions as an agent writes them, and "Done."."""
    calls = gold_calls(problem.metadata["actions"])
    lines = [write_line(call.name, *call.arguments.values()) for call in calls if call is not None]
    return [*lines, "Done."]
