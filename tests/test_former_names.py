"""Modules that users wrote before names moved keep working."""

from __future__ import annotations

import sys

import pytest

from gspo_cli.rollout.conversations import Limits, Start, roll_out
from gspo_cli.rollout.engine import Sampling
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.rollout.transformers_engine import TransformersEngine
from gspo_cli.tasks.base import Step as PresentStep
from gspo_cli.tasks.base import SystemPrompt
from gspo_cli.tool_calls import Parameter, Tool, read_turn, write_line

MODULE = """
from dataclasses import dataclass, replace
from gspo_cli.environments.base import SingleTurn, Step, World
from gspo_cli.tasks.base import SystemPrompt
from gspo_cli.tasks.talking import TalkingTask, converse
from gspo_cli.types import Message, Outcome, Problem


class Counting:
    single_turn = False

    def reset(self, problem, seed):
        self.turns = 0
        return problem.messages

    def step(self, text):
        self.turns += 1
        step = Step((Message("user", "more"),), self.turns == 2, 0.5, standing={"outcome": self.turns / 2})
        return replace(step, standing=step.standing)

    def finish(self):
        return Outcome(solved=True)


@dataclass
class Counts(TalkingTask):
    def briefing(self):
        return SystemPrompt("count", ())

    def train_problems(self):
        return [Problem("one", (Message("user", "hello"),))]

    def environment(self):
        return Counting()

    def agent(self, messages):
        return str(len(messages))
"""


@pytest.fixture
def counts(tmp_path, monkeypatch):
    (tmp_path / "counts_of_old.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import counts_of_old

    yield counts_of_old.Counts("counts", "mine", "generated")
    del sys.modules["counts_of_old"]


def test_a_task_with_former_names_converses_and_keeps_its_system_prompt(counts):
    assert counts.system_prompt_and_tools() == SystemPrompt("count", ())
    [demonstration] = counts.demonstrations()
    assert [message.content for message in demonstration.messages] == ["hello", "1", "more", "3"]


def test_progress_is_found_under_its_former_names(counts, load):
    policy = load("qwen3")
    sampling, limits = Sampling(1.0, 1.0, 0, 4, policy.chat.stop_ids), Limits(4, 200, 512)
    starts = [Start(problem, (0,), 0) for problem in counts.train_problems()]
    engine, prompts = TransformersEngine(policy, 1), Prompts(policy.chat, counts.system_prompt_and_tools())
    [trajectory], _ = roll_out(engine, prompts, counts.environment, starts, sampling, limits, 0)
    assert trajectory.excluded is None
    assert trajectory.standings == trajectory.progress == [{"outcome": 0.5}, {"outcome": 1.0}]
    assert PresentStep(progress={"outcome": 1.0}).standing == {"outcome": 1.0}


def test_tools_are_read_by_their_former_module():
    tools = {"look": Tool("look", "Look it up.", (Parameter("name", "a name"),))}
    assert read_turn(write_line("look", "a b"), tools).arguments == {"name": "a b"}
