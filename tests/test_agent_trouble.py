"""Agents of all kinds, and in trouble: none holds up the others or ends the run."""

from __future__ import annotations

import asyncio
import gc
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest

from gspo_cli.agents.running import CommandAgent, Endpoint, FunctionAgent, resolved
from gspo_cli.rewards.returned import RETURNED
from gspo_cli.types import FinishReason
from tests.test_agent_rollout import ask, echo, later, run, words
from tests.test_rollout import starts

__all__ = ["run"]  # the fixture


@pytest.mark.long
def test_an_agent_that_goes_on_without_answers_is_ended(run):
    """By requests that are refused, or by a client that does not wait."""

    def stubborn(problem, endpoint):
        said = [{"role": "user", "content": "Hi"}]
        while problem.id == "p0":
            status, _ = ask(endpoint, [*said, {"role": "user", "content": str(time.monotonic())}], n=1)
            if status in (401, 410):
                return 1.0
        return echo(problem, endpoint)

    def impatient(problem, endpoint):
        while problem.id == "p0":
            headers = {"Authorization": f"Bearer {endpoint.api_key}"}
            try:
                body = {"messages": [{"role": "user", "content": "Hi"}]}
                url = f"{endpoint.base_url}/chat/completions"
                if httpx.post(url, json=body, headers=headers, timeout=0.001).status_code in (401, 410):
                    return 1.0
            except httpx.TimeoutException:
                continue
        return echo(problem, endpoint)

    whole, _ = run(echo)
    found, _ = run(stubborn)
    assert (found[0].excluded, found[0].finish_reason, found[0].num_turns) == (None, FinishReason.turns, 4)
    assert found[0].outcome.details[RETURNED] == 0.0
    assert [t.token_ids for t in found[2:]] == [t.token_ids for t in whole[2:]]
    found, _ = run(impatient)
    assert found[0].excluded.startswith("10 of the agent's requests in a row")
    assert [t.token_ids for t in found[2:]] == [t.token_ids for t in whole[2:]]


def test_what_comes_after_a_refusal_counts(run):
    """An agent that was told that its prompt is too long, and goes on with less of it, is not cut."""

    def compacts(problem, endpoint):
        assert ask(endpoint, [{"role": "user", "content": "7" * 4000}])[0] == 400
        assert ask(endpoint, [{"role": "user", "content": "7"}])[0] == 200
        if problem.id == "p1":
            raise KeyError("bug")
        return 1.0

    found, _ = run(compacts)
    assert found[0].excluded is None
    assert found[0].finish_reason is not FinishReason.turns
    assert found[2].excluded == "the agent raised KeyError: 'bug'"


def test_an_answer_that_is_short_by_the_agents_wish_is_not_cut(run):
    def brief(problem, endpoint):
        return float(len(words(ask(endpoint, [{"role": "user", "content": "Hi"}], max_tokens=1))))

    assert {t.finish_reason for t in run(brief)[0]} == {FinishReason.stop}


def test_several_answers_at_once_are_named(run):
    def both(problem, endpoint):
        with ThreadPoolExecutor() as pool:
            jobs = [pool.submit(ask, endpoint, [{"role": "user", "content": text}]) for text in "ab"]
            return float(len([job.result() for job in jobs]))

    found, _ = run(both)
    assert {len(t.segments) for t in found} == {2}
    assert sum("several answers at once" in text for text in run.warnings) == 1


async def _counted(times, problem, endpoint):
    return await later(problem, endpoint) and 1.0


class Callable:
    async def __call__(self, problem, endpoint):
        return await later(problem, endpoint) and 1.0


@pytest.mark.parametrize("function", [partial(_counted, 1), Callable(), lambda p, e: later(p, e)])
def test_whatever_can_be_awaited_is_an_agent(run, function):
    found, _ = run(function)
    assert {t.excluded for t in found} == {None}
    assert FunctionAgent(function).blocked() == ""


@pytest.mark.long
def test_a_task_that_ends_the_loop_of_all_ends_its_agents_with_the_cause(run, caplog):
    async def agent(problem, endpoint):
        if problem.id == "p0":
            asyncio.get_running_loop().call_soon(sys.exit, 3)
            await asyncio.sleep(5)
        return await later(problem, endpoint) and 1.0

    made, start = FunctionAgent(agent), time.monotonic()
    found, _ = run(None, agent=made)
    assert any("the loop of all agents was ended by SystemExit" in str(t.excluded) for t in found)
    again, _ = run(None, starts()[2:], agent=made)
    assert {t.excluded for t in again} == {None}
    assert time.monotonic() - start < 60
    made.close()
    gc.collect()
    assert "pending" not in caplog.text


def test_each_conversation_has_its_own_row(run):
    def takes(problem, endpoint):
        problem.metadata.pop("once", None)
        problem.metadata["mine"] = endpoint.api_key
        echo(problem, endpoint)
        return float(problem.metadata["mine"] == endpoint.api_key)

    found, _ = run(takes)
    assert [t.outcome.details[RETURNED] for t in found] == [1.0] * 10


DAEMON = """
import subprocess, sys
subprocess.Popen(["sleep", "20"], start_new_session=True)
print("x" * 200_000)
print(0.5)
"""


def test_a_program_that_leaves_a_child_and_much_output_is_over_when_it_ends(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agent.py").write_text(textwrap.dedent(DAEMON))
    before, start = threading.active_count(), time.monotonic()
    found, _ = run(None, starts()[:2], agent=CommandAgent(f"{sys.executable} agent.py"))
    assert time.monotonic() - start < 15
    assert found[0].excluded == "the agent asked for no answer"
    assert found[0].outcome.details[RETURNED] == 0.5
    assert threading.active_count() <= before + 1


def test_only_files_of_a_command_are_resolved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("python3", "agents"):
        (tmp_path / name).mkdir()
    for name in ("node", "a.mjs"):
        (tmp_path / name).write_text("")
    assert resolved("python3 -m agents --mode agents") == ["python3", "-m", "agents", "--mode", "agents"]
    assert resolved("node a.mjs") == ["node", str(tmp_path / "a.mjs")]
    assert resolved("./node -m a.mjs") == [str(tmp_path / "node"), "-m", "a.mjs"]


def test_a_key_is_not_shown():
    assert "secret" not in repr(Endpoint("http://127.0.0.1:1/v1", "secret", "m", 0))
