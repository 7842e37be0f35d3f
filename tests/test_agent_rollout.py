"""Agents that talk to the endpoint: what is sampled for them, and what becomes of those that fail."""

from __future__ import annotations

import asyncio
import sys
import textwrap
import threading
import time
from pathlib import Path

import httpx
import pytest

from gspo_cli.agents.host import AgentHost
from gspo_cli.agents.rollout import Waits
from gspo_cli.agents.running import CommandAgent, FunctionAgent, last_json
from gspo_cli.config.choices import AgentSchedule
from gspo_cli.rewards.returned import RETURNED
from gspo_cli.rollout.conversations import Limits, roll_out
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.rollout.transformers_engine import TransformersEngine
from gspo_cli.types import FinishReason
from tests.test_rollout import LIMITS, Echo, Watched, sampling, starts

pytestmark = pytest.mark.long

openai = pytest.importorskip("openai", reason="needs the extra dev")


def as_sent(messages):
    return [{"role": message.role, "content": message.content} for message in messages]


def echo(problem, endpoint):
    """The agent of an environment: ten lines."""
    environment = Echo()
    said = as_sent(environment.reset(problem, endpoint.seed))
    with openai.OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as client:
        while True:
            found = client.chat.completions.create(model=endpoint.model, messages=said)
            text = found.choices[0].message.content
            step = environment.step(text)
            if step.done:
                return 0.5
            said += [{"role": "assistant", "content": text}, *as_sent(step.messages)]


async def later(problem, endpoint):
    environment = Echo()
    said = as_sent(environment.reset(problem, endpoint.seed))
    async with openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as client:
        while True:
            await asyncio.sleep(0.002 * (len(problem.id) + len(said) % 3))
            found = await client.chat.completions.create(model="m", messages=said, stream=True)
            text = "".join([event.choices[0].delta.content or "" async for event in found])
            step = environment.step(text)
            if step.done:
                return {"total": 1}
            said += [{"role": "assistant", "content": text}, *as_sent(step.messages)]


@pytest.fixture
def run(load):
    policy, warnings = load("qwen3"), []

    def ran(function, begun=None, limits=LIMITS, agent=None, engine=None, waits=None):
        engine = engine or TransformersEngine(policy, 256)
        made = agent or FunctionAgent(function)
        with AgentHost(engine, policy.chat, made, waits or Waits(), warnings.append) as host:
            found = host.roll_out(begun or starts(), sampling(policy.chat, 8), limits, 3)
            host.tell(host.notes)
        return found

    ran.policy, ran.warnings = policy, warnings
    return ran


@pytest.mark.parametrize("function", [echo, later])
def test_an_agent_gets_what_its_environment_would_get_to_the_bit(run, function):
    policy = run.policy
    engines = [Watched(policy, 256) for _ in range(2)]
    inside, mass = roll_out(
        engines[0], Prompts(policy.chat), Echo, starts(), sampling(policy.chat, 8), LIMITS, seed=3
    )
    found, other = run(function, engine=engines[1])
    for one, two in zip(inside, found, strict=True):
        for name in (
            "token_ids",
            "action_mask",
            "sampling_logprobs",
            "turn_ids",
            "finish_reason",
            "excluded",
        ):
            assert getattr(one, name) == getattr(two, name), name
        assert two.num_turns == one.num_turns == 3
        assert two.outcome.details[RETURNED] == (0.5 if function is echo else {"total": 1})
        assert not two.segments
    assert engines[0].drawn == engines[1].drawn, "the same rows shared each batch"
    assert mass == pytest.approx(other)


def ask(endpoint, messages, **more):
    headers = {"Authorization": f"Bearer {endpoint.api_key}"}
    body = {"model": "m", "messages": messages} | more
    answer = httpx.post(f"{endpoint.base_url}/chat/completions", json=body, headers=headers, timeout=60)
    return answer.status_code, answer.json()


def words(answer):
    return answer[1]["choices"][0]["message"]["content"]


def test_failures_are_left_out_with_their_reason_and_the_others_go_on(run):
    def agent(problem, endpoint):
        if problem.id == "p1":
            raise ValueError("no such order")
        if problem.id == "p2":
            sys.exit(3)
        if problem.id == "p3":
            return 1.0
        return echo(problem, endpoint)

    found, _ = run(agent)
    reasons = [trajectory.excluded for trajectory in found]
    assert reasons[:2] == [None, None]
    assert reasons[2:4] == ["the agent raised ValueError: no such order"] * 2
    assert reasons[4:6] == ["the agent raised RuntimeError: called sys.exit(3)"] * 2
    assert reasons[6:8] == ["the agent asked for no answer"] * 2
    assert found[0].num_turns == 3


def test_an_agent_that_does_not_ask_again_in_time_is_left_out(run):
    release = threading.Event()

    def agent(problem, endpoint):
        status, _ = ask(endpoint, [{"role": "user", "content": "Hi"}])
        assert status == 200
        if problem.id == "p0":
            release.wait(20)
            assert ask(endpoint, [{"role": "user", "content": "late"}])[0] in (401, 410)
        return 1.0

    start = time.monotonic()
    limits = Limits(max_turns=4, max_prompt_length=200, max_positions=512, seconds=5.0)
    found, _ = run(agent, limits=limits)
    assert time.monotonic() - start < 60
    release.set()
    assert found[0].excluded == "the agent took longer than 5 s for its next request"
    assert [trajectory.excluded for trajectory in found[2:]] == [None] * 8


def test_limits_of_turns_and_tokens_are_told_and_end_no_conversation_as_a_failure(run):
    statuses = {}

    def agent(problem, endpoint):
        said = [{"role": "user", "content": "1+1=" if problem.id != "p1" else "7" * 4000}]
        for turn in range(9):
            status, body = answer = ask(endpoint, said)
            if status != 200:
                statuses[problem.id] = status, body["error"]["message"]
                raise RuntimeError("refused")
            said += [{"role": "assistant", "content": words(answer)}, {"role": "user", "content": f"{turn}"}]

    found, _ = run(agent)
    assert statuses["p0"] == (400, "conversation: has had the 4 answers of rollout.max_turns")
    assert statuses["p1"][0] == 400
    assert "over rollout.max_prompt_length=200" in statuses["p1"][1]
    assert (found[0].excluded, found[0].finish_reason, found[0].num_turns) == (None, FinishReason.turns, 4)
    assert found[0].outcome.details[RETURNED] == 0.0
    assert found[2].excluded == "the agent asked for no answer"


def test_another_history_is_another_segment_with_its_own_draws(run):
    def agent(problem, endpoint):
        first = words(ask(endpoint, [{"role": "user", "content": "Hi"}]))
        other = [{"role": "system", "content": "Sum up."}, {"role": "user", "content": first}]
        texts = [words(ask(endpoint, other)) for _ in range(2)]
        more = [*other, {"role": "assistant", "content": texts[0]}, {"role": "user", "content": "more"}]
        return float(len(words(ask(endpoint, more))))

    once, again = (run(agent)[0] for _ in range(2))
    for one, two in zip(once, again, strict=True):
        assert one.token_ids == two.token_ids
        assert len(one.segments) == 3
        second, third = (one.token_ids[span] for span in one.spans[1:])
        prompt = [token for token, turn in zip(second, one.turn_ids[one.spans[1]], strict=True) if turn == -1]
        assert second != third
        assert third[: len(prompt) // 2] == second[: len(prompt) // 2]
        assert one.num_turns == 4


def test_stop_texts_end_a_turn_are_trained_and_not_delivered(run):
    texts = {}

    def plain(problem, endpoint):
        texts[problem.id] = words(ask(endpoint, [{"role": "user", "content": "Hi"}]))
        return 0.0

    alone = starts(count=12, size=1)
    whole, _ = run(plain, alone)
    place, text = next((p, t) for p, t in texts.items() if len(t) > 3 and t.isascii())
    stop = text[1:3]

    def stopped(problem, endpoint):
        said = [{"role": "user", "content": "Hi"}]
        first = words(ask(endpoint, said, stop=stop))
        texts[problem.id] = first
        said += [{"role": "assistant", "content": first}, {"role": "user", "content": "go on"}]
        ask(endpoint, said, max_tokens=1)
        return 0.0

    found, _ = run(stopped, alone)
    index = [trajectory.problem.id for trajectory in found].index(place)
    one, two = whole[index], found[index]
    trained = [token for token, turn in zip(two.token_ids, two.turn_ids, strict=True) if turn == 0]
    before = [token for token, turn in zip(one.token_ids, one.turn_ids, strict=True) if turn == 0]
    assert trained == before[: len(trained)]
    assert stop in run.policy.chat.text(trained)
    assert stop not in texts[place]
    assert text.startswith(texts[place])
    after = two.token_ids[two.turn_ids.index(0) + len(trained) :]
    if trained[-1] not in run.policy.chat.stop_ids:
        assert after[0] == run.policy.chat.end_id
    assert two.turn_ids.count(1) == 1
    assert not two.segments


PROGRAM = """
import json, os, sys, urllib.request
problem = json.load(sys.stdin)
assert json.load(open("problem.json")) == problem
assert os.environ["GSPO_SEED"] == "0"
text = problem["messages"][0]["content"]
said = [{"role": "user", "content": text}]
body = json.dumps({"model": os.environ["OPENAI_MODEL"], "messages": said}).encode()
headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"}
url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
answer = json.load(urllib.request.urlopen(urllib.request.Request(url, body, headers)))
if problem["id"] == "p1":
    print("it broke", file=sys.stderr)
    sys.exit(7)
if problem["id"] == "p2":
    os.kill(os.getpid(), 9)
print("some words")
print(len(answer["choices"][0]["message"]["content"]) / 100)
print("not JSON")
"""


def test_a_program_is_an_agent_too(run, tmp_path, monkeypatch):
    (tmp_path / "agent.py").write_text(textwrap.dedent(PROGRAM))
    monkeypatch.chdir(tmp_path)
    found, _ = run(None, starts()[:6], agent=CommandAgent(f"{sys.executable} agent.py"))
    assert [trajectory.excluded for trajectory in found[:2]] == [None, None]
    assert 0 <= found[0].outcome.details[RETURNED] < 1
    assert "ended with exit code 7: it broke" in found[2].excluded
    assert "ended with signal 9" in found[4].excluded
    assert not list(tmp_path.glob("gspo-agent-*"))


def test_the_reward_of_a_program_is_its_last_line_of_json():
    assert last_json('1\n{"total": 2}\nwords\n"done"\n[3]\nNaN') == {"total": 2}
    assert last_json("") is None
    assert last_json("[" * 100_000) is None


def test_continuous_draws_the_same_without_waiting_for_those_who_take_long(run):
    """An agent that waits for the others to be over would wait for ever in lock-step."""
    barrier = threading.Barrier(10)  # all conversations: two of them have yet to begin, the others are over

    def patient(problem, endpoint):
        if problem.id == "p0":
            barrier.wait(30)
            return echo(problem, endpoint)
        found = echo(problem, endpoint)
        barrier.wait(30)
        return found

    together, _ = run(echo)
    apart, _ = run(patient, waits=Waits(AgentSchedule.continuous))
    for one, two in zip(together, apart, strict=True):
        assert one.token_ids == two.token_ids
        assert two.sampling_logprobs == pytest.approx(one.sampling_logprobs, abs=1e-5)


@pytest.mark.parametrize("schedule", AgentSchedule)
def test_few_at_once_are_the_same_conversations(run, schedule):
    running, most = set(), []

    def counted(problem, endpoint):
        running.add(endpoint.api_key)
        most.append(len(running))
        found = echo(problem, endpoint)
        running.discard(endpoint.api_key)
        return found

    all_at_once, _ = run(echo)
    few, _ = run(counted, waits=Waits(schedule, concurrency=3))
    assert max(most) <= 3
    assert [t.token_ids for t in few] == [t.token_ids for t in all_at_once]


def test_a_loop_that_is_blocked_is_named_with_its_line(run, monkeypatch):
    monkeypatch.setattr("gspo_cli.agents.rollout.PULSE", 0.05)

    async def blocking(problem, endpoint):
        if problem.id == "p0":
            time.sleep(1)  # blocks
        return await later(problem, endpoint)

    run(blocking)
    [said] = [text for text in run.warnings if "blocked" in text]
    line = next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "# blocks" in text)
    assert f"at {__file__}:{line}, in blocking" in said


def test_an_agent_that_is_late_makes_a_run_that_says_so(run):
    def slow(problem, endpoint):
        if problem.id == "p0":
            time.sleep(3)
        return echo(problem, endpoint)

    limits = Limits(max_turns=4, max_prompt_length=200, max_positions=512, seconds=1.5)
    found, _ = run(slow, limits=limits)
    assert [t.outcome.counts["timeouts"] for t in found[:3]] == [1, 1, 0]
    [said] = [text for text in run.warnings if "took longer" in text]
    assert "cannot be reproduced to the bit" in said
