"""A small shop in the files of tau-bench's retail shop, for tests."""

from __future__ import annotations

import json

from omegaconf import OmegaConf

from gspo_cli.config.compose import CONF_DIR, build_task
from gspo_cli.tasks.tau.files import Case, retail_problem

ADDRESS = {
    "address1": "1 A Road",
    "address2": "",
    "city": "B",
    "state": "NY",
    "country": "USA",
    "zip": "10001",
}
NEW_ADDRESS = (
    "{'order_id': '#W0', 'address1': '2 C Road', 'address2': 'Suite 3', 'city': 'D', 'country': 'USA', "
)


def shop_tables(customers=6):
    """`customers` users n: pending order #W{2n} (items 10, 20), delivered #W{2n+1} (items 10, 10)."""
    lamp = {
        key: variant(key, price, color) for key, price, color in [("10", 5.0, "red"), ("11", 7.5, "blue")]
    }
    lamp["12"] = variant("12", 1.0, "green") | {"available": False}
    chair = {
        key: variant(key, price, color) for key, price, color in [("20", 30.0, "red"), ("21", 20.0, "blue")]
    }
    products = {"1": product("1", "Lamp", lamp), "2": product("2", "Chair", chair)}
    users, orders = {}, {}
    for n in range(customers):
        card = {"source": "gift_card", "id": f"gift_card_{n}", "balance": 2.0}
        methods = {f"gift_card_{n}": card, f"paypal_{n}": {"source": "paypal", "id": f"paypal_{n}"}}
        users[f"user_{n}"] = {
            "name": {"first_name": f"Ann{n}", "last_name": "Lee"},
            "address": ADDRESS | {"zip": f"1000{n}"},
            "email": f"ann{n}@example.com",
            "payment_methods": methods,
            "orders": [f"#W{2 * n}", f"#W{2 * n + 1}"],
        }
        lots = [("pending", [("1", lamp["10"]), ("2", chair["20"])]), ("delivered", [("1", lamp["10"])] * 2)]
        for number, (status, items) in enumerate(lots, 2 * n):
            orders[f"#W{number}"] = order(f"#W{number}", f"user_{n}", status, items, f"gift_card_{n}")
    return {"orders": orders, "users": users, "products": products}


def variant(key, price, color):
    return {"item_id": key, "options": {"color": color}, "available": True, "price": price}


def product(key, name, variants):
    return {"name": name, "product_id": key, "variants": variants}


def order(key, user_id, status, items, method):
    listed = [
        {"name": "", "product_id": kind, **{k: v for k, v in item.items() if k != "available"}}
        for kind, item in items
    ]
    paid = {
        "transaction_type": "payment",
        "amount": sum(i["price"] for i in listed),
        "payment_method_id": method,
    }
    head = {"order_id": key, "user_id": user_id, "address": ADDRESS, "status": status}
    return {**head, "items": listed, "payment_history": [paid]}


def wish(n, text, *actions, outputs=()):
    head = f"Your name is Ann{n} Lee and your zip code is 1000{n}. You are calm, kind. "
    named = [{"name": name, "kwargs": kwargs} for name, kwargs in actions]
    return {"annotator": "x", "user_id": f"user_{n}", "instruction": head + text, "actions": named,
            "outputs": list(outputs)}  # fmt: skip


def cancel(order_id, reason="no longer needed"):
    return ("cancel_pending_order", {"order_id": order_id, "reason": reason})


def swap(tool, order_id, old, new, method):
    kwargs = {"order_id": order_id, "item_ids": old, "new_item_ids": new, "payment_method_id": method}
    return (tool, kwargs)


def synthetic_tasks():
    address = {**ADDRESS, "address1": "2 C Road", "address2": "Suite 3", "city": "D"}
    back = {"order_id": "#W3", "item_ids": ["10", "10"], "payment_method_id": "gift_card_1"}
    return [
        wish(0, "Cancel order #W0 because no longer needed. ", cancel("#W0")),
        wish(1, "Return #W3 via gift_card_1: Lamp {'color': 'red'}; Lamp; ",
             ("return_delivered_order_items", back)),
        wish(2, "For #W4, change payment to paypal_2. For #W4, change address to " + NEW_ADDRESS
             + "'state': 'NY', 'zip': '10001'} (same as #W5). For #W4, modify Lamp {'color': 'red'} to "
             "{'color': 'blue'}; Chair {'color': 'red'} to {}; via gift_card_2. ",
             ("modify_pending_order_payment", {"order_id": "#W4", "payment_method_id": "paypal_2"}),
             ("modify_pending_order_address", {"order_id": "#W4", **address}),
             swap("modify_pending_order_items", "#W4", ["10", "20"], ["11", "20"], "gift_card_2")),
        wish(3, "For #W7, exchange Lamp {'color': 'red'} to {'color': 'blue'}; via paypal_3. "
             "Cancel order #W6 because ordered by mistake. ",
             swap("exchange_delivered_order_items", "#W7", ["10"], ["11"], "paypal_3"),
             cancel("#W6", "ordered by mistake")),
        wish(4, "Cancel order #W9 because no longer needed. ", cancel("#W9")),  # delivered: does nothing
        wish(5, "Cancel order #W10 because no longer needed. For #W11, modify Lamp {} to {}; via paypal_5. ",
             cancel("#W10"), swap("modify_pending_order_items", "#W11", ["10"], ["10"], "paypal_5")),
        wish(4, "Tell me a story. ", cancel("#W8")),  # outside the grammar
    ]  # fmt: skip


def write_folder(folder, tables=None, rows=None, name="tasks_train.jsonl"):
    for table, records in (tables or shop_tables()).items():
        (folder / f"{table}.json").write_text(json.dumps(records))
    (folder / "wiki.md").write_text("The policy.")
    lines = [json.dumps(row) for row in (synthetic_tasks() if rows is None else rows)]
    (folder / name).write_text("\n".join(lines))
    return folder


def built(folder, **settings):
    """The task as the command line builds it."""
    node = OmegaConf.load(CONF_DIR / "task" / "tau_retail.yaml")
    here = {"path": str(folder), "instructions": True, "heldout": 1}
    return build_task(OmegaConf.merge(node, here, settings))


def problems_of(task):
    return [*task.train_problems(), *task.heldout_problems()]


def problem_of(row):
    case = Case("x", row["user_id"], row["instruction"], row["actions"], row["outputs"])
    return retail_problem(case, "Hello.")


def opened(task, row, seed=0):
    environment = task.environment()
    environment.reset(problem_of(row), seed)
    return environment


def said(step):
    return [(message.role, message.content) for message in step.messages]
