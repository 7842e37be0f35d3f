"""The files of tau-bench's and tau2-bench's retail shop, and which of their tasks can be trained on."""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gspo_cli.config.checks import require
from gspo_cli.errors import UserError
from gspo_cli.tasks.base import stamp_of_files
from gspo_cli.tasks.files import read_jsonl
from gspo_cli.tasks.splits import Split
from gspo_cli.tasks.tau.database import RetailData, RetailDatabase
from gspo_cli.tasks.tau.tools import ALL_TOOLS, gold_call, owner, replay
from gspo_cli.types import Message, Problem

NUMBER = int | float
READ = (".json", ".jsonl", ".md", ".py", ".toml")  # data, tasks and policies
KINDS = {
    str: "a string",
    dict: "an object",
    list: "a list",
    bool: "true or false",
    int: "an integer",
    NUMBER: "a number",
}

# What a record must have for the tools to work on it.
ORDER_FIELDS = {"user_id": str, "address": dict, "items": list, "status": str, "payment_history": list}
USER_FIELDS = {"name": dict, "address": dict, "email": str, "payment_methods": dict}
PRODUCT_FIELDS = {"name": str, "variants": dict}
ITEM_FIELDS = {"item_id": str, "product_id": str, "price": NUMBER}
PAYMENT_FIELDS = {"transaction_type": str, "amount": NUMBER, "payment_method_id": str}
VARIANT_FIELDS = {"item_id": str, "options": dict, "available": bool, "price": NUMBER}
CASE_FIELDS = {"user_id": str, "instruction": str, "actions": list, "outputs": list}

REASONS = {
    "no_op": "where doing nothing wins",
    "gold_fails": "whose gold actions fail",
    "free_text": "in free text, which needs task.user=ticket or llm",
    "judge": "that only an LLM judge can score",
}


@dataclass(frozen=True)
class Case:
    """One task: who asks for what, the gold actions as {"name", "kwargs"}, and the outputs to be told."""

    id: str
    user_id: str
    instruction: str
    actions: Sequence[Mapping[str, Any]]
    outputs: Sequence[str]


def read_text(path: Path, key: str) -> str:
    """A file's text. Raises UserError naming `key` and the file."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read ({error.strerror}); give its folder") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{key}: {path} is not UTF-8 text ({error.reason}); restore the file") from error


def read_json(path: Path, key: str, kind: type) -> Any:
    """The content of a JSON file, a `kind`. Raises UserError naming `key` and the file."""
    text = read_text(path, key)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{key}: {path} is not JSON ({error}); restore the file") from error
    require(
        isinstance(value, kind), f"{key}: {path} does not contain a JSON {kind.__name__}; restore the file"
    )
    return value


def check_fields(row: Any, fields: Mapping[str, Any], where: str) -> None:
    """Raise UserError, naming `where` and the field, unless `row` has every field with its type."""
    require(isinstance(row, dict), f"{where}: is not an object with fields; restore the file")
    for name, kind in fields.items():
        usable = isinstance(row.get(name), kind)
        require(usable, f'{where}: needs "{name}", {KINDS[kind]}; restore the file')


def checked_texts(values: Sequence[Any], where: str) -> list[str]:
    """Outputs to be told. Raises UserError naming `where` unless all are texts."""
    texts = all(isinstance(value, str) and value.strip() for value in values)
    require(texts, f"{where}: every output must be a non-empty string; correct the task")
    return list(values)


def checked_data(orders: Any, users: Any, products: Any, where: str) -> RetailData:
    """Data whose records have what the tools read. Raises UserError naming `where`, record and field."""
    for key, user in users.items():
        check_fields(user, USER_FIELDS, f"{where}: user {key}")
        check_fields(user["name"], {"first_name": str, "last_name": str}, f"{where}: name of {key}")
        check_fields(user["address"], {"zip": str}, f"{where}: address of {key}")
        for method_id, method in user["payment_methods"].items():
            place = f"{where}: {method_id} of {key}"
            check_fields(method, {"source": str}, place)
            if method["source"] == "gift_card":
                check_fields(method, {"balance": NUMBER}, place)
    for key, product in products.items():
        check_fields(product, PRODUCT_FIELDS, f"{where}: product {key}")
        for item_id, variant in product["variants"].items():
            check_fields(variant, VARIANT_FIELDS, f"{where}: variant {item_id}")
    for key, order in orders.items():
        place = f"{where}: order {key}"
        check_fields(order, ORDER_FIELDS, place)
        require(order["user_id"] in users, f"{place}: its user_id is not a user; restore the file")
        methods = users[order["user_id"]]["payment_methods"]
        for item in order["items"]:
            check_fields(item, ITEM_FIELDS, place)
        for entry in order["payment_history"]:
            check_fields(entry, PAYMENT_FIELDS, place)
            require(
                entry["payment_method_id"] in methods,
                f"{place}: its payment method does not belong to its user; restore the file",
            )
    return RetailData(orders, users, products)


def stamp_of_folder(folder: Path) -> str:
    """A hash of the data, the tasks and the policies in a folder. Raises UserError if they cannot be read."""
    return stamp_of_files(path for path in folder.iterdir() if path.suffix in READ)


def read_cases(folder: Path, name: str, key: str) -> list[Case]:
    """The tasks of tasks_<name>.jsonl, or of the published tasks_<name>.py, which is read and not run."""
    lines, module = folder / f"tasks_{name}.jsonl", folder / f"tasks_{name}.py"
    if lines.is_file():
        rows = [(f"{lines}:{number}", row) for number, row in read_jsonl(str(lines), key)]
    else:
        require(module.is_file(), f"{key}={name}: there is no {lines.name} or {module.name} in {folder}")
        rows = _rows_of_module(module, key)
    return [_case(row, f"{name}-{number}", where) for number, (where, row) in enumerate(rows)]


def _case(row: Any, name: str, where: str) -> Case:
    check_fields(row, CASE_FIELDS, where)
    actions = checked_actions(row["actions"], "kwargs", where)
    outputs = checked_texts(row["outputs"], where)
    return Case(name, row["user_id"], row["instruction"], actions, outputs)


def checked_actions(actions: Sequence[Any], arguments: str, where: str) -> list[dict[str, Any]]:
    """Gold actions as {"name", "kwargs"}; `arguments` is what the file calls the latter."""
    for action in actions:
        check_fields(action, {"name": str, arguments: dict}, f"{where}: an action")
        require(
            action["name"] in ALL_TOOLS, f"{where}: {action['name'][:60]!r} is not a tool; correct the action"
        )
    return [{"name": action["name"], "kwargs": action[arguments]} for action in actions]


def _rows_of_module(path: Path, key: str) -> list[tuple[str, dict[str, Any]]]:
    """Keywords of the Task(...) calls in a list; every value a literal, Action(...) calls apart."""
    try:
        tree = ast.parse(read_text(path, key))
        lists = [node.value for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
        calls = [call for node in lists if isinstance(node, ast.List) for call in node.elts]
        rows = [(f"{path}:{call.lineno}", _literal(call)) for call in calls]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{key}: {path} is not a list of literal tasks ({error}); restore it") from error
    require(rows != [], f"{key}: {path} has no list of tasks; restore the file")
    return rows


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        return {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.List):
        return [_literal(element) for element in node.elts]
    return ast.literal_eval(node)


def retail_problem(case: Case, opening: str) -> Problem:
    """The problem of a task; `opening` is what the user says first."""
    return Problem(case.id, (Message("user", opening),), metadata=asdict(case))


def fault(data: RetailData, case: Case) -> str | None:
    """Why a task cannot be trained on, as a key of REASONS: found by replaying its gold actions."""
    database = RetailDatabase(data)
    failing = replay(database, case.actions)
    if not database.changed() and not case.outputs:
        return "no_op"
    return "gold_fails" if failing else None


def sifted(
    cases: Sequence[Case], reason: Callable[[Case], str | None]
) -> tuple[list[Case], Mapping[str, int]]:
    """The cases that can be trained on, and how many cannot by reason."""
    reasons = [reason(case) for case in cases]
    kept = [case for case, why in zip(cases, reasons, strict=True) if why is None]
    return kept, dict(Counter(why for why in reasons if why is not None))


def dropped_note(dropped: Mapping[str, int], total: int, words: Mapping[str, str] = REASONS) -> list[str]:
    """One sentence on what is left out; none where nothing is."""
    if not dropped:
        return []
    parts = ", ".join(f"{count} {words[why]}" for why, count in sorted(dropped.items()))
    return [f"{sum(dropped.values())} of {total} tasks are left out: {parts}"]


def split_note(sides: Split) -> list[str]:
    """One sentence on training tasks that are too similar to held-out ones; none where there are none."""
    if not sides.dropped:
        return []
    return [f"{sides.dropped} training tasks are left out: they, or others of the same user, are held out"]


def user_of(data: RetailData, actions: Sequence[Mapping[str, Any]]) -> str:
    """Whose orders or profile the gold actions are about; empty if they say nothing of it."""
    database = RetailDatabase(data)
    for action in actions:
        call = gold_call(action["name"], action["kwargs"], ALL_TOOLS)
        whose = owner(database, call) if call is not None else None
        if whose is not None and whose in data.users:
            return whose
    return ""
