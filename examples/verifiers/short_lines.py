"""An environment of the package verifiers: a line of few words about a thing, which has to be named."""

from __future__ import annotations

from collections.abc import Iterator

import verifiers.v1 as vf

__all__ = ["ShortLines"]

THINGS = """river mountain candle bridge garden window forest letter market winter summer island
harbor ladder lantern mirror orchard pencil pillow planet rabbit ribbon saddle school shadow spider
spring stable station stone storm street tailor temple thunder ticket tiger tower tractor train
tunnel umbrella valley village violin wagon walnut water whale wheat wheel whistle willow wizard
wolf apple bakery barrel basket blanket bottle bucket button camel canyon carpet castle cherry
circus clock coffee copper cotton cradle desert dragon engine feather fiddle flower fountain glacier
guitar hammer helmet honey kettle"""


class LineData(vf.TaskData):
    thing: str


class LineTask(vf.Task[LineData]):
    @vf.reward(weight=0.5)
    async def named(self, trace: vf.Trace) -> float:
        """1 if the line has the thing in it."""
        return float(self.data.thing in answer(trace).lower())

    @vf.reward(weight=0.5)
    async def short(self, trace: vf.Trace) -> float:
        """1 for three to eight words; each word above costs a tenth."""
        words = len(answer(trace).split())
        return max(0.0, 1.0 - max(0, words - 8) / 10) if words >= 3 else 0.0

    @vf.metric
    async def words(self, trace: vf.Trace) -> float:
        return float(len(answer(trace).split()))


def answer(trace: vf.Trace) -> str:
    """What the model said."""
    said = [node.message.content or "" for node in trace.nodes if node.message.role == "assistant"]
    return said[-1] if said else ""


class LinesConfig(vf.TasksetConfig):
    words: int = 8
    """How many words the model is asked for at most."""


class ShortLines(vf.Taskset[LineTask, LinesConfig]):
    def load(self) -> Iterator[LineTask]:
        for thing in THINGS.split():
            asked = f"Write one line about a {thing}, in at most {self.config.words} words."
            yield LineTask(LineData(prompt=asked, thing=thing), self.config.task)
