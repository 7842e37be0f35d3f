"""`compare`: from runs to all that a report says. Pure: the same runs give an equal Comparison, in whatever
order they are given."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from gspo_cli.compare.claims import claims, shadows
from gspo_cli.compare.contrasts import arm_estimates, contrasts
from gspo_cli.compare.curves import charts
from gspo_cli.compare.naming import arms_of, baseline_of, objective, overrides
from gspo_cli.compare.outcomes import Budget, budget_of, measure, outcomes, resolutions
from gspo_cli.compare.pairing import cautions, differences, nothing_learned, refuse_one_update, why_void
from gspo_cli.compare.problems import last_heldout, problem_tests
from gspo_cli.compare.result import (
    Arm,
    Comparison,
    Estimate,
    LeftOut,
    RunFacts,
    Talk,
)
from gspo_cli.compare.runs import StoredRun
from gspo_cli.compare.wording import headline, methods
from gspo_cli.config.compare_schema import CompareConfig
from gspo_cli.diagnosis.history import number_of
from gspo_cli.errors import UserError

TALKS = 3  # problems of which both conversations are shown
Runs = Mapping[str, Sequence[StoredRun]]  # by arm


def compare(runs: Sequence[StoredRun], left_out: Sequence[LeftOut], settings: CompareConfig) -> Comparison:
    """What the arms of `runs` differ in. Raises UserError where there are fewer than two arms, a run made
    one update per rollout, or a setting of the comparison does not fit."""
    refuse_one_update(runs)
    arms = arms_of(runs, settings.algorithms)
    if len(arms) < 2:
        raise UserError(_too_few(arms, left_out))
    baseline, level = baseline_of(arms, settings.baseline), settings.level
    arms = {name: arms[name] for name in (*(name for name in arms if name != baseline), baseline)}
    budget = budget_of(runs, settings.threshold)
    listed = outcomes(budget)
    tables = {name: {run.seed: measure(run, budget) for run in own} for name, own in arms.items()}
    differing = differences(arms, settings.allow)
    idle, why_idle = nothing_learned(arms, budget)
    voided = why_void(arms, differing, budget)
    resolution = resolutions(max(_problems(run) for run in runs))
    found = contrasts(tables, baseline, listed, resolution, level, bool(voided))
    facts = [_arm(name, own, tables[name]) for name, own in arms.items()]
    middle = arm_estimates(tables, listed, level)

    def value(name: str, outcome: str) -> Estimate:
        return middle[name][outcome]

    task, model, _ = min(run.subject for run in runs)
    return Comparison(
        title=f"{_and(list(arms))} on {task}, model {model}",
        task=task,
        model=model,
        baseline=baseline,
        level=level,
        headline=headline(facts, found, listed, budget, voided, value, idle),
        voided=voided,
        cautions=[*([why_idle] if idle else []), *cautions(arms, budget)],
        arms=facts,
        left_out=sorted(left_out, key=lambda each: each.folder),
        outcomes=listed,
        contrasts=found,
        problem_tests=problem_tests(arms, baseline, budget.iterations, level, bool(voided)),
        charts=charts(arms, budget, level),
        shadows=shadows(arms, budget, level),
        claims=claims(facts, arms, budget, value, found),
        talks=talks(arms, budget),
        differences=differing,
        reproduce=reproduce(arms, facts, settings),
        methods=methods(budget, level, settings.threshold),
    )


def _too_few(arms: Runs, left_out: Sequence[LeftOut]) -> str:
    how = "run another, e.g. gspo-train -m algorithm=gspo,grpo seed=0,1,2"
    if arms:
        return f"all runs are of {next(iter(arms))}, and there is nothing to compare it with; {how}"
    reasons = f" ({left_out[0].folder}: {left_out[0].reason})" if left_out else ""
    return f"no run can be compared{reasons}; {how}"


def _problems(run: StoredRun) -> float:
    return number_of(run.evals[0], "num_problems") or 1.0


def _arm(name: str, runs: Sequence[StoredRun], table: Mapping[int, Mapping[str, float | None]]) -> Arm:
    given = overrides(runs[0]) or [f"algorithm={runs[0].algorithm['name']}"]
    facts = [
        RunFacts(
            folder=run.folder,
            seed=run.seed,
            status=run.status,
            iterations=run.iterations,
            num_tokens=int(number_of(run.metrics[-1], "num_tokens") or 0),
            wall_seconds=number_of(run.summary, "wall_seconds"),
            initial_score=number_of(run.evals[0], "score") if run.evals[0]["iteration"] == 0 else None,
            first_reward=number_of(run.metrics[0], "reward"),
            outcomes=table[run.seed],
        )
        for run in runs
    ]
    return Arm(name, objective(runs[0]), given, facts)


def talks(arms: Runs, budget: Budget) -> list[Talk]:
    """Conversations on the same held-out problems after training, of the lowest seed that all arms have:
    first problems that not all arms solved alike."""
    by_seed = [{run.seed: run for run in runs} for runs in arms.values()]
    shared = sorted(set.intersection(*(set(each) for each in by_seed)))
    if not shared:
        return []
    answers = {}
    for name, each in zip(arms, by_seed, strict=True):
        line = last_heldout(each[shared[0]], budget.iterations)
        told = line["conversations"] if line else []
        answers[name] = {conversation["problem_id"]: conversation for conversation in told}
    ids = [problem for problem in next(iter(answers.values())) if all(problem in a for a in answers.values())]
    alike = {problem: len({answers[name][problem]["reward"] for name in answers}) == 1 for problem in ids}
    chosen = sorted(ids, key=lambda problem: alike[problem])[:TALKS]
    return [
        Talk(problem, shared[0], {name: answers[name][problem] for name in answers}) for problem in chosen
    ]


def reproduce(arms: Runs, facts: Sequence[Arm], settings: CompareConfig) -> list[str]:
    """Commands: the comparison again, then every arm. A saved config.yaml makes a run again where its options
    are not installed here."""
    folders = sorted({run.folder for runs in arms.values() for run in runs})
    options = [f"compare.level={settings.level:g}"] if settings.level != CompareConfig.level else []
    if settings.threshold is not None:
        options.append(f"compare.threshold={settings.threshold:g}")
    if settings.allow:
        options.append(f"compare.allow=[{','.join(settings.allow)}]")
    commands = [shlex.join(["gspo-compare", *folders, *options])]
    for arm in facts:
        first = arms[arm.name][0]
        if overrides(first) is None:
            again = shlex.quote(f"{first.folder}-again")
            saved = shlex.quote(f"{first.folder}/config.yaml")
            commands.append(f"mkdir {again} && cp {saved} {again}/ && gspo-train resume={again}")
        else:
            seeds = ",".join(map(str, arm.seeds))
            multirun = "-m " if len(arm.seeds) > 1 else ""
            commands.append(f"gspo-train {multirun}{' '.join(arm.overrides)} seed={seeds}")
    return commands


def _and(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"
