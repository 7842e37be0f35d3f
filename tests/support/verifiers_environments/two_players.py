"""An environment of the package verifiers in which the policy would play both sides."""

from __future__ import annotations

import verifiers.v1 as vf
from echo_words import EchoWords as Words

__all__ = ["TwoPlayers", "TwoWords"]


class TwoWords(Words):
    pass


class TwoConfig(vf.EnvConfig):
    first: vf.AgentConfig = vf.AgentConfig()
    second: vf.AgentConfig = vf.AgentConfig()


class TwoPlayers(vf.Env[TwoConfig]):
    async def run(self, task, agents):
        await agents.first.run(task)
        await agents.second.run(task)
