"""The claims of the guide and of the GSPO paper (arXiv 2507.18071v2), each with what was measured here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import numpy as np

from gspo_cli.compare.outcomes import Budget, column
from gspo_cli.compare.result import Arm, Claim, Contrast, Estimate, Shadow
from gspo_cli.compare.runs import StoredRun
from gspo_cli.compare.statistics import estimates, interquartile_mean
from gspo_cli.console.words import number, quantity
from gspo_cli.diagnosis.history import number_of

NOT_HERE = "not measured here"
PAPER = "GSPO paper, arXiv:2507.18071v2"
Found = Callable[[str, str], Estimate]  # (arm, outcome) -> its estimate


def claims(
    arms: Sequence[Arm],
    runs: Mapping[str, Sequence[StoredRun]],
    budget: Budget,
    value: Found,
    contrasts: Sequence[Contrast],
) -> list[Claim]:
    """The six claims, measured values in words; `value` gives an arm's estimate of an outcome."""
    names = [arm.name for arm in arms]
    everything = [run for each in runs.values() for run in each]
    return [
        Claim(
            "GSPO clips two orders of magnitude more tokens than GRPO",
            f"{PAPER}, Fig. 2",
            "clip fraction 0.15 (GSPO) and 0.0013 (GRPO)",
            each(names, "clip_token", value),
        ),
        Claim(
            "GSPO learns faster at equal compute",
            f"{PAPER}, Fig. 1",
            'curves without a number; the guide\'s "15-20%" is not in the paper',
            _speed(names, budget, value, contrasts),
        ),
        Claim(
            "On Mixture-of-Experts models GRPO needs routing replay, GSPO does not",
            f"{PAPER}, sec. 5.3",
            "no number; replay is critical for GRPO to converge",
            _replay(arms, runs, value),
        ),
        Claim(
            "About 10% of the experts of an answer change with an update",
            f"{PAPER}, sec. 5.3",
            "about 10% after one or more updates, at 48 layers",
            _experts(runs),
        ),
        Claim(
            "Training is stable on long answers",
            f"{PAPER}, sec. 5.1",
            "no number",
            _lengths(names, value),
        ),
        Claim(
            "A sequence ratio tolerates the engine's log-probabilities, so that none need recomputing",
            f"{PAPER}, sec. 5.4",
            "no number",
            _engine(everything),
        ),
    ]


def each(names: Sequence[str], outcome: str, value: Found) -> str:
    """`gspo 0.15 [0.14, 0.16]; grpo 0.0013 [...]`, or that it was not measured."""
    parts = [
        f"{name} {estimate_words(value(name, outcome))}"
        for name in names
        if value(name, outcome).value is not None
    ]
    return "; ".join(parts) or NOT_HERE


def estimate_words(estimate: Estimate) -> str:
    """A value with its interval where it has one."""
    if estimate.low is None or estimate.high is None:
        return number(estimate.value)
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def _speed(names: Sequence[str], budget: Budget, value: Found, contrasts: Sequence[Contrast]) -> str:
    scores = f"mean held-out score over {budget.iterations} iterations: {each(names, 'auc', value)}"
    if budget.threshold is None:
        return f"{scores}; no threshold: the lowest arm's score did not rise"
    steps = [
        f"{name} {number(value(name, 'steps_to_threshold').value)} iterations and "
        f"{quantity(value(name, 'tokens_to_threshold').value or 0)} tokens"
        for name in names
        if value(name, "steps_to_threshold").value is not None
    ]
    short = {name: found for name in names if (found := value(name, "steps_to_threshold")).of is not None}
    steps += [f"{name} reached by {found.n} of {found.of} runs" for name, found in short.items()]
    reached = f"to a held-out score of {budget.threshold:.3f}: {'; '.join(steps) or NOT_HERE}"
    said = [c.sentence for c in contrasts if c.outcome == "steps_to_threshold"]
    return "; ".join([scores, reached, *said])


def _replay(arms: Sequence[Arm], runs: Mapping[str, Sequence[StoredRun]], value: Found) -> str:
    moe = [arm for arm in arms if value(arm.name, "expert_change").value is not None]
    if not moe:
        return f"{NOT_HERE}: the model has no experts; use model=tiny_moe"
    parts = []
    for arm in moe:
        replay = "with" if runs[arm.name][0].algorithm["routing_replay"] else "without"
        collapses = sum(run.outcomes["collapses"] or 0 for run in arm.runs)
        parts.append(
            f"{arm.name} ({replay} replay): held-out score {estimate_words(value(arm.name, 'final_score'))}, "
            f"{collapses:.0f} collapses in {len(arm.runs)} runs"
        )
    if not any(runs[arm.name][0].algorithm["routing_replay"] for arm in moe):
        parts.append('none with replay: add "grpo algorithm.routing_replay=true"')
    return "; ".join(parts)


def _experts(runs: Mapping[str, Sequence[StoredRun]]) -> str:
    parts = []
    for name, each_run in runs.items():
        found = [column(run.metrics, "moe/experts_replaced") for run in each_run]
        means = [sum(values) / len(values) for values in found if values]
        if means:
            layers = each_run[0].config["model"]["shape"]["layers"]
            embedded = each_run[0].config["model"]["name"] == "embedded"
            where = f", at {layers} layers" if embedded else ""
            middle = float(interquartile_mean(np.array(means)))
            parts.append(f"{name} {number(middle)} of the chosen experts since the rollout{where}")
    return "; ".join(parts) or f"{NOT_HERE}: the model has no experts; use model=tiny_moe"


def _lengths(names: Sequence[str], value: Found) -> str:
    parts = []
    for name in names:
        halves = [value(name, f"ratio_{half}").value for half in ("short", "long")]
        clips = [value(name, f"clip_{half}").value for half in ("short", "long")]
        if None not in halves:
            parts.append(
                f"{name}: spread of the ratio {number(halves[1])} on the longer half of the answers and "
                f"{number(halves[0])} on the shorter, clipped tokens {number(clips[1])} and "
                f"{number(clips[0])}"
            )
    return "; ".join(parts) or NOT_HERE


def _engine(runs: Sequence[StoredRun]) -> str:
    """Only a run that takes the engine's log-probabilities as the old ones says something."""
    taken = [run for run in runs if run.config["rollout"]["old_logprobs"] != "recompute"]
    if not taken:
        return f"{NOT_HERE}: all runs recompute; use rollout.old_logprobs=engine"
    last = [number_of(run.evals[-1], "score") for run in taken]
    scores = [score for score in last if score is not None]
    mean = number(sum(scores) / len(scores)) if scores else "none"
    return f"{len(taken)} of {len(runs)} runs take the engine's; their mean final held-out score is {mean}"


def shadows(runs: Mapping[str, Sequence[StoredRun]], budget: Budget, level: float) -> list[Shadow]:
    """What other objectives would have clipped on the batches of each arm; none where a run has not measured
    it."""
    found = []
    for name, own in runs.items():
        logged = {key for run in own for record in run.metrics[:1] for key in record}
        others = sorted({key.split("/")[1] for key in logged if key.startswith("shadow/")})
        for other in others:
            metrics = (
                f"shadow/{other}/clip_token", "clip_ratio/token", f"shadow/{other}/clip_sequence",
                "clip_ratio/sequence", f"shadow/{other}/weight_correlation",
            )  # fmt: skip
            means = [[_mean(column(run.metrics[: budget.iterations], key)) for run in own] for key in metrics]
            found.append(Shadow(name, other, *estimates(means, level)))
    return found


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else float("nan")
