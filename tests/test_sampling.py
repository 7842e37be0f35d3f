"""Drawing tokens: by the seed of a row, from the whole distribution or its head, or the likeliest one."""

from __future__ import annotations

import pytest
import torch

from gspo_cli.rollout.engine import generate
from gspo_cli.rollout.sampling import draw, stream, uniforms
from gspo_cli.rollout.transformers_engine import TransformersEngine
from tests.test_rollout import requests, sampling


def test_what_a_row_draws_by_depends_on_its_seed_alone():
    one, other, again = uniforms([5, 6, 5], 40, torch.device("cpu"))
    assert torch.equal(one, again)
    assert (one - other).abs().min() > 0
    assert torch.equal(uniforms([6], 10, torch.device("cpu"))[0], other[:10])
    assert 0 <= one.min() < 0.1 < 0.9 < one.max() < 1
    # stored runs go on with the same numbers
    assert stream(7, 3).tolist() == [0.8720734548204873, 0.29536538151378355, 0.4200976785072422]


def test_draws_follow_the_distribution():
    logits = torch.log(torch.tensor([[0.1, 0.0, 0.6, 0.3]]))
    uniform = (torch.arange(1000) + 0.5) / 1000
    tokens, logprobs, truncated = draw(logits.expand(1000, 4), uniform, 1.0, 0)
    assert torch.bincount(tokens, minlength=4).tolist() == [100, 0, 600, 300]
    assert logprobs[0].exp().item() == pytest.approx(0.1)
    assert truncated.max().item() < 1e-6


def test_a_token_without_probability_is_never_drawn():
    # a token has the half-open interval [sum before, sum with it): an empty one holds no number, not even 0
    halves = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).log().expand(4, 5)
    uniform = torch.tensor([0.0, 0.25, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(halves, uniform, 1.0, 0)[0].tolist() == [1, 1, 3, 3]
    left_out = torch.tensor([[0.25, 0.5, 0.25]]).log()
    assert draw(left_out, torch.zeros(1), 0.4, 0)[0].tolist() == [1]


@pytest.mark.parametrize(
    ("top_p", "top_k", "kept"), [(0.85, 0, {2, 3}), (1.0, 1, {2}), (0.6, 0, {2}), (0.01, 0, {2})]
)
def test_truncation_draws_from_the_head_and_reports_the_mass_it_left_out(top_p, top_k, kept):
    logits = torch.log(torch.tensor([[0.1, 1e-9, 0.6, 0.3]]))
    uniform = (torch.arange(1000) + 0.5) / 1000
    tokens, logprobs, truncated = draw(logits.expand(1000, 4), uniform, top_p, top_k)
    assert set(tokens.tolist()) == kept
    assert truncated[0].item() == pytest.approx(1 - sum([0.1, 0, 0.6, 0.3][t] for t in kept), abs=1e-6)
    # the whole distribution's log-probability, so that it compares with the trainer's
    assert logprobs[tokens == 2][0].exp().item() == pytest.approx(0.6)


def test_greedy_takes_the_likeliest_token(load):
    policy = load("qwen3")
    request = requests(policy.chat)[4]
    (found,) = generate(
        TransformersEngine(policy, 8), [request], sampling(policy.chat, 5, temperature=0.0), False
    )
    ids = list(request.prompt_ids)
    for token in found.token_ids:
        assert policy.causal_model(torch.tensor([ids])).logits[0, -1].argmax().item() == token
        ids.append(token)


def test_rows_that_are_sampled_in_other_ways_say_what_they_say_alone(load):
    # in the order a b b a c: together they are drawn by kind
    policy = load("qwen3")
    kinds = [
        sampling(policy.chat, 12, **settings)
        for settings in ({"temperature": 1.0}, {"temperature": 0.3}, {"top_k": 2}, {"temperature": 0.0})
    ]
    chosen = [kinds[place] for place in (0, 1, 1, 0, 2, 3)]
    asked = requests(policy.chat)[:6]
    engine, found = TransformersEngine(policy, 8), {}
    with engine.session():
        for request, how in zip(asked, chosen, strict=True):
            engine.submit(request, how, False)
        while len(found) < len(asked):
            found |= engine.step()
    for request, how in zip(asked, chosen, strict=True):
        [alone] = generate(TransformersEngine(policy, 1), [request], how, False)
        together = found[request.conversation]
        assert together.token_ids == alone.token_ids
        assert together.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
        assert together.truncated_mass == pytest.approx(alone.truncated_mass, abs=1e-5)


def test_each_answer_of_a_group_has_draws_of_its_own(load):
    policy = load("qwen3")
    found = generate(TransformersEngine(policy, 8), requests(policy.chat, 1, 8), sampling(policy.chat), False)
    assert len({tuple(completion.token_ids) for completion in found}) == 8


def test_the_mass_that_truncation_leaves_out_is_the_mean_over_the_tokens(load):
    policy = load("qwen3")
    [request] = requests(policy.chat, 1, 1)
    [found] = generate(TransformersEngine(policy, 8), [request], sampling(policy.chat, 6, top_k=3), False)
    ids = torch.tensor([request.prompt_ids + found.token_ids])
    with torch.no_grad():
        every = policy.causal_model(ids).logits[0, len(request.prompt_ids) - 1 : -1].softmax(dim=-1)
    left_out = 1 - every.topk(3).values.sum(dim=-1)
    assert len(left_out) > 1
    assert found.truncated_mass == pytest.approx(left_out.mean().item(), abs=1e-6)
