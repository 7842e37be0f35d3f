"""Conversations as training sees them: spans, seeds, credit by turns, and environments that fail."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import pytest
import torch

from gspo_cli.config.choices import RewardErrors
from gspo_cli.errors import UserError
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.rewards.scoring import score_all
from gspo_cli.run.folder import RunFolder
from gspo_cli.tasks.base import Step
from gspo_cli.tasks.customer_service import oracle
from gspo_cli.tasks.customer_service.environment import ShopEnvironment
from gspo_cli.tasks.customer_service.task import CustomerService
from gspo_cli.training.collecting import Collector, ConversationRunner, ProblemOrder
from gspo_cli.training.credit import trainable, with_advantages
from gspo_cli.training.metrics import Clock
from gspo_cli.training.session import build_parts, run_training
from gspo_cli.types import Message, Outcome, RewardResult
from tests.support.command_line import gspo_train
from tests.support.reporters import Silent
from tests.support.shop_conversations import CANCEL, REFUND, play, problem_of
from tests.support.talking_runs import configured, trained
from tests.support.whole_runs import assert_same_run

ROOT = Path(__file__).parent.parent
FLUENT = [  # enough of a cold start that turns end by themselves and some are calls
    "model.cold_start.steps=40",
    "model.cold_start.batch_tokens=2000",
    "model.cold_start.learning_rate=0.01",
    "rollout.max_completion_length=24",
    "training.generations_per_iteration=16",
    "task.demonstrations_count=60",
]
TURNS = ["algorithm=gspo_token", "algorithm.credit=turn"]


class EvenTurns(RewardFunction):
    """Each turn earns the share of its sampled ids that are even: a small model, which solves nothing, has
    something to learn from this."""

    def compute_reward(self, trajectory, turn, context):
        turns = [
            [i for i, at in zip(trajectory.token_ids, trajectory.turn_ids, strict=True) if at == place]
            for place in range(trajectory.num_turns)
        ]
        earned = [sum(i % 2 == 0 for i in ids) / len(ids) / 8 for ids in turns]
        return RewardResult(sum(earned), turn_rewards=earned)


@dataclass(frozen=True)
class Setting:
    """A run's configuration and what it is built of."""

    config: object
    parts: object

    def collector(self, config=None, **changes):
        parts = self.parts
        config = config or replace(self.config, **changes)
        parts.engine.batch_size = config.rollout.batch_size
        order = ProblemOrder(parts.train_problems, config.seed)
        return Collector(config, ConversationRunner(config, parts.reward, parts.engine, parts.prompts), order)

    def samples(self, groups):
        algorithm = self.config.algorithm
        return with_advantages(trainable(groups, algorithm), groups, algorithm, limit=32)

    def sample(self, **changes):
        return self.collector(**changes).collect(0, 0, Clock()).groups


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """The small tiny model after its cold start, on customer_service with credit by turns."""
    config, yaml = configured(*FLUENT, *TURNS)
    folder = RunFolder(tmp_path_factory.mktemp("setting") / "run")
    folder.create(yaml)
    return Setting(config, build_parts(config, folder, Silent()))


@pytest.fixture(scope="module")
def groups(setting):
    """An iteration's conversations, judged."""
    return setting.sample()


def flat(groups):
    return [trajectory for group in groups for trajectory in group]


def spans(trajectory):
    """Runs of trained tokens, by turn."""
    places = enumerate(zip(trajectory.action_mask, trajectory.turn_ids, strict=True))
    runs = [(key, [place for place, _ in run]) for key, run in groupby(places, key=lambda entry: entry[1])]
    assert all(trained == (turn >= 0) for (trained, turn), _ in runs)
    return [(turn, places) for (trained, turn), places in runs if trained]


def heard_first(trajectory):
    return [m.content for m in trajectory.messages[:1]]


@pytest.mark.long
def test_the_conversations_are_worth_testing_with(groups):
    roles = {message.role for t in flat(groups) for message in t.messages}
    assert roles == {"user", "assistant", "tool"}
    assert len({t.num_turns for t in flat(groups)}) > 1
    assert {token in (1,) for t in flat(groups) for token in t.token_ids} == {True, False}


def test_every_turn_is_one_trained_span_that_says_what_the_agent_said(setting, groups):
    chat = setting.parts.policy.chat
    for t in flat(groups):
        said = [message.content for message in t.messages if message.role == "assistant"]
        assert [turn for turn, _ in spans(t)] == list(range(t.num_turns))
        assert [chat.text([t.token_ids[i] for i in places]) for _, places in spans(t)] == said
        assert len(t.progress) == len(t.turn_rewards) == len(said)


def test_what_the_agent_hears_is_masked(setting, groups):
    tokenizer = setting.parts.policy.tokenizer
    for t in flat(groups):
        heard = [ids for ids, spoken in zip(t.token_ids, t.action_mask, strict=True) if not spoken]
        text = tokenizer.decode(heard)
        # after the last turn nothing is heard any more
        last = max(i for i, message in enumerate(t.messages) if message.role == "assistant")
        assert all(message.content in text for message in t.messages[:last] if message.role != "assistant")
        assert not any(logprob for logprob, spoken in zip(t.sampling_logprobs, t.action_mask, strict=True)
                       if not spoken)  # fmt: skip


def test_the_ids_scored_are_the_ids_sampled(setting, groups):
    for t in flat(groups):
        ids, mask = torch.tensor([t.token_ids]), torch.tensor([t.action_mask])
        scored = setting.parts.policy(ids, mask, 1.0)[0][0]
        assert scored.tolist() == pytest.approx(t.sampling_logprobs, abs=1e-4)


@pytest.mark.parametrize("batch_size", [2, 7])
def test_the_same_seed_says_the_same_whatever_the_batch_size(setting, groups, batch_size):
    assert setting.config.rollout.batch_size == 256
    other = setting.sample(rollout=replace(setting.config.rollout, batch_size=batch_size))
    for one, two in zip(flat(groups), flat(other), strict=True):
        assert one.messages == two.messages
        assert one.token_ids == two.token_ids
        assert one.reward == two.reward


def test_another_seed_says_something_else(setting, groups):
    other = setting.sample(seed=1)
    assert [t.messages for t in flat(other)] != [t.messages for t in flat(groups)]


def test_answers_of_a_group_hear_the_same_opening(groups):
    assert all(heard_first(t) == heard_first(group[0]) for group in groups for t in group)
    assert len({t.token_ids[1] for t in flat(groups)} | {str(heard_first(group[0])) for group in groups}) > 1
    said = {t.messages[1].content for t in groups[0]}
    assert len(said) > 1  # and answer it differently


def test_a_turns_tokens_share_their_advantage_and_what_is_heard_has_none(setting, groups):
    scored = [[replace(t, turn_rewards=[0.0] * t.num_turns) for t in group] for group in groups]
    score_all(EvenTurns(), flat(scored), RewardErrors.stop)
    samples = setting.samples(scored)
    by_turn = []
    for sample in samples:
        t = sample.trajectory
        assert len(sample.advantages) == len(t.token_ids)
        assert not any(a for a, i in zip(sample.advantages, t.turn_ids, strict=True) if i < 0)
        for _, places in spans(t):
            [advantage] = {sample.advantages[place] for place in places}
            by_turn.append(advantage)
    assert len({round(advantage, 6) for advantage in by_turn}) > 4


def test_the_turns_rewards_add_up_to_the_whole(groups):
    for t in flat(groups):
        assert sum(t.turn_rewards) == pytest.approx(t.reward, abs=1e-12)


def test_every_turn_that_changes_how_things_stand_earns_something(setting):
    solved = play(problem_of(CANCEL, REFUND), oracle.answer)
    score_all(setting.parts.reward, [solved], RewardErrors.stop)
    assert sum(solved.turn_rewards) == pytest.approx(solved.reward, abs=1e-12)
    assert sum(reward > 0.1 for reward in solved.turn_rewards[:-1]) >= 3


def test_credit_by_turns_is_not_for_gspo():
    done = gspo_train("task=customer_service", "algorithm.credit=turn")
    assert (done.returncode, done.stdout) == (2, "")
    [sentence] = done.stderr.splitlines()
    assert sentence.startswith("gspo-train: algorithm.credit=turn: a sequence ratio takes one advantage")


class Faulty(ShopEnvironment):
    """A shop with a fault, from the agent's second turn on where it is one of steps."""

    def __init__(self, fault):
        self.fault, self.turns = fault, 0

    def reset(self, problem, seed):
        opening = super().reset(problem, seed)
        return RESETS[self.fault](opening) if self.fault in RESETS else opening

    def step(self, text):
        step = super().step(text)
        self.turns += 1
        return STEPS[self.fault](step) if self.fault in STEPS and self.turns == 2 else step

    def finish(self):
        outcome = super().finish()
        return FINISHES[self.fault](outcome) if self.fault in FINISHES else outcome


def crash(_):
    raise LookupError("the database is gone")


RESETS = {
    "reset raises": crash,
    "reset says nothing": lambda opening: (),
    "reset returns none": lambda opening: None,
    "reset returns words": lambda opening: "hello",
    "reset returns dicts": lambda opening: [{"role": "user", "content": "hello"}],
}
STEPS = {
    "step raises": crash,
    "step returns none": lambda step: None,
    "step returns words": lambda step: "hello",
    "step says no text": lambda step: replace(step, messages=(Message("user", None),)),
    "step has a speaker of its own": lambda step: replace(step, messages=(Message("bank", "hello"),)),
    "step returns one message": lambda step: replace(step, messages=Message("user", "hello")),
    "step rewards nan": lambda step: replace(step, reward=float("nan")),
    "step rewards words": lambda step: replace(step, reward="much"),
    "step stands at infinity": lambda step: replace(step, progress={"outcome": float("inf")}),
    "step stands nowhere": lambda step: replace(step, progress=None),
}
FINISHES = {
    "finish raises": crash,
    "finish returns none": lambda outcome: None,
    "finish counts nan": lambda outcome: Outcome(counts={"tool_calls": float("nan")}),
    "finish counts words": lambda outcome: Outcome(counts={"tool_calls": "many"}),
}


@dataclass
class FaultyService(CustomerService):
    """customer_service where the conversations about every `every`th problem have a fault."""

    fault: str = ""
    every: int = 1

    def demonstrations(self):
        return super().demonstrations() if self.fault == "" else replace(self, fault="").demonstrations()

    def environment(self):
        task = self

        class Sometimes(Faulty):
            def reset(self, problem, seed):
                self.fault = task.fault if int(problem.id.partition("-")[2]) % task.every == 0 else ""
                return super().reset(problem, seed)

        return Sometimes("")


def faulty(fault, every=1):
    target = f"task._target_={__name__}.FaultyService"
    return [target, f"+task.fault={fault}", f"+task.every={every}"]


@pytest.mark.parametrize("fault", [*RESETS, *STEPS, *FINISHES])
def test_an_environment_at_fault_leaves_its_conversation_out(setting, fault):
    config, _ = configured(*FLUENT, *TURNS, *faulty(fault))
    groups = setting.collector(config).collect(0, 0, Clock()).groups
    excluded = [t for t in flat(groups) if t.excluded is not None]
    assert excluded
    assert all(t.excluded.startswith("environment raised ") and t.reward is None for t in excluded)
    assert all(len(t.excluded) < 200 for t in excluded)
    for sample in setting.samples(groups):
        if sample.trajectory.excluded is not None:
            assert sample.num_actions == 0


@pytest.mark.long
@pytest.mark.parametrize("fault", ["reset raises", "step raises", "finish raises"])
def test_a_run_goes_on_without_them_and_counts_them(tmp_path, reporter, fault):
    folder = trained(tmp_path / "run", reporter, *faulty(fault, every=3), *TURNS)
    lines = folder.read("metrics.jsonl")
    assert [line["iteration"] for line in lines] == [1, 2]
    counted = [line["excluded"] for line in lines]
    assert sum(counted) < 16
    assert any("left out" in warning for warning in reporter.warnings) == any(counted)
    assert [line["excluded"] for line in folder.read("evals.jsonl")] == [1, 1]


def test_a_run_whose_every_conversation_fails_ends_and_has_no_score_of_0(tmp_path, reporter):
    sentence = "every conversation was excluded, the first because environment raised LookupError"
    with pytest.raises(UserError, match=sentence):
        trained(tmp_path / "run", reporter, *faulty("step raises", every=1), *TURNS)
    [record] = RunFolder(tmp_path / "run").read("evals.jsonl")
    assert (record["score"], record["reward"], record["excluded"]) == (None, None, 2)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["best_eval"]) == ("failed", None)


def test_a_failing_turn_has_no_advantage_of_its_own(setting, groups):
    # all others end after one turn, and one conversation fails in its second
    cut = [replace(t, turn_rewards=[t.reward], turn_ids=[min(i, 0) for i in t.turn_ids]) for t in groups[0]]
    failed = replace(groups[0][0], reward=None, excluded="environment raised x", turn_rewards=[0.0])
    samples = setting.samples([[failed, *cut[1:]]])
    assert len(samples[0].advantages) == len(failed.token_ids)


class Waiting(ShopEnvironment):
    """A shop behind a slow line: its step is a coroutine."""

    async def step(self, text):
        await asyncio.sleep(0)
        return super().step(text)


class Hanging(ShopEnvironment):
    """A shop that never answers."""

    async def step(self, text):
        await asyncio.Event().wait()
        return Step()


@dataclass
class WaitingService(CustomerService):
    def environment(self):
        return Waiting()


@dataclass
class HangingService(CustomerService):
    def environment(self):
        return Hanging()


def test_an_environment_that_is_awaited_is_the_same_conversation(setting, groups):
    config, _ = configured(*FLUENT, *TURNS, f"task._target_={__name__}.WaitingService")
    awaited = setting.collector(config).collect(0, 0, Clock()).groups
    assert [t.messages for t in flat(awaited)] == [t.messages for t in flat(groups)]
    assert [t.reward for t in flat(awaited)] == [t.reward for t in flat(groups)]


def test_an_environment_that_never_answers_has_its_time(setting):
    limits = ["rollout.environment_timeout=0.05", f"task._target_={__name__}.HangingService"]
    config, _ = configured(*FLUENT, *TURNS, *limits)
    found = flat(setting.collector(config).collect(0, 0, Clock()).groups)
    reason = "environment raised TookTooLong: took longer than 0.05 s"
    assert [t.excluded for t in found] == [reason] * len(found)


class Stopping(Silent):
    """Ends the run at once in its third iteration, as a second Ctrl-C does."""

    def iteration(self, metrics):
        if metrics["iteration"] == 3:
            raise KeyboardInterrupt


@pytest.mark.long
def test_a_run_that_was_stopped_goes_on_to_the_bit(tmp_path, reporter):
    long = [*TURNS, "training.num_outer_iterations=4", "checkpoint.every=2", "evaluation.every=2"]
    long.append(f"reward={__name__}.EvenTurns")
    whole = trained(tmp_path / "whole", reporter, *long)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", Stopping(), *long)
    folder = RunFolder(tmp_path / "run")
    assert [line["iteration"] for line in folder.read("metrics.jsonl")] == [1, 2, 3]
    run_training(configured(*long)[0], folder, reporter)
    assert_same_run(folder.path, whole.path)
    assert any(line["grad_norm"] > 0 for line in whole.read("metrics.jsonl"))
