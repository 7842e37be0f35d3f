"""Hand-made comparisons: what the pages are shown, without any run behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gspo_cli.compare.result import (
    Arm,
    ArmCost,
    Chart,
    Claim,
    Comparison,
    Contrast,
    Costs,
    CounterfactualClipping,
    Estimate,
    LeftOut,
    OutcomeSpec,
    ProblemTest,
    RunFacts,
    Series,
    SideBySide,
    Verdict,
)

BASELINE = "grpo"
LONG = "grpo routing_replay=true clip_range_left=0.0002 clip_range_right=0.0004"
NASTY = (
    "<script>alert('x')</script> | a `b` ``` c ```` \x1b[31m red "
    "\u202e back \ud800 [l](http://x.y) & &amp; $5$ *b*"
)
OUTCOMES = (
    OutcomeSpec("final_score", "Final held-out score", "", "higher", "Greedy held-out score at the end."),
    OutcomeSpec("score_at_tokens", "Score at equal tokens", "", "higher", "Held-out score at equal tokens."),
    OutcomeSpec("auc", "Mean held-out score", "", "higher", "Area under the held-out curve over iterations."),
    OutcomeSpec("final_reward", "Training reward", "", "higher", "Mean over the last tenth of iterations."),
    OutcomeSpec(
        "steps_to_threshold", "Iterations to 0.6", "iterations", "lower", "First held-out score of 0.6."
    ),
    OutcomeSpec("tokens_to_threshold", "Tokens to 0.6", "tokens", "lower", "Sampled tokens until then."),
    OutcomeSpec("worst_drop", "Worst drop", "", "lower", "Largest fall below the running maximum."),
    OutcomeSpec("collapses", "Collapses", "", "lower", "Runs in which the policy collapsed."),
    OutcomeSpec(
        "clip_token", "Clipped tokens", "share", "none", "Share of trained tokens that were clipped."
    ),
    OutcomeSpec("clip_sequence", "Clipped answers", "share", "none", "Share of answers that were clipped."),
    OutcomeSpec(
        "expert_change", "Expert change", "share", "none", "Experts that change with one update.",
        if_missing="no run has experts",
    ),
    OutcomeSpec("wall_seconds", "Wall time", "s", "lower", "Seconds from start to end."),
)  # fmt: skip
VALUES = {
    "final_score": (0.8123, 0.0713),
    "score_at_tokens": (0.7987, 0.0644),
    "auc": (0.5831, 0.0912),
    "final_reward": (0.7712, 0.0331),
    "steps_to_threshold": (182.0, -71.0),
    "tokens_to_threshold": (1_234_567.0, -412_345.0),
    "worst_drop": (0.0412, -0.0123),
    "collapses": (0.0, 0.0),
    "clip_token": (0.1512, 0.1499),
    "clip_sequence": (0.1498, 0.1371),
    "wall_seconds": (734.0, -21.0),
}


def estimate(value: float | None, half: float, n: int = 5) -> Estimate:
    if value is None or n == 1:
        return Estimate(value, n=0 if value is None else n)
    return Estimate(value, value - half, value + half * 1.1, n)


def series(arm: str, place: int, points: int, low: float, high: float, seeds: int = 5) -> Series:
    """A curve that rises from `low` to `high`, a wave on it; with an interval where there are seeds."""
    x = [i * 10.0 for i in range(points)]
    span = max(1, points - 1)
    value = [
        low + (high - low) * (1 - math.exp(-3 * i / span)) * (1 - 0.12 * place) + 0.01 * math.sin(i + place)
        for i in range(points)
    ]
    half = [0.0 if seeds == 1 else 0.06 * abs(high - low) * (1 + math.sin(i / 5) / 3) for i in range(points)]
    none: list[float | None] = [None] * points
    lower = none if seeds == 1 else [v - h for v, h in zip(value, half, strict=True)]
    upper = none if seeds == 1 else [v + h for v, h in zip(value, half, strict=True)]
    return Series(arm, x, value, lower, upper)


def chart(key: str, title: str, y: str, arms: Sequence[str], low: float, high: float, **more: Any) -> Chart:
    points = more.pop("points", 40)
    curves = [series(arm, place, points, low, high) for place, arm in enumerate(arms)]
    return Chart(key, title, more.pop("x_label", "iterations"), y, curves, **more)


def charts(arms: Sequence[str]) -> list[Chart]:
    value, low, high = (
        [0.0, 0.11, 0.13, 0.15, 0.14],
        [0.0, 0.09, 0.1, 0.13, 0.12],
        [0.0, 0.13, 0.15, 0.2, 0.16],
    )
    x = [0.0, 10.0, 20.0, 30.0, 40.0]
    clipped = [
        Series(arm, x, *([v / 10**place for v in row] for row in (value, low, high)))
        for place, arm in enumerate(arms)
    ]
    return [
        chart("held_out", "Held-out score", "held-out score", arms, 0.12, 0.83, points=26),
        chart("reward", "Training reward", "reward", arms, 0.1, 0.79),
        Chart("clip_token", "Clipped tokens", "iterations", "share of tokens", clipped, log_y=True),
        chart("entropy", "Entropy", "nats per token", arms, 1.2, 0.31),
        chart("length", "Answer length", "tokens", arms, 31, 64, note="Cut answers count at their limit."),
        chart("score_tokens", "Held-out score over tokens", "held-out score", arms, 0.12, 0.83, points=26),
    ]


def contrast(outcome: OutcomeSpec, arm: str, place: int, seeds: int) -> Contrast:
    """Of the first arm everything is found; of the second nothing."""
    value, difference = VALUES.get(outcome.key, (None, None))
    if value is None or difference is None:
        sentence = f"{outcome.title}: not measured in these runs."
        none = Estimate(None)
        return Contrast(
            outcome.key, arm, BASELINE, none, none, none, True, None, None, Verdict.void, sentence
        )
    found, difference = place == 0 and difference != 0, difference / (1 + 3 * place)
    verdict = Verdict.not_distinguishable
    if seeds == 1:
        verdict = Verdict.void
    elif found:
        verdict = Verdict.higher if difference > 0 else Verdict.lower
    half = abs(difference) * (0.61 if found else 1.83)
    return Contrast(
        outcome.key,
        arm,
        BASELINE,
        estimate(value, abs(value) * 0.041, seeds),
        estimate(value - difference, abs(value) * 0.037, seeds),
        estimate(difference, half, seeds),
        True,
        None if seeds == 1 else 0.0123 if found else 0.437 + place / 100,
        None if seeds == 1 else 0.0271 if found else 0.511 + place / 100,
        verdict,
        f"{arm} on {outcome.title.lower()}: {verdict.value} ({seeds} seeds).",
        None if found else 12,
        abs(difference) * 1.37,
    )


def run(arm: str, seed: int) -> RunFacts:
    values = {key: None if value is None else value + seed / 100 for key, (value, _) in VALUES.items()}
    folder = f"outputs/compare/customer_service-tiny/{arm.replace(' ', ',')}/seed={seed}"
    status = "collapsed" if seed == 3 else "completed"
    return RunFacts(folder, seed, status, 500, 2_345_678 + seed, 734.2, 0.121, 0.104, values)


def conversation(answer: str, reward: float | None, **more: Any) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": "You are the shop's agent. Tools: find_order(id), refund(id)."},
        {"role": "user", "content": "Hello, my order 4711 came broken. I want my money back."},
        {"role": "assistant", "content": '<tool_call>{"name": "find_order", "id": 4711}</tool_call>'},
        {"role": "tool", "content": '{"id": 4711, "state": "delivered", "total": 31.5}'},
        {"role": "assistant", "content": answer},
    ]
    return {
        "iteration": 500,
        "problem_id": "refund-17",
        "messages": messages,
        "expected": "refund(4711)",
        "reward": reward,
        "components": {"solved": 1.0, "manner": 0.42},
        "finish_reason": "stop",
        "advantage": None,
        "excluded": None,
    } | more


def costs(arms: Sequence[str]) -> Costs:
    """The first arm has a cost per point, the others have none."""
    split = {"rollout": 0.512, "rewards": 0.021, "scoring": 0.119, "updates": 0.305, "other": 0.043}
    known = ArmCost(
        arms[0], estimate(43.2, 5.1), estimate(54_321.0, 6_789.0), estimate(123.4, 21.0), 7.31, split
    )
    none = Estimate(None)
    rest = [ArmCost(arm, none, none, none, None, dict.fromkeys(split)) for arm in arms[1:]]
    return Costs(
        "core-seconds", [known, *rest], [f"{arm} has no cost per point: one seed." for arm in arms[1:]]
    )


def talks(arms: Sequence[str]) -> list[SideBySide]:
    answers = {
        arm: conversation(f"I am sorry. {arm} refunds 31.50 now.\nAnything else?", 0.9) for arm in arms
    }
    nasty = {
        arms[0]: conversation(NASTY, None, excluded="the grader failed"),
        BASELINE: conversation("No.", 0.0),
    }
    return [SideBySide("refund-17", 0, answers), SideBySide("refund-<18>", 0, nasty)]


def shadow(arm: str, other: str) -> CounterfactualClipping:
    numbers = (0.0013, 0.1512, 0.0021, 0.1498, 0.731)
    return CounterfactualClipping(arm, other, *(estimate(value, value / 10) for value in numbers))


CLAIMS = (
    Claim(
        "GSPO clips far more tokens than GRPO, and learns more",
        "GSPO paper, Fig. 2, arXiv:2507.18071",
        "0.15 and 0.0013 of tokens",
        "gspo 0.151, grpo 0.00132",
    ),
    Claim("GSPO learns 15-20% faster", "not in the paper", "no number", "182 against 253 iterations"),
    Claim("Tolerates the engine's log-probabilities", "sec. 5.4", "no number", "not measured here"),
)
METHODS = (
    "Values of arms are interquartile means over seeds.",
    "Intervals are percentile bootstrap intervals.",
)
DIFFERENCE = {
    "key": "training.learning_rate",
    "values": {"gspo": [1e-4], "grpo": [2e-4, 1e-4]},
    "allowed": False,
}


def comparison(arms: Sequence[str] = ("gspo", BASELINE), seeds: int = 5, **changes: Any) -> Comparison:
    """Everything a report can hold; `changes` replace fields."""
    others = [arm for arm in arms if arm != BASELINE]
    first = contrast(OUTCOMES[0], others[0], 0, seeds)
    fields: dict[str, Any] = {
        "title": f"{' and '.join(arms)} on customer_service",
        "task": "customer_service",
        "model": "tiny",
        "baseline": BASELINE,
        "level": 0.95,
        "headline": [
            f"{first.arm_name} ends higher than {BASELINE} on held-out problems, by 0.0713 [0.0278, 0.119] "
            f"({seeds} seeds, p = 0.0123).",
            "It reaches a score of 0.6 after 182 iterations, 71 fewer than grpo.",
        ],
        "voided": [],
        "cautions": [],
        "arms": [
            Arm(
                arm,
                f"{arm.split()[0]}: min(ratio A, clip(ratio) A), mean over answers",
                [f"algorithm={arm.split()[0]}"],
                [run(arm, seed) for seed in range(seeds)],
            )
            for arm in arms
        ],
        "left_out": [LeftOut("outputs/broken", "metrics.jsonl cannot be read from line 12 on.")],
        "outcomes": OUTCOMES,
        "contrasts": [
            contrast(outcome, arm, place, seeds) for outcome in OUTCOMES for place, arm in enumerate(others)
        ],
        "problem_tests": [
            ProblemTest(
                arm, BASELINE, 200, 141.2, 21.4, 7.1, 30.3, estimate(0.0715, 0.031), 0.0042, "About problems."
            )
            for arm in others
        ],
        "charts": charts(arms),
        "shadows": [shadow(arms[0], "grpo"), shadow(BASELINE, "gspo")],
        "claims": CLAIMS,
        "talks": talks(arms),
        "differences": [],
        "reproduce": ["gspo-train -m algorithm=gspo,grpo seed=0,1,2,3,4 task=customer_service model=tiny"],
        "methods": METHODS,
        "costs": costs(arms),
    }
    return Comparison(**fields | changes)
