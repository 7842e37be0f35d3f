"""The support agent of ../openai_sdk as a LangGraph graph: the model, its tools, and what leads where."""

import re
import sqlite3
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import BaseTool, tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from gspo_cli import Endpoint, Problem

POLICY = "You work for a shop. Use a tool, then tell the customer in a short sentence what it said."
EXAMPLES = [
    ("Where is order 512?", "get_order", {"order": "512"}, "order 512: shipped", "Order 512 is shipped."),
    ("Is there a sofa?", "get_stock", {"item": "sofa"}, "sofa: 3 left", "Yes, 3 of the sofa are left."),
]


def tools_of(shop: sqlite3.Connection) -> list[BaseTool]:
    """The tools over the database of a shop."""

    @tool
    def get_order(order: str) -> str:
        """Look up an order"""
        found = shop.execute("SELECT status FROM orders WHERE id = ?", (order,)).fetchone()
        return f"order {order}: {found[0]}" if found else f"error: there is no order {order}"

    @tool
    def get_stock(item: str) -> str:
        """Look up how many there are"""
        found = shop.execute("SELECT count FROM stock WHERE item = ?", (item,)).fetchone()
        return f"{item}: {found[0]} left" if found else f"error: there is no {item}"

    return [get_order, get_stock]


def history() -> list[AnyMessage]:
    """Two conversations that went well, which show a small model what is wanted."""
    shown: list[AnyMessage] = [SystemMessage(POLICY)]
    for question, name, arguments, result, reply in EXAMPLES:
        call: Any = {"name": name, "args": arguments, "id": name}
        shown += [HumanMessage(question), AIMessage("", tool_calls=[call])]
        shown += [ToolMessage(result, tool_call_id=name), AIMessage(reply)]
    return shown


def open_shop(row: Any) -> sqlite3.Connection:
    """A fresh database with a customer's orders and what is in stock. LangGraph runs tools in threads."""
    shop = sqlite3.connect(":memory:", check_same_thread=False)
    shop.execute("CREATE TABLE orders (id TEXT PRIMARY KEY, item TEXT, status TEXT)")
    shop.execute("CREATE TABLE stock (item TEXT PRIMARY KEY, count INTEGER)")
    shop.executemany("INSERT INTO orders VALUES (?, ?, ?)", row["orders"])
    shop.executemany("INSERT INTO stock VALUES (?, ?)", row["stock"])
    return shop


def run(problem: Problem, endpoint: Endpoint) -> float:
    """Serve one customer. Half of the reward is for the right lookup, half for telling what it said."""
    row = problem.metadata
    tools = tools_of(open_shop(row))
    model = ChatOpenAI(model=endpoint.model, base_url=endpoint.base_url, api_key=endpoint.api_key)
    with_tools = model.bind_tools(tools)

    graph = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [with_tools.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    asked = [*history(), HumanMessage(row["prompt"])]
    said = asked
    for state in graph.compile().stream({"messages": asked}, stream_mode="values"):
        said = state["messages"]
        if sum(message.type == "tool" for message in said) == 2 + 3:  # two of them are examples
            break

    results = " ".join(str(message.content) for message in said[len(asked) :] if message.type == "tool")
    reply = "" if said[-1].type == "tool" else str(said[-1].content)
    looked_up, told = (row["told"] in re.findall(r"\w+", text) for text in (results, reply))
    return 0.5 * looked_up + 0.5 * (looked_up and told)
