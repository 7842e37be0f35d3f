"""An environment of the package verifiers with several turns: guess a number from hints."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import verifiers.v1 as vf

__all__ = ["GuessEnv", "GuessNumbers"]


class GuessData(vf.TaskData):
    number: int


class GuessState(vf.State):
    guesses: int = 0


class GuessTask(vf.Task[GuessData, GuessState]):
    @vf.metric
    async def guesses(self, trace: vf.Trace) -> float:
        return float(trace.state.guesses)


class GuessNumbers(vf.Taskset[GuessTask, vf.TasksetConfig]):
    INFINITE = True

    def load(self) -> Iterator[GuessTask]:
        for place in itertools.count():
            number = (37 * place + 11) % 100
            yield GuessTask(GuessData(prompt="Guess my number.", number=number), self.config.task)


class GuessConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()
    rounds: int = 3


class GuessEnv(vf.Env[GuessConfig]):
    """Talks with the player for some rounds; what is near the number earns more."""

    async def run(self, task: GuessTask, agents: vf.Agents) -> None:
        async with agents.player.interaction(task) as talk:
            said = await talk.turn()
            for _ in range(self.config.rounds - 1):
                talk.trace.state.guesses += 1
                guess = number_in(said.last_reply)
                said = await talk.turn(f"{guess} is too {'low' if guess < task.data.number else 'high'}.")
                if said.terminated:
                    break

    async def finalize(self, task: GuessTask, episode: vf.Episode) -> None:
        [trace] = episode.traces
        last = [node.message.content or "" for node in trace.nodes if node.message.role == "assistant"][-1]
        trace.record_reward("near", 1 / (1 + abs(number_in(last) - task.data.number)), 2.0)


def number_in(text: str) -> int:
    """The first number of up to three digits in a text; else how long it is."""
    found = re.search(r"\d{1,3}", text)
    return int(found.group()) if found else len(text)
