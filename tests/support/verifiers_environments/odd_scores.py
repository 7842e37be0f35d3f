"""An environment of the package verifiers whose scores are unusual in a way that its settings choose."""

from __future__ import annotations

import asyncio

import verifiers.v1 as vf

__all__ = ["OddEnv", "OddScores"]


class OddTaskConfig(vf.TaskConfig):
    kind: str = ""


class OddTask(vf.Task[vf.TaskData, vf.State, OddTaskConfig]):
    @vf.reward
    async def right(self, trace: vf.Trace) -> dict[str, float] | float:
        if self.config.kind == "none":
            return {}
        if self.config.kind == "slow":
            await asyncio.sleep(60)
        return float("nan") if self.config.kind == "nan" else 0.5

    @vf.metric
    async def both(self, trace: vf.Trace) -> dict[str, float]:
        """A metric by the name of a reward."""
        return {"right": 3.0}


class OddConfig(vf.TasksetConfig):
    task: OddTaskConfig = OddTaskConfig()


class OddScores(vf.Taskset[OddTask, OddConfig]):
    def load(self) -> list[OddTask]:
        return [OddTask(vf.TaskData(prompt=f"Say {n}."), self.config.task) for n in range(3)]


class OddEnvConfig(vf.EnvConfig):
    agent: vf.AgentConfig = vf.AgentConfig()
    trained: bool = True


class OddEnv(vf.Env[OddEnvConfig]):
    async def setup(self, agents: vf.Agents) -> None:
        agents.agent.trainable = self.config.trained

    async def run(self, task: OddTask, agents: vf.Agents) -> None:
        await agents.agent.run(task)
