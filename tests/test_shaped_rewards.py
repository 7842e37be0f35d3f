"""The soft penalty of long answers (DAPO), and parts of a reward that are normalized by themselves (GDPO)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gspo_cli.algorithm.advantages import group_advantages, length_penalty, part_advantages
from gspo_cli.config.formulas import advantage_formula
from gspo_cli.errors import UserError
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.training.credit import informative, trainable, with_advantages
from gspo_cli.types import FinishReason, Problem, RewardResult, Trajectory
from tests.support.configs import assert_refused
from tests.support.whole_runs import dotted, run

EXACT = 1e-12
LIMIT = 20


def answer(length, reward=1.0, turns=1, components=None, reason=FinishReason.stop):
    """An answer whose first turn has `length` tokens, and others of one token after a token of a user."""
    ids = [turn for turn in range(turns) for _ in ([0] * length if turn == 0 else [0])]
    ids = [-1, *ids[:length], *(part for turn in ids[length:] for part in (-1, turn))]
    mask = [turn >= 0 for turn in ids]
    return Trajectory(
        Problem("p", ()), list(range(len(ids))), mask, [0.0] * len(ids), ids, [], reason,
        turn_rewards=[0.0] * (turns - 1) + [reward], reward=reward, components=components or {},
    )  # fmt: skip


def advantages(groups, algorithm, limit=LIMIT):
    samples = with_advantages(trainable(groups, algorithm), groups, algorithm, limit)
    return np.array([sample.advantages for sample in samples])


@pytest.mark.parametrize("limit", [1, 2, 5, 32, 20480])
@pytest.mark.parametrize("buffer", [0.2, 0.5, 1.0])
def test_the_penalty_is_the_published_one_at_any_length(limit, buffer):
    # DAPO, Eq. 13: 0 to L_max - L_cache, ((L_max - L_cache) - |y|) / L_cache within, -1 from L_max on
    cache = buffer * limit
    for length in {0, 1, limit // 2, limit - 1, limit, limit + 3}:
        before = limit - cache
        published = 0.0 if length <= before else (before - length) / cache if length <= limit else -1.0
        found = -length_penalty(torch.tensor([length]), limit, buffer).item()
        assert found == pytest.approx(published, abs=1e-9)
    assert length_penalty(torch.tensor(limit), limit, buffer) == 1


def test_long_answers_lose_against_short_ones_of_the_same_reward(configure):
    algorithm = configure("algorithm=dapo", "algorithm.overlong_buffer=0.5")[0].algorithm
    group = [answer(4), answer(10), answer(15), answer(20)]
    shaped = torch.tensor([[1.0, 1.0, 0.5, 0.0]])
    expected = group_advantages(shaped, torch.ones(1, 4, dtype=torch.bool))[0]
    np.testing.assert_allclose(advantages([group], algorithm)[:, 0], expected, atol=EXACT)
    # twice the penalty, half the limit
    algorithm = configure("algorithm=dapo", "algorithm.overlong_penalty=2", "algorithm.advantage_scale=none")[
        0
    ].algorithm
    found = advantages([group], algorithm, 10)[:, 0]
    np.testing.assert_allclose(found, [1.5, -0.5, -0.5, -0.5], atol=EXACT)


def test_of_several_turns_the_longest_counts(configure):
    algorithm = configure("algorithm=dapo", "algorithm.overlong_buffer=0.5")[0].algorithm
    # 12 and 4 tokens in all, but no turn of the first is longer than the second's
    many, one = answer(4, turns=9), answer(4)
    assert many.num_actions == 12
    assert advantages([[many, one]], algorithm, 8)[:, 0].tolist() == [0, 0]


def test_only_what_was_cut_pays_for_it_and_beta_weighs_the_divergence(configure):
    group = [answer(4), answer(LIMIT, reason=FinishReason.length)]
    settings = ("algorithm=gspo", "algorithm.advantage_scale=none")
    penalised = *settings, "algorithm.truncated_completions=penalise", "algorithm.truncation_penalty=0.6"
    assert advantages([group], configure(*penalised)[0].algorithm)[:, 0] == pytest.approx([0.3, -0.3])
    kl = *settings, "algorithm.beta=0.1", "algorithm.kl_estimator=k1"
    algorithm = configure(*kl)[0].algorithm
    samples = with_advantages(trainable([group], algorithm), [group], algorithm, LIMIT, [3.0, 1.0])
    assert [sample.advantages for sample in samples] == [[pytest.approx(-0.1)], [pytest.approx(0.1)]]


def test_a_cut_answer_is_not_trained_and_its_penalized_reward_stays_in_the_baseline(configure):
    algorithm = configure("algorithm=dapo")[0].algorithm
    group = [answer(4), answer(LIMIT, reason=FinishReason.length)]
    samples = with_advantages(trainable([group], algorithm), [group], algorithm, LIMIT)
    assert [sample.num_actions for sample in samples] == [4, 0]
    assert samples[0].advantages == [pytest.approx(0.5**0.5)]


def test_dynamic_sampling_asks_what_is_right_and_not_how_long_it_is(configure):
    algorithm = configure("algorithm=dapo")[0].algorithm
    assert informative([[answer(4), answer(LIMIT)]], algorithm) == [False]
    assert informative([[answer(4), answer(4, reward=0.0)]], algorithm) == [True]


def test_with_credit_by_turn_the_penalty_belongs_to_the_last_turn(configure):
    algorithm = configure(
        "algorithm=grpo", "algorithm.credit=turn", "algorithm.overlong_buffer=0.5",
        "algorithm.advantage_scale=none",
    )[0].algorithm  # fmt: skip
    long, short = answer(8, turns=2), answer(2, turns=2)
    groups = [[long, short]]
    found = [s.advantages for s in with_advantages(trainable(groups, algorithm), groups, algorithm, 8)]
    last = [values[-1] for values in found]
    assert last == [pytest.approx(-0.5), pytest.approx(0.5)]


class Constant(RewardFunction):
    """Gives every answer the same reward."""

    async def compute_reward(self, trajectory, turn, context):
        return RewardResult(0.5, {})


def test_a_run_is_penalized_by_the_limit_of_its_iteration(configure, tmp_path, reporter):
    # under a curriculum the limit is 1 token at first, which every answer reaches
    configured = configure(
        "algorithm=dapo", "algorithm.dynamic_sampling=false", "algorithm.truncated_completions=keep",
        "algorithm.overlong_buffer=1", "training.length_curriculum_start=1",
        "training.length_curriculum_iterations=2", "rollout.max_completion_length=8", dotted(Constant),
    )  # fmt: skip
    _, folder = run(configured, tmp_path, reporter)
    first, second = folder.read("metrics.jsonl")
    assert first["completions/overlong"] == 1
    # 1 + (8 - 1) / 2 rounds to 4: the penalty of an answer is its length / 4
    assert second["completions/overlong"] == pytest.approx(second["completions/mean_length"] / 4, abs=1e-9)
    assert first["grad_norm"] == 0  # all pay the same
    assert first["reward"] == 0.5  # what is logged is the reward of the task


# ---- parts


@pytest.mark.parametrize("seed", range(40))
def test_parts_are_normalized_in_their_groups_and_their_sum_over_all(seed):
    # GDPO, arXiv 2601.05242: sum_k (r_k - mean_k) / std_k, then (A - mean) / std over the batch
    random = np.random.default_rng(seed)
    parts = random.normal(size=(3, 4, 5)) * np.array([1.0, 1e-2, 30.0])[:, None, None]
    parts[1, 2] = 0.3  # a part that is equal in a group adds nothing to it
    total = np.zeros((4, 5))
    for part in parts:
        spread = part.std(axis=1, ddof=1, keepdims=True)
        centered = part - part.mean(axis=1, keepdims=True)
        total += np.divide(centered, spread, out=np.zeros_like(centered), where=spread > 1e-9)
    expected = (total - total.mean()) / total.std(ddof=1)
    found = part_advantages(torch.tensor(parts), torch.ones(4, 5, dtype=torch.bool))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=EXACT)


def test_a_floor_holds_for_each_part_of_a_group():
    # deviations of 1 and of 0.01 over a floor of 0.1: the second part counts a tenth
    part = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    small = torch.tensor([[0.03, 0.01, 0.02]], dtype=torch.float64)
    valid = torch.ones(1, 3, dtype=torch.bool)
    found = part_advantages(torch.stack([part, small]), valid, std_floor=0.1)[0]
    total = np.array([-1 + 0.1, 0 - 0.1, 1 + 0])
    np.testing.assert_allclose(found, total / total.std(ddof=1), atol=EXACT)
    without = part_advantages(torch.stack([part, small]), valid)[0]
    np.testing.assert_allclose(without, [0, -1, 1], atol=EXACT)


def test_an_answer_that_was_not_scored_is_no_part_of_anything():
    parts, valid = torch.rand(2, 3, 4, dtype=torch.float64), torch.ones(3, 4, dtype=torch.bool)
    valid[1, 2] = False
    found = part_advantages(parts, valid)
    parts[:, 1, 2] = 1e6
    assert torch.equal(part_advantages(parts, valid), found)
    assert found[1, 2] == 0
    assert found.sum().item() == pytest.approx(0, abs=EXACT)


def test_a_part_of_small_spread_counts_like_the_others(configure):
    algorithm = configure("algorithm=grpo", "algorithm.advantage_parts=each")[0].algorithm
    kinds = [(1.0, 0.01), (1.0, 0.02), (0.0, 0.01), (0.0, 0.02)]
    group = [
        answer(4, components={"right": right, "short": short, "right/detail": 7.0 * i})
        for i, (right, short) in enumerate(kinds)
    ]
    found = advantages([group], algorithm)[:, 0]
    one = 1.5**0.5
    np.testing.assert_allclose(found, [0, one, -one, 0], atol=EXACT)


def test_a_reward_of_one_part_has_nothing_to_normalize_apart(configure):
    algorithm = configure("algorithm=grpo", "algorithm.advantage_parts=each")[0].algorithm
    group = [answer(4, components={"right": 1.0, "right/detail": 1.0})] * 2
    with pytest.raises(UserError, match=r"advantage_parts=each: the reward has 1 part.* use a reward of"):
        advantages([group], algorithm)


def test_the_card_says_how_a_reward_is_shaped(configure):
    dapo = configure("algorithm=dapo")[0].algorithm
    assert "r - 1 [0 to 1 over the last 0.2 of the length] - mean" in advantage_formula(dapo)
    parts = configure("algorithm=grpo", "algorithm.advantage_parts=each")[0].algorithm
    assert "A_k = (r_k - mean) / std of the group" in advantage_formula(parts)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["algorithm.overlong_buffer=1.5"], r"algorithm\.overlong_buffer=1\.5: must be between 0 and 1"),
        (
            ["algorithm.overlong_penalty=2"],
            r"only applies with a buffer; use algorithm\.overlong_buffer",
        ),
        (["algorithm=dapo", "algorithm.overlong_penalty=0"], r"overlong_penalty=0\.0: must be above 0"),
        (
            ["algorithm=dapo", "algorithm.truncated_completions=penalise"],
            r"completions=mask or keep",
        ),
        (["algorithm=dapo", "algorithm.advantage_parts=each"], r"use algorithm\.dynamic_sampling=false"),
        (
            ["algorithm=rloo", "algorithm.advantage_parts=each"],
            r"use algorithm\.advantage_baseline=gr",
        ),
        (
            ["algorithm.advantage_parts=each", "algorithm.beta=0.1", "algorithm.kl_estimator=k1"],
            r"use algorithm\.kl_estimator=k3",
        ),
    ],
)
def test_what_has_no_meaning_together_is_refused_in_one_sentence(configure, overrides, sentence):
    assert_refused(configure, overrides, sentence)
