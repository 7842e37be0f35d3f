"""An environment of the package verifiers with a tool: how heavy is a thing?"""

from __future__ import annotations

import verifiers.v1 as vf

__all__ = ["WeighThings"]

WEIGHTS = {"anvil": 50, "feather": 0}


class ScalesConfig(vf.ToolsetConfig):
    pass


class Scales(vf.Toolset[ScalesConfig]):
    TOOL_PREFIX = "scales"

    @vf.tool
    async def weigh(self, thing: str) -> str:
        """Weigh a thing."""
        return f"{thing}: {WEIGHTS[thing]} kg"


class WeighData(vf.TaskData):
    thing: str


class WeighTask(vf.Task[WeighData]):
    @classmethod
    def toolsets(cls, config: vf.TaskConfig) -> list[vf.Toolset]:
        return [Scales(ScalesConfig())]

    @vf.intercept
    async def guard(self, request: vf.Request) -> vf.Request | None:
        """Feathers may not be weighed."""
        *before, last = request.messages
        calls = [call for message in before for call in getattr(message, "tool_calls", None) or ()]
        asked = next((call for call in calls if call.id == getattr(last, "tool_call_id", None)), None)
        if asked is None or "feather" not in asked.arguments:
            return None
        denied = last.model_copy(update={"content": "Feathers may not be weighed."})
        return request.model_copy(update={"messages": [*before, denied]})

    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        said = [node.message.content or "" for node in trace.nodes if node.message.role == "assistant"]
        return float(f"{WEIGHTS[self.data.thing]} kg" in said[-1])


class WeighThings(vf.Taskset[WeighTask, vf.TasksetConfig]):
    def load(self) -> list[WeighTask]:
        return [
            WeighTask(WeighData(prompt=f"How heavy is the {thing}?", thing=thing), self.config.task)
            for thing in WEIGHTS
        ]


if __name__ == "__main__":
    Scales.run()
