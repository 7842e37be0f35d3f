"""LangGraph as a client: what its graph sends goes on with the ids that were sampled."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path

import pytest

from gspo_cli.agents.endpoint import EndpointServer, Received
from gspo_cli.agents.exchange import Exchange
from gspo_cli.agents.recording import Recorder
from gspo_cli.agents.running import Endpoint
from gspo_cli.rollout.engine import Completion
from gspo_cli.types import AgentTurn, FinishReason, Problem, RequestedCall
from tests.support.families import family_chat

pytest.importorskip("langgraph", reason="needs the extra dev")
pytest.importorskip("langchain_openai", reason="needs the extra dev")

EXAMPLES = Path(__file__).parent.parent / "examples"
TURNS = [
    AgentTurn("", "", "", (RequestedCall("get_order", {"order": "470"}),)),
    AgentTurn("", "", "", (RequestedCall("get_stock", {"item": "lamp"}),)),
    "Order 470 is shipped.",
]


def example(name):
    place = EXAMPLES / name / "agent.py"
    spec = importlib.util.spec_from_file_location(f"{name}_agent", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["qwen3", "lines"])
def chat(request, load):
    if request.param == "qwen3":
        return family_chat(load("qwen3").tokenizer, "qwen3")
    return load("gpt2").chat


@pytest.mark.parametrize("name", ["langgraph", "openai_sdk"])
def test_the_agent_of_an_example_is_one_sequence_of_the_ids_that_were_sampled(chat, name):
    row = {"prompt": "Where is order 470?", "orders": [["470", "desk", "shipped"]], "stock": [["lamp", 3]]}
    problem = Problem("p", (), metadata=row | {"told": "shipped"})
    server = EndpointServer()
    server.start()
    exchange, sampled = Exchange(chat, "policy"), []
    recorder = Recorder(exchange.format_of)

    def serve():
        for turn in TURNS:
            event = server.inbox.get(timeout=60)
            assert isinstance(event, Received)
            asked = recorder.ask(event.waiting.request)
            ids = asked.turns.ids(turn)
            sampled.append(ids)
            completion = Completion(ids, [-0.5] * len(ids), FinishReason.stop)
            answer = exchange.answer("a", event.waiting.request, 1, asked.turns, completion)
            recorder.answered(asked, completion, answer.turn)
            event.waiting.answer(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        reward = example(name).run(problem, Endpoint(server.url, server.open(0), "policy", 0))
    finally:
        server.stop()
        thread.join(60)
    assert reward == pytest.approx(1.0)
    found = recorder.trajectory(problem)
    assert (found.num_turns, found.segments, recorder.cause) == (3, [], "")
    trained = [token for token, mine in zip(found.token_ids, found.action_mask, strict=True) if mine]
    assert trained == [token for ids in sampled for token in ids]
