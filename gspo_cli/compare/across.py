"""Runs of several tasks or models: a comparison of each, and a summary across them. Pure.

Scores of different tasks are never pooled. What is averaged is one number per section, the difference in
held-out score between the same two arms, and sections count alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from gspo_cli.compare.across_sentences import counted, headline, methods, numbers_in_words, title
from gspo_cli.compare.arms import arms_of
from gspo_cli.compare.comparability import nothing_learned
from gspo_cli.compare.comparison import compare
from gspo_cli.compare.outcomes import PRIMARY, budget_of
from gspo_cli.compare.result import (
    Across,
    ArmAcross,
    Comparison,
    Contrast,
    Estimate,
    LeftOut,
    NotCompared,
    SectionResult,
    Summary,
    Verdict,
)
from gspo_cli.compare.runs import StoredRun, Subject
from gspo_cli.compare.statistics import adjusted, mean_of_sections, sign_test
from gspo_cli.compare.until_settled import Looked, fixed_seeds
from gspo_cli.config.compare_schema import CompareConfig
from gspo_cli.errors import UserError
from gspo_cli.run.identity import leaves

FEWEST = 3  # sections of an average
TUNED = ("learning_rate", "clip_range_left", "clip_range_right")  # chosen for each model or task


def compare_subjects(
    runs: Sequence[StoredRun],
    left_out: Sequence[LeftOut],
    settings: CompareConfig,
    looks: Callable[[Sequence[StoredRun], CompareConfig], Looked] = fixed_seeds,
) -> Comparison | Across:
    """`compare` for each task and model; a Comparison where only one of them can be compared. `looks` tells
    how seeds were added to the runs of each. Raises UserError as `compare` does if none can."""
    groups: dict[Subject, list[StoredRun]] = {}
    for run in sorted(runs, key=lambda each: each.subject):
        groups.setdefault(run.subject, []).append(run)
    if len(groups) < 2:
        return _looked(looks(runs, settings), left_out)
    found: dict[str, tuple[Comparison, list[StoredRun]]] = {}
    refused: list[tuple[NotCompared, list[StoredRun]]] = []
    for name, own in zip(_names(list(groups)), groups.values(), strict=True):
        try:
            found[name] = _named(_looked(looks(own, settings), []), name), own
        except UserError as error:
            refused.append((NotCompared(name, len(own), str(error)), own))
    if not found:
        raise UserError(_none([each for each, _ in refused]))
    if len(found) > 1:
        return _across(found, [each for each, _ in refused], left_out, settings)
    out = [LeftOut(run.folder, f"{each.section}: {each.reason}") for each, own in refused for run in own]
    ((alone, _),) = found.values()
    return replace(alone, left_out=sorted([*left_out, *out], key=lambda each: each.folder))


def _looked(looked: Looked, left_out: Sequence[LeftOut]) -> Comparison:
    found = compare(looked.runs, [*left_out, *looked.left_out], looked.settings, looked.added)
    return replace(found, cautions=[*found.cautions, *looked.caveats])


def _names(subjects: Sequence[Subject]) -> list[str]:
    """A name for each task and model; with the model's own name where its label is not enough."""
    short = [f"{task}, model {label}" for task, label, _ in subjects]
    return [
        name if short.count(name) == 1 else f"{name} {subject[2]}"
        for name, subject in zip(short, subjects, strict=True)
    ]


def _named(comparison: Comparison, name: str) -> Comparison:
    plain = f"{comparison.task}, model {comparison.model}"
    return replace(comparison, title=comparison.title.removesuffix(plain) + name)


def _none(refused: Sequence[NotCompared]) -> str:
    """Why nothing can be compared: of the task and model with most runs."""
    first, *others = sorted(refused, key=lambda each: -each.runs)
    more = "; ".join(f"{each.section} ({counted(each.runs, 'run')})" for each in others)
    return f"{first.section}: {first.reason}; nor can the runs of {more} be compared"


def _across(
    found: Mapping[str, tuple[Comparison, Sequence[StoredRun]]],
    refused: Sequence[NotCompared],
    left_out: Sequence[LeftOut],
    settings: CompareConfig,
) -> Across:
    results: list[SectionResult] = []
    for section, (comparison, runs) in found.items():
        idle, _ = nothing_learned(arms_of(runs, settings.algorithms), budget_of(runs, settings.threshold))
        primary = [contrast for contrast in comparison.contrasts if contrast.outcome == PRIMARY]
        results += [SectionResult(section, each, _excluded(comparison, each, idle)) for each in primary]
    own = {section: _own_settings(runs, settings) for section, (_, runs) in found.items()}
    pairs: dict[tuple[str, str], list[SectionResult]] = {}
    for result in results:
        pairs.setdefault((result.contrast.arm_name, result.contrast.baseline_name), []).append(result)
    several = [each for each in pairs.values() if len(each) > 1]
    arms = _with_verdicts([_arm(each, own, settings.level) for each in several], settings.level)
    arms = [
        replace(arm, sentence=arm.sentence or numbers_in_words(arm, _counted(each), len(each)))
        for arm, each in zip(arms, several, strict=True)
    ]
    single = [f"{arm} against {baseline}" for (arm, baseline), each in pairs.items() if len(each) == 1]
    summary = Summary(
        title=title([comparison for comparison, _ in found.values()]),
        level=settings.level,
        sections=list(found),
        headline=headline(arms, single, FEWEST, settings.level),
        arms=arms,
        results=results,
        not_compared=refused,
        left_out=left_out,
        methods=methods(settings.level, FEWEST, TUNED),
    )
    return Across(summary, [comparison for comparison, _ in found.values()])


def _excluded(comparison: Comparison, contrast: Contrast, idle: str) -> str:
    """Why a contrast is not counted across sections; empty if it is."""
    if comparison.voided:
        return f"void: {comparison.voided[0]}"
    if idle:
        return idle
    return contrast.sentence if contrast.verdict is Verdict.void else ""


def _own_settings(runs: Sequence[StoredRun], settings: CompareConfig) -> dict[str, dict[str, str]]:
    """arm -> the settings of its algorithm that are not tuned for each model or task."""
    return {
        name: {key: json.dumps(value) for key, value in leaves(own[0].algorithm).items() if key not in TUNED}
        for name, own in arms_of(runs, settings.algorithms).items()
    }


def _counted(results: Sequence[SectionResult]) -> dict[str, float]:
    """section -> difference, of the sections that count."""
    return {each.section: each.contrast.difference.value or 0.0 for each in results if not each.excluded}


def _arm(
    results: Sequence[SectionResult], own: Mapping[str, Mapping[str, Mapping[str, str]]], level: float
) -> ArmAcross:
    """One arm against its baseline over the sections that have both, without a verdict; with a sentence where
    nothing is counted."""
    contrast = results[0].contrast
    arm, baseline = contrast.arm_name, contrast.baseline_name
    values = _counted(results)
    higher, lower = (sum(sign * value > 0 for value in values.values()) for sign in (1, -1))
    differing = _differing((arm, baseline), {section: own[section] for section in values})
    found = ArmAcross(
        arm, baseline, list(values), higher, lower, None, Estimate(None), None, None, None, Verdict.void, ""
    )
    if differing:
        sentence = f"settings of the algorithms are not the same in all sections ({differing})"
        sentence = f"{sentence}; give the folders that belong together"
        return replace(found, higher=0, lower=0, sentence=sentence)
    if len(values) > 1:
        found = replace(found, p_sign=sign_test(higher, lower))
    if len(values) >= FEWEST:
        mean = mean_of_sections(list(values.values()), level)
        found = replace(found, mean=mean.mean, p=mean.p, further=mean.further)
    return found


def _differing(names: Sequence[str], own: Mapping[str, Mapping[str, Mapping[str, str]]]) -> str:
    """The settings of these arms that are not the same in all sections, as text."""
    parts = []
    for name in names:
        for key in sorted({key for section in own.values() for key in section[name]}):
            values = {section: arms[name].get(key, "not set") for section, arms in own.items()}
            if len(set(values.values())) > 1:
                listed = ", ".join(f"{value} on {section}" for section, value in values.items())
                parts.append(f"{name} algorithm.{key}: {listed}")
    return "; ".join(parts)


def _with_verdicts(arms: Sequence[ArmAcross], level: float) -> list[ArmAcross]:
    """The arms with p adjusted over them, and their verdicts."""
    tested = [each for each in arms if each.p is not None]
    p_values = adjusted([each.p for each in tested if each.p is not None])
    by_arm = {id(each): p for each, p in zip(tested, p_values, strict=True)}
    found = []
    for each in arms:
        p, value = by_arm.get(id(each)), each.mean.value or 0.0
        if p is None:
            found.append(each)
            continue
        verdict = Verdict.higher if value > 0 else Verdict.lower
        verdict = verdict if p < 1 - level else Verdict.not_distinguishable
        found.append(replace(each, p_adjusted=p, verdict=verdict))
    return found
