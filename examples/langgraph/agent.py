"""The support agent of ../openai_sdk as a LangGraph graph: the model, its tools, and what leads where."""

import sqlite3
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import BaseTool, tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from gspo_cli import Endpoint, Problem

POLICY = "You work for a shop. Use a tool, then tell the customer in a short sentence what it said."


def tools_of(shop: sqlite3.Connection) -> list[BaseTool]:
    """The tools over one customer's orders."""

    @tool
    def get_order(order: str) -> str:
        """Look up an order"""
        found = shop.execute("SELECT item, status FROM orders WHERE id = ?", (order,)).fetchone()
        return f"order {order}: {', '.join(found)}" if found else f"error: there is no order {order!r}"

    @tool
    def refund_order(order: str) -> str:
        """Pay an order back"""
        found = shop.execute("UPDATE orders SET status = 'refunded' WHERE id = ?", (order,)).rowcount
        return f"order {order}: refunded" if found else f"error: there is no order {order!r}"

    return [get_order, refund_order]


def history() -> list[AnyMessage]:
    """Two conversations that went well, which show a small model what is wanted."""
    shown: list[AnyMessage] = [SystemMessage(POLICY)]
    for question, name, order, result, reply in (
        ("Where is order 512?", "get_order", "512", "order 512: sofa, shipped", "Your order 512 is shipped."),
        (
            "Please pay order 733 back.",
            "refund_order",
            "733",
            "order 733: refunded",
            "Your order 733 is refunded.",
        ),
    ):
        call: Any = {"name": name, "args": {"order": order}, "id": name}
        shown += [HumanMessage(question), AIMessage("", tool_calls=[call])]
        shown += [ToolMessage(result, tool_call_id=name), AIMessage(reply)]
    return shown


def run(problem: Problem, endpoint: Endpoint) -> float:
    """Serve one customer, and say how well that went, from 0 to 1."""
    row = problem.metadata
    shop = sqlite3.connect(":memory:", check_same_thread=False)  # LangGraph runs tools in threads of its own
    shop.execute("CREATE TABLE orders (id TEXT PRIMARY KEY, item TEXT, status TEXT)")
    shop.executemany("INSERT INTO orders VALUES (?, ?, ?)", row["orders"])
    tools = tools_of(shop)
    model = ChatOpenAI(model=endpoint.model, base_url=endpoint.base_url, api_key=endpoint.api_key)
    with_tools = model.bind_tools(tools)

    graph = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [with_tools.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    asked = [*history(), HumanMessage(row["prompt"])]
    said = graph.compile().invoke({"messages": asked}, {"recursion_limit": 7})["messages"][len(asked) :]

    looked_up = any(m.type == "tool" and not str(m.content).startswith("error") for m in said)
    left = shop.execute("SELECT id, item, status FROM orders ORDER BY id").fetchall()
    right = looked_up and left == sorted(tuple(order) for order in row["orders_after"])
    return 0.6 * right + 0.4 * (right and row["told"] in str(said[-1].content).lower())
