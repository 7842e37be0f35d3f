"""`compare`: from runs to the content of a report. Pure: the same runs in any order give an equal
Comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gspo_cli.compare.arms import arms_of, baseline_of, objective, overrides, reproduce
from gspo_cli.compare.comparability import (
    caveats,
    differences,
    nothing_learned,
    refuse_one_update,
    why_void,
)
from gspo_cli.compare.contrasts import arm_estimates, contrasts, measured, problem_tests
from gspo_cli.compare.costs import costs_of
from gspo_cli.compare.curves import charts
from gspo_cli.compare.outcomes import (
    PRIMARY,
    Budget,
    budget_of,
    counterfactuals,
    measure,
    outcomes,
    resolutions,
)
from gspo_cli.compare.result import Arm, Comparison, LeftOut, RunFacts, SideBySide
from gspo_cli.compare.runs import StoredRun
from gspo_cli.compare.sentences import claims, headline, methods
from gspo_cli.compare.sequential import Added, design_of
from gspo_cli.compare.settling import design_methods, how_settled, more_of
from gspo_cli.config.compare_schema import CompareConfig
from gspo_cli.diagnosis.history import number_of
from gspo_cli.errors import UserError

SHOWN = 3  # problems whose conversations are shown side by side
Runs = Mapping[str, Sequence[StoredRun]]  # by arm


def compare(
    runs: Sequence[StoredRun],
    left_out: Sequence[LeftOut],
    settings: CompareConfig,
    added: Added | None = None,
) -> Comparison:
    """How the arms of `runs` differ; `added` where seeds were added until that was settled. Raises UserError
    if there are fewer than two arms, a run made one update per rollout, or a setting of the comparison does
    not fit."""
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
    uninformative, why = nothing_learned(arms, budget)
    voided = why_void(arms, differing, budget)
    resolution = resolutions(runs, budget)
    values = {name: measured(table, PRIMARY) for name, table in tables.items()}
    step = resolution[PRIMARY]
    design = design_of(values, baseline, added, level, settings.smallest, step) if added else None
    compared = contrasts(tables, baseline, listed, resolution, level, bool(voided), design=design)
    taken = replace(added, looks=design.seeds) if added and design else None
    more = more_of(compared, values, runs, settings, taken, step)
    settling = "" if voided else how_settled(design, more, settings)
    facts = [_arm(name, own, tables[name]) for name, own in arms.items()]
    estimates = arm_estimates(tables, listed, level)
    task, model, _ = min(run.subject for run in runs)
    return Comparison(
        title=f"{_and(list(arms))} on {task}, model {model}",
        task=task,
        model=model,
        baseline=baseline,
        level=level,
        headline=headline(facts, compared, listed, budget, voided, estimates, uninformative, settling),
        voided=voided,
        cautions=[*([why] if uninformative else []), *caveats(arms, budget)],
        arms=facts,
        left_out=sorted(left_out, key=lambda each: each.folder),
        outcomes=listed,
        contrasts=compared,
        problem_tests=problem_tests(arms, baseline, budget.iterations, level, bool(voided)),
        charts=charts(arms, budget, level),
        shadows=counterfactuals(arms, budget, level),
        claims=claims(facts, arms, budget, estimates, compared),
        talks=side_by_side(arms, budget),
        differences=differing,
        reproduce=reproduce(arms, settings),
        methods=[*methods(budget, level, settings.threshold), *design_methods(design, level)],
        design=design,
        more=more,
        costs=costs_of(arms, budget, level, resolution[PRIMARY]),
    )


def _too_few(arms: Runs, left_out: Sequence[LeftOut]) -> str:
    how = "run another, e.g. gspo-train -m algorithm=gspo,grpo seed=0,1,2"
    if arms:
        name, own = next(iter(arms.items()))
        return f"all runs are of {name}: there is nothing to compare it with; {_the_other(own) or how}"
    reasons = f" ({left_out[0].folder}: {left_out[0].reason})" if left_out else ""
    return f"no run can be compared{reasons}; {how}"


def _the_other(runs: Sequence[StoredRun]) -> str:
    """How to run another algorithm with the settings and seeds of `runs`; empty if this installation lacks
    their options."""
    given = overrides(runs[0])
    if given is None:
        return ""
    shared = [text for text in given if not text.lstrip("+'").startswith(("algorithm=", "algorithm."))]
    other = "gspo" if runs[0].algorithm["name"] == "grpo" else "grpo"
    seeds = sorted(run.seed for run in runs)
    multirun = "-m " if len(seeds) > 1 else ""
    settings = " ".join([*shared, f"algorithm={other}", f"seed={','.join(map(str, seeds))}"])
    return f"run another with the same settings: gspo-train {multirun}{settings}"


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


def side_by_side(arms: Runs, budget: Budget) -> list[SideBySide]:
    """Conversations on the same held-out problems after training, with the lowest seed that all arms have.
    Problems on which the arms differ come first."""
    by_seed = [{run.seed: run for run in runs} for runs in arms.values()]
    shared = sorted(set.intersection(*(set(each) for each in by_seed)))
    if not shared:
        return []
    answers = {}
    for name, each in zip(arms, by_seed, strict=True):
        line = each[shared[0]].last_heldout(budget.iterations)
        conversations = line["conversations"] if line else []
        answers[name] = {conversation["problem_id"]: conversation for conversation in conversations}
    ids = [problem for problem in next(iter(answers.values())) if all(problem in a for a in answers.values())]
    alike = {problem: len({own[problem]["reward"] for own in answers.values()}) == 1 for problem in ids}
    chosen = sorted(ids, key=lambda problem: alike[problem])[:SHOWN]
    return [
        SideBySide(problem, shared[0], {name: own[problem] for name, own in answers.items()})
        for problem in chosen
    ]


def _and(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"
