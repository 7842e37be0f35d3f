"""The policy that does not move, rewards that hardly differ, and spread that comes from one part alone."""

from __future__ import annotations

import pytest

from gspo_cli.config.choices import Credit
from gspo_cli.diagnosis.diagnosis import diagnose
from gspo_cli.diagnosis.history import Severity
from gspo_cli.errors import UserError
from gspo_cli.training.credit import hardly_differ, outlier_groups, trainable, with_advantages
from gspo_cli.training.metrics import rollout_metrics, spread_metrics
from gspo_cli.training.monitor import Monitor
from gspo_cli.types import FinishReason, Problem, Trajectory
from tests.support.diagnosed_runs import line, only, run_of, settings

# SmolLM2-135M with LoRA of rank 8 at the learning rate of full training, as it was measured
LORA = (
    "model.use_lora=true",
    "model.lora_r=8",
    "algorithm.learning_rate=1e-5",
    "training.generations_per_iteration=32",
)
MEASURED = {
    "ratio__std": 0.002,
    "clip_ratio__token": 0.15,
    "clip_ratio__sequence": 0.15,
    "learning_rate": 1e-5,
    "completions__mean_length": 13.0,
    "reward_std": 0.1,
    "solved": 0.05,
    "reward": lambda i: 0.02 + 0.01 * i,  # 0.03 to 0.07
}


def found(config, lines, evals=()):
    return [finding.rule for finding in diagnose(config, lines, evals)]


def test_lora_at_the_rate_of_full_training_does_not_move_and_the_finding_names_a_rate():
    finding = only(diagnose(settings(*LORA), run_of(5, **MEASURED)))
    assert (finding.rule, finding.severity, finding.since) == ("policy_still", Severity.warning, 1)
    assert "the policy does not move: the ratio deviates by 0.002" in finding.what
    assert finding.settings == ("algorithm.learning_rate=0.0003",)
    assert "use algorithm.learning_rate=0.0003: LoRA takes 10 to 50 times" in finding.fix


def test_the_monitor_reports_it_once_during_the_run():
    monitor = Monitor(settings(*LORA))
    news = [[f.rule for f in monitor.look(record)] for record in run_of(9, **MEASURED)]
    assert news == [[], [], [], [], ["policy_still"], [], [], [], []]


def test_without_lora_three_times_the_rate_and_only_where_nothing_is_clipped():
    full = settings("model.use_lora=false", *LORA[2:])
    assert found(full, run_of(5, **MEASURED)) == [], "a narrow band that clips is a policy that moves"
    clipped = {**MEASURED, "clip_ratio__token": 0.0, "clip_ratio__sequence": 0.0}
    finding = only(diagnose(full, run_of(5, **clipped)))
    assert (finding.rule, finding.settings) == ("policy_still", ("algorithm.learning_rate=3e-05",))


def test_a_rate_that_is_high_already_is_not_multiplied_by_30():
    high = settings(*LORA[:2], "algorithm.learning_rate=1e-4", LORA[3])
    finding = only(diagnose(high, run_of(5, **{**MEASURED, "learning_rate": 1e-4})))
    assert finding.settings == ("algorithm.learning_rate=0.001",)


@pytest.mark.parametrize(
    "changed",
    [
        {"reward": lambda i: 0.1 * i},  # learns
        {"ratio__std": 0.02},  # moves
        {"frac_reward_zero_std": 1.0, "solved": 0.95, "reward": 0.95},  # solved
        {"solved": 0.95, "reward": 0.95},
        {"learning_rate": 0.0},
        {"learning_rate": 1e-6},  # warm-up, or the end of a schedule
        {"grad_norm": 0.0},
        {"ratio__std": None},
    ],
)
def test_a_run_that_learns_or_cannot_learn_is_not_called_still(changed):
    assert "policy_still" not in found(settings(*LORA), run_of(8, **{**MEASURED, **changed}))


def test_the_first_iterations_are_too_few():
    assert found(settings(*LORA), run_of(4, **MEASURED)) == []


def test_one_update_leaves_the_ratio_at_1_whatever_the_policy_does():
    once = settings(*LORA, "training.updates_per_rollout=1")
    assert found(once, run_of(6, **{**MEASURED, "ratio__std": 0.0, "updates": 1})) == ["one_update"]


def test_the_ratio_of_a_sequence_is_held_against_its_length():
    """0.002 in the mean of 13 tokens is 0.007 a token; of 100 tokens it is 0.02."""
    assert found(settings(*LORA), run_of(6, **{**MEASURED, "completions__mean_length": 100.0})) == []
    grpo = settings(*LORA, "algorithm=grpo")
    tokens = {**MEASURED, "completions__mean_length": 100.0, "clip_ratio__token": 0.0}
    assert found(grpo, run_of(6, **tokens)) == ["policy_still"]


def evals(first, last, kl):
    return [
        {"iteration": 0, "score": first, "num_problems": 100, "kl": 0.0},
        {"iteration": 5, "score": last, "num_problems": 100, "kl": kl},
    ]


def test_a_held_out_score_that_rises_or_a_kl_that_grows_is_a_policy_that_moves():
    config, lines = settings(*LORA), run_of(6, **MEASURED)
    assert found(config, lines, evals(0.28, 0.29, 1e-4)) == ["policy_still"]
    assert found(config, lines, evals(0.28, 0.72, 1e-4)) == []
    assert found(config, lines, evals(0.28, 0.29, 0.05)) == []
    finding = only(diagnose(config, lines, evals(0.28, 0.29, 1e-4)))
    assert "the KL to the model before training is 1e-4" in finding.what


def test_a_floor_or_another_scale_answers_small_differences():
    small = run_of(3, frac_reward_small_std=0.4)
    assert found(settings(), small) == ["small_spread"]
    for other in ("algorithm.advantage_std_floor=0.05", "algorithm.advantage_scale=batch_std"):
        assert found(settings(other), small) == []


def test_small_differences_count_among_the_groups_that_teach():
    few = {"frac_reward_small_std": 0.05}
    assert found(settings(), run_of(3, **few)) == []
    assert found(settings(), run_of(3, **few, frac_reward_zero_std=0.8)) == ["small_spread"]


def spread(**shares):
    """Lines of a run whose parts explain the spread as given; `a__b` is the part a/b."""
    return run_of(6, **{f"rewards__{name}__spread": value for name, value in shares.items()})


@pytest.mark.parametrize(
    ("shares", "part"),
    [
        ({"standing": 0.0, "standing__outcome": 0.0, "manner": 1.0, "manner__length": 0.99}, "manner"),
        ({"exact": 0.0, "format": 1.0}, "format"),
        (
            {"standing": 1.0, "standing__outcome": 0.0, "standing__policy": 1.0, "manner": 0.1},
            "standing/policy",
        ),
        # the outcome
        ({"standing": 0.99, "standing__outcome": 0.97, "standing__facts": 0.9, "manner": 0.8}, None),
        ({"outcome": 1.0, "facts": 0.0, "policy": 0.0}, None),
        # several parts, or one alone
        ({"exact": 0.6, "format": 0.96}, None),
        ({"exact": 0.5, "format": 0.5}, None),
        ({"exact": 1.0}, None),
    ],
)
def test_the_part_that_all_spread_comes_from(shares, part):
    findings = diagnose(settings(), spread(**shares))
    assert [f.rule for f in findings] == ["one_part"] * (part is not None)
    assert part is None or f"all spread comes from {part}:" in findings[0].what


def test_a_part_that_follows_what_is_solved_is_the_outcome():
    solved = [{**record, "solved_spread": 0.9} for record in spread(answer=1.0, format=0.0)]
    assert found(settings(), solved) == []


def test_a_part_is_found_where_it_lasts():
    assert found(settings(), [*run_of(4), *spread(answer=0.0, format=1.0)[4:]]) == []


# The metrics that these rules read


def answers(*rewards, solved=(), turn_rewards=None, **components):
    """A group of answers with these rewards and parts."""
    group = [
        Trajectory(
            *(Problem("p", ()), [1, 2], [False, True], [0.0] * 2, [-1, 0], [], FinishReason.stop),
            turn_rewards=[reward] if turn_rewards is None else list(turn_rewards[i]),
            reward=reward,
            components={name: values[i] for name, values in components.items()},
        )
        for i, reward in enumerate(rewards)
    ]
    for trajectory, value in zip(group, solved, strict=False):
        trajectory.solved = value
    return group


def test_each_part_explains_its_squared_correlation_within_groups():
    # group 1: only b varies; group 2: a and b vary alike. Distances from the means:
    # r -.1 .1 | -.6 .6, a 0 0 | -.5 .5, b -1 1 | -1 1
    first = answers(0.1, 0.3, a=[0.0, 0.0], b=[0.0, 2.0])
    second = answers(0.2, 1.4, a=[0.0, 1.0], b=[0.0, 2.0], solved=[False, True])
    shares = spread_metrics([first, second])
    squares = 2 * 0.1**2 + 2 * 0.6**2
    assert shares["rewards/a/spread"] == pytest.approx((2 * 0.6 * 0.5) ** 2 / (squares * 2 * 0.5**2))
    assert shares["rewards/b/spread"] == pytest.approx((2 * 0.1 + 2 * 0.6) ** 2 / (squares * 4))
    assert shares["solved_spread"] == pytest.approx(shares["rewards/a/spread"])


def test_a_part_that_differs_between_groups_only_explains_nothing_and_equal_rewards_have_no_spread():
    groups = [answers(0.1, 0.2, a=[1.0, 1.0], b=[0.1, 0.2]), answers(0.5, 0.6, a=[9.0, 9.0], b=[0.5, 0.6])]
    assert spread_metrics(groups) == {
        "solved_spread": 0.0,
        "rewards/a/spread": 0.0,
        "rewards/b/spread": pytest.approx(1.0),
    }
    assert spread_metrics([answers(0.3, 0.3, a=[0.0, 1.0])]) == {}


def test_an_iterations_line_holds_the_spread_and_excluded_answers_do_not_count():
    group = answers(0.1, 0.3, 9.0, b=[0.0, 2.0, 0.0])
    group[2].reward, group[2].excluded = None, "failed"
    metrics = rollout_metrics(group, 3)
    assert metrics["rewards/b/spread"] == pytest.approx(1.0)
    assert "rewards/b/spread" not in rollout_metrics(answers(0.1, 0.1, b=[0.0, 1.0]), 2)


def test_groups_hardly_differ_below_a_deviation_of_2_percent():
    algorithm = settings().algorithm
    # 0.073 to 0.080: deviation 0.005; equal; 0.01 either side of the mean: 0.014; 0 and 1
    groups = [answers(0.073, 0.080), answers(0.5, 0.5), answers(0.49, 0.51), answers(0.0, 1.0)]
    assert hardly_differ(groups, algorithm) == [True, False, True, False]
    assert hardly_differ([answers(0.48, 0.52)], algorithm) == [False]  # 0.028


def test_one_reward_can_flatten_the_rest_of_its_group():
    algorithm = settings().algorithm
    groups = [
        answers(0.1, 0.5, 0.9, 1e6),  # the others differ, and get advantages of -0.5 each
        answers(0.1, 0.5, 0.9, -1e6),
        answers(0.0, 0.0, 0.0, 1.0),  # one of four solved: the others are equal
        answers(0.1, 0.5, 0.9, 1.0),
        answers(0.1, 0.1, 0.1, 0.1),
    ]
    assert outlier_groups(groups, algorithm) == [True, True, False, False, False]
    assert outlier_groups([answers(0.1, 1e6)], algorithm) == [False]


def test_with_credit_by_turn_a_group_hardly_differs_if_it_does_at_no_turn():
    algorithm = settings("algorithm=gspo_token", "algorithm.credit=turn").algorithm
    assert algorithm.credit is Credit.turn
    opposite = answers(0.5, 0.5, turn_rewards=[(0.5, 0.0), (0.0, 0.5)])
    close = answers(0.50, 0.51, turn_rewards=[(0.25, 0.25), (0.25, 0.26)])
    assert hardly_differ([opposite, close], algorithm) == [False, True]


@pytest.mark.parametrize("credit", [(), ("algorithm=gspo_token", "algorithm.credit=turn")])
def test_the_floor_of_the_settings_divides_whole_answers_and_turns(credit):
    # deviation 0.01 / sqrt(2): without a floor the advantages are -0.707 and 0.707
    groups = [answers(0.5, 0.51)]
    for floor, largest in (("0", 0.5**0.5), ("0.05", 0.1)):
        algorithm = settings(*credit, f"algorithm.advantage_std_floor={floor}").algorithm
        found = with_advantages(trainable(groups, algorithm), groups, algorithm, limit=32)
        assert [s.advantages[-1] for s in found] == pytest.approx([-largest, largest])


def test_a_floor_where_nothing_divides_is_refused():
    with pytest.raises(
        UserError, match=r"algorithm\.advantage_std_floor=0\.05: only applies where something divides"
    ):
        settings("algorithm=dr_grpo", "algorithm.advantage_std_floor=0.05")
    with pytest.raises(UserError, match="must be 0 or more"):
        settings("algorithm.advantage_std_floor=-1")


def test_a_line_of_a_run_without_these_metrics_is_read_as_before():
    assert diagnose(settings(), [line(i) for i in range(1, 9)]) == []
