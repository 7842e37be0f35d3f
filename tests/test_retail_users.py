"""The retail shop's users: scripted, or played by a language model."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from gspo_cli.chat_endpoint import ChatEndpoint, EndpointError
from gspo_cli.tasks.llm_user import STOP, LlmUser
from gspo_cli.tasks.tau.environment import RetailEnvironment
from gspo_cli.tasks.tau.tools import TAU_TOOLS
from gspo_cli.tasks.tau_retail.instructions import read_script
from gspo_cli.tasks.tau_retail.scripted_user import GIVES_UP, ScriptedUser
from gspo_cli.tasks.tools import ToolCall
from tests.support.retail_files import (
    built,
    cancel,
    opened,
    problem_of,
    said,
    synthetic_tasks,
    wish,
    write_folder,
)


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path)


@pytest.fixture
def task(tmp_path):
    return built(write_folder(tmp_path))


def test_a_conversation_with_the_scripted_user(task):
    environment = opened(task, synthetic_tasks()[3])
    turns = [
        ("How can I help?", "In order #W7 I want to exchange the Lamp (color red) for one with color blue"),
        ("What is your email, or zip code?", "I am Ann3 Lee, my zip code is 10003."),
        ("/find_user_id_by_name_zip Ann3 Lee 10003", "user_3"),
        ("Shall I exchange it in order #W7?", "Yes"),
        ("/exchange_delivered_order_items #W7 10 11 paypal_3", "the exchange for order #W7 is requested"),
        ("Done, that is exchanged.", "I want to cancel order #W6: ordered by mistake."),
        ("Cancel #W7?", "I want to cancel order #W6"),  # the wrong order: no yes
        ("Do I cancel #W6?", "Yes"),
        ("/cancel_pending_order #W6 'ordered by mistake'", "order #W6 is cancelled and refunded"),
    ]
    for turn, start in turns:
        step = environment.step(turn)
        assert step.messages[0].content.startswith(start), (turn, step)
        assert not step.done
    assert environment.step("It is cancelled.").done
    assert environment.finish().solved
    assert environment.finish().counts == {
        "tool_calls": 3, "tool_errors": 0, "violations": 0, "clarifications": 1
    }  # fmt: skip


def test_the_user_clarifies_three_times_and_then_leaves(task):
    environment = opened(task, synthetic_tasks()[0])
    environment.step("How can I help you?")
    steps = [environment.step("Hm.") for _ in range(4)]
    assert [step.done for step in steps] == [False, False, False, True]
    assert said(steps[-1]) == [("user", GIVES_UP)]
    assert environment.finish().counts["clarifications"] == 3


def test_a_refused_request_is_dropped_and_the_next_one_stated(task):
    environment = opened(task, synthetic_tasks()[3])
    environment.step("What can I do for you?")
    step = environment.step("I am sorry, I cannot do that.")
    assert step.messages[0].content == "I want to cancel order #W6: ordered by mistake."


def test_instructions_outside_the_grammar_have_no_scenario():
    head = "Your name is A B and your email is a.b@example.com. You are calm. "
    assert read_script(head + "Cancel order #W1 because no longer needed. ").email == "a.b@example.com"
    for text in (
        "",
        "Cancel order #W1 because no longer needed. ",
        head,
        head + "Cancel it.",
        head + "; " * 9999,
    ):
        assert read_script(text) is None


def test_the_scripted_user_gives_an_email_where_that_is_known():
    scenario = read_script(
        "Your name is A B and your email is a.b@example.com. You are calm. Cancel order #W1 because x. "
    )
    user = ScriptedUser(scenario, 0)
    assert user.respond("Please tell me your email.").text == "I am A B, my email is a.b@example.com."


def test_the_same_seed_gives_the_same_words_and_seeds_vary_them(task):
    problem = task.train_problems()[0]
    talks = [task.solved(problem, seed) for seed in (0, 0, 1, 2, 3, 4, 5)]
    assert talks[0] == talks[1]
    assert len({talk[0].content for talk in talks}) > 1


@contextmanager
def chat_server(answers):
    """A server of chat completions on this machine; yields its URL and the requests it gets."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            content = answers[min(len(requests), len(answers)) - 1]
            body = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_language_model_can_be_the_user(folder):
    row = wish(4, "You want #W8 gone, politely.", cancel("#W8"))
    with chat_server(["I am Ann4 Lee, 10004. Cancel #W8!", "Yes.", f"Thanks. {STOP}"]) as (url, requests):
        task = built(folder, user="llm", user_url=url, user_model="m")
        environment = opened(task, row)

        async def talk():
            steps = [await environment.step("Who are you?")]
            steps.append(environment.step("/find_user_id_by_name_zip Ann4 Lee 10004"))
            steps.append(await environment.step("Cancel #W8, yes?"))
            steps.append(environment.step("/cancel_pending_order #W8 'no longer needed'"))
            return [*steps, await environment.step("It is cancelled.")]

        steps = asyncio.run(talk())
    assert said(steps[0]) == [("user", "I am Ann4 Lee, 10004. Cancel #W8!")]
    assert said(steps[-1]) == [("user", "Thanks.")]
    assert [step.done for step in steps] == [False] * 4 + [True]
    assert environment.finish().solved
    assert environment.finish().counts["violations"] == 0
    first, last = requests[0]["messages"], requests[-1]["messages"]
    assert "You want #W8 gone, politely." in first[0]["content"]
    assert [m["role"] for m in first] == ["system", "user", "assistant", "user"]
    assert last[-1] == {"role": "user", "content": "It is cancelled."}
    assert task.demonstrations() == []


def test_a_dead_endpoint_is_a_fault_of_the_environment_and_no_score(folder):
    with chat_server([""]) as (url, _):
        pass  # nobody listens there any more
    shop = built(folder).shop
    endpoint = ChatEndpoint(url, "m", retries=0)
    environment = RetailEnvironment(shop, lambda p, seed: LlmUser(endpoint, "x", "Hello."), TAU_TOOLS)
    environment.reset(problem_of(synthetic_tasks()[0]), 0)

    async def talk():
        await environment.step("Who are you?")

    with pytest.raises(EndpointError):
        asyncio.run(talk())


def test_an_open_question_that_names_the_order_is_no_consent():
    scenario = read_script(
        "Your name is A B and your zip code is 12345. You are calm. Cancel order #W1 because x. "
    )
    user = ScriptedUser(scenario, 0)
    user.respond("How can I help you?")
    call = ToolCall("cancel_pending_order", {"order_id": "#W1", "reason": "no longer needed"})
    assert user.respond("What is the reason to cancel order #W1?").text == scenario.requests[0].words
    assert not user.agrees(call)
    user.respond("Shall I cancel order #W1? Please confirm.")
    assert user.agrees(call)


def test_an_apology_is_no_refusal():
    scenario = read_script(
        "Your name is A B and your zip code is 12345. You are calm. Cancel order #W1 because x. "
    )
    user = ScriptedUser(scenario, 0)
    user.respond("How can I help you?")
    user.respond("I'm sorry for the inconvenience. One moment please.")
    assert user.stated == scenario.requests[0]
