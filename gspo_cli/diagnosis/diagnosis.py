"""What is wrong with a run, from its metrics: all rules at once. Pure, free of torch."""

from __future__ import annotations

from collections.abc import Sequence

from gspo_cli.config.schema import RunSettings
from gspo_cli.diagnosis import answer_rules, curriculum_rules, family_rules, rules, signal_rules
from gspo_cli.diagnosis.history import Finding, History, Record, Severity

RULES = (
    rules.reward_fell,
    answer_rules.entropy_gone,
    answer_rules.length_runaway,
    answer_rules.repetition,
    answer_rules.kl_far,
    rules.not_finite,
    rules.gradient_spike,
    rules.held_out_fell,
    rules.learning_rate_zero,
    rules.zero_reward,
    rules.constant_reward,
    rules.reward_scale,
    rules.reward_outliers,
    rules.equal_groups,
    rules.clip_saturation,
    rules.noise,
    answer_rules.truncation,
    answer_rules.excluded,
    answer_rules.out_of_memory,
    rules.rolled_back,
    signal_rules.policy_still,
    signal_rules.small_spread,
    signal_rules.outlier_groups,
    signal_rules.chosen_fell,
    signal_rules.one_part,
    signal_rules.nothing_clips,
    signal_rules.one_update,
    curriculum_rules.curriculum_stuck,
    curriculum_rules.curriculum_ahead,
    curriculum_rules.long_start,
    family_rules.value_unexplained,
    family_rules.value_exploded,
    family_rules.preference_chance,
    family_rules.preference_overfit,
)
# effects of any collapse: not reported separately once a collapse has begun
CONSEQUENCES = {
    "equal_groups",
    "truncation",
    "clip_saturation",
    "held_out_fell",
    "nothing_clips",
    "policy_still",
    "value_unexplained",
    "value_exploded",
    "preference_chance",
    "preference_overfit",
}


def diagnose(config: RunSettings, metrics: Sequence[Record], evals: Sequence[Record] = ()) -> list[Finding]:
    """Findings of a run, the most severe first, then in the order in which they began. `metrics` and `evals`
    are the lines of the logs."""
    run = History(config, metrics, evals)
    if not run.records:
        found = [rules.rolled_back(run), answer_rules.out_of_memory(run)]
    else:
        found = [rule(run) for rule in RULES]
    findings = [finding for finding in found if finding is not None]
    lost = min((f.since for f in findings if f.severity is Severity.collapse), default=None)
    told = [f for f in findings if lost is None or f.rule not in CONSEQUENCES or f.since < lost]
    return sorted(told, key=lambda finding: (-finding.severity.value, finding.since))
