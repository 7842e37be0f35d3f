"""Rollouts: sampled log-probabilities are the teacher-forced ones, draws belong to the row, turns resume
their cache."""

from __future__ import annotations

import psutil
import pytest
import torch

from gspo_cli.config.choices import Precision
from gspo_cli.config.schema import HardwareConfig
from gspo_cli.policy.chat import ChatFormat
from gspo_cli.rollout.conversations import Limits, Start, roll_out
from gspo_cli.rollout.engine import Request, Sampling, finish, generate
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.rollout.transformers_engine import TransformersEngine
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.identity import prepare, saved_settings
from gspo_cli.tasks.base import SingleTurn, Step
from gspo_cli.training.free_memory import default_cache_gb, free_bytes
from gspo_cli.training.session import build_parts
from gspo_cli.types import FinishReason, Message, Outcome, Problem

NAMES = ["qwen3", "qwen3_moe", "gpt2"]
LIMITS = Limits(max_turns=4, max_prompt_length=200, max_positions=512)


def sampling(chat: ChatFormat, new_tokens=24, **settings) -> Sampling:
    # random weights hardly ever draw the end token: a few more stop ids make rows finish at all lengths
    return Sampling(
        **({"temperature": 1.0, "top_p": 1.0, "top_k": 0} | settings),
        max_new_tokens=new_tokens,
        stop_ids=chat.stop_ids | set(range(40, 56)),
    )


def requests(chat: ChatFormat, groups=6, size=3) -> list[Request]:
    prompts = [chat.prompt_ids((Message("user", "7" * (3 * i + 1) + "+1="),)) for i in range(groups)]
    return [Request(prompts[i], 100 * i + g, 100 * i + g) for i in range(groups) for g in range(size)]


def teacher_forced(policy, request, completion, temperature=1.0):
    ids = torch.tensor([request.prompt_ids + completion.token_ids])
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, len(request.prompt_ids) :] = True
    return policy(ids, mask, temperature)[0][mask].tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("use_lora", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_sampled_logprobs_are_the_teacher_forced_ones(load, name, use_lora, temperature):
    policy = load(name, use_lora=use_lora)
    asked = requests(policy.chat)
    found = generate(
        TransformersEngine(policy, 7), asked, sampling(policy.chat, temperature=temperature), False
    )
    assert {len(c.token_ids) for c in found} != {24}  # some rows finished early
    for request, completion in zip(asked, found, strict=True):
        expected = teacher_forced(policy, request, completion, temperature)
        assert completion.logprobs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_full_weights_under_bf16_sample_from_fp32_logits(load, name):
    policy = load(name, HardwareConfig(precision=Precision.bf16))
    asked = requests(policy.chat)
    engine = TransformersEngine(policy, 256)
    with policy.autocasting():
        assert policy.next_token_logits(torch.zeros(1, 32, dtype=torch.bfloat16), 1.0).dtype == torch.float32
    for request, completion in zip(asked, generate(engine, asked, sampling(policy.chat), False), strict=True):
        # bf16 hidden states differ between one token at a time and all at once; fp32 logits keep it small
        expected = teacher_forced(policy, request, completion)
        assert completion.logprobs == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_request_gives_the_same_tokens_in_any_batch(load, name):
    policy = load(name)
    asked = requests(policy.chat)
    together = generate(TransformersEngine(policy, 256), asked, sampling(policy.chat), False)
    alone = [generate(TransformersEngine(policy, 1), [r], sampling(policy.chat), False)[0] for r in asked]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert [c.finish_reason for c in together] == [c.finish_reason for c in alone]


def test_answers_end_with_their_stop_token_or_at_the_limit(load):
    policy = load("qwen3")
    chosen = sampling(policy.chat)
    for completion in generate(TransformersEngine(policy, 256), requests(policy.chat), chosen, False):
        *before, last = completion.token_ids
        assert not set(before) & chosen.stop_ids
        assert (last in chosen.stop_ids) == (completion.finish_reason is FinishReason.stop)
        assert completion.finish_reason is FinishReason.stop or len(completion.token_ids) == 24


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing_does_not_change_what_is_generated(load, name):
    # in train mode it would drop the cache and the text would be wrong from the second token on
    plain, checkpointed = load(name), load(name, gradient_checkpointing=True)
    with checkpointed.updating():
        ids = torch.tensor([[3, 4, 5]])
        checkpointed(ids, torch.ones_like(ids, dtype=torch.bool), 1.0)[0].sum().backward()
    results = [
        generate(TransformersEngine(p, 256), requests(p.chat), sampling(p.chat), False)
        for p in (plain, checkpointed)
    ]
    assert [c.token_ids for c in results[0]] == [c.token_ids for c in results[1]]


class Echo:
    """Asks `turns` more questions that contain what the agent said."""

    single_turn = False

    def __init__(self, turns=3):
        self.turns = turns

    def reset(self, problem, seed):
        self.left = self.turns
        return problem.messages

    def step(self, text):
        self.left -= 1
        heard = Message("user", f"you said {text[:3]!r}, again" + "!" * self.left)
        progress = {"said": 1 - self.left / self.turns}
        return Step((heard,), done=self.left == 0, reward=float(self.left), progress=progress)

    def finish(self):
        return Outcome(self.left == 0, {"left": self.left}, {"turns": self.turns})


def starts(count=5, size=2):
    problems = [Problem(f"p{i}", (Message("user", "7" * (i + 1) + "+1="),)) for i in range(count)]
    return [Start(p, (0, i, g), 0) for i, p in enumerate(problems) for g in range(size)]


class Forgetful(TransformersEngine):
    """Never resumes a cache."""

    def submit(self, request, chosen, keep_cache):
        super().submit(request, chosen, keep_cache=False)


@pytest.mark.parametrize("name", NAMES)
def test_turns_resume_their_cache_and_say_the_same(load, name):
    policy = load(name)
    engines = [TransformersEngine(policy, 4), Forgetful(policy, 4)]
    results = [
        roll_out(e, Prompts(policy.chat), Echo, starts(), sampling(policy.chat, 8), LIMITS, seed=3)[0]
        for e in engines
    ]
    assert [t.token_ids for t in results[0]] == [t.token_ids for t in results[1]]
    assert not engines[0]._kept


class Watched(TransformersEngine):
    """Remembers how many bytes it kept, the tokens of each pass, and how many rows were drawn for at once."""

    def __init__(self, *arguments, **more):
        self.kept, self.passes, self.drawn = [], [], []
        super().__init__(*arguments, **more)

        run, add = self._forward._run, self._kept.add
        self._forward._run = lambda tokens, *rest: self.passes.append(tokens.numel()) or run(tokens, *rest)
        self._kept.add = lambda *row: add(*row) or self.kept.append(self._kept.nbytes)

    def _draw(self, flight):
        self.drawn.append(len(flight.rows))
        return super()._draw(flight)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_does_not_depend_on_the_room_for_caches(load, name):
    policy = load(name)
    position = TransformersEngine(policy, 4)._forward.position_bytes
    results, kept = [], []
    for room in (None, 400 * position, 130 * position, position):
        engine = Watched(policy, 8, room)
        asked = (Prompts(policy.chat), Echo, starts(), sampling(policy.chat, 8), LIMITS)
        found, _ = roll_out(engine, *asked, seed=3)
        results.append(found)
        kept.append(max(engine.kept))
        assert room is None or kept[-1] <= room
    for result in results[1:]:
        assert [t.token_ids for t in result] == [t.token_ids for t in results[0]]
        for one, other in zip(result, results[0], strict=True):
            assert one.sampling_logprobs == pytest.approx(other.sampling_logprobs, abs=1e-5)
    assert kept[0] > kept[2] > kept[3] == 0


def test_the_room_for_caches_is_that_of_the_device_and_is_saved(configure, reporter, tmp_path, monkeypatch):
    free = psutil.virtual_memory().available
    assert 0 < free_bytes(torch.device("cpu")) <= 1.1 * free
    (tmp_path / "memory.max").write_text(str(9 * 2**30))
    (tmp_path / "memory.current").write_text(str(8 * 2**30))
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {2**30}\n")
    monkeypatch.setattr("gspo_cli.training.free_memory.CONTROL_GROUPS", tmp_path)
    assert free_bytes(torch.device("cpu")) <= 2 * 2**30
    config, yaml = configure("training.num_outer_iterations=1")
    folder = RunFolder(tmp_path / "run")
    folder.create(yaml)
    parts = build_parts(config, folder, reporter)
    assert saved_settings(folder.path)["rollout"]["cache_gb"] == config.rollout.cache_gb == 1.0
    assert parts.engine.cache_bytes == 2**29
    prepare(folder.path, yaml)  # as gspo-compare does before it goes on
    assert saved_settings(folder.path)["rollout"]["cache_gb"] == 1.0


def test_the_room_for_caches_does_not_depend_on_what_else_runs(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    old = tmp_path / "memory"  # files of version 1
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text(str(8 * 2**30))
    monkeypatch.setattr("gspo_cli.training.free_memory.CONTROL_GROUPS", tmp_path)
    rooms = []
    for used, droppable in ((1, 0), (5, 2), (7, 0)):
        (old / "memory.usage_in_bytes").write_text(str(used * 2**30))
        (old / "memory.stat").write_text(f"total_inactive_file {droppable * 2**30}\n")
        rooms.append(default_cache_gb(cpu, 1))
    assert rooms == [2.0, 2.0, 0.5]
    assert default_cache_gb(cpu, 2) == 0.2
    (old / "memory.limit_in_bytes").write_text("9223372036854771712")
    assert default_cache_gb(cpu, 1) == pytest.approx(psutil.virtual_memory().total / 2**32, abs=0.1)


def test_a_kept_cache_that_was_dropped_is_computed_again(load):
    policy = load("qwen3")
    engine = TransformersEngine(policy, 8, 60 * TransformersEngine(policy, 4)._forward.position_bytes)
    asked = (Prompts(policy.chat), Echo, starts(), sampling(policy.chat, 8), LIMITS)
    bounded, _ = roll_out(engine, *asked, seed=3)
    free, _ = roll_out(TransformersEngine(policy, 8), *asked, seed=3)
    assert [t.token_ids for t in bounded] == [t.token_ids for t in free]


def test_what_prompts_begin_with_is_prefilled_and_kept_once(load):
    policy = load("qwen3")
    shared, own = list(range(5, 45)), [[1, 2, 3], [4, 2], [6]]
    requests = [Request(shared + ids, seed=i, conversation=i) for i, ids in enumerate(own)]
    engine = Watched(policy, 8)
    with engine.session():
        finish(engine, requests, sampling(policy.chat, 1), keep_cache=True)
        assert engine.passes == [len(shared), 9]
        assert engine.step() == {}  # what has ended leaves the batch
        row = engine._forward.position_bytes
        assert engine.kept[-1] == (len(shared) + sum(map(len, own))) * row
    assert not engine._kept


@pytest.mark.parametrize("name", NAMES)
def test_k_turns_have_exactly_k_trained_spans_and_the_ids_scored_are_the_ids_sampled(load, name):
    policy = load(name)
    found = roll_out(
        TransformersEngine(policy, 256),
        Prompts(policy.chat),
        Echo,
        starts(),
        sampling(policy.chat, 8),
        LIMITS,
        seed=3,
    )[0]
    for t in found:
        assert len(t.token_ids) == len(t.action_mask) == len(t.sampling_logprobs) == len(t.turn_ids)
        assert t.num_turns == 3
        assert t.turn_rewards == [2.0, 1.0, 0.0]
        spans = [a for a, b in zip([-1, *t.turn_ids], t.turn_ids, strict=False) if a != b and b >= 0]
        assert len(spans) == 3
        assert [turn >= 0 for turn in t.turn_ids] == t.action_mask
        ids, mask = torch.tensor([t.token_ids]), torch.tensor([t.action_mask])
        sampled = [
            value for value, trained in zip(t.sampling_logprobs, t.action_mask, strict=True) if trained
        ]
        assert policy(ids, mask, 1.0)[0][mask].tolist() == pytest.approx(sampled, abs=1e-4)


def test_single_turn_environments_keep_no_cache(load):
    kept = []

    class Watched(TransformersEngine):
        def submit(self, request, chosen, keep_cache):
            kept.append(keep_cache)
            super().submit(request, chosen, keep_cache)

    policy = load("qwen3")
    for environment in (SingleTurn, Echo):
        roll_out(
            Watched(policy, 8),
            Prompts(policy.chat),
            environment,
            starts(2),
            sampling(policy.chat, 4),
            LIMITS,
            seed=0,
        )
    assert kept == [False] * 4 + [True] * 12


def test_a_crashing_environment_is_data(load):
    class Crashing(Echo):
        def step(self, text):
            if self.left == 2:
                raise RuntimeError("lost connection")
            return super().step(text)

    policy = load("qwen3")
    found = roll_out(
        TransformersEngine(policy, 256),
        Prompts(policy.chat),
        Crashing,
        starts(2),
        sampling(policy.chat, 4),
        LIMITS,
        seed=0,
    )[0]
    assert {t.excluded for t in found} == {"environment raised RuntimeError: lost connection"}
    assert all(t.reward is None for t in found)


def test_a_prompt_over_its_cap_is_left_out_with_the_reason(load):
    policy = load("qwen3")
    limits = Limits(1, 8, 512)
    found = roll_out(
        TransformersEngine(policy, 4),
        Prompts(policy.chat),
        Echo,
        starts(8, 1),
        sampling(policy.chat, 4),
        limits,
        seed=0,
    )[0]
    excluded = [t.excluded for t in found if t.excluded]
    assert 0 < len(excluded) < len(found)
    assert "rollout.max_prompt_length" in excluded[0]


def test_conversations_end_where_the_model_has_no_room_for_a_turn(load):
    policy = load("qwen3")
    limits = Limits(max_turns=50, max_prompt_length=100, max_positions=60)
    found = roll_out(
        TransformersEngine(policy, 4),
        Prompts(policy.chat),
        lambda: Echo(50),
        starts(2),
        sampling(policy.chat, 8),
        limits,
        0,
    )[0]
    assert all(len(t.token_ids) <= 60 and t.finish_reason is FinishReason.length for t in found)
