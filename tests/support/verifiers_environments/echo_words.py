"""An environment of the package verifiers with one turn: repeat a word."""

from __future__ import annotations

import verifiers.v1 as vf

__all__ = ["EchoWords"]

WORDS = {"train": ("river", "stone", "cloud", "maple", "ember", "frost"), "test": ("ocean", "river")}


class EchoData(vf.TaskData):
    word: str


class EchoTask(vf.Task[EchoData]):
    @vf.reward(weight=0.5)
    async def overlap(self, trace: vf.Trace) -> float:
        """The part of the answer's letters that the word has."""
        text = answer(trace)
        return sum(letter in self.data.word for letter in text) / max(1, len(text))

    @vf.reward(weight=0.25)
    async def length(self, trace: vf.Trace) -> dict[str, float]:
        """Two scores of one function: about as long as the word, and not empty."""
        text = answer(trace)
        return {"long": min(1.0, len(text) / 20), "said": float(text != "")}

    @vf.metric
    async def letters(self, trace: vf.Trace) -> float:
        if self.data.word == "maple":
            raise ValueError("maple cannot be measured")
        return float(len(answer(trace)))


def answer(trace: vf.Trace) -> str:
    said = [node.message.content or "" for node in trace.nodes if node.message.role == "assistant"]
    return said[-1] if said else ""


class EchoConfig(vf.TasksetConfig):
    split: str = "train"


class EchoWords(vf.Taskset[EchoTask, EchoConfig]):
    def load(self) -> list[EchoTask]:
        words = WORDS[self.config.split]
        return [
            EchoTask(EchoData(prompt=f"Say {word}.", system_prompt="Be brief.", word=word), self.config.task)
            for word in words
        ]
