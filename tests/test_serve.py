"""A policy that is served: requests of the real OpenAI client over real sockets, sampled as they ask."""

from __future__ import annotations

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from gspo_cli.agents.requests import RequestError, read_request
from gspo_cli.agents.serving_requests import asked_sampling, read_honored, serving_endpoint
from gspo_cli.policy.turns import TurnFormat
from gspo_cli.rollout.engine import Request, Sampling, generate
from gspo_cli.rollout.transformers_engine import TransformersEngine
from gspo_cli.tasks.base import SystemPrompt
from gspo_cli.types import AgentTurn, Message, RequestedCall
from tests.support.families import family_chat

openai = pytest.importorskip("openai", reason="needs the extra dev")

from gspo_cli.agents.serving import Defaults, PolicyService  # noqa: E402

HI = [{"role": "user", "content": "12+30="}]
FIND = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Finds it.",
        "parameters": {
            "type": "object",
            "properties": {"what": {"type": "string"}, "many": {"type": "integer"}},
            "required": ["what"],
        },
    },
}


class Served:
    """A policy that is served from a thread of this process."""

    def __init__(self, policy, max_tokens=24, engine=TransformersEngine):
        self.policy, self.clients = policy, []
        self.endpoint = serving_endpoint()
        self.engine = engine(policy, 256, full=1.0)
        self.service = PolicyService(self.engine, policy.chat, self.endpoint, Defaults(1.0, max_tokens))
        self.key = self.service.open("sk-mine")
        self.endpoint.start()
        self.thread = threading.Thread(target=self.service.run, daemon=True)
        self.thread.start()

    def client(self, **settings):
        settings = {"api_key": self.key, "max_retries": 0} | settings
        self.clients.append(openai.OpenAI(base_url=self.endpoint.url, **settings))
        return self.clients[-1]

    def end(self):
        self.service.stop()
        self.thread.join(20)
        self.endpoint.stop()
        for made in self.clients:
            made.close()
        assert not self.thread.is_alive()


class Paced(TransformersEngine):
    """Notes how many rows are in flight at each step, none of which begins before `go` is set."""

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.rows, self.go = [], threading.Event()

    def step(self):
        self.go.wait(20)
        found = super().step()
        self.rows.append(len(self._flight.rows) if self._flight else 0)
        return found


@pytest.fixture
def serve(load):
    """`serve("gpt2", max_tokens=8)`: a `Served`."""
    made = []

    def served(name="qwen3", **more):
        made.append(Served(load(name), **more))
        return made[-1]

    yield served
    for each in made:
        each.end()


def create(client, messages=HI, **more):
    return client.chat.completions.create(model="any", messages=messages, **more)


def words(found):
    return found.choices[0].message.content


def greedy_ids(policy, messages, most):
    """What the engine alone answers, with the most likely tokens."""
    prompt = policy.chat.prompt_ids(tuple(Message(each["role"], each["content"]) for each in messages))
    sampling = Sampling(0.0, 1.0, 0, most, policy.chat.stop_ids)
    [found] = generate(TransformersEngine(policy, 1), [Request(prompt, 0, 0)], sampling)
    return prompt, found


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_temperature_0_answers_with_the_ids_that_the_engine_alone_finds_most_likely(serve, name):
    made = serve(name)
    chat = made.policy.chat
    prompt, expected = greedy_ids(made.policy, HI, 24)
    found = create(made.client(), temperature=0, logprobs=True)
    [choice] = found.choices
    assert [each.token for each in choice.logprobs.content] == [chat.token(i) for i in expected.token_ids]
    assert [each.logprob for each in choice.logprobs.content] == pytest.approx(expected.logprobs, abs=1e-4)
    assert words(found) == chat.text(expected.token_ids)
    assert choice.finish_reason == expected.finish_reason.value
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (
        len(prompt),
        len(expected.token_ids),
    )
    assert words(create(made.client(), temperature=1e-8)) == words(found)
    assert words(create(made.client(), top_p=1e-9)) == words(found)
    assert words(create(made.client(), extra_body={"top_k": 1})) == words(found)


def test_a_stream_has_the_same_words_and_the_usage(serve):
    client = serve().client()
    whole = create(client, seed=5)
    events = list(create(client, seed=5, stream=True, stream_options={"include_usage": True}))
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == words(whole)
    assert events[-1].usage == whole.usage
    assert client.models.list().data[0].id == "policy"


def test_a_seed_gives_the_same_answer_whatever_else_is_asked(serve):
    client = serve().client()
    alone = {seed: words(create(client, seed=seed)) for seed in (0, -7, 2**62)}
    assert len(set(alone.values())) == 3
    with ThreadPoolExecutor(24) as pool:
        again = {seed: [pool.submit(create, client, seed=seed) for _ in range(4)] for seed in alone}
        others = [pool.submit(create, client, temperature=place / 10) for place in range(12)]
        assert all(words(job.result(60)) is not None for job in others)
        for seed, jobs in again.items():
            assert {words(job.result(60)) for job in jobs} == {alone[seed]}
    assert words(create(client, seed=0, temperature=0.3)) != alone[0]


def test_equal_requests_without_a_seed_are_draws_of_their_own_and_run_at_once(serve):
    made = serve(engine=Paced)
    client, started = made.client(), len(made.endpoint._conversations[0].waiting)
    assert started == 0
    with ThreadPoolExecutor(16) as pool:
        jobs = [pool.submit(create, client) for _ in range(16)]
        _until(lambda: len(made.endpoint._conversations[0].waiting) == 16)
        made.engine.go.set()
        texts = [words(job.result(60)) for job in jobs]
    assert len(set(texts)) > 12
    assert max(made.engine.rows) == 16
    assert not made.service._flight


def test_max_tokens_stops_and_the_models_positions_end_an_answer(serve):
    made = serve("gpt2", max_tokens=6)
    client = made.client()
    assert create(client, seed=1).usage.completion_tokens == 6, "the default of the server"
    longer = create(client, seed=1, max_tokens=40)
    assert longer.choices[0].finish_reason == "length"
    shorter = create(client, seed=1, max_tokens=2)
    assert (longer.usage.completion_tokens, shorter.usage.completion_tokens) == (40, 2)
    assert (
        create(client, temperature=0, max_tokens=4000).usage.total_tokens == made.policy.max_positions == 512
    )
    text = words(longer)
    stop = next(text[place : place + 2] for place in range(3, 30) if text[place : place + 2].isascii())
    stopped = create(client, seed=1, max_tokens=40, stop=["no such text", stop])
    assert (words(stopped), stopped.choices[0].finish_reason) == (text.partition(stop)[0], "stop")
    assert stopped.usage.completion_tokens < 40


@contextmanager
def refused(kind, reason):
    with pytest.raises(kind) as error:
        yield
    assert error.value.body["message"].startswith(reason)


UNSERVED = [
    ({"temperature": 2.5}, "temperature: must be a number from 0 to 2"),
    ({"temperature": "hot"}, "temperature: must be a number"),
    ({"top_p": 0}, "top_p: must be a number above 0 and at most 1"),
    ({"top_k": 1.5}, "top_k: must be an integer"),
    ({"seed": True}, "seed: must be an integer"),
    ({"seed": 2**64}, "seed: must be an integer of at most 64 bits"),
    ({"frequency_penalty": 0.5}, "frequency_penalty: is not supported; leave it out"),
    ({"logit_bias": {"5": 100}}, "logit_bias: is not supported"),
    ({"logprobs": True, "top_logprobs": 3}, "top_logprobs: is not supported"),
    ({"min_p": 0.1}, "min_p: is not supported"),
    ({"n": 2}, "n: must be 1"),
    ({"tool_choice": "required", "tools": [FIND]}, "tool_choice: must be auto or none"),
    ({"response_format": {"type": "json_object"}}, "response_format: is not supported"),
    ({"max_tokens": 0}, "max_tokens: must be an integer above 0"),
    ({"messages": []}, "messages: must be a list"),
]


@pytest.mark.parametrize(("changes", "reason"), UNSERVED)
def test_what_would_have_no_effect_is_refused_by_name(changes, reason):
    with pytest.raises(RequestError) as error:
        read_honored({"messages": HI} | changes)
    assert str(error.value).startswith(reason)
    assert error.value.status == 400


def test_values_that_ask_for_nothing_are_taken():
    harmless = {"frequency_penalty": 0, "logit_bias": {}, "top_logprobs": 0, "min_p": 0.0, "seed": None}
    found = asked_sampling(read_honored({"messages": HI, "top_k": -1} | harmless))
    assert (found.temperature, found.top_p, found.top_k, found.seed) == (None, 1.0, 0, None)


def test_keys_bodies_and_lengths_that_are_refused_leave_the_server_as_it_was(serve):
    made = serve("gpt2")
    client = made.client()
    for key in ("sk-other", "", "sk-mine2"):
        with refused(openai.AuthenticationError, "api_key: is not the key of this server"):
            create(made.client(api_key=key or "-"))
    url = f"{made.endpoint.url}/chat/completions"
    assert httpx.post(url, json={"messages": HI}).status_code == 401
    headers = {"Authorization": f"Bearer {made.key}"}
    for body in (b"{", b"[]", b"null", rb'{"messages": [{"role": "user", "content": "\udcff"}]}'):
        assert httpx.post(url, content=body, headers=headers).status_code == 400, body
    with refused(openai.BadRequestError, "temperature: must be a number from 0 to 2"):
        create(client, temperature=3)
    with pytest.raises(openai.BadRequestError) as error:
        create(client, [{"role": "user", "content": "7" * 600}])
    said = error.value.body["message"]
    tokens = int(re.search(r"are (\d+) tokens", said)[1])
    assert tokens > 600
    assert said.endswith("the model has 512 positions")
    assert words(create(client, max_tokens=2)) is not None


def test_a_client_that_leaves_frees_its_row(serve):
    made = serve("gpt2", engine=Paced)
    client = made.client(timeout=0.5)
    with pytest.raises(openai.APITimeoutError):
        create(client, max_tokens=400)
    made.engine.go.set()
    assert 0 < create(made.client(), max_tokens=3).usage.completion_tokens <= 3
    _until(lambda: not made.service._flight)
    assert made.engine._flight is None
    assert made.engine.sampled < 100


def test_a_policy_calls_tools_and_reads_their_results_in_the_form_it_writes(serve, monkeypatch):
    made = serve()
    chat = made.policy.chat
    assert TurnFormat(chat, SystemPrompt()).format.form is None
    monkeypatch.setattr(TurnFormat, "read", lambda self, ids: "/find lamp 3" if self.tools else "Done.")
    client = made.client()
    found = create(client, tools=[FIND]).choices[0]
    [called] = found.message.tool_calls
    assert (called.function.name, json.loads(called.function.arguments)) == (
        "find",
        {"what": "lamp", "many": 3},
    )
    assert create(client, tools=[FIND], tool_choice="none").choices[0].finish_reason != "tool_calls"
    said = [
        *HI,
        found.message.model_dump(),
        {"role": "tool", "tool_call_id": called.id, "content": "a lamp"},
    ]
    again = create(client, said, tools=[FIND])
    ids = made.service._exchange.prompt_ids(read_request({"messages": said, "tools": [FIND]}))
    assert again.usage.prompt_tokens == len(ids)
    text = chat.tokenizer.decode(ids)
    assert "<|assistant|>/find what=lamp many=3<|end|><|tool|>a lamp<|end|>" in text


def test_a_history_of_calls_is_written_as_the_model_writes_them(load):
    from gspo_cli.agents.exchange import Exchange

    calls = (RequestedCall("find", {"many": 3}), RequestedCall("other", {"a": "b c"}))
    body = {"messages": HI, "tools": [FIND]}
    request = read_request(body)
    history = (
        *request.messages,
        Message("assistant", AgentTurn("", "Wait.", "", calls)),
        Message("user", "?"),
    )
    request = type(request)(history, request.tools)
    lines = load("qwen3").chat
    text = lines.tokenizer.decode(Exchange(lines, "policy").prompt_ids(request))
    assert "/find many=3\n/other a='b c'" in text
    qwen = family_chat(load("qwen3").tokenizer, "qwen3")
    ids = Exchange(qwen, "policy").prompt_ids(request)
    assert ids == TurnFormat(qwen, SystemPrompt(tools=request.tools)).prompt_ids(history, announced=True)


def test_requests_that_wait_at_the_end_are_told_so(serve):
    made = serve(engine=Paced)
    with ThreadPoolExecutor() as pool:
        late = pool.submit(create, made.client())
        _until(lambda: made.endpoint._conversations[0].waiting)
        made.service.stop()
        made.engine.go.set()
        with pytest.raises(openai.APIStatusError) as error:
            late.result(20)
    assert error.value.status_code == 503
    assert "server: is stopping" in str(error.value)


def _until(holds, seconds=20):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
