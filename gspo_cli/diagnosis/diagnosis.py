"""What is wrong with a run, from its own numbers: all rules at once. Pure, free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gspo_cli.config.compose import explain, literal, load_saved
from gspo_cli.config.schema import RunConfig
from gspo_cli.diagnosis import answer_rules, rules
from gspo_cli.diagnosis.history import Finding, History, Record, Severity
from gspo_cli.errors import UserError

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
    rules.equal_groups,
    rules.clip_saturation,
    rules.noise,
    answer_rules.truncation,
    answer_rules.excluded,
    answer_rules.out_of_memory,
    rules.rolled_back,
    rules.nothing_clips,
    rules.one_update,
)
# what a collapsed policy shows in any case: no causes of their own where a collapse came first
CONSEQUENCES = {"equal_groups", "truncation", "clip_saturation", "held_out_fell", "nothing_clips"}


def settings_of(config: Path) -> dict[str, Any]:
    """The resolved configuration in a run's config.yaml, its groups checked and completed from the schema (an
    older run lacks newer keys). Raises UserError where it is none."""
    saved = OmegaConf.to_container(load_saved(config), resolve=True)
    groups = {name: kind for name, kind in get_type_hints(RunConfig).items() if is_dataclass(kind)}
    known = saved if isinstance(saved, dict) else {}
    lacking = [name for name in (*groups, "task") if not isinstance(known.get(name), dict)]
    if lacking:
        raise UserError(f"{config}: has no settings of {lacking[0]}; give the run folder of a gspo-train")
    for name, kind in groups.items():
        try:
            checked = OmegaConf.merge(OmegaConf.structured(kind), literal(saved[name]))
            OmegaConf.to_object(checked)  # runs the checks of ranges
        except OmegaConfBaseException as error:
            raise UserError(f"{config}: {name}: {explain(error)}") from error
        saved[name] = OmegaConf.to_container(checked, resolve=True, enum_to_str=True)
    return saved


def diagnose(
    config: Mapping[str, Any], metrics: Sequence[Record], evals: Sequence[Record] = ()
) -> list[Finding]:
    """Findings of a run, the gravest first, then in the order in which they began.

    `config` is the resolved configuration as in config.yaml, `metrics` and `evals` the lines of the logs.
    Raises UserError where `config` is not that of a run."""
    run = History(config, metrics, evals)
    if not run.records:
        found = [rules.rolled_back(run), answer_rules.out_of_memory(run)]
    else:
        found = [rule(run) for rule in RULES]
    findings = [finding for finding in found if finding is not None]
    lost = min((f.since for f in findings if f.severity is Severity.collapse), default=None)
    told = [f for f in findings if lost is None or f.rule not in CONSEQUENCES or f.since < lost]
    return sorted(told, key=lambda finding: (-finding.severity.value, finding.since))
