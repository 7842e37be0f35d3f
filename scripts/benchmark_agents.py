"""What the endpoint costs: the same conversations through it and by an environment in process.

    python scripts/benchmark_agents.py [--model tiny|smollm2] [--conversations 256] [--turns 6]

An environment answers every turn with a fixed sentence. It is run in process; then an agent that steps it
asks for the same turns over HTTP, in a thread for each conversation: by the standard library's client, which
costs little, so that what is left is the server's share; by the OpenAI SDK, one client for each conversation;
by its asynchronous client, one for all; and by the first one again under task.schedule=continuous. In
lock-step the script exits with 1 unless all tokens are the same. Times are medians of `--repeats` runs, one
after the other; the overhead is what a request takes longer than a turn in process.
`--leaks N` instead runs N short conversations with an agent that fails, is late, breaks its connection or
ends well, and exits with 1 if files, threads or children are left.

tiny is the embedded model with random weights, smollm2 what `make smollm2` brings."""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import psutil
import torch

from gspo_cli.agents.host import AgentHost
from gspo_cli.agents.rollout import Waits
from gspo_cli.agents.running import CommandAgent, Endpoint, FunctionAgent
from gspo_cli.config.choices import AgentSchedule
from gspo_cli.config.compose import build_config, composed
from gspo_cli.policy.loading import load_policy
from gspo_cli.policy.policy import Policy
from gspo_cli.rollout.conversations import Limits, Start, roll_out
from gspo_cli.rollout.engine import Sampling
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.rollout.transformers_engine import TransformersEngine
from gspo_cli.tasks.base import Step
from gspo_cli.tasks.levels import levels_of
from gspo_cli.training.cold_start import prepare_model
from gspo_cli.types import Message, Outcome, Problem, Trajectory

ANSWER = 24  # tokens of a turn at most
SAID = "Go on, and tell me about number {}."


class Talk:
    """A user who says the same whatever the agent says."""

    single_turn = False

    def __init__(self, turns: int) -> None:
        self.turns, self.taken = turns, 0

    def reset(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """The problem's own message."""
        return problem.messages

    def step(self, text: str) -> Step:
        """The next sentence, or the end."""
        self.taken += 1
        return Step((Message("user", SAID.format(self.taken)),), done=self.taken == self.turns)

    def finish(self) -> Outcome:
        """Nothing."""
        return Outcome()


class Coroutine:
    """An agent that steps the environment, as a coroutine; one client serves all conversations."""

    def __init__(self, turns: int) -> None:
        self.turns, self.running = turns, 0
        self.client: openai.AsyncOpenAI | None = None

    async def run(self, problem: Problem, endpoint: Endpoint) -> float:
        """One conversation."""
        if self.client is None:
            http = httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=None)
            self.client = openai.AsyncOpenAI(base_url=endpoint.base_url, api_key="-", http_client=http)
        shared, self.running = self.client, self.running + 1
        client = shared.with_options(base_url=endpoint.base_url, api_key=endpoint.api_key)
        try:
            return await self.talk(problem, endpoint, client)
        finally:
            self.running -= 1
            if not self.running:
                self.client = None
                await shared.close()

    async def talk(self, problem: Problem, endpoint: Endpoint, client: openai.AsyncOpenAI) -> float:
        """All turns of one conversation."""
        environment = Talk(self.turns)
        said: list[Any] = [_sent(message) for message in environment.reset(problem, endpoint.seed)]
        while True:
            found = await client.chat.completions.create(model=endpoint.model, messages=said)
            text = found.choices[0].message.content or ""
            step = environment.step(text)
            if step.done:
                return 0.0
            said += [{"role": "assistant", "content": text}, *map(_sent, step.messages)]


class InThread:
    """The same as a function, with a client for each conversation."""

    def __init__(self, turns: int) -> None:
        self.turns = turns

    def run(self, problem: Problem, endpoint: Endpoint) -> float:
        """One conversation."""
        environment = Talk(self.turns)
        said: list[Any] = [_sent(message) for message in environment.reset(problem, endpoint.seed)]
        with openai.OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key, timeout=600) as client:
            while True:
                found = client.chat.completions.create(model=endpoint.model, messages=said)
                text = found.choices[0].message.content or ""
                step = environment.step(text)
                if step.done:
                    return 0.0
                said += [{"role": "assistant", "content": text}, *map(_sent, step.messages)]


class Plain:
    """The same with the standard library's client, on one connection."""

    def __init__(self, turns: int) -> None:
        self.turns = turns

    def run(self, problem: Problem, endpoint: Endpoint) -> float:
        """One conversation."""
        environment = Talk(self.turns)
        said: list[Any] = [_sent(message) for message in environment.reset(problem, endpoint.seed)]
        address = urlsplit(endpoint.base_url)
        headers = {"Authorization": f"Bearer {endpoint.api_key}", "Content-Type": "application/json"}
        with closing(HTTPConnection(address.netloc)) as connection:
            while True:
                body = json.dumps({"model": endpoint.model, "messages": said})
                connection.request("POST", f"{address.path}/chat/completions", body, headers)
                found = json.loads(connection.getresponse().read())
                text = found["choices"][0]["message"]["content"]
                step = environment.step(text)
                if step.done:
                    return 0.0
                said += [{"role": "assistant", "content": text}, *map(_sent, step.messages)]


def _sent(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}


def model(name: str) -> Policy:
    """The policy, with random weights where it is embedded."""
    settings = ["task=arithmetic", "model.cold_start.steps=0", "hardware=cpu"]
    config = build_config(composed([f"model={name}", *settings]))
    folder = Path(tempfile.mkdtemp()) / "model"
    source = prepare_model(config, levels_of(config.task), folder, lambda *progress: None)
    return load_policy(source.base, config.model, config.hardware, source.adapter)


def starts(count: int) -> list[Start]:
    """Conversations about different problems."""
    problems = [Problem(str(i), (Message("user", f"Tell me about number {i}."),)) for i in range(count)]
    return [Start(problem, (0, i, 0), 0) for i, problem in enumerate(problems)]


def limits(policy: Policy, turns: int, seconds: float = 600.0) -> Limits:
    """No limit is reached."""
    return Limits(turns + 1, policy.max_positions, policy.max_positions, seconds=seconds)


def measured(
    policy: Policy, count: int, turns: int, repeats: int
) -> Mapping[str, tuple[float, Sequence[Trajectory]]]:
    """Seconds of a rollout and its conversations, by how it was run."""
    sampling = Sampling(1.0, 1.0, 0, ANSWER, policy.chat.stop_ids)
    asked = sampling, limits(policy, turns), 0

    def inside() -> Sequence[Trajectory]:
        engine = TransformersEngine(policy, count)
        return roll_out(engine, Prompts(policy.chat), lambda: Talk(turns), starts(count), *asked)[0]

    def outside(kind: type[Any], schedule: AgentSchedule) -> Sequence[Trajectory]:
        engine, agent = TransformersEngine(policy, count), FunctionAgent(kind(turns).run)
        with AgentHost(engine, policy.chat, agent, Waits(schedule, count)) as host:
            return host.roll_out(starts(count), *asked)[0]

    lockstep, continuous = AgentSchedule.lockstep, AgentSchedule.continuous
    ways: dict[str, Callable[[], Sequence[Trajectory]]] = {
        "in process": inside,
        "plain client": lambda: outside(Plain, lockstep),
        "OpenAI SDK": lambda: outside(InThread, lockstep),
        "OpenAI SDK, async": lambda: outside(Coroutine, lockstep),
        "plain client, continuous": lambda: outside(Plain, continuous),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, Sequence[Trajectory]] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            found[name] = way()
            seconds[name].append(time.perf_counter() - started)
            gc.collect()
    return {name: (median(seconds[name]), found[name]) for name in ways}


def report(found: Mapping[str, tuple[float, Sequence[Trajectory]]]) -> bool:
    """Print a table. Returns whether the same was sampled in lock-step."""
    alone, expected = found["in process"]
    print(
        "| | seconds | tokens/s | of in process | overhead per request, ms |\n"
        "| --- | ---: | ---: | ---: | ---: |"
    )
    same = True
    for name, (seconds, trajectories) in found.items():
        failed = [t.excluded for t in trajectories if t.excluded]
        if failed:
            print(f"{len(failed)} conversations failed, the first because {failed[0]}", file=sys.stderr)
        tokens = sum(t.num_actions for t in trajectories)
        requests = sum(t.num_turns for t in trajectories)
        overhead = 1000 * (seconds - alone) / requests
        print(f"| {name} | {seconds:.1f} | {tokens / seconds:.0f} | {alone / seconds:.0%} | {overhead:.2f} |")
        if "continuous" not in name:
            same &= [t.token_ids for t in trajectories] == [t.token_ids for t in expected]
    print(
        f"\n{requests} requests of {tokens / requests:.0f} tokens; "
        f"same tokens in lock-step: {'yes' if same else 'NO'}; "
        f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"
    )
    return same


PROGRAM = "import os, sys, time; time.sleep(0.01); print(0.5)"


def leaks(policy: Policy, count: int) -> bool:
    """Run conversations that end in all ways there are. Returns whether nothing is left of them."""
    process = psutil.Process()
    release = threading.Event()

    def agent(problem: Problem, endpoint: Endpoint) -> float:
        kind = int(problem.id) % 5
        body = {"model": "m", "messages": [_sent(problem.messages[0])], "max_tokens": 2}
        headers = {"Authorization": f"Bearer {endpoint.api_key}"}
        with httpx.Client(
            base_url=endpoint.base_url, headers=headers, timeout=0.001 if kind == 1 else 60
        ) as client:
            client.post("/chat/completions", json=body)
            if kind == 2:
                raise ValueError("no such order")
            if kind == 3:
                release.wait(4)
        return 1.0

    def left() -> tuple[int, int, int, int]:
        gc.collect()
        folders = len(list(Path(tempfile.gettempdir()).glob("gspo-agent-*")))
        return process.num_fds(), threading.active_count(), len(process.children(recursive=True)), folders

    sampling = Sampling(1.0, 1.0, 0, ANSWER, policy.chat.stop_ids)
    program = CommandAgent(f"{sys.executable} -c '{PROGRAM}'")
    lines = []
    for share, made in ((count - count // 10, FunctionAgent(agent)), (count // 10, program)):
        engine = TransformersEngine(policy, 64)
        with AgentHost(engine, policy.chat, made, Waits(concurrency=50)) as host:
            first = host.roll_out(starts(50), sampling, limits(policy, 1, 2.0), 0)[0]
            before = left()
            for _ in range(max(1, share // 50)):
                host.roll_out(starts(50), sampling, limits(policy, 1, 2.0), 0)
            time.sleep(5)  # the last that were late have ended
            lines.append((before, left()))
        reasons = sorted({str(t.excluded)[:60] for t in first})
        print(f"{max(1, share // 50) * 50} conversations; open files, threads, children, folders: before "
              f"{lines[-1][0]}, after {lines[-1][1]}; ends: {'; '.join(reasons)}")  # fmt: skip
    time.sleep(1)
    print(f"at the end {left()}")
    return all(now <= then for before, after in lines for then, now in zip(before, after, strict=True))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("tiny", "smollm2"), default="tiny")
    parser.add_argument("--conversations", type=int, default=256)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--leaks", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    policy = model(arguments.model)
    if arguments.leaks:
        return 0 if leaks(policy, arguments.leaks) else 1
    found = measured(policy, arguments.conversations, arguments.turns, arguments.repeats)
    return 0 if report(found) else 1


if __name__ == "__main__":
    sys.exit(main())
