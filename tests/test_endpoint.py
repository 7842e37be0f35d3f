"""The endpoint for agents, with real clients over real sockets; a thread stands for the model's."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from gspo_cli.agents.answers import Answer, TokenLogprob, call_id
from gspo_cli.agents.endpoint import LARGEST_BODY, EndpointServer, Gone, Received
from gspo_cli.agents.requests import RequestError
from gspo_cli.types import AgentTurn, FinishReason, Message, RequestedCall

openai = pytest.importorskip("openai", reason="needs the extra dev")

HELLO = [{"role": "user", "content": "Hi"}]
CALLS = AgentTurn(
    "",
    "One moment.",
    "",
    (RequestedCall("get_order", {"id": "48ü"}), RequestedCall("find", {"n": [1, {"a": 2}]})),
)


class Model:
    """Answers with the text of the last message and a count, or what `turns` has for it."""

    def __init__(self, endpoint):
        self.endpoint, self.turns, self.seen, self.gone = endpoint, {}, [], []
        self.clients = []
        self.release = threading.Event()
        self.release.set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while (event := self.endpoint.inbox.get()) is not None:
            if isinstance(event, Gone):
                self.gone.append(event.waiting)
                continue
            assert isinstance(event, Received)
            self.seen.append(event.waiting)
            self.release.wait(20)
            event.waiting.answer(self.answer(event.waiting))

    def answer(self, waiting):
        text = waiting.request.messages[-1].content
        turn = self.turns.get(text, f"{text} {len(self.seen)}")
        if isinstance(turn, RequestError):
            return turn
        logprobs = [TokenLogprob("Hi", -0.25)] if waiting.request.with_logprobs else None
        return Answer(f"{len(self.seen)}", "policy", turn, FinishReason.stop, 7, 3, logprobs)

    def end(self):
        self.release.set()
        self.endpoint.inbox.put(None)
        self._thread.join(10)
        for made in self.clients:
            made.close()


@pytest.fixture
def model():
    endpoint = EndpointServer()
    endpoint.start()
    made = Model(endpoint)
    yield made
    made.end()
    endpoint.stop()


def client(model, place=0, **settings):
    made = openai.OpenAI(base_url=model.endpoint.url, api_key=model.endpoint.open(place), **settings)
    model.clients.append(made)
    return made


def create(made, content="Hi", **more):
    return made.chat.completions.create(model="any", messages=[{"role": "user", "content": content}], **more)


def test_a_client_gets_words_calls_usage_and_logprobs(model):
    model.turns["call"] = CALLS
    made = client(model)
    said = create(made, logprobs=True)
    assert (said.choices[0].message.content, said.choices[0].finish_reason) == ("Hi 1", "stop")
    assert (said.usage.prompt_tokens, said.usage.completion_tokens, said.usage.total_tokens) == (7, 3, 10)
    assert [(each.token, each.logprob) for each in said.choices[0].logprobs.content] == [("Hi", -0.25)]
    found = create(made, "call").choices[0]
    assert (found.finish_reason, found.message.content) == ("tool_calls", "One moment.")
    calls = found.message.tool_calls
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("get_order", {"id": "48ü"}), ("find", {"n": [1, {"a": 2}]})
    ]  # fmt: skip
    assert [call.id for call in calls] == [call_id("2", 0), call_id("2", 1)]
    assert all(len(call.id) == 9 and call.id.isalnum() for call in calls)
    assert made.models.list().data[0].id == "policy"


def test_the_same_comes_in_a_stream_and_from_an_asynchronous_client(model):
    model.turns["call"] = CALLS
    made = client(model)
    events = list(create(made, "call", stream=True, stream_options={"include_usage": True}))
    deltas = [event.choices[0].delta for event in events if event.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == "One moment."
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert [(call.index, call.function.name) for call in calls] == [(0, "get_order"), (1, "find")]
    assert [event.choices[0].finish_reason for event in events if event.choices][-1] == "tool_calls"
    assert events[-1].usage.total_tokens == 10
    assert [event.usage for event in create(made, stream=True)] == [None] * 3

    async def several():
        key = model.endpoint.open(1)
        async with openai.AsyncOpenAI(base_url=model.endpoint.url, api_key=key) as asynchronous:
            return await asyncio.gather(*(create(asynchronous, f"m{place}") for place in range(20)))

    texts = [each.choices[0].message.content for each in asyncio.run(several())]
    assert [text.split()[0] for text in texts] == [f"m{place}" for place in range(20)]
    assert len({text.split()[1] for text in texts}) == 20


def test_a_request_reaches_the_model_as_it_was_sent(model):
    made = client(model, 5)
    create(made, stop=["END"], max_tokens=9, temperature=0.3, tools=[
        {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}
    ])  # fmt: skip
    [waiting] = model.seen
    assert waiting.conversation == 5
    asked = waiting.request
    assert asked.messages == (Message("user", "Hi"),)
    assert (asked.stops, asked.max_tokens, [name for name, _ in asked.sampling]) == (
        ("END",),
        9,
        ["temperature"],
    )
    assert [tool.name for tool in asked.tools] == ["find"]


@contextmanager
def refused(kind, reason):
    with pytest.raises(kind) as error:
        yield
    assert reason in error.value.body["message"]


def test_keys_fields_sizes_and_paths_that_are_refused(model):
    made = client(model, max_retries=0)
    stranger = made.with_options(api_key="sk-other")
    with refused(openai.AuthenticationError, "api_key: is not one of this rollout"):
        create(stranger)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    with refused(openai.BadRequestError, "n: must be 1"):
        create(made, n=2)
    with refused(openai.APIStatusError, "body: is larger than 16 MiB"):
        create(made, "a" * (LARGEST_BODY + 1))
    with pytest.raises(openai.NotFoundError):
        made.embeddings.create(model="any", input="x")
    headers = {"Authorization": f"Bearer {made.api_key}"}
    broken = httpx.post(f"{model.endpoint.url}/chat/completions", content=b"{", headers=headers)
    assert (broken.status_code, broken.json()["error"]["message"]) == (400, "body: is not JSON")
    half = httpx.post(
        f"{model.endpoint.url}/chat/completions",
        content=rb'{"messages": [{"role": "user", "content": "\uD800"}]}',
        headers=headers,
    )
    assert (half.status_code, "half of a surrogate pair" in half.text) == (400, True)
    model.turns["late"] = RequestError("messages", "are over the model's context", 400)
    with refused(openai.BadRequestError, "messages: are over the model's context"):
        create(made, "late")
    assert len(model.seen) == 1, "nothing but the last reached the model"


def test_after_its_end_a_conversation_is_over(model):
    made, other = client(model, 0, max_retries=0), client(model, 1)
    create(made)
    model.endpoint.close(0)
    with refused(openai.APIStatusError, "conversation: the conversation is over") as error:
        create(made)
    assert error is None or error.value.status_code == 410
    assert create(other).choices[0].message.content.startswith("Hi")


def test_requests_that_wait_at_the_end_are_told_so(model):
    made = client(model, 0, max_retries=0)
    model.release.clear()
    with ThreadPoolExecutor() as pool:
        late = pool.submit(create, made)
        _until(lambda: model.seen)
        model.endpoint.close(0)
        with pytest.raises(openai.APIStatusError) as error:
            late.result(10)
    assert error.value.status_code == 410


def test_a_request_sent_again_is_one_and_gets_one_answer(model):
    made = client(model)
    model.release.clear()
    with ThreadPoolExecutor() as pool:
        twice = [pool.submit(create, made, "same") for _ in range(3)]
        _until(lambda: model.seen and model.seen[0].waiters == 3)
        model.release.set()
        texts = [each.result(10).choices[0].message.content for each in twice]
    assert texts == ["same 1"] * 3
    assert create(made, "same").choices[0].message.content == "same 2", "after it was read it is a new draw"


def test_a_request_that_nobody_waits_for_is_gone_and_may_come_again(model):
    key = model.endpoint.open(0)
    body = json.dumps({"model": "any", "messages": HELLO}).encode()
    model.release.clear()
    with _raw(model, key, body):
        _until(lambda: model.seen)
    _until(lambda: not model.seen[0].waiters)
    model.release.set()
    _until(lambda: model.gone)
    assert model.gone == model.seen
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    again = httpx.post(f"{model.endpoint.url}/chat/completions", content=body, headers=headers, timeout=10)
    assert again.json()["choices"][0]["message"]["content"] == "Hi 1", "an answer that came too late is kept"


def test_a_conversation_that_ends_while_a_body_is_on_its_way_says_why(model):
    body = json.dumps({"model": "any", "messages": HELLO}).encode()
    with _raw(model, model.endpoint.open(0), body, waits=True) as made:
        assert made.recv(1000).startswith(b"HTTP/1.1 100"), "the key was accepted, and the body is awaited"
        model.endpoint.close(0, RequestError("server", "is stopping", 503))
        made.sendall(body)
        answer = b"".join(iter(lambda: made.recv(10_000), b""))
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"is stopping" in answer


def test_where_equal_requests_are_not_joined_each_is_answered(model):
    model.endpoint.open(0, key="mine", joins=False)
    made = openai.OpenAI(base_url=model.endpoint.url, api_key="mine")
    model.clients.append(made)
    model.release.clear()
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(create, made, "same") for _ in range(5)]
        _until(
            lambda: (
                model.endpoint._conversations[0].waiting
                and len(model.endpoint._conversations[0].waiting) == 5
            )
        )
        model.release.set()
        texts = {job.result(10).choices[0].message.content for job in jobs}
    assert texts == {f"same {place}" for place in range(1, 6)}
    _until(lambda: not model.endpoint._conversations[0].unread)


def test_a_port_that_is_taken_is_an_error_before_anything_is_served(model):
    port = int(model.endpoint.url.split(":")[2].split("/")[0])
    with pytest.raises(OSError, match="in use"):
        EndpointServer(port=port).bind()
    again = EndpointServer()
    again.bind()
    again.stop()


def test_a_stream_shows_that_it_lives(model, monkeypatch):
    monkeypatch.setattr("gspo_cli.agents.endpoint.KEEP_ALIVE", 0.05)
    key = model.endpoint.open(0)
    model.release.clear()
    headers = {"Authorization": f"Bearer {key}"}
    asked = {"messages": HELLO, "stream": True}
    with httpx.stream(
        "POST", f"{model.endpoint.url}/chat/completions", json=asked, headers=headers
    ) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith(": ")
        model.release.set()
        rest = [line for line in lines if line.startswith("data: ")]
    assert rest[-1] == "data: [DONE]"


@pytest.mark.long
def test_many_at_once_leave_nothing_behind(model):
    threads = threading.active_count()
    with ThreadPoolExecutor(64) as pool:
        made = [client(model, place, max_retries=0) for place in range(64)]
        jobs = [pool.submit(create, each, f"m{turn}") for turn in range(4) for each in made]
        assert all(job.result(60).choices for job in jobs)
    assert len(model.seen) == 256
    for place in range(64):
        model.endpoint.close(place)
    assert not model.endpoint._keys
    assert not model.endpoint._conversations
    assert threading.active_count() <= threads + 1
    port = int(model.endpoint.url.split(":")[2].split("/")[0])
    with pytest.raises(ConnectionRefusedError):  # only the loopback interface listens
        socket.create_connection((_other_address(), port), timeout=1)


def _other_address():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("the machine has no other address than the loopback one")
        return probe.getsockname()[0]


@contextmanager
def _raw(model, key, body, waits=False):
    """A connection that has sent a request, without its body if it `waits`, and breaks at the end."""
    port = int(model.endpoint.url.split(":")[2].split("/")[0])
    with socket.create_connection(("127.0.0.1", port)) as made:
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n"
            f"Connection: close\r\n{'Expect: 100-continue' if waits else 'Accept: */*'}\r\n\r\n"
        )
        made.sendall(head.encode() + (b"" if waits else body))
        yield made


def _until(holds, seconds=10):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_packets_are_sent_at_once(model):
    assert model.endpoint._socket.proto == socket.IPPROTO_TCP, "else each answer waits 40 ms for the client"


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
        json.dumps({"messages": HELLO}).encode("utf-16"),
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": "Hi"},
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {"id": "a", "function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}
                        ],
                    },
                    {"role": "tool", "tool_call_id": "a", "content": "x"},
                ]
            }
        ).encode(),
        b"[" * 100_000,
    ],
)
def test_texts_that_are_no_characters_are_refused(model, body):
    headers = {"Authorization": f"Bearer {model.endpoint.open(0)}"}
    answer = httpx.post(f"{model.endpoint.url}/chat/completions", content=body, headers=headers)
    assert (answer.status_code, model.seen) == (400, [])


def test_a_refusal_of_a_stream_is_an_error_with_its_code(model):
    model.turns["long"] = RequestError("messages", "are too long", code="context_length_exceeded")
    with pytest.raises(openai.BadRequestError) as caught:
        list(create(client(model), "long", stream=True))
    assert caught.value.code == "context_length_exceeded"
