"""Group advantages: GSPO paper, Eq. 6, and the groups that must not teach anything."""

from __future__ import annotations

import pytest
import torch

from gspo_cli.algorithm.advantages import (
    deviations,
    group_advantages,
    has_spread,
    rewards_to_go,
    turn_advantages,
)
from gspo_cli.config.choices import AdvantageBaseline, AdvantageScale


def advantages(rewards, valid=None, **settings):
    rewards = torch.tensor(rewards)
    valid = torch.ones_like(rewards, dtype=torch.bool) if valid is None else torch.tensor(valid)
    return group_advantages(rewards, valid, **settings)


def test_advantages_are_centred_and_divided_by_the_sample_deviation():
    # mean 2, sample deviation sqrt((1 + 0 + 1) / 2) = 1
    assert advantages([[1.0, 2.0, 3.0]]).tolist() == [[-1.0, 0.0, 1.0]]


def test_a_group_of_two_is_one_over_root_two():
    assert advantages([[0.0, 1.0]])[0, 1].item() == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("scale", list(AdvantageScale))
def test_a_constant_group_gets_exactly_zero_even_with_rounding(scale):
    # 0.1 + 0.2 - 0.2 leaves a residue of one bit; dividing by its deviation would give advantages near 1
    residue = [[0.1, 0.1 + 1e-8, 0.1, 0.1], [0.0, 1.0, 1.0, 0.0]]
    result = advantages(residue, scale=scale)
    assert result[0].tolist() == [0.0] * 4
    assert result[1].abs().min() > 0


def test_a_group_of_one_gets_zero_not_its_reward():
    assert advantages([[3.0]]).tolist() == [[0.0]]


def test_excluded_answers_leave_the_baseline():
    result = advantages([[1.0, 3.0, float("nan")]], [[True, True, False]])
    assert result[0].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5, 0.0])
    assert advantages([[1.0, float("nan")]], [[True, False]]).tolist() == [[0.0, 0.0]]
    assert advantages([[float("nan")] * 2], [[False] * 2]).tolist() == [[0.0, 0.0]]


def test_without_scale_the_reward_is_only_centred():
    assert advantages([[0.0, 4.0]], scale=AdvantageScale.none).tolist() == [[-2.0, 2.0]]


def test_batch_scale_divides_all_groups_by_one_number():
    result = advantages([[0.0, 1.0], [0.0, 3.0]], scale=AdvantageScale.batch_std)
    spread = torch.tensor([0.0, 1.0, 0.0, 3.0]).std().item()
    assert result[:, 1].tolist() == pytest.approx([0.5 / spread, 1.5 / spread])


def test_leave_one_out_subtracts_the_mean_of_the_others():
    settings = {"baseline": AdvantageBaseline.leave_one_out, "scale": AdvantageScale.none}
    assert advantages([[1.0, 2.0, 6.0]], **settings).tolist() == [[-3.0, -1.5, 4.5]]


def test_the_deviation_that_divides_is_at_least_the_floor():
    # deviations sqrt(((0.01)^2 + 0 + (0.01)^2) / 2) = 0.01, and 1
    close, far = [0.07, 0.08, 0.09], [1.0, 2.0, 3.0]
    assert advantages([close, far], std_floor=0.05)[1].tolist() == [-1.0, 0.0, 1.0]
    assert advantages([close, far], std_floor=0.05)[0].tolist() == pytest.approx([-0.2, 0.0, 0.2], abs=1e-6)
    assert advantages([close], std_floor=0.0)[0].tolist() == pytest.approx([-1.0, 0.0, 1.0], abs=1e-5)
    assert advantages([[0.3] * 3], std_floor=0.05).tolist() == [[0.0] * 3]
    excluded = advantages([[*close, float("nan")]], [[True] * 3 + [False]], std_floor=0.05)
    assert excluded[0].tolist() == pytest.approx([-0.2, 0.0, 0.2, 0.0], abs=1e-6)


def test_the_floor_holds_for_the_batch_and_leaves_an_unscaled_reward_alone():
    # all four rewards: mean 0.015, deviation sqrt((2 * 0.015^2 + 2 * 0.005^2) / 3)
    rewards = [[0.0, 0.01], [0.02, 0.03]]
    assert torch.tensor(rewards).std().item() == pytest.approx((0.0005 / 3) ** 0.5)
    found = advantages(rewards, scale=AdvantageScale.batch_std, std_floor=0.1)
    assert found[:, 1].tolist() == pytest.approx([0.05, 0.05], rel=1e-5)
    assert advantages(rewards, scale=AdvantageScale.none, std_floor=0.1)[0, 1].item() == pytest.approx(0.005)


def test_the_floor_holds_for_each_turn():
    to_go = torch.tensor([[[3.0, 0.01], [1.0, 0.03]]], dtype=torch.float64)
    taken = torch.ones_like(to_go, dtype=torch.bool)
    scaled = (AdvantageBaseline.group_mean, AdvantageScale.group_std)
    # turn 0: 1 / sqrt(2); turn 1: half of 0.02 over the floor
    expected = [0.5**0.5, -0.1, -(0.5**0.5), 0.1]
    assert turn_advantages(to_go, taken, *scaled, 0.1).flatten().tolist() == pytest.approx(expected)


def test_deviations_are_the_samples_and_look_at_valid_answers_only():
    rewards = torch.tensor([[1.0, 3.0, float("nan")], [5.0, 1.0, 1.0]])
    valid = torch.tensor([[True, True, False], [True, False, False]])
    assert deviations(rewards, valid).tolist() == [2**0.5, 0.0]


def test_spread_looks_at_valid_answers_only():
    rewards = torch.tensor([[1.0, 1.0, 9.0]])
    assert not has_spread(rewards, torch.tensor([[True, True, False]])).item()
    assert has_spread(rewards, torch.tensor([[True, True, True]])).item()


def test_what_counts_as_equal_is_relative_to_the_size_of_rewards():
    # a millionth of the largest, but of 1 where all are smaller
    def differ(low, high):
        rewards = torch.tensor([[low, high]], dtype=torch.float64)
        return has_spread(rewards, torch.ones_like(rewards, dtype=torch.bool)).item()

    assert [differ(1e6, 1e6 + 0.5), differ(1e6, 1e6 + 2), differ(-1e6, -1e6 + 0.5)] == [False, True, False]
    assert [differ(0, 0.5e-6), differ(0, 2e-6), differ(1e-9, 2e-9)] == [False, True, False]
    huge = advantages([[1e6, 1e6 + 0.5], [1e6, 1e6 + 2]])
    assert huge[0].tolist() == [0, 0]
    assert huge[1, 1].item() == pytest.approx(0.5**0.5)


def test_reward_to_go_sums_what_is_still_to_come():
    earned = torch.tensor([[[1.0, 2.0, 4.0]]])
    assert rewards_to_go(earned, 1.0).tolist() == [[[7.0, 6.0, 4.0]]]
    # 1 + (2 + 4/2)/2, 2 + 4/2, 4
    assert rewards_to_go(earned, 0.5).tolist() == [[[3.0, 4.0, 4.0]]]
    assert earned.tolist() == [[[1.0, 2.0, 4.0]]]


def test_turns_are_compared_with_turns_of_the_same_number():
    to_go = torch.tensor([[[3.0, 1.0, 5.0], [1.0, 1.0, 0.0]]])
    taken = torch.tensor([[[True, True, True], [True, True, False]]])
    judged = (AdvantageBaseline.group_mean, AdvantageScale.none)
    # turn 0: 3 and 1 around 2; turn 1: equal; turn 2: one answer alone
    assert turn_advantages(to_go, taken, *judged).tolist() == [[[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]]


@pytest.mark.parametrize("scale", AdvantageScale)
@pytest.mark.parametrize("baseline", AdvantageBaseline)
def test_one_turn_has_the_advantage_of_its_conversation(baseline, scale):
    rewards = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)).double()
    valid = torch.ones(5, 4, dtype=torch.bool)
    valid[2, 1] = False
    whole = group_advantages(rewards, valid, baseline, scale)
    turns = turn_advantages(rewards[:, :, None], valid[:, :, None], baseline, scale)
    assert torch.equal(turns[:, :, 0], whole)
