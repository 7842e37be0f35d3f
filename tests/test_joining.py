"""Requests join those in flight, leave them, and are cancelled; what is drawn does not depend on it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import ClassVar

import pytest

from gspo_cli.rollout.conversations import roll_out
from gspo_cli.rollout.engine import Request, generate
from gspo_cli.rollout.kv_cache import NO_PREFIX, KeptRow, KeptRows
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.rollout.transformers_engine import TransformersEngine
from gspo_cli.types import FinishReason
from tests.test_rollout import LIMITS, NAMES, Echo, Watched, requests, sampling, starts


@pytest.mark.parametrize("name", NAMES)
def test_requests_join_those_in_flight_and_draw_what_they_draw_alone(load, name):
    policy = load(name)
    asked, chosen = requests(policy.chat), sampling(policy.chat)
    alone = [generate(TransformersEngine(policy, 1), [r], chosen)[0] for r in asked]
    engine, found = Watched(policy, 256), {}
    with engine.session():
        for place in range(0, len(asked), 6):
            for request in asked[place : place + 6]:
                engine.submit(request, chosen, keep_cache=False)
            for _ in range(4):
                found |= engine.step()
        while len(found) < len(asked):
            found |= engine.step()
    assert max(engine.drawn) > 6, "later requests decode beside earlier ones"
    assert [found[r.conversation].token_ids for r in asked] == [c.token_ids for c in alone]
    for request, completion in zip(asked, alone, strict=True):
        assert found[request.conversation].logprobs == pytest.approx(completion.logprobs, abs=1e-4)
    assert engine.sampled == sum(len(completion.token_ids) for completion in alone)


def test_a_full_batch_admits_the_next_as_soon_as_a_fifth_has_ended(load):
    policy = load("qwen3")
    asked, chosen = requests(policy.chat, size=6), sampling(policy.chat)
    engine = Watched(policy, 10)
    found = generate(engine, asked, chosen)
    by_batch = sum(max(len(c.token_ids) for c in found[i : i + 10]) for i in range(0, len(asked), 10))
    assert len(engine.drawn) < by_batch
    assert max(engine.drawn) == 10


def test_a_cancelled_request_leaves_the_others_as_they_are(load):
    policy = load("qwen3")
    asked, chosen = requests(policy.chat), sampling(policy.chat)
    whole = generate(TransformersEngine(policy, 256), asked, chosen)
    engine, found = TransformersEngine(policy, 256), {}
    later = next(r for r, c in zip(asked[1:], whole[1:], strict=True) if len(c.token_ids) > 1)
    gone = {asked[0].conversation, later.conversation}
    with engine.session():
        for request in asked:
            engine.submit(request, chosen, keep_cache=True)
        with pytest.raises(ValueError, match="is in flight"):
            engine.submit(asked[3], chosen, keep_cache=True)
        with pytest.raises(ValueError, match="other stop ids"):
            engine.submit(Request([3], 0, 99_999), replace(chosen, stop_ids=frozenset({1})), keep_cache=True)
        engine.cancel(asked[0].conversation)  # waits
        found |= engine.step()
        engine.cancel(later.conversation)  # is in flight
        while len(found) < len(asked) - 2:
            found |= engine.step()
        assert not gone & set(found)
        for request in asked:
            engine.cancel(request.conversation)
        assert engine._flight is None
        assert not engine._kept
        assert engine.step() == {}
    kept = [r for r in asked if r.conversation not in gone]
    expected = [c.token_ids for r, c in zip(asked, whole, strict=True) if r in kept]
    assert [found[r.conversation].token_ids for r in kept] == expected


def test_after_a_session_that_broke_off_nothing_is_in_flight(load):
    policy = load("qwen3")
    engine = TransformersEngine(policy, 4)

    class Interrupting(Echo):
        def step(self, text):
            raise KeyboardInterrupt

    asked = (sampling(policy.chat, 8), LIMITS, 3)
    with pytest.raises(KeyboardInterrupt):
        roll_out(engine, Prompts(policy.chat), Interrupting, starts(), *asked)
    again, _ = roll_out(engine, Prompts(policy.chat), Echo, starts(), *asked)
    fresh, _ = roll_out(TransformersEngine(policy, 4), Prompts(policy.chat), Echo, starts(), *asked)
    assert [t.token_ids for t in again] == [t.token_ids for t in fresh]


class Slow(Echo):
    """Its user types: every step is awaited. Notes who steps and who is read."""

    noted: ClassVar[list[str]] = []

    def step(self, text):
        self.noted.append("asked")
        return self.answer(text)

    async def answer(self, text):
        self.noted.append("answered")
        return super().step(text)


def test_turns_go_on_while_others_generate_but_not_past_one_that_waits(load):
    policy = load("qwen3")
    engine = Watched(policy, 256)
    asked = (starts(), sampling(policy.chat, 16), LIMITS, 3)
    found, _ = roll_out(engine, Prompts(policy.chat), Echo, *asked)
    lengths = [[t.turn_ids.count(turn) for turn in range(3)] for t in found]
    in_step = sum(max(turn) for turn in zip(*lengths, strict=True))
    assert max(map(sum, lengths)) <= len(engine.drawn) < in_step
    Slow.noted.clear()
    slow, _ = roll_out(TransformersEngine(policy, 256), Prompts(policy.chat), Slow, *asked)
    assert [t.token_ids for t in slow] == [t.token_ids for t in found]
    assert Slow.noted == (["asked"] * 10 + ["answered"] * 10) * 3


def test_a_cache_covers_only_prompts_that_go_on_from_it():
    kept = KeptRows()
    kept.add(7, KeptRow([1, 2, 3], [], NO_PREFIX))
    assert kept.covers(7, [1, 2, 3, 4])
    assert not kept.covers(7, [1, 2, 3])  # no token would be left to feed
    assert not kept.covers(7, [1, 9, 3, 4])
    assert not kept.covers(8, [1, 2, 3, 4])


def test_conversations_for_whose_caches_there_is_no_room_wait(load):
    """Little more is computed than where there is room for all: a cache is rarely dropped for another."""
    policy = load("qwen3")
    asked = (Prompts(policy.chat), partial(Echo, 8), starts(), sampling(policy.chat, 8), LIMITS, 3)
    position = TransformersEngine(policy, 1)._forward.position_bytes
    found, fed, together = [], [], []
    for tokens in (None, 400, 200, 1):
        engine = Watched(policy, 256, tokens and tokens * position)
        found.append([t.token_ids for t in roll_out(engine, *asked)[0]])
        fed.append(sum(engine.passes))
        together.append(max(engine.drawn))
    assert found[0] == found[1] == found[2] == found[3]
    assert together[0] == 10 > together[2] > together[3] == 1
    assert max(fed[1:3]) < 1.1 * fed[0]
    assert fed[3] > 2 * fed[0], "without room for one every turn computes its conversation again"


def test_a_request_can_end_its_turn_and_lower_its_cap(load):
    policy = load("qwen3")
    asked, chosen = requests(policy.chat, size=6), sampling(policy.chat)
    whole = generate(TransformersEngine(policy, 8), asked, chosen)
    long = [(r, c) for r, c in zip(asked, whole, strict=True) if len(c.token_ids) > 3]
    assert len(long) > 8
    capped = [replace(r, limit=2) for r, _ in long[::2]]
    ended = [replace(r, ends=lambda ids, wanted=c.token_ids[:3]: ids == wanted) for r, c in long[1::2]]
    found = generate(TransformersEngine(policy, 8), [*capped, *ended], chosen)
    for (_, before), now in zip([*long[::2], *long[1::2]], found, strict=True):
        many = len(now.token_ids)
        assert now.token_ids == before.token_ids[:many]
        assert now.logprobs == pytest.approx(before.logprobs[:many], abs=1e-4)
    assert {(len(c.token_ids), c.finish_reason) for c in found[: len(capped)]} == {(2, FinishReason.length)}
    assert {(len(c.token_ids), c.finish_reason) for c in found[len(capped) :]} == {(3, FinishReason.stop)}


HOW = [  # temperature, top_p, top_k, most new tokens
    {"temperature": 1.0},
    {"temperature": 0.0, "new_tokens": 5},
    {"temperature": 0.6, "top_p": 0.8},
    {"temperature": 1.3, "top_k": 4, "new_tokens": 40},
]


@pytest.mark.parametrize("full", [0.8, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_requests_that_are_sampled_differently_draw_beside_each_other_what_they_draw_alone(load, name, full):
    policy = load(name)
    asked = requests(policy.chat)
    chosen = [sampling(policy.chat, **HOW[place % 4]) for place in range(len(asked))]
    alone = [
        generate(TransformersEngine(policy, 1), [r], how)[0] for r, how in zip(asked, chosen, strict=True)
    ]
    engine, found = Watched(policy, 256, full=full), {}
    with engine.session():
        for place in range(0, len(asked), 5):
            for request, how in zip(asked[place : place + 5], chosen[place : place + 5], strict=True):
                engine.submit(request, how, keep_cache=False)
            for _ in range(2):
                found |= engine.step()
        while len(found) < len(asked):
            found |= engine.step()
    assert max(engine.drawn) > 5
    assert [found[r.conversation].token_ids for r in asked] == [c.token_ids for c in alone]
    for request, completion in zip(asked, alone, strict=True):
        assert found[request.conversation].logprobs == pytest.approx(completion.logprobs, abs=1e-4)
        assert found[request.conversation].truncated_mass == pytest.approx(
            completion.truncated_mass, abs=1e-5
        )
        assert found[request.conversation].finish_reason is completion.finish_reason
    assert len({len(c.token_ids) for c in alone}) > 5


def test_where_rows_join_at_once_none_waits_for_others_to_end(load):
    policy = load("qwen3")
    chosen = replace(sampling(policy.chat, 24), stop_ids=policy.chat.stop_ids)
    for full, expected in ((0.8, 10), (1.0, 11)):
        engine = Watched(policy, 256, full=full)
        with engine.session():
            for request in requests(policy.chat, groups=10, size=1):
                engine.submit(request, chosen, keep_cache=False)
            engine.step()
            engine.submit(Request([3, 4], 7, 5_000), chosen, keep_cache=False)
            engine.step()
        assert engine.drawn[-1] == expected
