"""Progress inside rollout and evaluation: finished conversations and tokens a second, without a change to
what is sampled."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from gspo_cli.console.plain import PlainConsole
from gspo_cli.console.reporting import ShownSample
from gspo_cli.console.samples import samples_table
from gspo_cli.rollout import progress as rollout_progress
from gspo_cli.rollout.conversations import roll_out
from gspo_cli.rollout.progress import RolloutProgress
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.rollout.transformers_engine import TransformersEngine
from gspo_cli.run.folder import RunFolder
from gspo_cli.tasks.base import SingleTurn
from gspo_cli.training.session import run_training
from tests.test_rollout import LIMITS, Echo, sampling, starts


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_short_rollout_reports_nothing_and_a_long_one_at_most_twice_a_second():
    told, clock = [], Clock()
    progress = RolloutProgress(lambda *report: told.append(report), clock=clock)
    progress.start(40)
    for step in range(50):  # 0.1 to 5 seconds
        clock.now = (step + 1) / 10
        progress.update(step, 100 * (step + 1))
    assert [done for done, _, _ in told] == [29, 34, 39, 44, 49]
    assert {total for _, total, _ in told} == {40}
    assert [rate for _, _, rate in told] == pytest.approx([1000.0] * 5)
    progress.end(6000)
    assert told[-1] == (40, 40, pytest.approx(1200.0))

    short, told = RolloutProgress(lambda *report: told.append(report), clock=clock), []
    short.start(3)
    short.update(1, 10)
    short.end(20)
    assert told == []


def rolled(policy, environment, told=None, batch_size=4):
    """Trajectories, and what was reported of each step: (finished, tokens)."""
    clock = Clock()

    def report(finished, total, rate):
        told.append((finished, total, round(rate * clock.now)))

    def tick():
        clock.now += 1.0
        return clock.now

    progress = None if told is None else RolloutProgress(report, after=0.0, every=0.0, clock=tick)
    prompts, chosen = Prompts(policy.chat), sampling(policy.chat, 8)
    engine = TransformersEngine(policy, batch_size)
    return roll_out(engine, prompts, environment, starts(), chosen, LIMITS, 3, progress)[0]


@pytest.mark.parametrize("environment", [SingleTurn, Echo])
def test_conversations_and_tokens_are_counted_and_nothing_else_changes(load, environment):
    policy, told = load("qwen3"), []
    found = rolled(policy, environment, told)
    assert [t.token_ids for t in found] == [t.token_ids for t in rolled(policy, environment)]
    finished = [done for done, _, _ in told]
    assert finished == sorted(finished)
    assert finished[-1] == 10
    assert {total for _, total, _ in told} == {10}
    if environment is SingleTurn:
        assert len(set(finished)) > 4, "answers end one after the other"


@pytest.fixture
def at_once(monkeypatch):
    """Reports from the first step on."""
    monkeypatch.setattr(
        RolloutProgress.__init__, "__defaults__", (0.0, 0.0, rollout_progress.time.perf_counter)
    )


class Noted:
    """Stage events of a run."""

    def __init__(self):
        self.stages = []

    def stage(self, name, done, total, note=""):
        self.stages.append((name, done, total, note))

    def __getattr__(self, name):
        return lambda *arguments: None


def test_rollouts_evaluations_and_the_scoring_of_a_cold_start_show_it(configure, tmp_path, at_once):
    config, yaml = configure(
        *("training.num_outer_iterations=1", "model.cold_start.steps=20", "model.cold_start.stop_score=1.0"),
        "model.cold_start.cache=false",
    )
    folder, seen = RunFolder(tmp_path / "run"), Noted()
    folder.create(yaml)
    run_training(config, folder, seen)
    by_name = {name: [event[1:] for event in seen.stages if event[0] == name] for name, *_ in seen.stages}
    assert {"cold start", "scoring", "evaluation", "rollout"} == set(by_name)
    assert {total for _, total, _ in by_name["rollout"]} == {16}
    assert by_name["rollout"][-1][0] == 16
    assert {total for _, total, _ in by_name["evaluation"]} == {12}  # 4 problems, one greedy and 2 sampled
    assert by_name["evaluation"][-1] == (12, 12, "")
    for name in ("scoring", "rollout", "evaluation"):
        assert any(note.endswith(" tokens/s") for _, _, note in by_name[name])
    assert all(done < total for done, total, _ in by_name["scoring"])


def test_lines_come_at_most_every_ten_seconds_and_half_a_minute_is_the_longest_silence():
    clock, file = Clock(), io.StringIO()
    console = PlainConsole(file, clock)
    for second in range(3, 100):  # nothing finishes before the last second
        clock.now = float(second)
        console.stage("rollout", 0 if second < 99 else 64, 64, f"{second} tokens/s")
    assert file.getvalue().splitlines() == [
        "rollout     0/64  3 tokens/s",
        "rollout     0/64  33 tokens/s",
        "rollout     0/64  63 tokens/s",
        "rollout     0/64  93 tokens/s",
    ]
    for done in range(64):  # another one, a conversation a second
        clock.now += 1.0
        console.stage("rollout", done, 64, "9 tokens/s")
    assert len(file.getvalue().splitlines()) == 4 + 6


def test_stages_that_alternate_do_not_print_a_line_each_time():
    clock, file = Clock(), io.StringIO()
    console = PlainConsole(file, clock)
    for step in range(30):
        clock.now += 1.0
        console.stage("cold start", step, 1000)
        console.stage("scoring", step % 10, 100)
    assert len(file.getvalue().splitlines()) <= 2 + 1


def test_examples_in_a_prompt_are_not_shown_as_turns_and_not_as_the_answer():
    turns = [("user", "1 + 1 ="), ("assistant", "2"), ("user", "3 + 4 ="), ("assistant", "7")]
    messages = [{"role": role, "content": content} for role, content in turns]

    def shown(messages, turns):
        page = Console(file=io.StringIO(), width=80, color_system=None)
        page.print(samples_table([ShownSample(0, "p", messages, "7", 1.0, turns=turns)], 80))
        return [re.split(r"\s{2,}", line.strip()) for line in page.file.getvalue().splitlines()[1:]]

    assert shown(messages, 1) == [["3 + 4 =", "7", "1.000"], ["p", "expected 7"]]
    assert shown(messages, 2)[1][0] == "p · 2 turns"
    assert shown(messages[:3], 0)[0] == ["3 + 4 =", "1.000"]
